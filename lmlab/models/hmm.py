"""Hidden Markov models of symbols (Rabiner 1989): forward, backward, Viterbi, and their fit by EM (Baum et al. 1970).

Params are {"start": pi, "transition": A, "emission": B}: pi_i the probability of state i at the beginning, a_ij of
state j after state i, b_j(k) of symbol k in state j. Equation numbers are Rabiner's. Sequences of a batch are of
one length, o_1 ... o_T.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lmlab.evaluation.likelihood import batched
from lmlab.experiment import Mean, PyTree

Params = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class HMM:
    """K states, each of which emits one of V symbols. A task to evaluate, and a model to sample from."""

    states: int
    symbols: int

    def __post_init__(self):
        for name in ("states", "symbols"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")

    def init(self, key, batch: Any = None) -> Params:
        """Rows drawn evenly from all that sum to 1: alike states would stay alike."""
        del batch
        k, v = self.states, self.symbols
        shapes = {"start": (k,), "transition": (k, k), "emission": (k, v)}
        keys = jax.random.split(key, len(shapes))
        drawn = {
            name: jax.random.exponential(each, shape)
            for each, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        return jax.tree.map(lambda rows: rows / rows.sum(-1, keepdims=True), drawn)

    def fit(
        self,
        tokens: Int[np.ndarray, "N T"],
        key,
        iterations: int,
        smoothing: float = 0.0,
        params: Params | None = None,
        block: int = 1024,
    ) -> PyTree:
        """`iterations` steps of EM from `params`, or drawn ones, and "log_likelihood" before each and after the last.

        That is log P in nats a symbol. At last the emissions are mixed with even ones, of weight `smoothing`, so
        that a symbol that was never seen can be scored. block: sequences at a time.
        """
        if iterations < 0 or not 0 <= smoothing <= 1:
            raise ValueError(
                f"iterations must be at least 0 and smoothing from 0 to 1, received {iterations} and {smoothing}"
            )
        if len(tokens) == 0 or tokens.shape[1] < 2:
            raise ValueError(f"tokens must be (N, T), N at least 1, T at least 2; received {tokens.shape}")
        params = self.init(key) if params is None else params
        batches, log_likelihood = batched({"tokens": tokens}, block), []
        for iteration in range(iterations + 1):
            new, log_p = em_step(params, batches)
            log_likelihood.append(np.sum(np.asarray(log_p), dtype=np.float64) / tokens.size)
            params = new if iteration < iterations else params
        even = smoothing / self.symbols
        emission = (1 - smoothing) * params["emission"] + even
        return {**params, "emission": emission, "log_likelihood": jnp.asarray(log_likelihood)}

    def loss(self, params, collections, batch, key, train: bool) -> tuple[Mean, dict[str, Mean], PyTree]:
        """-log P(o_t | o_1 ... o_t-1) for t > 1. A batch is {"tokens": (B, T), "mask": (B, T - 1)}."""
        del key, train
        _, scale = forward(params, batch["tokens"])
        loss = Mean.of(-jnp.log(scale[:, 1:]), batch.get("mask"))
        return loss, {"loss": loss}, collections

    def start(self, batch: int, length: int | None = None) -> Float[Array, "B K"]:
        """The cache before any symbol: no state has a probability yet."""
        del length
        return jnp.zeros((batch, self.states))

    def step(
        self, variables: dict[str, Any], cache: Float[Array, "B K"], token: Int[Array, "B"]
    ) -> tuple[Float[Array, "B V"], Float[Array, "B K"]]:
        """(log P(o_t+1 | o_1 ... o_t), P(state at t + 1 | o_1 ... o_t)) after one more symbol."""
        params = variables["params"]
        begun = cache.sum(-1, keepdims=True) > 0
        joint = jnp.where(begun, cache, params["start"][None]) * params["emission"].T[token]
        expected = joint / joint.sum(-1, keepdims=True) @ params["transition"]
        return jnp.log(expected @ params["emission"]), expected


def forward(params: Params, tokens: Int[Array, "B T"]) -> tuple[Float[Array, "B T K"], Float[Array, "B T"]]:
    """(P(q_t = i | o_1 ... o_t), P(o_t | o_1 ... o_t-1)): alpha of eq. 19 and 20, scaled to sum to 1 (eq. 91 and 92).

    The second is 1 / c_t of eq. 91, so that the sum of its logarithms over t is log P(O) (eq. 103).
    """

    def step(expected, seen):
        joint = expected * seen
        scale = joint.sum(-1)
        alpha = joint / jnp.where(scale > 0, scale, 1)[:, None]  # what cannot be stays at 0
        return alpha @ params["transition"], (alpha, scale)

    seen = params["emission"].T[tokens.T]
    start = jnp.broadcast_to(params["start"][None], seen.shape[1:])
    _, (alpha, scale) = jax.lax.scan(step, start, seen)
    return alpha.swapaxes(0, 1), scale.T


def backward(params: Params, tokens: Int[Array, "B T"], scale: Float[Array, "B T"]) -> Float[Array, "B T K"]:
    """P(o_t+1 ... o_T | q_t = i) / P(o_t+1 ... o_T | o_1 ... o_t): beta of eq. 24 and 25, scaled by `forward`'s."""

    def step(after, seen):
        seen, scale = seen
        before = (after * seen / scale[:, None]) @ params["transition"].T
        return before, before

    seen = params["emission"].T[tokens.T]
    last = jnp.ones_like(seen[0])
    _, beta = jax.lax.scan(step, last, (seen[1:], scale.T[1:]), reverse=True)
    return jnp.concatenate([beta, last[None]]).swapaxes(0, 1)


def posterior(params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T K"]:
    """gamma_t(i) = P(q_t = i | O) = alpha_t(i) beta_t(i) (eq. 27; scaled, their sum is 1)."""
    alpha, scale = forward(params, tokens)
    return alpha * backward(params, tokens, scale)


def viterbi(params: Params, tokens: Int[Array, "T"]) -> tuple[Int[Array, "T"], Float[Array, ""]]:
    """(the likeliest path q_1 ... q_T, log max P(q, O)): eq. 32 to 35 with logarithms."""
    start, transition, emission = (jnp.log(params[name]) for name in ("start", "transition", "emission"))

    def step(delta, seen):
        through = delta[:, None] + transition
        return through.max(0) + seen, through.argmax(0)

    seen = emission.T[tokens]
    delta, came_from = jax.lax.scan(step, start + seen[0], seen[1:])
    end = delta.argmax()
    _, path = jax.lax.scan(lambda state, back: (back[state], back[state]), end, came_from, reverse=True)
    return jnp.append(path, end), delta.max()


@jax.jit
def em_step(params: Params, batches: dict[str, Array]) -> tuple[Params, Float[Array, "_ B"]]:
    """(the params after one step of EM, log P of each sequence before it).

    Expected counts are summed over all sequences, then each row is divided by its sum (eq. 40, over several sequences
    109 and 110). batches: "tokens" (blocks, B, T), "mask" (blocks, B), 0 for padding.
    """

    def expect(counts, batch):
        tokens, weight = batch["tokens"], batch["mask"][:, None, None]
        alpha, scale = forward(params, tokens)
        beta = backward(params, tokens, scale)
        gamma = alpha * beta * weight
        # the sum over t of xi_t(i, j) = alpha_t(i) a_ij b_j(o_t+1) beta_t+1(j) / scale_t+1 (eq. 37)
        after = params["emission"].T[tokens[:, 1:]] * beta[:, 1:] / scale[:, 1:, None] * weight
        xi = params["transition"] * jnp.einsum("bti,btj->ij", alpha[:, :-1], after)
        of_symbol = jax.nn.one_hot(tokens, params["emission"].shape[1], dtype=gamma.dtype)
        new = {
            "start": gamma[:, 0].sum(0),
            "transition": xi,
            "emission": jnp.einsum("bti,btv->iv", gamma, of_symbol),
        }
        return jax.tree.map(jnp.add, counts, new), jnp.log(scale).sum(1) * batch["mask"]

    counts, log_p = jax.lax.scan(expect, jax.tree.map(jnp.zeros_like, params), batches)

    def normalized(counts, old):
        total = counts.sum(-1, keepdims=True)
        return jnp.where(
            total > 0, counts / jnp.where(total > 0, total, 1), old
        )  # a state never visited stays

    return jax.tree.map(normalized, counts, params), log_p
