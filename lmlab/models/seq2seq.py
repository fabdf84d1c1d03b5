"""Sequence to sequence by two recurrent networks, with and without attention.

Sutskever et al. 2014: the last state of the encoder is the first of the decoder, and all that it knows of the source.
Bahdanau et al. 2015 and Luong et al. 2015: at each step it also looks at the states of the encoder.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from lmlab.layers.dropout import Dropout, Rate, check_rate
from lmlab.layers.linear import Dense, Embed
from lmlab.layers.recurrent import Carry, LSTMCarry, Recurrent, check_cell, state_of
from lmlab.layers.scores import Attention
from lmlab.tasks import cross_entropy

ATTENTION, VALUES = ("none", "luong", "bahdanau"), ("states", "embeddings")


class Memory(NamedTuple):
    """What the decoder sees of a source: the encoder's states as keys, them or embeddings as values, where they are."""

    keys: Float[Array, "B S F"]
    values: Float[Array, "B S V"]
    mask: Bool[Array, "B S"]


class Seq2Seq(nn.Module):
    """p(y | x) = prod_t p(y_t | y_<t, x). In x and y, 0 is padding.

    attention  none; luong: h_t = cell(h_{t-1}, E y_{t-1}), c_t = attention(h_t, (k, v)) (Luong et al. 2015, section
               3, without input feeding); bahdanau: c_t = attention(h_{t-1}, (k, v)), h_t = cell(h_{t-1}, [E y_{t-1};
               c_t]) (Bahdanau et al. 2015, section 3.1). Logits are W tanh(W_c [c_t; h_t]), without attention W h_t
    score      of `lmlab.layers.scores`
    value      what is summed up by attention: the encoder's states, each of which has read its neighbours, or the
               embeddings of the source, each of which tells one token alone
    reverse    the encoder reads the source from its end (Sutskever et al. 2014, section 3.3)
    bidirectional  and both ways at once; its states, 2 H wide, are then mapped to H

    Dropout falls on embeddings, between layers and before the logits.
    """

    source_size: int
    target_size: int
    cell: str = "lstm"
    num_layers: int = 1
    d_model: int = 256
    d_embed: int = 256
    dropout: Rate = 0.0
    attention: str = "luong"
    score: str = "scaled"
    value: str = "states"
    bidirectional: bool = False
    reverse: bool = False

    def __post_init__(self):
        check_cell(self.cell)
        check_rate(self.dropout)
        if self.attention not in ATTENTION:
            raise ValueError(f"unknown attention {self.attention!r}; allowed: {', '.join(ATTENTION)}")
        if self.value not in VALUES:
            raise ValueError(f"unknown value {self.value!r}; allowed: {', '.join(VALUES)}")
        for name in ("source_size", "target_size", "num_layers", "d_model", "d_embed"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        super().__post_init__()

    def setup(self):
        def embed(size):
            return Embed(size, self.d_embed, embedding_init=nn.initializers.normal(1.0))

        def recurrent(bidirectional=False):
            return Recurrent(self.d_model, self.cell, self.num_layers, bidirectional, self.dropout)

        self.source_embed, self.target_embed = embed(self.source_size), embed(self.target_size)
        self.drop = Dropout(self.dropout)
        self.encoder, self.decoder = recurrent(self.bidirectional), recurrent()
        if self.bidirectional:
            self.merge_states = Dense(self.d_model, True, ("mlp", "embed"))
            lstm = self.cell == "lstm"
            self.merge_last = [Dense(self.d_model) for _ in range(self.num_layers * (1 + lstm))]
        if self.attention != "none":
            self.attend = Attention(self.score, self.d_model)
            self.combine = Dense(self.d_model, True, ("mlp", "embed"))
        self.head = Dense(self.target_size, True, ("embed", "vocab"))

    def __call__(
        self, source: Int[Array, "B S"], target: Int[Array, "B T"], train: bool = False
    ) -> Float[Array, "B T V"]:
        """Logits of the token after each of `target`."""
        memory, carry = self.encode(source, train)
        return self.read(memory, carry, target, train)[0]

    def encode(
        self,
        source: Int[Array, "B S"],
        train: bool = False,
        nudge: Float[Array, "B S D"] | None = None,
    ) -> tuple[Memory, tuple[Carry, ...]]:
        """(what the decoder attends to, its first carry). nudge: added to the embeddings, to differentiate by."""
        lengths = jnp.sum(source > 0, axis=1)
        turn = _turned(source.shape[1], lengths) if self.reverse else None
        x = self.source_embed(source)
        embedded = self.drop(x if nudge is None else x + nudge, train)
        x = embedded if turn is None else jnp.take_along_axis(embedded, turn[..., None], axis=1)
        states, carry = self.encoder(x, lengths=lengths, train=train)
        states = states if turn is None else jnp.take_along_axis(states, turn[..., None], axis=1)
        if self.bidirectional:
            states, carry = self.merge_states(states), self._merged(carry)
        keys = states if self.attention == "none" else self.attend.keys(states)
        return Memory(keys, states if self.value == "states" else embedded, source > 0), carry

    def _merged(self, carry):
        """tanh(W [forward; backward]) of the last states, W alone of the cells of an LSTM."""
        maps, merged = iter(self.merge_last), []
        for forward, backward in zip(carry[::2], carry[1::2], strict=True):
            pairs = zip(jax.tree.leaves(forward), jax.tree.leaves(backward), strict=True)
            parts = [next(maps)(jnp.concatenate(pair, axis=-1)) for pair in pairs]
            parts[0] = jnp.tanh(parts[0])
            merged.append(LSTMCarry(*parts) if len(parts) > 1 else parts[0])
        return tuple(merged)

    def read(
        self, memory: Memory, carry: tuple[Carry, ...], target: Int[Array, "B T"], train: bool = False
    ) -> tuple[Float[Array, "B T V"], Float[Array, "B T S"] | None, tuple[Carry, ...]]:
        """(logits, weights, carry) after each token of `target`; the weights are None without attention.

        There may be several rows a source, side by side: B of the target is then a multiple of that of the memory.
        """
        x = self.drop(self.target_embed(target), train)
        weights = None
        if self.attention == "bahdanau":
            tick = nn.scan(
                lambda model, carry, x: model._tick(memory, carry, x, train),
                variable_broadcast="params",
                split_rngs={"params": False, "dropout": True},
                in_axes=1,
                out_axes=1,
            )
            carry, (states, context, weights) = tick(self, carry, x)
        else:
            states, carry = self.decoder(x, carry, train=train)
            if self.attention == "luong":
                context, weights = self._look(memory, states)
        if self.attention != "none":
            states = jnp.tanh(self.combine(jnp.concatenate([context, states], axis=-1)))
        return self.head(self.drop(states, train)), weights, carry

    def _tick(self, memory, carry, x, train):
        context, weights = self._look(memory, state_of(carry[-1])[:, None])
        x = jnp.concatenate([x[:, None], context], axis=-1)
        states, carry = self.decoder(x, carry, train=train)
        return carry, (states[:, 0], context[:, 0], weights[:, 0])

    def _look(self, memory, states):
        """Attention of (B, T) states to the memory; rows of one source are so many more queries of it."""
        sources, (rows, length, width) = len(memory.mask), states.shape
        queries = states.reshape(sources, -1, width)
        found = self.attend(queries, memory.keys, memory.values, memory.mask)
        return tuple(part.reshape(rows, length, -1) for part in found)

    def begin(
        self, variables: dict[str, Any], source: Int[Array, "B S"]
    ) -> tuple[Partial, tuple[Carry, ...]]:
        """(`step` with variables and memory bound, the first carry), for `lmlab.decoding`."""
        memory, carry = self.apply(variables, source, method="encode")
        return Partial(self.step, variables, memory), carry

    def step(
        self,
        variables: dict[str, Any],
        memory: Memory,
        cache: tuple[Carry, ...],
        token: Int[Array, "R"],
    ) -> tuple[Float[Array, "R V"], tuple[Carry, ...]]:
        """(logits after one more token, the carry)."""
        logits, _, cache = self.apply(variables, memory, cache, token[:, None], method="read")
        return logits[:, 0], cache

    def weights(
        self, variables: dict[str, Any], source: Int[Array, "B S"], target: Int[Array, "B N"]
    ) -> Float[Array, "B T S"]:
        """The alignment of whole targets, T = N - 1: how much each token but the first looked at each of the source."""
        if self.attention == "none":
            raise ValueError("a model without attention has no alignment")
        memory, carry = self.apply(variables, source, method="encode")
        return self.apply(variables, memory, carry, target[:, :-1], method="read")[1]


def influence(
    model: Seq2Seq, variables: dict[str, Any], source: Int[Array, "B S"], target: Int[Array, "B N"]
) -> Float[Array, "B T S"]:
    """|d log p(y_t | y_<t, x) / d E x_s|, of each token of whole targets but the first, T = N - 1."""

    def log_probs(nudge):
        memory, carry = model.apply(variables, source, nudge=nudge, method="encode")
        logits = model.apply(variables, memory, carry, target[:, :-1], method="read")[0]
        return -cross_entropy(logits, target[:, 1:])

    found, pull = jax.vjp(log_probs, jnp.zeros((*source.shape, model.d_embed)))
    # Rows of a batch do not see one another: one cotangent does for the t-th token of them all.
    each = jnp.eye(found.shape[1])[:, None] * jnp.ones((1, len(source), 1))
    return jnp.linalg.norm(jax.vmap(lambda cotangent: pull(cotangent)[0])(each), axis=-1).swapaxes(0, 1)


def _turned(size: int, lengths: Int[Array, "B"]) -> Int[Array, "B S"]:
    """Places from the end of each row to its beginning; those of the padding stay."""
    places = jnp.arange(size)[None]
    return jnp.where(places < lengths[:, None], lengths[:, None] - 1 - places, places)
