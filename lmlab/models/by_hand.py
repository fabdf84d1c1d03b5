"""Gradients and Adam written out, with no automatic differentiation: the network of nplm.py, batch-normalized.

Forward, for B rows of N tokens w and the token t that follows each; L is the mean over rows:

    X = C(w_1) ... C(w_N)                     (B, N E)   embedding
    h = X W                                   (B, H)     inward
    z = (h - mean h) / s,  s^2 = var h + eps  (B, H)     mean and variance over the batch
    a = tanh(gain z + shift)                  (B, H)     BatchNorm_0
    y = a U + b                               (B, V)     outward
    L = mean(-log softmax(y)_t)

Backward, d. the derivative of L by what follows the d, sums over the batch:

    dy = (softmax(y) - onehot(t)) / B         from log softmax(y)_t = y_t - log sum exp y
    dU = a' dy        db = sum dy             da = dy U'
    dn = da (1 - a^2)                         n = gain z + shift,  tanh' = 1 - tanh^2
    dgain = sum dn z  dshift = sum dn         dz = gain dn
    dh = (dz - mean dz - z mean(z dz)) / s    as h moves z itself, through the mean, and through s
    dW = X' dh        dX = dh W'
    dC(k) = sum of dX over the places where w = k

dh: with z_i = (h_i - m) / s, dm / dh_j = 1 / B and ds / dh_j = z_j / B, so that dz_i / dh_j =
(1[i = j] - 1 / B - z_i z_j / B) / s, and dh_j is the sum over i of dz_i times that.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lmlab.experiment import PyTree

EPSILON = 1e-5
DECAY = 0.9
"""Of the running averages of mean and variance, as `layers.normalization.batch_norm` has them."""


class Forward(NamedTuple):
    """What the backward pass reads, by the letters above, and the loss."""

    X: Float[Array, "B NE"]
    mean: Float[Array, "H"]
    variance: Float[Array, "H"]
    z: Float[Array, "B H"]
    a: Float[Array, "B H"]
    log_p: Float[Array, "B V"]
    loss: Float[Array, ""]


def forward(params: PyTree, tokens: Int[Array, "B n"]) -> Forward:
    """tokens: those of the context and, last, the one to be told."""
    X = params["embed"]["embedding"][tokens[:, :-1]].reshape(len(tokens), -1)
    h = X @ params["inward"]["kernel"]
    mean = h.mean(0)
    variance = ((h - mean[None]) ** 2).mean(0)
    z = (h - mean[None]) / jnp.sqrt(variance + EPSILON)[None]
    norm = params["BatchNorm_0"]
    a = jnp.tanh(norm["scale"][None] * z + norm["bias"][None])
    y = a @ params["outward"]["kernel"] + params["outward"]["bias"][None]
    y = y - y.max(-1, keepdims=True)
    log_p = y - jnp.log(jnp.exp(y).sum(-1, keepdims=True))
    loss = -log_p[jnp.arange(len(tokens)), tokens[:, -1]].mean()
    return Forward(X, mean, variance, z, a, log_p, loss)


def backward(params: PyTree, tokens: Int[Array, "B n"], seen: Forward) -> PyTree:
    """The derivatives of the loss by the params, in their own structure."""
    table, W, U = (
        params["embed"]["embedding"],
        params["inward"]["kernel"],
        params["outward"]["kernel"],
    )
    rows = len(tokens)
    dy = (jnp.exp(seen.log_p) - one_hot(tokens[:, -1], seen.log_p)) / rows
    dn = (dy @ U.T) * (1 - seen.a**2)
    dz = params["BatchNorm_0"]["scale"][None] * dn
    through_mean, through_s = dz.mean(0)[None], seen.z * (seen.z * dz).mean(0)[None]
    dh = (dz - through_mean - through_s) / jnp.sqrt(seen.variance + EPSILON)[None]
    context = tokens[:, :-1].reshape(-1)
    dX = (dh @ W.T).reshape(len(context), -1)
    return {
        "embed": {"embedding": jnp.zeros_like(table).at[context].add(dX)},
        "inward": {"kernel": seen.X.T @ dh},
        "BatchNorm_0": {"scale": (dn * seen.z).sum(0), "bias": dn.sum(0)},
        "outward": {"kernel": seen.a.T @ dy, "bias": dy.sum(0)},
    }


def one_hot(labels: Int[Array, "B"], like: Float[Array, "B V"]) -> Float[Array, "B V"]:
    return (labels[:, None] == jnp.arange(like.shape[1])[None]).astype(like.dtype)


def running(averages: PyTree, seen: Forward) -> PyTree:
    """The averages of mean and variance that stand in for the batch's when the network is used."""
    new = {"mean": seen.mean, "var": seen.variance}
    old = averages["BatchNorm_0"]
    return {"BatchNorm_0": {name: DECAY * old[name] + (1 - DECAY) * new[name] for name in new}}


class Moments(NamedTuple):
    """t: updates done; m, v: the running averages of gradients and of their squares."""

    t: Any
    m: PyTree
    v: PyTree


class Adam(NamedTuple):
    """Kingma and Ba 2015, algorithm 1. With `init` and `update` it is used as an optax transformation is.

    m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,   both begun at 0, so that after t updates the
    weights of the gradients in m sum to 1 - b1^t: m and v are divided by what theirs sum to. Then
    params <- params - learning_rate m / (sqrt(v) + eps).
    """

    learning_rate: float
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def init(self, params: PyTree) -> Moments:
        return Moments(jnp.zeros((), jnp.int32), *(jax.tree.map(jnp.zeros_like, params) for _ in range(2)))

    def update(self, grads: PyTree, state: Moments, params: PyTree = None) -> tuple[PyTree, Moments]:
        """(what is to be added to the params, the moments)."""
        del params
        t = state.t + 1
        m = jax.tree.map(lambda m, g: self.b1 * m + (1 - self.b1) * g, state.m, grads)
        v = jax.tree.map(lambda v, g: self.b2 * v + (1 - self.b2) * g**2, state.v, grads)

        def change(m, v):
            m, v = m / (1 - self.b1**t), v / (1 - self.b2**t)
            return -self.learning_rate * m / (jnp.sqrt(v) + self.eps)

        return jax.tree.map(change, m, v), Moments(t, m, v)
