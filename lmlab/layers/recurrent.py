"""Recurrent networks: the cells as their equations, and one module that owns weights and time.

A cell maps (carry, x, weights) to (carry, gates). Its x is the projected input W x + b of all gates,
side by side, which the module computes for all times in one product before the scan; h is the state.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from lmlab.layers import tricks
from lmlab.layers.dropout import Dropout, Rate, check_rate, is_zero
from lmlab.layers.linear import Dense, Rows, gradient_einsum, matmul


class LSTMCarry(NamedTuple):
    h: Float[Array, "B H"]
    c: Float[Array, "B H"]


class Tapped(NamedTuple):
    """A matrix whose gradient is left for after the scan, from what the two taps (zeros) are given instead."""

    u: Float[Array, "H G"]
    taps: tuple[Float[Array, "B H"], Float[Array, "B G"]]


class Weights(NamedTuple):
    """What a cell adds to the projected input: U, parted by product; c of GRU form A alone; z, a mask of dropout."""

    u: tuple[Float[Array, "H _"] | Tapped, ...]
    c: Float[Array, "H"] | None = None
    z: Float[Array, "B H"] | None = None


Carry = Float[Array, "B H"] | LSTMCarry
Gates = dict[str, Float[Array, "B H"]]


def rnn(h: Float[Array, "B H"], x: Float[Array, "B G"], weights: Weights) -> tuple[Carry, Gates]:
    """h' = tanh(W x + U h + b) (Elman 1990)."""
    return jnp.tanh(x + product(h, weights)), {}


def gru(h: Float[Array, "B H"], x: Float[Array, "B G"], weights: Weights) -> tuple[Carry, Gates]:
    """The gated recurrent unit with the reset gate outside the linear map, as in cuDNN and PyTorch.

    r = s(W_r x + U_r h + b_r),  u = s(W_u x + U_u h + b_u),
    n = tanh(W_n x + b_n + r * (U_n h + c)),  h' = u * h + (1 - u) * n.
    """
    x_r, x_u, x_n = jnp.split(x, 3, axis=-1)
    h_r, h_u, h_n = jnp.split(product(h, weights), 3, axis=-1)
    r, u = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_u + h_u)
    n = jnp.tanh(x_n + r * (h_n + weights.c[None]))
    return u * h + (1 - u) * n, {"reset": r, "update": u}


def gru_inside(h: Float[Array, "B H"], x: Float[Array, "B G"], weights: Weights) -> tuple[Carry, Gates]:
    """The gated recurrent unit with the reset gate inside the linear map (Cho et al. 2014, eq. 5 to 8).

    r = s(W_r x + U_r h + b_r),  u = s(W_u x + U_u h + b_u),
    n = tanh(W_n x + U_n (r * h) + b_n),  h' = u * h + (1 - u) * n.
    """
    x_r, x_u, x_n = jnp.split(x, 3, axis=-1)
    h_r, h_u = jnp.split(product(h, weights), 2, axis=-1)
    r, u = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_u + h_u)
    n = jnp.tanh(x_n + product(r * h, weights, 1))
    return u * h + (1 - u) * n, {"reset": r, "update": u}


def lstm(carry: LSTMCarry, x: Float[Array, "B G"], weights: Weights) -> tuple[Carry, Gates]:
    """Long short-term memory with a forget gate (Hochreiter and Schmidhuber 1997, Gers et al. 2000).

    i, f, o = s(W x + U h + b) each with its own weights,  g = tanh(W_g x + U_g h + b_g),
    c' = f * c + i * g,  h' = o * tanh(c').
    """
    i, f, g, o = jnp.split(x + product(carry.h, weights), 4, axis=-1)
    i, f, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o)
    c = f * carry.c + i * jnp.tanh(g)
    return LSTMCarry(o * jnp.tanh(c), c), {"input": i, "forget": f, "output": o}


CELLS = {"rnn": (rnn, (1,)), "gru": (gru, (3,)), "gru_inside": (gru_inside, (2, 1)), "lstm": (lstm, (4,))}
"""Each cell, and how many maps of the state stand side by side in each of its products."""


def forget_bias(value: float) -> Callable:
    """An initializer for the biases of an LSTM: `value` of the forget gate's, 0 of the others'.

    At 0 the gate begins at 1/2, and what a cell holds is halved with each step (Jozefowicz et al. 2015).
    """

    def init(key, shape, dtype=jnp.float32):
        del key
        return jnp.repeat(jnp.array([0, value, 0, 0], dtype), shape[0] // 4)

    return init


def state_of(carry: Carry) -> Float[Array, "B H"]:
    """h, the part of a carry that other layers see."""
    return carry.h if isinstance(carry, LSTMCarry) else carry


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


def product(h: Float[Array, "B H"], weights: Weights, part: int = 0) -> Float[Array, "B _"]:
    """h U, of a state and (a part of) the recurrent weights; (h * z) U under dropout."""
    u = weights.u[part]
    h = h if weights.z is None else h * weights.z
    return checkpoint_name(_tapped(h, u.u, u.taps), "product") if isinstance(u, Tapped) else matmul(h, u)


@jax.custom_vjp
def _tapped(h, u, taps):
    del taps
    return matmul(h, u)


def _tapped_forward(h, u, taps):
    return _tapped(h, u, taps), (h, u)


def _tapped_backward(operands, g):
    h, u = operands
    return matmul(g, u.T), jnp.zeros_like(u), (h, g)


_tapped.defvjp(_tapped_forward, _tapped_backward)


# Autodiff of a scan adds h^T g to dU at every step. Here the backward scan hands out h and g of all steps by
# way of the taps' cotangents, and their product is one. The taps themselves are never read.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _deferred(scan, u, rest):
    return scan(u, None, rest)


def _deferred_forward(scan, u, rest):
    carry, x = rest[:2]
    batch, length = jax.tree.leaves(carry)[0].shape[0], x.shape[0]
    taps = tuple(tuple(jnp.zeros((length, batch, size), x.dtype) for size in part.shape) for part in u)
    return jax.vjp(lambda taps, rest: scan(u, taps, rest), taps, rest)


def _deferred_backward(scan, pull, cotangent):
    taps, rest = pull(cotangent)
    return tuple(gradient_einsum("tbh,tbg->hg", h, g) for h, g in taps), rest


_deferred.defvjp(_deferred_forward, _deferred_backward)


class Recurrent(nn.Module):
    """Stacked, perhaps bidirectional recurrent layers with dropout between them.

    variational: a mask of dropout is drawn once for all times, and each layer has one for its state as well (Gal and
    Ghahramani 2016, eq. 7, with masks tied over the gates).
    Bidirectional layers give forward and backward outputs side by side, 2 H wide. The gates are kept for
    figures, a dict of (B, T, H) a layer, when the caller makes "intermediates" mutable.
    """

    features: int
    cell: str = "gru"
    num_layers: int = 1
    bidirectional: bool = False
    dropout: Rate = 0.0
    variational: bool = False
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
        x: Float[Array, "B T D"] | Rows,
        carry: tuple[Carry, ...] | None = None,
        lengths: Int[Array, "B"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T Y"], tuple[Carry, ...]]:
        """(states over time, last carry). Past a row's length the state stands still and its output is 0.

        Y is H, or 2 H when bidirectional.
        """
        if carry is None:
            batch = x.indices.shape[0] if isinstance(x, Rows) else x.shape[0]
            carry = zero_carry(self.cell, batch, self.features, self.num_layers, self.bidirectional)
        directions = ("", "_backward") if self.bidirectional else ("",)
        after = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = Dropout(self.dropout, (1,) if self.variational else ())(x, train)
            outputs = []
            for direction in directions:
                y, last = self._layer(x, carry[len(after)], lengths, f"{layer}{direction}", train)
                outputs.append(y)
                after.append(last)
            x = jnp.concatenate(outputs, axis=-1) if self.bidirectional else outputs[0]
        return x, tuple(after)

    def _layer(self, x, carry, lengths, name, train):
        cell, widths = CELLS[self.cell]
        maps = sum(widths)
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
        if isinstance(x, Rows):
            x = project(Rows(x.table, x.indices.T))
        else:
            x = project(x).swapaxes(0, 1)
        u = tuple(jnp.split(u, [self.features * sum(widths[:i]) for i in range(1, len(widths))], axis=1))
        z = None
        if self.variational and train and not is_zero(self.dropout):
            z = Dropout(self.dropout)(jnp.ones((x.shape[1], self.features)), train)
        keep_gates = self.is_mutable_collection("intermediates")
        # Scanned from the back, a row's state stays the initial one until its true end.
        scan = functools.partial(_scan, cell, name.endswith("_backward"), keep_gates)
        if tricks.uses("recurrent_gradient"):
            last, (y, gates) = _deferred(scan, u, (carry, x, c, z, lengths))
        else:
            last, (y, gates) = scan(u, None, (carry, x, c, z, lengths))
        if keep_gates:
            self.sow("intermediates", f"gates_{name}", {k: v.swapaxes(0, 1) for k, v in gates.items()})
        return y.swapaxes(0, 1), last

    def step(
        self, x: Float[Array, "B D"], carry: tuple[Carry, ...]
    ) -> tuple[Float[Array, "B Y"], tuple[Carry, ...]]:
        """(output, carry) after one more input."""
        y, carry = self(x[:, None], carry)
        return y[:, 0], carry


def _scan(cell, reverse, keep_gates, u, taps, rest):
    """(last carry, (outputs, gates)) of a layer; time leads."""
    carry, x, c, z, lengths = rest

    def tick(carry, inputs):
        t, x, taps = inputs
        weights = Weights(u if taps is None else tuple(map(Tapped, u, taps)), c, z)
        new, gates = cell(carry, x, weights)
        y = state_of(new)
        if lengths is not None:
            within = (t < lengths)[:, None]
            new = jax.tree.map(lambda new, old: jnp.where(within, new, old), new, carry)
            y = jnp.where(within, y, 0)
        return new, (y, gates if keep_gates else {})

    if taps is not None:
        tick = jax.checkpoint(tick, prevent_cse=False, policy=_kept)
    return lax.scan(tick, carry, (jnp.arange(x.shape[0]), x, taps), reverse=reverse)


def _kept(primitive, *_, **__) -> bool:
    """What the forward scan keeps for the backward one: products and activations; sums are made again."""
    return primitive.name in ("name", "logistic", "tanh")
