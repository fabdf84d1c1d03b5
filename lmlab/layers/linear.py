"""Products with weights: `matmul` and `einsum`, which alone know about precision, and layers on them.

Precision is JAX's own setting, `jax_default_matmul_precision`. Under "bfloat16" the operands of a
product, forward and backward, are rounded to bfloat16, and sums stay float32; so do results, but on a GPU,
where those that are activations are rounded as well, as by PyTorch's autocast: half as much is written and
read. Under any other value the product is plain. Parameters and their gradients are float32.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int

from lmlab.layers import tricks


def compute_dtype():
    """The type in which the operands of a product meet: bfloat16 or float32."""
    return jnp.bfloat16 if jax.config.jax_default_matmul_precision == "bfloat16" else jnp.float32


def _activation_dtype():
    """The type in which a product of bfloat16 leaves the chip."""
    return jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32


def einsum(
    spec: str, x: Float[Array, "..."], y: Float[Array, "..."], weights: bool = False
) -> Float[Array, "..."]:
    """`jnp.einsum` of two arrays at the set precision; `spec` sums no axis of one array alone.

    weights: y is a parameter, whose gradient stays float32.
    """
    if compute_dtype() == jnp.bfloat16:
        return _rounded_einsum(spec, weights, x.astype(jnp.float32), y.astype(jnp.float32))
    return jnp.einsum(spec, x, y)


def gradient_einsum(spec: str, x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """`einsum` for the gradient of a parameter, which a GPU does not round either. It has no gradient itself."""
    if compute_dtype() == jnp.bfloat16:
        return _product(spec, x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), jnp.float32)
    return jnp.einsum(spec, x, y)


def matmul(x: Float[Array, "... D"], w: Float[Array, "D F"]) -> Float[Array, "... F"]:
    """x @ w, where a weight meets an activation."""
    # Two-dimensional operands: the transposes of the backward pass then cost no copy on a CPU.
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return einsum("nd,df->nf", rows, w, weights=True).reshape(*x.shape[:-1], w.shape[-1])


# Autodiff alone would multiply a float32 cotangent with a bfloat16 operand, which no tensor core
# takes, and then round the gradient to bfloat16: hence a rule of our own.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rounded_einsum(spec, weights, x, y):
    return _forward(spec, weights, x, y)[0]


def _forward(spec, weights, x, y):
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    return _product(spec, x, y, _activation_dtype()), (x, y)


def _backward(spec, weights, operands, cotangent):
    x, y = operands
    inputs, out = spec.split("->")
    first, second = inputs.split(",")
    cotangent, dtype = cotangent.astype(jnp.bfloat16), _activation_dtype()
    to_first = _contract(f"{out},{second}->{first}", cotangent, y, dtype)
    return to_first, _contract(f"{first},{out}->{second}", x, cotangent, jnp.float32 if weights else dtype)


def _product(spec, x, y, dtype):
    """The einsum of bfloat16 arrays with float32 sums, which leave the chip as `dtype`."""
    return jnp.einsum(spec, x, y, preferred_element_type=dtype).astype(jnp.float32)


def _contract(spec, x, y, dtype):
    """`_product` of a backward pass, in the order that the CPU has a kernel for."""
    inputs, out = spec.split("->")
    first, second = inputs.split(",")
    if not (tricks.uses("turned_operand") and first[:-1] == second[:-1] and first[-2] not in out):
        return _product(spec, x, y, dtype)
    # x^T y: XLA's fast kernels on a CPU want the axis that is summed to lie innermost in the first operand,
    # so the narrower of the two is turned in memory, and made the first.
    if x.shape[-1] > y.shape[-1]:
        x, y, first, second = y, x, second, first
    turned = with_layout_constraint(x.swapaxes(-1, -2), Layout(tuple(range(x.ndim))))
    # The barrier: a transpose that follows would be folded in, and the choice undone.
    product = lax.optimization_barrier(jnp.matmul(turned, y, preferred_element_type=jnp.float32))
    return product if out[-2] == first[-1] else product.swapaxes(-1, -2)


_rounded_einsum.defvjp(_forward, _backward)


class Rows(NamedTuple):
    """Rows of a table that are not fetched yet: a map of a short table is cheaper than of its many rows."""

    table: Float[Array, "V D"]
    indices: Int[Array, "..."]

    def fetch(self) -> Float[Array, "... D"]:
        # A number past the table gives NaN (the mode of `take`), which stops a run, not a wrong row.
        return jnp.take(self.table, self.indices, axis=0)


class Dense(nn.Module):
    """y = x W + b over the last axis. `axes`: the logical names of W's two axes."""

    features: int
    use_bias: bool = True
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "... D"] | Rows) -> Float[Array, "... F"]:
        if isinstance(x, Rows):
            return Rows(self._map(x.table), x.indices).fetch()
        return self._map(x)

    def _map(self, x):
        init = nn.with_logical_partitioning(self.kernel_init, self.axes)
        y = matmul(x, self.param("kernel", init, (x.shape[-1], self.features)))
        if self.use_bias:
            init = nn.with_logical_partitioning(self.bias_init, self.axes[1:])
            bias = self.param("bias", init, (self.features,))
            y = y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
        return y


class Embed(nn.Module):
    """A row of the table for each number; `attend` is the product with the same table, for tied outputs."""

    num_embeddings: int
    features: int
    axes: tuple[str | None, str | None] = ("vocab", "embed")
    embedding_init: Callable = nn.initializers.normal(0.02)

    def setup(self):
        init = nn.with_logical_partitioning(self.embedding_init, self.axes)
        self.embedding = self.param("embedding", init, (self.num_embeddings, self.features))

    def __call__(self, tokens: Int[Array, "..."]) -> Float[Array, "... D"]:
        return Rows(self.embedding, tokens).fetch()

    def rows(self, tokens: Int[Array, "..."]) -> Float[Array, "... D"] | Rows:
        """The same for a linear map to follow, which may map the table in their stead."""
        rows = Rows(self.embedding, tokens)
        return rows if tricks.uses("table_rows") and self.num_embeddings < tokens.size else rows.fetch()

    def attend(self, x: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Logits x E^T."""
        return matmul(x, self.embedding.T)
