"""The U-Net (Ronneberger et al. 2015) in the form of Ho et al. 2020: residual blocks, optionally conditioned."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from lmlab.layers.attention import MultiHeadAttention
from lmlab.layers.convolution import HE, conv, from_patches, to_patches, upsample, with_channels
from lmlab.layers.dropout import Dropout, Rate, check_rate
from lmlab.layers.linear import Dense
from lmlab.layers.normalization import GROUP, group_norm


class ResidualBlock(nn.Module):
    """x + W2 * silu(norm(h) (1 + a) + b), h = W1 * silu(norm(x)); (a, b) a linear map of the condition.

    Without a condition a = b = 0 (Dhariwal and Nichol 2021, eq. 6, is the form with one).
    """

    features: int
    dropout: Rate = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], condition: Float[Array, "B E"] | None, train: bool
    ) -> Float[Array, "B H W F"]:
        h = group_norm()(conv(self.features)(nn.silu(group_norm()(x))))
        if condition is not None:
            both = Dense(2 * self.features)(nn.silu(condition))[:, None, None]
            scale, shift = jnp.split(both, 2, axis=-1)
            h = h * (1 + scale) + shift
        h = Dropout(self.dropout)(nn.silu(h), train)
        h = conv(self.features, kernel_init=nn.initializers.zeros)(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, kernel_init=nn.initializers.lecun_normal())(x)
        return x + h


class UNet(nn.Module):
    """Down through the resolutions, up again, each block on the way up seeing its partner on the way down.

    features: channels at each resolution, multiples of 8; the resolution is halved between them. blocks:
    residual blocks at each, down and up. attention: heads of self attention at the lowest; 0: none. patch:
    squares of so many pixels are one position of the first resolution. The last layer begins as `last_init`.
    """

    channels: int
    features: tuple[int, ...] = (32, 64, 64)
    blocks: int = 1
    attention: int = 0
    patch: int = 1
    dropout: Rate = 0.0
    last_init: Callable = HE

    def __post_init__(self):
        if not self.features or any(width < 1 or width % GROUP for width in self.features):
            raise ValueError(f"features must be multiples of {GROUP}, received {tuple(self.features)}")
        for name in ("channels", "blocks", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        if self.attention < 0 or (self.attention and self.features[-1] % self.attention):
            raise ValueError(
                f"attention: received {self.attention} heads; allowed: 0, or a divisor of {self.features[-1]}"
            )
        check_rate(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "B H W *C"],
        condition: Float[Array, "B E"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B H W K"]:
        unit = self.patch * 2 ** (len(self.features) - 1)
        x = with_channels(image)
        if x.shape[1] % unit or x.shape[2] % unit:
            raise ValueError(
                f"images must be a multiple of {unit} high and wide, received {x.shape[1]} x {x.shape[2]}"
            )

        def block(x, width):
            return ResidualBlock(width, self.dropout)(x, condition, train)

        x = conv(self.features[0])(to_patches(x, self.patch))
        kept = []
        for level, width in enumerate(self.features):
            if level:
                x = conv(width, stride=2)(x)
            for _ in range(self.blocks):
                x = block(x, width)
                kept.append(x)
        if self.attention:
            x = self._attend(x, train)
        x = block(x, self.features[-1])
        for level, width in reversed(list(enumerate(self.features))):
            for _ in range(self.blocks):
                x = block(jnp.concatenate([x, kept.pop()], axis=-1), width)
            if level:
                x = conv(self.features[level - 1])(upsample(x))
        x = conv(self.channels * self.patch**2, kernel_init=self.last_init)(nn.silu(group_norm()(x)))
        return from_patches(x, self.patch)

    def _attend(self, x, train):
        batch, high, wide, width = x.shape
        tokens = group_norm()(x).reshape(batch, high * wide, width)
        y, _ = MultiHeadAttention(width, self.attention)(tokens, train=train)
        return x + y.reshape(x.shape)
