"""Sequences made to ask for a memory: the adding problem and the copying problem, drawn anew for each example."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lmlab.sources import Resident

SYMBOLS, COPIED = 8, 10
"""Of the copying problem: kinds of symbols, and how many of them are to be kept."""

Example = dict[str, Float[Array, "..."] | Int[Array, "..."]]


def adding(key: Key[Array, ""], length: int) -> Example:
    """The adding problem (Hochreiter and Schmidhuber 1997, experiment 4, as in Le et al. 2015).

    {"inputs": (T, 2), "target": ()}: numbers of U(0, 1) beside markers, which are 1 once in either half and else 0; the
    target is the sum of the two numbers that are marked. Who always says 1 has a squared error of 2/12 = 0.167.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2, received {length}")
    a, b, c = jax.random.split(key, 3)
    numbers, half = jax.random.uniform(a, (length,)), length // 2
    places = jnp.stack([jax.random.randint(b, (), 0, half), jax.random.randint(c, (), half, length)])
    markers = jnp.zeros(length).at[places].set(1.0)
    return {"inputs": jnp.stack([numbers, markers], axis=-1), "target": jnp.sum(numbers[places])}


def copying(key: Key[Array, ""], length: int) -> Example:
    """The copying problem (Hochreiter and Schmidhuber 1997; Arjovsky et al. 2016, section 4.1).

    {"inputs": (T + 20, 10), "target": (10,)}: 10 of 8 symbols, T - 1 blanks, a sign to begin, 10 blanks, each as one of
    10 units; the target are the symbols, to be said during the last 10. Who guesses has a cross-entropy of ln 8.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, received {length}")
    symbols = jax.random.randint(key, (COPIED,), 0, SYMBOLS)
    blanks = jnp.full(length - 1, SYMBOLS), jnp.full(1, SYMBOLS + 1), jnp.full(COPIED, SYMBOLS)
    ids = jnp.concatenate([symbols, *blanks])
    return {"inputs": jax.nn.one_hot(ids, SYMBOLS + 2), "target": symbols}


def fresh(draw: Callable[[Any, int], Example], length: int, batch_size: int, seed: Any) -> Resident:
    """A source of examples that are never seen twice: number i of epoch e is a function of (seed, e, i)."""

    def take(data, indices, epoch, seed):
        del data
        key = jax.random.fold_in(jax.random.key(jnp.asarray(seed, jnp.uint32)), epoch)
        return jax.vmap(lambda index: draw(jax.random.fold_in(key, index), length))(indices)

    return Resident(data={}, num_examples=100 * batch_size, batch_size=batch_size, seed=seed, take=take)


def fixed(draw: Callable[[Any, int], Example], length: int, count: int, seed: int) -> Example:
    """So many examples, the same for all runs, and none that `fresh` draws. seed: another one for each split."""
    apart = jax.random.fold_in(jax.random.key(0), np.uint32(2**32 - 1))  # an epoch that no run comes to
    keys = jax.random.split(jax.random.fold_in(apart, seed), count)
    return jax.jit(jax.vmap(lambda key: draw(key, length)))(keys)
