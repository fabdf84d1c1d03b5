"""Sampling from a one-token step function, which an RNN, a GPT and an encoder-decoder share.

`step(cache, token) -> (logits, cache)` reads one token a row. Prompts of different lengths go through the
same loop: while t is inside a row's prompt, its next token is the prompt's (forced decoding).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from lmlab.layers.largest import argmax, largest

PyTree = Any
Number = float | int | Float[Array, ""]


def top_k(logits: Float[Array, "*B V"], k: int) -> Float[Array, "*B V"]:
    """-inf for all but the k largest (and those equal to the k-th). 0: off."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    kth = largest(logits, k)[0][..., -1:]
    return jnp.where(logits < kth, -jnp.inf, logits)


def top_p(logits: Float[Array, "*B V"], p: Number) -> Float[Array, "*B V"]:
    """-inf outside the nucleus, the fewest tokens whose probabilities reach p (Holtzman et al. 2020)."""
    ordered = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # The first is always kept: at p so small that rounding would drop it, too.
    kept = (before < p).at[..., 0].set(True)
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)


def min_p(logits: Float[Array, "*B V"], p: Number) -> Float[Array, "*B V"]:
    """-inf for tokens less probable than p times the most probable one (Nguyen et al. 2024). 0: off."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return jnp.where(log_probs < jnp.max(log_probs, axis=-1, keepdims=True) + jnp.log(p), -jnp.inf, logits)


class Decoded(NamedTuple):
    """Rows of a prompt and what was chosen after it; `lengths` counts both, and behind it stands filler.

    log_probs: the model's own, in nats, before temperature and filters. entropies: in nats, of the distribution that
    the model gave at each place. Both are 0 at places not chosen.
    """

    tokens: Int[Array, "B N"]
    log_probs: Float[Array, "B N"]
    lengths: Int[Array, "B"]
    entropies: Float[Array, "B N"]


def decode(
    step: Callable[[PyTree, Int[Array, "B"]], tuple[Float[Array, "B V"], PyTree]],
    cache: PyTree,
    prompts: Int[Array, "B P"],
    lengths: Int[Array, "B"],
    choose: Callable[[Any, Float[Array, "B V"]], Int[Array, "B"]],
    max_tokens: int,
    end: int | None = None,
) -> Decoded:
    """One loop over N = P + max_tokens places; `choose(t, logits)` gives the token at place t.

    A row is its prompt and up to `max_tokens` chosen tokens, the last of them `end` if it came. Then follows `end`,
    or 0 without one. The loop ends with the last row.
    """
    batch, longest = prompts.shape
    places = longest + max_tokens
    filler = 0 if end is None else end
    forced = jnp.pad(prompts, ((0, 0), (0, max_tokens)), constant_values=filler).T

    def place(carry):
        t, cache, done, (tokens, log_probs, entropies), ends = carry
        logits, cache = step(cache, tokens[t - 1])
        chosen = choose(t, logits).astype(prompts.dtype)
        reading, writing = t < lengths, (t >= lengths) & ~done
        total, entropy = log_total_and_entropy(logits)
        log_prob = jnp.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0] - total
        token = jnp.where(reading, forced[t], jnp.where(writing, chosen, filler))
        done = done | (t + 1 >= lengths + max_tokens)
        if end is not None:
            done = done | (writing & (chosen == end))
        log_prob, entropy = jnp.where(writing, log_prob, 0), jnp.where(writing, entropy, 0)
        written = tokens.at[t].set(token), log_probs.at[t].set(log_prob), entropies.at[t].set(entropy)
        return t + 1, cache, done, written, ends + writing

    def going(carry):
        return (carry[0] < places) & ~jnp.all(carry[2])

    zeros = jnp.zeros((places, batch))
    blank = jnp.full((places, batch), filler, prompts.dtype).at[0].set(prompts[:, 0])
    start = (jnp.int32(1), cache, jnp.zeros(batch, bool), (blank, zeros, zeros), lengths)
    *_, (tokens, log_probs, entropies), ends = lax.while_loop(going, place, start)
    return Decoded(tokens.T, log_probs.T, ends, entropies.T)


def log_total_and_entropy(logits: Float[Array, "*B V"]) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """(log sum exp l, -sum p log p) with p = softmax(l), of which some may be -inf: log p is l less the first.

    In one reading of the logits; log_softmax would write as many numbers again.
    """
    most = jnp.max(logits, axis=-1, keepdims=True)
    below = logits - most
    parts = jnp.exp(below)
    total = jnp.sum(parts, axis=-1)
    log_total = jnp.log(total)
    mean = jnp.sum(jnp.where(parts > 0, parts * below, 0), axis=-1) / total
    return most[..., 0] + log_total, log_total - mean


def sample(
    step: Callable[[PyTree, Int[Array, "B"]], tuple[Float[Array, "B V"], PyTree]],
    cache: PyTree,
    prompts: Int[Array, "B P"],
    lengths: Int[Array, "B"],
    key: Key[Array, "*rows"],
    max_tokens: int,
    temperature: Number = 1.0,
    top_k: int = 0,
    top_p: Number = 1.0,
    min_p: Number = 0.0,
    end: int | None = None,
) -> Decoded:
    """Prompts continued by `max_tokens` drawn tokens.

    step         best a `jax.tree_util.Partial(model.step, variables)`: then the weights are arguments of
                 one compiled program, kept as long as the model object; another callable makes constants
                 of what it closes over and compiles again each time it is made
    key          one key, from which row i draws with fold_in(key, i), or one key a row
    temperature  logits are divided by it; 0 is greedy. Then top_k (0: off), top_p (1: off), min_p (0: off)
    end          the token that ends a row
    """
    _check(prompts, lengths, max_tokens, temperature, top_k, top_p, min_p)
    keys = key if key.ndim else jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(prompts.shape[0]))
    return _sample(
        step if isinstance(step, Partial) else Partial(step),
        cache,
        prompts,
        lengths,
        keys,
        None if _is(temperature, 0) else temperature,
        None if _is(top_p, 1) else top_p,
        None if _is(min_p, 0) else min_p,
        max_tokens=max_tokens,
        k=top_k,
        end=end,
    )


@partial(jax.jit, static_argnames=("max_tokens", "k", "end"))
def _sample(step, cache, prompts, lengths, keys, temperature, p, least, *, max_tokens, k, end):
    """None for temperature, p and least: known to be off when compiling, and then not computed."""

    def choose(t, logits):
        best = argmax(logits)
        if temperature is None:
            return best
        scaled = top_k(logits / jnp.where(temperature == 0, 1, temperature), k)
        scaled = scaled if p is None else top_p(scaled, p)
        scaled = scaled if least is None else min_p(scaled, least)
        now = jax.vmap(lambda key: jax.random.fold_in(key, t))(keys)
        drawn = jax.vmap(jax.random.categorical)(now, scaled)
        return jnp.where(temperature == 0, best, drawn)

    return decode(step, cache, prompts, lengths, choose, max_tokens, end)


def _is(value, number) -> bool:
    return isinstance(value, (float, int)) and value == number


def check_places(prompts: Int[Array, "B P"], max_tokens: int) -> None:
    """ValueError where there is nothing to begin with, or nothing to choose."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, received {max_tokens}")
    if prompts.shape[1] < 1:
        raise ValueError("prompts must hold at least one token each, received none")


def _check(prompts, lengths, max_tokens, temperature, top_k, top_p, min_p):
    """Traced values pass unread."""

    def known(value):
        return isinstance(value, (float, int))

    check_places(prompts, max_tokens)
    if known(temperature) and not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 and finite, received {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0 (0: off), received {top_k}")
    if known(top_p) and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1 (1: off), received {top_p}")
    if known(min_p) and not 0 <= min_p <= 1:
        raise ValueError(f"min_p must be between 0 and 1 (0: off), received {min_p}")
    if not isinstance(lengths, jax.core.Tracer):
        given = np.asarray(lengths)
        if (given < 1).any() or (given > prompts.shape[1]).any():
            allowed = f"between 1 and {prompts.shape[1]}"
            raise ValueError(f"prompt lengths must be {allowed}, received {given.tolist()}")
