"""Beam search over a one-token step function, which an RNN, a GPT, an encoder-decoder and a captioner share."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from lmlab.decoding.sampling import check_places, log_total_and_entropy
from lmlab.layers.largest import largest

PyTree = Any


class Hypotheses(NamedTuple):
    """The K best continuations of each row, the best first; behind the end of one stand `end` (0 without one) and 0.

    log_probs: in nats, of each token. entropies: in nats, of the distribution it is from. lengths: in tokens, the end
    among them. scores: the sum of log_probs over the length penalty; -inf where there are fewer than K sequences.
    """

    tokens: Int[Array, "B K N"]
    log_probs: Float[Array, "B K N"]
    entropies: Float[Array, "B K N"]
    lengths: Int[Array, "B K"]
    scores: Float[Array, "B K"]


def search(
    step: Callable[[PyTree, Int[Array, "R"]], tuple[Float[Array, "R V"], PyTree]],
    cache: PyTree,
    prompts: Int[Array, "B P"],
    beam_size: int,
    max_tokens: int,
    end: int | None = None,
    length_penalty: float | Float[Array, ""] = 0.0,
) -> Hypotheses:
    """The best continuations of prompts of one length, of up to `max_tokens` tokens, by breadth-first search.

    At each place the K = `beam_size` best of all hypotheses and their continuations live on, by log p(y) / ((5 + |y|)
    / 6)^length_penalty (Wu et al. 2016, eq. 14; 0: by log p alone). A finished hypothesis keeps its place and its
    score until K better ones are found. K = 1 is greedy decoding; K as large as the number of sequences finds the best.

    step     as `sampling.sample` takes it; called with the R = B K rows of the hypotheses, those of a prompt side by
             side. What a prompt's hypotheses share, such as the states of an encoder, is best bound to it
    cache    of the B rows; in each array but the scalars the rows come first
    """
    rows = step if isinstance(step, Partial) else Partial(step)
    size = _step.eval_shape(rows, cache, prompts[:, 0])[0].shape[-1]
    if not 1 <= beam_size <= size:
        raise ValueError(f"beam_size must be between 1 and the vocabulary, {size}; received {beam_size}")
    check_places(prompts, max_tokens)
    return _search(rows, cache, prompts, length_penalty, beam_size=beam_size, max_tokens=max_tokens, end=end)


@jax.jit  # for its shape alone, which is then traced once, not for each batch
def _step(step, cache, tokens):
    return step(cache, tokens)


@partial(jax.jit, static_argnames=("beam_size", "max_tokens", "end"))
def _search(step, cache, prompts, length_penalty, *, beam_size, max_tokens, end):
    batch, k = prompts.shape[0], beam_size
    cache, _ = lax.scan(lambda cache, token: (step(cache, token)[1], None), cache, prompts[:, :-1].T)
    cache = _of_rows(lambda leaf: jnp.repeat(leaf, k, axis=0), cache)

    def expand(carry):
        t, cache, before, done, total, found = carry
        logits, cache = step(cache, before.reshape(-1))
        logits = logits.reshape(batch, k, -1)
        log_total, entropy = log_total_and_entropy(logits)
        # The K best of all are among the K best of each.
        each, tokens = largest(logits, min(k, logits.shape[-1]))
        logs = each - log_total[..., None]
        if end is not None:  # a finished hypothesis goes on with its end alone, for nothing
            alone = jnp.where(jnp.arange(logs.shape[-1]) == 0, 0.0, -jnp.inf)
            logs = jnp.where(done[..., None], alone, logs)
            tokens = jnp.where(done[..., None], end, tokens)
        lengths = found.lengths + ~done
        penalty = ((5.0 + lengths) / 6.0) ** length_penalty
        ranks = (total[..., None] + logs) / penalty[..., None]
        scores, places = lax.top_k(ranks.reshape(batch, -1), k)
        parent = places // logs.shape[-1]

        def take(array):
            return jnp.take_along_axis(array, parent.reshape(parent.shape + (1,) * (array.ndim - 2)), 1)

        token = jnp.take_along_axis(tokens.reshape(batch, -1), places, 1).astype(found.tokens.dtype)
        log_prob = jnp.take_along_axis(logs.reshape(batch, -1), places, 1)
        was_done, new = take(done), jax.tree.map(take, found._replace(lengths=lengths))
        found = Hypotheses(
            new.tokens.at[..., t].set(token),
            new.log_probs.at[..., t].set(log_prob),
            new.entropies.at[..., t].set(jnp.where(was_done, 0, take(entropy))),
            new.lengths,
            scores,
        )
        rows = (jnp.arange(batch)[:, None] * k + parent).reshape(-1)
        done = was_done if end is None else token == end
        return t + 1, _of_rows(lambda leaf: leaf[rows], cache), token, done, take(total) + log_prob, found

    def going(carry):
        t, _, _, done, _, _ = carry
        return (t < max_tokens) & ~jnp.all(done)

    blank = jnp.full((batch, k, max_tokens), 0 if end is None else end, prompts.dtype)
    zeros = jnp.zeros((batch, k, max_tokens))
    first = jnp.where(jnp.arange(k) == 0, 0.0, -jnp.inf)
    total = jnp.broadcast_to(first, (batch, k))
    found = Hypotheses(blank, zeros, zeros, jnp.zeros((batch, k), jnp.int32), total)
    before, done = jnp.repeat(prompts[:, -1:], k, axis=1), jnp.zeros((batch, k), bool)
    return lax.while_loop(going, expand, (jnp.int32(0), cache, before, done, total, found))[-1]


def _of_rows(change, cache):
    return jax.tree.map(lambda leaf: change(leaf) if jnp.ndim(leaf) else leaf, cache)
