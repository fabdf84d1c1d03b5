"""Dropout whose rate may be traced, so that one compiled program can sweep over it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Rate = float | int | Float[Array, ""]
"""A probability of dropping: a Python number, or an array inside a vmapped sweep."""


def check_rate(rate: Rate) -> None:
    if isinstance(rate, (float, int)) and not 0 <= rate < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, received {rate}")


class Dropout(nn.Module):
    """Sets entries to 0 with probability `rate`, scales the rest by 1 / (1 - rate); in training only."""

    rate: Rate

    def __post_init__(self):
        check_rate(self.rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "..."], train: bool) -> Float[Array, "..."]:
        if not train or (isinstance(self.rate, (float, int)) and self.rate == 0):
            return x
        kept = 1 - self.rate
        return jnp.where(jax.random.bernoulli(self.make_rng("dropout"), kept, x.shape), x / kept, 0)
