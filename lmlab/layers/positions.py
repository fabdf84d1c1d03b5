"""Where a token stands: sinusoids and learned vectors."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lmlab.layers.linear import Embed


def sinusoidal(positions: Int[Array, "*T"], features: int) -> Float[Array, "*T D"]:
    """PE(p, 2i) = sin(p / 10000^(2i/D)), PE(p, 2i+1) = cos(p / 10000^(2i/D)).

    Vaswani et al. 2017, section 3.5; p: `positions`, D: `features`.
    """
    if features < 1:
        raise ValueError(f"features must be at least 1, received {features}")
    even = jnp.arange(0, features, 2)
    angles = jnp.multiply.outer(positions, 10000.0 ** (-even / features))
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(*positions.shape, 2 * len(even))[..., :features]


class LearnedPositions(nn.Module):
    """A trained vector for each of `context` positions."""

    context: int
    features: int
    embedding_init: Callable = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, positions: Int[Array, "*T"]) -> Float[Array, "*T D"]:
        axes = (None, "embed")
        return Embed(self.context, self.features, axes, self.embedding_init, name="table")(positions)
