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
    if math.isqrt(x.shape[-1]) < 4 * k or x.dtype != jnp.float32 or not tricks.uses("largest"):
        return tuple(lax.top_k(x, k))
    stretches = jnp.sort(lax.top_k(_maxima(x), k)[1], axis=-1)
    among, places = _within(x, stretches)
    found, at = lax.top_k(among, k)
    return found, jnp.take_along_axis(places, at, axis=-1)


def argmax(x: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """The place of the largest of the last axis, the first of equal ones; of no gradient."""
    if x.shape[-1] < 64 or x.dtype != jnp.float32 or not tricks.uses("largest"):
        return jnp.argmax(x, axis=-1)
    x = lax.stop_gradient(x)
    # By argmax of both stages, which can be spread over devices with the rows; top_k cannot.
    among, places = _within(x, jnp.argmax(_maxima(x), axis=-1, keepdims=True))
    return jnp.take_along_axis(places, jnp.argmax(among, axis=-1, keepdims=True), axis=-1)[..., 0]


def _maxima(x):
    """Of stretches of sqrt(V), the last of which may be shorter."""
    size = math.isqrt(x.shape[-1])
    window, rest = (1,) * (x.ndim - 1) + (size,), -x.shape[-1] % size
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, (*((0, 0),) * (x.ndim - 1), (0, rest)))


def _within(x, stretches):
    """(the numbers of some stretches, -inf behind the last; their places)."""
    count, k = x.shape[-1], stretches.shape[-1]
    size = math.isqrt(count)
    within = jnp.tile(jnp.arange(size), k).reshape((1,) * (x.ndim - 1) + (-1,))
    places = size * jnp.repeat(stretches, size, axis=-1) + within
    among = jnp.take_along_axis(x, jnp.minimum(places, count - 1), axis=-1)
    return jnp.where(places < count, among, -jnp.inf), places
