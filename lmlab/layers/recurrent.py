"""Recurrent networks: the cells as their equations, and one module that owns weights and time.

A cell maps (carry, x, weights) to (carry, gates). Its x is the projected input W x + b of all gates,
side by side, which the module computes for all times in one product before the scan; h is the state.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lmlab.layers.dropout import Dropout, Rate, check_rate
from lmlab.layers.linear import Dense, matmul


class LSTMCarry(NamedTuple):
    h: Float[Array, "B H"]
    c: Float[Array, "B H"]


class Weights(NamedTuple):
    """What a cell adds to the projected input: U of all gates side by side; c of GRU form A alone."""

    u: Float[Array, "H G"]
    c: Float[Array, "H"] | None = None


Carry = Float[Array, "B H"] | LSTMCarry
Gates = dict[str, Float[Array, "B H"]]


def rnn(h: Float[Array, "B H"], x: Float[Array, "B G"], weights: Weights) -> tuple[Carry, Gates]:
    """h' = tanh(W x + U h + b) (Elman 1990)."""
    return jnp.tanh(x + matmul(h, weights.u)), {}


def gru(h: Float[Array, "B H"], x: Float[Array, "B G"], weights: Weights) -> tuple[Carry, Gates]:
    """The gated recurrent unit with the reset gate outside the linear map, as in cuDNN and PyTorch.

    r = s(W_r x + U_r h + b_r),  u = s(W_u x + U_u h + b_u),
    n = tanh(W_n x + b_n + r * (U_n h + c)),  h' = u * h + (1 - u) * n.
    """
    x_r, x_u, x_n = jnp.split(x, 3, axis=-1)
    h_r, h_u, h_n = jnp.split(matmul(h, weights.u), 3, axis=-1)
    r, u = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_u + h_u)
    n = jnp.tanh(x_n + r * (h_n + weights.c[None]))
    return u * h + (1 - u) * n, {"reset": r, "update": u}


def gru_inside(h: Float[Array, "B H"], x: Float[Array, "B G"], weights: Weights) -> tuple[Carry, Gates]:
    """The gated recurrent unit with the reset gate inside the linear map (Cho et al. 2014, eq. 5 to 8).

    r = s(W_r x + U_r h + b_r),  u = s(W_u x + U_u h + b_u),
    n = tanh(W_n x + U_n (r * h) + b_n),  h' = u * h + (1 - u) * n.
    """
    x_r, x_u, x_n = jnp.split(x, 3, axis=-1)
    width = h.shape[-1]
    h_r, h_u = jnp.split(matmul(h, weights.u[:, : 2 * width]), 2, axis=-1)
    r, u = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_u + h_u)
    n = jnp.tanh(x_n + matmul(r * h, weights.u[:, 2 * width :]))
    return u * h + (1 - u) * n, {"reset": r, "update": u}


def lstm(carry: LSTMCarry, x: Float[Array, "B G"], weights: Weights) -> tuple[Carry, Gates]:
    """Long short-term memory with a forget gate (Hochreiter and Schmidhuber 1997, Gers et al. 2000).

    i, f, o = s(W x + U h + b) each with its own weights,  g = tanh(W_g x + U_g h + b_g),
    c' = f * c + i * g,  h' = o * tanh(c').
    """
    i, f, g, o = jnp.split(x + matmul(carry.h, weights.u), 4, axis=-1)
    i, f, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o)
    c = f * carry.c + i * jnp.tanh(g)
    return LSTMCarry(o * jnp.tanh(c), c), {"input": i, "forget": f, "output": o}


CELLS = {"rnn": (rnn, 1), "gru": (gru, 3), "gru_inside": (gru_inside, 3), "lstm": (lstm, 4)}
"""Each cell, and how many maps of the input (and as many of the state) it needs."""


def check_cell(cell: str) -> None:
    if cell not in CELLS:
        raise ValueError(f"unknown cell {cell!r}; allowed: {', '.join(CELLS)}")


def zero_carry(
    cell: str, batch: int, features: int, num_layers: int = 1, bidirectional: bool = False
) -> tuple[Carry, ...]:
    """The carry before the first token: one a layer, or forward and backward of each layer in turn."""
    zeros = jnp.zeros((batch, features))
    carry = LSTMCarry(zeros, zeros) if cell == "lstm" else zeros
    return (carry,) * (num_layers * (2 if bidirectional else 1))


class Recurrent(nn.Module):
    """Stacked, perhaps bidirectional recurrent layers with dropout between them.

    Bidirectional layers give forward and backward outputs side by side, 2 H wide. The gates are kept for
    figures, a dict of (B, T, H) a layer, when the caller makes "intermediates" mutable.
    """

    features: int
    cell: str = "gru"
    num_layers: int = 1
    bidirectional: bool = False
    dropout: Rate = 0.0
    kernel_init: Callable = nn.initializers.lecun_normal()
    recurrent_init: Callable = nn.initializers.orthogonal()
    bias_init: Callable = nn.initializers.zeros

    def __post_init__(self):
        check_cell(self.cell)
        check_rate(self.dropout)
        for name in ("features", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        carry: tuple[Carry, ...] | None = None,
        lengths: Int[Array, "B"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T Y"], tuple[Carry, ...]]:
        """(states over time, last carry). Past a row's length the state stands still and its output is 0.

        Y is H, or 2 H when bidirectional.
        """
        if carry is None:
            carry = zero_carry(self.cell, x.shape[0], self.features, self.num_layers, self.bidirectional)
        directions = ("", "_backward") if self.bidirectional else ("",)
        after = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = Dropout(self.dropout)(x, train)
            outputs = []
            for direction in directions:
                y, last = self._layer(x, carry[len(after)], lengths, f"{layer}{direction}")
                outputs.append(y)
                after.append(last)
            x = jnp.concatenate(outputs, axis=-1) if self.bidirectional else outputs[0]
        return x, tuple(after)

    def _layer(self, x, carry, lengths, name):
        cell, maps = CELLS[self.cell]
        wide = maps * self.features

        def separate(key, shape, dtype=jnp.float32):
            # One draw for each gate: scale and orthogonality are those of a square matrix.
            square = (shape[0], shape[0])
            keys = jax.random.split(key, maps)
            return jnp.concatenate([self.recurrent_init(key, square, dtype) for key in keys], axis=1)

        project = Dense(wide, True, ("embed", "mlp"), self.kernel_init, self.bias_init, name=f"input_{name}")
        u_init = nn.with_logical_partitioning(separate, ("embed", "mlp"))
        u, c = self.param(f"recurrent_{name}", u_init, (self.features, wide)), None
        if self.cell == "gru":
            c_init = nn.with_logical_partitioning(self.bias_init, ("mlp",))
            c = self.param(f"candidate_bias_{name}", c_init, (self.features,))
        weights = Weights(u, c)
        keep_gates = self.is_mutable_collection("intermediates")

        def tick(carry, inputs):
            t, x = inputs
            new, gates = cell(carry, x, weights)
            y = new.h if isinstance(new, LSTMCarry) else new
            if lengths is not None:
                within = (t < lengths)[:, None]
                new = jax.tree.map(lambda new, old: jnp.where(within, new, old), new, carry)
                y = jnp.where(within, y, 0)
            return new, (y, gates if keep_gates else {})

        # Scanned from the back, a row's state stays the initial one until its true end.
        steps = (jnp.arange(x.shape[1]), project(x).swapaxes(0, 1))
        last, (y, gates) = lax.scan(tick, carry, steps, reverse=name.endswith("_backward"))
        if keep_gates:
            self.sow("intermediates", f"gates_{name}", {k: v.swapaxes(0, 1) for k, v in gates.items()})
        return y.swapaxes(0, 1), last

    def step(
        self, x: Float[Array, "B D"], carry: tuple[Carry, ...]
    ) -> tuple[Float[Array, "B Y"], tuple[Carry, ...]]:
        """(output, carry) after one more input."""
        y, carry = self(x[:, None], carry)
        return y[:, 0], carry
