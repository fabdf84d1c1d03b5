"""The energy distance of two samples: 0 only where the distributions are the same."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.jit
def distance(x: Float[Array, "N D"], y: Float[Array, "M D"]) -> Float[Array, ""]:
    """2 E|x - y| - E|x - x'| - E|y - y'|, means over all pairs (Székely and Rizzo 2013)."""

    def apart(a, b):
        square = sum((a[:, None, d] - b[None, :, d]) ** 2 for d in range(a.shape[1]))
        return jnp.mean(jnp.sqrt(square))

    return 2 * apart(x, y) - apart(x, x) - apart(y, y)
