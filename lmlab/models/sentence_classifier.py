"""A recurrent network that reads a sentence, and a linear map of its last state to the logits of classes."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lmlab.layers.dropout import Dropout, Rate, check_rate
from lmlab.layers.linear import Dense, Embed
from lmlab.layers.recurrent import LSTMCarry, Recurrent


class SentenceClassifier(nn.Module):
    """cell: as RecurrentLM's. Token 0 fills rows behind a sentence; dropout falls on embeddings and the last state."""

    vocab_size: int
    cell: str = "gru"
    num_layers: int = 1
    d_embed: int = 100
    d_model: int = 100
    dropout: Rate = 0.0
    num_classes: int = 2

    def __post_init__(self):
        check_rate(self.dropout)
        for name in ("vocab_size", "d_embed"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"], train: bool = False) -> Float[Array, "B K"]:
        embed = Embed(self.vocab_size, self.d_embed, embedding_init=nn.initializers.normal(0.1), name="embed")
        x = Dropout(self.dropout)(embed(tokens), train)
        recurrent = Recurrent(self.d_model, self.cell, self.num_layers, dropout=self.dropout)
        _, carry = recurrent(x, lengths=jnp.sum(tokens > 0, 1), train=train)
        last = carry[-1].h if isinstance(carry[-1], LSTMCarry) else carry[-1]
        return Dense(self.num_classes, True, ("embed", None), name="head")(Dropout(self.dropout)(last, train))
