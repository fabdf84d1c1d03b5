"""Diffusion models: the noise that is added, the network that takes it away, its loss, and its samplers.

Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM), Nichol and Dhariwal 2021 (cosine schedule), Salimans and Ho
2022 (v), Ho and Salimans 2022 (guidance without a classifier). Data are called x_0, noise e, and a_t is
the product of 1 - beta up to step t, alpha bar in the papers; a_0 = 1.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float, Int

from lmlab.experiment import Mean, PyTree
from lmlab.layers.linear import Dense, Embed
from lmlab.layers.positions import sinusoidal

SCHEDULES = ("linear", "cosine")
PREDICTIONS = ("eps", "x0", "v")
SAMPLERS = {"ddpm": 1.0, "ddim": 0.0}
"""Name: eta, the part of the posterior's noise that is added at each step."""


@dataclasses.dataclass(frozen=True)
class Process:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e for t = 1..num_steps (Ho et al. 2020, eq. 4).

    schedule "linear": beta from `first` to `last` (section 4); "cosine": a_t = f(t) / f(0), f(t) =
    cos^2(pi/2 (t/T + s) / (1 + s)), s = 0.008, beta at most 0.999 (Nichol and Dhariwal 2021, eq. 17).
    """

    num_steps: int = 1000
    schedule: str = "linear"
    first: float = 1e-4
    last: float = 0.02

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: received {self.schedule!r}; allowed: {', '.join(SCHEDULES)}")
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, received {self.num_steps}")
        if not 0 < self.first <= self.last < 1:
            raise ValueError(
                f"the noise must not decrease: first {self.first}, last {self.last}; allowed: 0 < first <= last < 1"
            )

    @functools.cached_property
    def signal(self) -> Float[np.ndarray, "S"]:
        """a_t for t = 0..num_steps."""
        if self.schedule == "linear":
            betas = np.linspace(self.first, self.last, self.num_steps)
        else:
            along = np.arange(self.num_steps + 1) / self.num_steps
            f = np.cos(np.pi / 2 * (along + 0.008) / 1.008) ** 2
            betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
        return np.concatenate([[1.0], np.cumprod(1 - betas)]).astype(np.float32)

    def coefficients(self, t: Int[Array, "*B"], like: Float[Array, "..."]) -> tuple[Array, Array]:
        """sqrt(a_t) and sqrt(1 - a_t), with as many axes as `like`."""
        a = jnp.asarray(self.signal)[t].reshape(t.shape + (1,) * (like.ndim - t.ndim))
        return jnp.sqrt(a), jnp.sqrt(1 - a)

    def noised(self, x0: Float[Array, "B ..."], t: Int[Array, "B"], noise: Float[Array, "B ..."]) -> Array:
        """x_t."""
        signal, spread = self.coefficients(t, x0)
        return signal * x0 + spread * noise

    def target(self, kind: str, x0, t, noise) -> Array:
        """What the network is to predict: the noise, the data, or v = sqrt(a) e - sqrt(1 - a) x_0."""
        signal, spread = self.coefficients(t, x0)
        return {"eps": noise, "x0": x0, "v": signal * noise - spread * x0}[kind]

    def split(self, kind: str, x, t, output) -> tuple[Array, Array]:
        """(x_0, e) that a prediction says x_t was made of."""
        signal, spread = self.coefficients(t, x)
        if kind == "v":  # [x_t, v] is a rotation of [x_0, e]
            return signal * x - spread * output, spread * x + signal * output
        if kind == "x0":
            return output, (x - signal * output) / spread
        return (x - spread * output) / signal, output

    def step(self, x, x0, noise, t: Int[Array, ""], s: Int[Array, ""], eta: float, fresh) -> Array:
        """x_s, s < t, from x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e (Song et al. 2021, eqs. 12 and 16).

        sqrt(a_s) x_0 + sqrt(1 - a_s - sigma^2) e + sigma z, z: `fresh` noise, and sigma^2 = eta^2 times
        the variance of q(x_s | x_t, x_0). With eta = 1 it is a draw from that posterior: DDPM.
        """
        a = jnp.asarray(self.signal)
        sigma = eta * jnp.sqrt((1 - a[s]) / (1 - a[t]) * (1 - a[t] / a[s]))
        return jnp.sqrt(a[s]) * x0 + jnp.sqrt(jnp.maximum(1 - a[s] - sigma**2, 0)) * noise + sigma * fresh


class Denoiser(nn.Module):
    """A network given the step, and the class if there are classes: `network(x, condition, train)`.

    The condition is an embedding of the step by sinusoids and two layers, plus a vector for each class, of
    which there is one more than `num_classes`: the last stands for no class.
    """

    network: nn.Module
    num_steps: int
    num_classes: int = 0
    width: int = 128

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B ..."],
        t: Int[Array, "B"],
        label: Int[Array, "B"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B ..."]:
        condition = sinusoidal(t * 1000 // self.num_steps, self.width)
        condition = Dense(self.width)(nn.silu(Dense(self.width)(condition)))
        if self.num_classes:
            label = jnp.full(t.shape, self.num_classes) if label is None else label
            init = nn.initializers.normal(1.0)  # as large as what the step gives, or classes are learnt late
            condition = condition + Embed(self.num_classes + 1, self.width, (None, "embed"), init)(label)
        return self.network(x, condition, train).reshape(x.shape)


class PointNetwork(nn.Module):
    """Residual layers x + W2 silu(W1 x + A c) for points of few dimensions, c: the condition."""

    dimensions: int
    hidden: int = 128
    num_layers: int = 3

    def __post_init__(self):
        for name in ("dimensions", "hidden", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "B D"], condition: Float[Array, "B E"], train: bool = False
    ) -> Float[Array, "B D"]:
        del train
        h = Dense(self.hidden)(x)
        for _ in range(self.num_layers):
            inner = Dense(self.hidden)(h) + Dense(self.hidden, use_bias=False)(nn.silu(condition))
            h = h + Dense(self.hidden)(nn.silu(inner))
        return Dense(self.dimensions)(nn.silu(h))


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """The squared error of what the network says of x_t (Ho et al. 2020, eq. 14), t even from 1 to T.

    The steps of a batch lie evenly apart from a first that is drawn (Kingma et al. 2021, appendix I.1).
    A batch is {"x": (B, ...)} or {"image": (B, H, W) in [0, 1]}, which becomes x = 2 image - 1; with
    "label" for a conditional model, which is not told it with probability `unlabelled`; and "mask".
    """

    model: Any  # a Denoiser, or what else has `apply`, `init` and `num_classes` as it has
    process: Process
    predict: str = "eps"
    unlabelled: float = 0.1

    def __post_init__(self):
        if self.predict not in PREDICTIONS:
            raise ValueError(f"predict: received {self.predict!r}; allowed: {', '.join(PREDICTIONS)}")
        if not 0 <= self.unlabelled <= 1:
            raise ValueError(f"unlabelled must be from 0 to 1, received {self.unlabelled}")

    def data(self, batch) -> Float[Array, "B ..."]:
        return 2 * batch["image"] - 1 if "image" in batch else batch["x"]

    def init(self, key, batch) -> tuple[PyTree, dict[str, PyTree]]:
        x = self.data(batch)
        collections = dict(self.model.init(key, x, jnp.ones(x.shape[0], jnp.int32)))
        return collections.pop("params"), collections

    def loss(
        self, params, collections, batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        x0, keys = self.data(batch), jax.random.split(key, 4)
        along = (jax.random.uniform(keys[0]) + jnp.arange(len(x0)) / len(x0)) % 1
        t = 1 + jnp.floor(along * self.process.num_steps).astype(jnp.int32)
        noise = jax.random.normal(keys[1], x0.shape)
        label = batch.get("label") if self.model.num_classes else None
        if train and label is not None:
            hidden = jax.random.bernoulli(keys[2], self.unlabelled, label.shape)
            label = jnp.where(hidden, self.model.num_classes, label)
        output = self.model.apply(
            {"params": params},
            self.process.noised(x0, t, noise),
            t,
            label,
            train,
            rngs={"dropout": keys[3]} if train else None,
        )
        error = jnp.square(output - self.process.target(self.predict, x0, t, noise))
        loss = Mean.of(error.reshape(len(error), -1).mean(1), batch.get("mask"))
        return loss, {"loss": loss}, collections

    def output(self, variables, x, t, label, guidance):
        """The prediction: u + guidance (c - u), c with the class and u without (Ho and Salimans 2022, eq. 6).

        1 is the class alone (as None is, at half the work), 0 no class; the paper's weight is guidance - 1.
        """
        if guidance is None or label is None:
            return self.model.apply(variables, x, t, label)
        both = self.model.apply(
            variables,
            jnp.concatenate([x, x]),
            jnp.concatenate([t, t]),
            jnp.concatenate([label, jnp.full_like(label, self.model.num_classes)]),
        )
        with_class, without = jnp.split(both, 2)
        return without + guidance * (with_class - without)

    @functools.partial(jax.jit, static_argnames=("self", "shape", "num_steps", "eta", "bound", "trace"))
    def draw(
        self,
        variables: dict[str, Any],
        key,
        shape: tuple[int, ...],
        num_steps: int,
        eta: float,
        label: Int[Array, "B"] | None = None,
        guidance=None,
        bound: float = math.inf,
        trace: bool = False,
    ):
        """x_0 (*shape) from pure noise in `num_steps` steps; with `trace`, (x_t, the x_0 foreseen) of each too.

        bound: data are known to lie within it, and so is the x_0 foreseen at each step.
        """
        steps = jnp.asarray(timesteps(self.process.num_steps, num_steps))
        first, rest = jax.random.split(key)
        x = jax.random.normal(first, shape)

        def one(x, now):
            t, s, number = now
            ts = jnp.full(shape[:1], t)
            x0, noise = self.process.split(
                self.predict, x, ts, self.output(variables, x, ts, label, guidance)
            )
            if bound < math.inf:
                x0 = jnp.clip(x0, -bound, bound)
                signal, spread = self.process.coefficients(ts, x)
                noise = (x - signal * x0) / spread
            fresh = jax.random.normal(jax.random.fold_in(rest, number), shape) if eta else jnp.zeros(shape)
            new = self.process.step(x, x0, noise, t, s, eta, fresh)
            return new, (x, x0) if trace else None

        x, path = jax.lax.scan(one, x, (steps[:-1], steps[1:], jnp.arange(num_steps)))
        return (x, path) if trace else x


@dataclasses.dataclass(frozen=True)
class VariationalBound:
    """-log p(x_0) of images of 256 levels is at most L_T + sum_t L_{t-1} + L_0, in nats (Ho et al. 2020, eq. 5).

    L_T = KL(q(x_T | x_0) | N(0, I)). L_{t-1} = (SNR(t-1) - SNR(t)) / 2 |x_0 - x_0'|^2, SNR(t) = a_t / (1 - a_t),
    x_0' the data foreseen (Kingma et al. 2021, eq. 14: the variance is that of the posterior); the sum over t is
    T - 1 times one t an image, even over a batch. L_0: the part of N(x_0', beta_1) within a level (eq. 13).
    A conditional model is told the class.
    """

    task: Diffusion

    def loss(
        self, params, collections, batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        process, x0, keys = self.task.process, self.task.data(batch), jax.random.split(key, 3)
        total, variables, mask = process.num_steps, {"params": params, **collections}, batch.get("mask")

        def foreseen(t, key):
            noise = jax.random.normal(key, x0.shape)
            x = process.noised(x0, t, noise)
            label = batch.get("label") if self.task.model.num_classes else None
            output = self.task.output(variables, x, t, label, None)
            return jnp.clip(process.split(self.task.predict, x, t, output)[0], -1, 1)

        def over_pixels(x):
            return x.reshape(len(x), -1).sum(1)

        a = process.signal.astype(np.float64)
        snr = a[1:] / (1 - a[1:])
        nats = over_pixels(a[-1] * x0**2 - a[-1] - math.log1p(-a[-1])) / 2
        if total > 1:
            along = (jax.random.uniform(keys[0]) + jnp.arange(len(x0)) / len(x0)) % 1
            place = jnp.floor(along * (total - 1)).astype(jnp.int32)
            weight = jnp.asarray((total - 1) / 2 * -np.diff(snr), jnp.float32)[place]
            nats = nats + weight * over_pixels((x0 - foreseen(place + 2, keys[1])) ** 2)
        first = foreseen(jnp.ones(len(x0), jnp.int32), keys[2])
        away, width = jnp.abs(x0 - first), math.sqrt(1 - a[1])
        inside = jnp.abs(x0) < 1 - 1e-3  # the first level and the last have no end
        within = ndtr((1 / 255 - away) / width) - inside * ndtr((-1 / 255 - away) / width)
        nats = nats - over_pixels(jnp.log(jnp.maximum(within, 1e-30)))
        bits = nats / (math.prod(x0.shape[1:]) * math.log(2))
        return Mean.of(nats, mask), {"bits_per_dim": Mean.of(bits, mask)}, collections


def timesteps(total: int, num_steps: int) -> np.ndarray:
    """The steps a sampler stops at: `num_steps` + 1 of them, evenly from `total` down to 0."""
    if not 1 <= num_steps <= total:
        raise ValueError(f"num_steps: received {num_steps}; allowed: 1 to {total}")
    return np.rint(np.linspace(total, 0, num_steps + 1)).astype(np.int32)
