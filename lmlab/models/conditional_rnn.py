"""A recurrent language model that is told a topic by its first state."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lmlab.experiment import Mean
from lmlab.layers.linear import Dense
from lmlab.layers.recurrent import Carry
from lmlab.models.recurrent_lm import RecurrentLM
from lmlab.tasks import cross_entropy


class ConditionalRNN(nn.Module):
    """P(w_1 w_2 ... | topic), where h_0 = tanh(W topic) in each layer.

    There is no bias: of a topic vector of zeros nothing is told, and the model is the language model alone. Mikolov
    and Zweig 2012 give the topic at every word; here the state alone carries it.
    """

    vocab_size: int
    cell: str = "gru"
    num_layers: int = 1
    d_model: int = 128

    def setup(self):
        self.language = RecurrentLM(self.vocab_size, self.cell, self.num_layers, self.d_model)
        count = len(jax.tree.leaves(self.language.start(1)))
        self.first = Dense(count * self.d_model, False)

    def __call__(
        self, tokens: Int[Array, "B T"], topic: Float[Array, "B K"], train: bool = False
    ) -> Float[Array, "B T V"]:
        return self.language(tokens, train, self.begin(topic))[0]

    def begin(self, topic: Float[Array, "B K"]) -> tuple[Carry, ...]:
        """The carry before any token, given topics."""
        leaves, tree = jax.tree.flatten(self.language.start(len(topic)))
        return jax.tree.unflatten(tree, jnp.split(jnp.tanh(self.first(topic)), len(leaves), axis=-1))

    def step(
        self, variables: dict[str, Any], cache: tuple[Carry, ...], token: Int[Array, "B"]
    ) -> tuple[Float[Array, "B V"], tuple[Carry, ...]]:
        """(logits after one more token, the carry)."""
        logits, cache = self.apply(
            variables,
            token[:, None],
            cache,
            method=lambda model, *inputs: model.language(inputs[0], cache=inputs[1]),
        )
        return logits[:, 0], cache


@dataclasses.dataclass(frozen=True)
class NextTokenOfTopic:
    """Cross-entropy in nats of each token given those before it and the topic.

    A batch is {"tokens": (B, T+1), "topic": (B, K)} and, where some targets do not count, {"mask": (B, T)}.
    """

    model: nn.Module

    def init(self, key, batch):
        return self.model.init(key, batch["tokens"][:, :-1], batch["topic"])["params"], {}

    def loss(self, params, collections, batch, key, train: bool):
        del key
        logits = self.model.apply({"params": params}, batch["tokens"][:, :-1], batch["topic"], train)
        loss = Mean.of(cross_entropy(logits, batch["tokens"][:, 1:]), batch.get("mask"))
        return loss, {"loss": loss}, collections
