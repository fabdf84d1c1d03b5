"""Dropout whose rate may be traced, so that one compiled program can sweep over it.

What is dropped is decided by a hash of each entry's number and the key. JAX's own generator would take
longer than the layer on a CPU, and its bits would be written to memory and read again; a hash is made where
it is used.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Key, UInt32

Rate = float | int | Float[Array, ""]
"""A probability of dropping: a Python number, or an array inside a vmapped sweep."""


def check_rate(rate: Rate) -> None:
    if isinstance(rate, (float, int)) and not 0 <= rate < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, received {rate}")


def is_zero(rate: Rate) -> bool:
    """Whether it is known while tracing that nothing is dropped."""
    return isinstance(rate, (float, int)) and rate == 0


class Dropout(nn.Module):
    """Sets entries to 0 with probability `rate`, scales the rest by 1 / (1 - rate); in training only.

    shared: axes along which one decision holds, such as time (Gal and Ghahramani 2016).
    """

    rate: Rate
    shared: tuple[int, ...] = ()

    def __post_init__(self):
        check_rate(self.rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "..."], train: bool) -> Float[Array, "..."]:
        if not train or is_zero(self.rate):
            return x
        # Rounded alike for a number and an array of it, which the compiler would divide by in two ways.
        kept = 1 - jnp.asarray(self.rate, x.dtype)
        shape = tuple(1 if axis in self.shared else size for axis, size in enumerate(x.shape))
        return jnp.where(keep(self.make_rng("dropout"), kept, shape), x * (1 / kept), 0)


def keep(key: Key[Array, ""], probability: Rate, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """True with this probability (to 2^-24), by a hash: two rounds of 32-bit mixing, each with half of the key."""
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    number = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    word = mix(mix(number ^ first) + second)
    return (word >> 8).astype(jnp.float32) < probability * 2.0**24


def mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A bijection of 32-bit words in which every bit depends on every other (Wellons' lowbias32, 2018)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
