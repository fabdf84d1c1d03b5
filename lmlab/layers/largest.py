"""The largest of many numbers, and where they stand."""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lmlab.layers import tricks


def largest(x: Float[Array, "*B V"], k: int) -> tuple[Float[Array, "*B k"], Int[Array, "*B k"]]:
    """`lax.top_k`: the k largest of the last axis, and their places, the first of equal ones. NaN: any.

    XLA vectorizes a maximum on a CPU, but neither argmax nor top_k. So the maxima of sqrt(V) stretches are searched
    first: the k largest numbers are in the k stretches of the largest maxima.
    """
    count = x.shape[-1]
    size = math.isqrt(count)
    if size < 4 * k or x.dtype != jnp.float32 or not tricks.uses("largest"):
        return tuple(lax.top_k(x, k))
    window, rest = (1,) * (x.ndim - 1) + (size,), -count % size
    maxima = lax.reduce_window(x, -jnp.inf, lax.max, window, window, (*((0, 0),) * (x.ndim - 1), (0, rest)))
    stretches = jnp.sort(lax.top_k(maxima, k)[1], axis=-1)
    within = jnp.tile(jnp.arange(size), k).reshape(*window[:-1], -1)
    places = size * jnp.repeat(stretches, size, axis=-1) + within
    among = jnp.take_along_axis(x, jnp.minimum(places, count - 1), axis=-1)
    found, at = lax.top_k(jnp.where(places < count, among, -jnp.inf), k)
    return found, jnp.take_along_axis(places, at, axis=-1)


def argmax(x: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """The place of the largest of the last axis, the first of equal ones; of no gradient."""
    if x.shape[-1] < 64 or x.dtype != jnp.float32 or not tricks.uses("largest"):
        return jnp.argmax(x, axis=-1)
    return largest(lax.stop_gradient(x), 1)[1][..., 0]
