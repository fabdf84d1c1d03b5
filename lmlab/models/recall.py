"""A recurrent network that reads a sequence and then says what it was to keep, and the objectives of that."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from lmlab.experiment import Mean, PyTree
from lmlab.layers.linear import Dense
from lmlab.layers.recurrent import Recurrent, forget_bias, zero_carry
from lmlab.tasks import Batch, cross_entropy


class Reader(nn.Module):
    """One recurrent layer, and a linear map of its last `reads` states. forget_bias: of the LSTM alone."""

    outputs: int
    reads: int = 1
    cell: str = "gru"
    d_model: int = 64
    forget_bias: float = 0.0

    def __post_init__(self):
        for name in ("outputs", "reads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        super().__post_init__()

    def setup(self):
        init = forget_bias(self.forget_bias) if self.cell == "lstm" else nn.initializers.zeros
        self.recurrent = Recurrent(self.d_model, self.cell, bias_init=init)
        self.head = Dense(self.outputs)

    def __call__(self, inputs: Float[Array, "B T D"], train: bool = False) -> Float[Array, "B N O"]:
        states, _ = self.recurrent(inputs)
        return self.head(states[:, -self.reads :])

    def start(self, batch: int) -> PyTree:
        """The state before the first input."""
        return zero_carry(self.cell, batch, self.d_model)

    def advance(self, variables: dict[str, Any], state: PyTree, x: Float[Array, "B D"]) -> PyTree:
        """The state after one more input."""
        return self.apply(variables, x, state, method=lambda self, x, state: self.recurrent.step(x, state)[1])


@dataclasses.dataclass(frozen=True)
class Recall:
    """Squared error of a number that is the target, or cross-entropy in nats of each of several symbols that are.

    A batch is {"inputs": (B, T, D), "target": (B,) of floats or (B, N) of numbers of symbols}.
    """

    model: Reader

    def init(self, key, batch: Batch) -> tuple[PyTree, dict[str, PyTree]]:
        return self.model.init(key, batch["inputs"])["params"], {}

    def loss(
        self, params, collections, batch: Batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        said, target, mask = (
            self.model.apply({"params": params}, batch["inputs"]),
            batch["target"],
            batch.get("mask"),
        )
        if jnp.issubdtype(target.dtype, jnp.floating):
            loss = Mean.of(jnp.square(said[:, 0, 0] - target), mask)
            return loss, {"loss": loss}, collections
        loss = Mean.of(cross_entropy(said, target), mask)
        right = (jnp.argmax(said, axis=-1) == target).astype(said.dtype)
        return loss, {"loss": loss, "accuracy": Mean.of(right, mask)}, collections
