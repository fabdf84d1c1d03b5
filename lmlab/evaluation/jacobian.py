"""How much of a state is left after many steps: the Jacobian of the last state by earlier ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PyTree = Any


def log_norms(
    advance: Callable[[PyTree, Any], PyTree],
    read: Callable[[PyTree], Float[Array, "B H"]],
    start: PyTree,
    inputs: Float[Array, "T B D"],
) -> Float[Array, "N B"]:
    """log || dh_T / ds_t ||_F / sqrt(H) for t = 0 to T, N = T + 1: 0 where the state is kept as it is.

    s_t = advance(s_{t-1}, x_t) is all that a cell carries, such as h and c of an LSTM, in leaves of (B, _), and h is
    read(s). Exact, by vector-Jacobian products of the H rows, one step after the other from the last (Pascanu et al.
    2013, eq. 5). The rows are scaled to 1 on the way, so that no norm is too small for its number.
    """
    last, before = jax.lax.scan(lambda state, x: (advance(state, x), state), start, inputs)
    h, pull = jax.vjp(read, last)
    eye = jnp.broadcast_to(jnp.eye(h.shape[1], dtype=h.dtype)[:, None], (h.shape[1], *h.shape))
    rows = jax.vmap(lambda row: pull(row)[0])(eye)

    def scaled(rows, log):
        squares = sum(jnp.sum(leaf**2, axis=(0, 2)) for leaf in jax.tree.leaves(rows))
        norm = jnp.sqrt(squares)
        safe = jnp.where(norm > 0, norm, 1)
        return jax.tree.map(lambda leaf: leaf / safe[None, :, None], rows), log + jnp.log(norm)

    def back(carry, at):
        (rows, log), (state, x) = carry, at
        _, pull = jax.vjp(lambda state: advance(state, x), state)
        return scaled(jax.vmap(lambda row: pull(row)[0])(rows), log), log

    begun = scaled(rows, jnp.full(h.shape[0], -0.5 * jnp.log(h.shape[1])))
    (_, first), logs = jax.lax.scan(back, begun, (before, inputs), reverse=True)
    return jnp.concatenate([first[None], logs])
