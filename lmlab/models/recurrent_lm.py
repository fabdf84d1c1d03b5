"""A recurrent language model (Mikolov et al. 2010): embedding, recurrent layers, logits of the next token."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float, Int

from lmlab.layers.dropout import Dropout, Rate, check_rate, is_zero
from lmlab.layers.linear import Dense, Embed
from lmlab.layers.recurrent import Carry, Recurrent, check_cell, zero_carry


class RecurrentLM(nn.Module):
    """cell: "rnn", "gru" (reset gate outside the linear map), "gru_inside" or "lstm".

    `d_embed` None means `d_model`. Dropout falls on the embeddings, between layers and on the last states.
    """

    vocab_size: int
    cell: str = "gru"
    num_layers: int = 1
    d_model: int = 256
    d_embed: int | None = None
    dropout: Rate = 0.0
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
        self.embed = Embed(self.vocab_size, self.d_embed or self.d_model)
        self.drop = Dropout(self.dropout)
        self.recurrent = Recurrent(self.d_model, self.cell, self.num_layers, dropout=self.dropout)
        if not self.tie_embeddings:
            self.head = Dense(self.vocab_size, True, ("embed", "vocab"))

    def __call__(
        self, tokens: Int[Array, "B T"], train: bool = False, cache: tuple[Carry, ...] | None = None
    ) -> Float[Array, "B T V"] | tuple[Float[Array, "B T V"], tuple[Carry, ...]]:
        """Logits; with a cache (the carry before these tokens), (logits, the carry after them)."""
        dropping = train and not is_zero(self.dropout)
        x = self.drop(self.embed(tokens), train) if dropping else self.embed.rows(tokens)
        x, carry = self.recurrent(x, cache, train=train)
        x = self.drop(x, train)
        logits = self.embed.attend(x) if self.tie_embeddings else self.head(x)
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
