"""Convolutions over images (B, H, W, C), and going between resolutions.

Kernels are (height, width, in, out), as Flax's. On a CPU a convolution is made of ones of stride 1 (the trick
`kernel_gradient`): XLA runs the gradient of a kernel, inside a loop, sixty times slower than a product.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lmlab.layers import tricks
from lmlab.layers.linear import einsum, matmul

AXES = (None, None, "embed", "mlp")
ORDER = ("NHWC", "HWIO", "NHWC")
HE = nn.initializers.he_normal()
THIN = 8
"""Below so many channels the gradient of a kernel is made of products."""


class Conv(nn.Module):
    """y = x * W + b with a square kernel: the resolution over the stride, or times the stride if `transpose`."""

    features: int
    size: int = 3
    stride: int = 1
    transpose: bool = False
    use_bias: bool = True
    kernel_init: Callable = HE

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w F"]:
        init = nn.with_logical_partitioning(self.kernel_init, AXES)
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.features))
        y = (transposed if self.transpose else convolved)(x, kernel, self.stride)
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, AXES[3:])
            y = y + self.param("bias", init, (self.features,))[None, None, None]
        return y


def conv(
    features: int,
    size: int = 3,
    stride: int = 1,
    *,
    use_bias: bool = True,
    kernel_init: Callable = HE,
    name: str | None = None,
) -> Conv:
    """A convolution; a stride of s divides the resolution by s, rounded up."""
    return Conv(features, size, stride, False, use_bias, kernel_init, name=name)


def conv_transpose(
    features: int,
    size: int = 4,
    stride: int = 2,
    *,
    use_bias: bool = True,
    kernel_init: Callable = HE,
    name: str | None = None,
) -> Conv:
    """A transposed convolution: the resolution times the stride."""
    return Conv(features, size, stride, True, use_bias, kernel_init, name=name)


def convolved(x: Float[Array, "B H W C"], w: Float[Array, "K K C F"], stride: int) -> Float[Array, "B h w F"]:
    """The convolution with zeros round the image ("SAME")."""
    if not tricks.uses("kernel_gradient"):
        return lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=ORDER)
    size, blocks = len(w), -(-len(w) // stride)
    if size == 1:
        return matmul(x[:, ::stride, ::stride], w[0, 0])
    # A window is `blocks` squares of `stride` pixels wide, and begins with a square.
    around = []
    for length in x.shape[1:3]:
        windows = -(-length // stride)
        before = max((windows - 1) * stride + size - length, 0) // 2
        around.append((before, (windows - 1 + blocks) * stride - length - before))
    x = jnp.pad(x, [(0, 0), *around, (0, 0)])
    return _valid(to_patches(x, stride), _in_blocks(w, stride).reshape(blocks, blocks, -1, w.shape[-1]))


def transposed(
    x: Float[Array, "B H W C"], w: Float[Array, "K K C F"], stride: int
) -> Float[Array, "B h w F"]:
    """The convolution of x with stride - 1 zeros between its pixels, as in Flax: `stride` times as high and wide."""
    if not tricks.uses("kernel_gradient"):
        return lax.conv_transpose(x, w, (stride, stride), "SAME", dimension_numbers=ORDER)
    size, blocks = len(w), -(-len(w) // stride)
    high, wide = (length * stride for length in x.shape[1:3])
    # A pixel of x becomes blocks x blocks squares of stride x stride: the channels of a convolution's output.
    kernel = _in_blocks(w[::-1, ::-1], stride)[::-1, ::-1].transpose(0, 1, 4, 2, 3, 5)
    x = jnp.pad(x, [(0, 0), (blocks - 1,) * 2, (blocks - 1,) * 2, (0, 0)])
    y = from_patches(_valid(x, kernel.reshape(*kernel.shape[:3], -1)), stride)
    first = max(size - stride, 0) // 2
    return y[:, first : first + high, first : first + wide]


def _in_blocks(w, stride: int):
    """(K, K, C, F) as squares of stride x stride, zeros after the last: (k, k, stride, stride, C, F)."""
    blocks = -(-len(w) // stride)
    after = (0, blocks * stride - len(w))
    w = jnp.pad(w, [after, after, (0, 0), (0, 0)])
    return w.reshape(blocks, stride, blocks, stride, *w.shape[2:]).swapaxes(1, 2)


@jax.custom_vjp
def _valid(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=ORDER)


def _forward(x, w):
    return _valid(x, w), (x, w)


def _backward(operands, cotangent):
    x, w = operands
    high, wide = w.shape[:2]
    around = [(0, 0), (high - 1,) * 2, (wide - 1,) * 2, (0, 0)]
    to_x = _valid(jnp.pad(cotangent, around), w[::-1, ::-1].swapaxes(2, 3))
    return to_x, (_by_products if x.shape[-1] < THIN else _by_convolution)(x, cotangent, high, wide)


def _by_convolution(x, cotangent, high, wide):
    """The gradient of a kernel: x's channels as a batch, convolved with the cotangent as kernels, summed over B.

    Transposed here and not by `dimension_numbers`, of which XLA has no fast kernel inside a loop.
    """
    y = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3), (1, 1), "VALID", dimension_numbers=ORDER
    )
    return y.transpose(1, 2, 0, 3)


def _by_products(x, cotangent, high, wide):
    """The same by a product for each of the kernel's places."""
    _, rows, columns, features = cotangent.shape
    flat = cotangent.reshape(-1, features)

    def shifted(i, j):
        return x[:, i : i + rows, j : j + columns].reshape(-1, x.shape[-1])

    places = [[einsum("nc,nf->cf", shifted(i, j), flat) for j in range(wide)] for i in range(high)]
    return jnp.stack([jnp.stack(row) for row in places])


_valid.defvjp(_forward, _backward)


def mean_pool(x: Float[Array, "B H W C"], size: int = 2) -> Float[Array, "B h w C"]:
    """The mean of each square of size x size pixels; what is left over at the end is cut."""
    batch, high, wide, channels = x.shape
    x = x[:, : high // size * size, : wide // size * size]
    return x.reshape(batch, high // size, size, wide // size, size, channels).mean((2, 4))


def with_channels(image: Float[Array, "B H W *C"]) -> Float[Array, "B H W C"]:
    """Grey images (B, H, W) as (B, H, W, 1); others as they are."""
    return image[..., None] if image.ndim == 3 else image


def upsample(x: Float[Array, "B H W C"], factor: int = 2) -> Float[Array, "B fH fW C"]:
    """Each pixel `factor` times in both directions."""
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


def to_patches(x: Float[Array, "B H W C"], size: int) -> Float[Array, "B h w D"]:
    """Squares of size x size pixels as the channels of one: D = size size C, h = H / size."""
    batch, high, wide, channels = x.shape
    x = x.reshape(batch, high // size, size, wide // size, size, channels).swapaxes(2, 3)
    return x.reshape(batch, high // size, wide // size, size * size * channels)


def from_patches(x: Float[Array, "B h w D"], size: int) -> Float[Array, "B H W C"]:
    """The inverse of `to_patches`."""
    batch, high, wide, depth = x.shape
    x = x.reshape(batch, high, wide, size, size, depth // size**2).swapaxes(2, 3)
    return x.reshape(batch, high * size, wide * size, depth // size**2)
