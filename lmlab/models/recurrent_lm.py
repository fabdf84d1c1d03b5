"""A recurrent language model (Mikolov et al. 2010): embedding, recurrent layers, logits of the next token."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lmlab.experiment import Mean, PyTree
from lmlab.layers.dropout import Dropout, Rate, check_rate, is_zero
from lmlab.layers.linear import Dense, Embed
from lmlab.layers.recurrent import Carry, Recurrent, check_cell, zero_carry
from lmlab.tasks import Batch, NextToken, cross_entropy


class RecurrentLM(nn.Module):
    """cell: "rnn", "gru" (reset gate outside the linear map), "gru_inside" or "lstm".

    `d_embed` None means `d_model`. Dropout falls on the embeddings, between layers and on the last states; variational:
    by masks that hold for all times, and on the state within each layer as well. Tied outputs have a bias of their own.
    """

    vocab_size: int
    cell: str = "gru"
    num_layers: int = 1
    d_model: int = 256
    d_embed: int | None = None
    dropout: Rate = 0.0
    variational: bool = False
    tie_embeddings: bool = False

    def __post_init__(self):
        check_cell(self.cell)
        check_rate(self.dropout)
        for name in ("vocab_size", "num_layers", "d_model"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        if self.d_embed is not None and self.d_embed < 1:
            raise ValueError(f"d_embed must be at least 1, received {self.d_embed}")
        if self.tie_embeddings and self.d_embed not in (None, self.d_model):
            raise ValueError(
                f"tied embeddings need d_embed equal to d_model, received {self.d_embed} and {self.d_model}"
            )
        super().__post_init__()

    def setup(self):
        scale = 0.02 if self.tie_embeddings else 1.0  # of logits, or of what a layer reads
        self.embed = Embed(
            self.vocab_size, self.d_embed or self.d_model, embedding_init=nn.initializers.normal(scale)
        )
        self.drop = Dropout(self.dropout, (1,) if self.variational else ())
        self.recurrent = Recurrent(
            self.d_model, self.cell, self.num_layers, dropout=self.dropout, variational=self.variational
        )
        if self.tie_embeddings:
            init = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
            self.bias = self.param("bias", init, (self.vocab_size,))
        else:
            self.head = Dense(self.vocab_size, True, ("embed", "vocab"))

    def __call__(
        self, tokens: Int[Array, "B T"], train: bool = False, cache: tuple[Carry, ...] | None = None
    ) -> Float[Array, "B T V"] | tuple[Float[Array, "B T V"], tuple[Carry, ...]]:
        """Logits; with a cache (the carry before these tokens), (logits, the carry after them)."""
        dropping = train and not is_zero(self.dropout)
        x = self.drop(self.embed(tokens), train) if dropping else self.embed.rows(tokens)
        x, carry = self.recurrent(x, cache, train=train)
        x = self.drop(x, train)
        logits = self.embed.attend(x) + self.bias[None, None] if self.tie_embeddings else self.head(x)
        return logits if cache is None else (logits, carry)

    def start(self, batch: int, length: int | None = None) -> tuple[Carry, ...]:
        """The carry before any token; its size does not depend on the length."""
        del length
        return zero_carry(self.cell, batch, self.d_model, self.num_layers)

    def step(
        self, variables: dict[str, Any], cache: tuple[Carry, ...], token: Int[Array, "B"]
    ) -> tuple[Float[Array, "B V"], tuple[Carry, ...]]:
        """(logits after one more token, the carry)."""
        logits, cache = self.apply(variables, token[:, None], cache=cache)
        return logits[:, 0], cache


@dataclasses.dataclass(frozen=True)
class Carried:
    """`NextToken` on a text that is read in order: each row goes on from the state in which the last batch left it.

    Truncated backpropagation: the gradient ends where the batch begins. A batch is one of `NextToken` and may tell by
    "begins", (B,), which rows start anew, with an empty state. The state is the collection "carry", {"layers": what
    the model carries}.
    """

    model: RecurrentLM

    def init(self, key, batch: Batch) -> tuple[PyTree, dict[str, PyTree]]:
        params, collections = NextToken(self.model).init(key, batch)
        return params, {**collections, **self.start(len(batch["tokens"]))}

    def start(self, batch: int) -> dict[str, PyTree]:
        """The collection before any token."""
        return {"carry": {"layers": self.model.start(batch)}}

    def loss(
        self, params, collections, batch: Batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        carry = collections["carry"]["layers"]
        if "begins" in batch:
            carry = jax.tree.map(lambda leaf: jnp.where(batch["begins"][:, None], 0, leaf), carry)
        tokens, rngs = batch["tokens"], {"dropout": key} if train else None
        logits, carry = self.model.apply({"params": params}, tokens[:, :-1], train, carry, rngs=rngs)
        loss = Mean.of(cross_entropy(logits, tokens[:, 1:]), batch.get("mask"))
        return loss, {"loss": loss}, {**collections, "carry": {"layers": carry}}
