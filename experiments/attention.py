"""Attention as kernel regression, and what its scores do: equalities, the variance of a product, the softmax's entropy.

Nadaraya 1964 and Watson 1964 predict y at x by the mean of known values under a kernel, m(x) = sum_i a_i(x) y_i, a =
softmax_i(-(x - x_i)^2 / 2h^2): attention with x as the query, x_i as keys, y_i as values and a Gaussian score. Its
bandwidth h, or one a point, is learned by gradient here, each point predicted from the others.

    lmlab train --config=experiments/attention.py:cpu --workdir=runs/attention
    lmlab evaluate --workdir=runs/attention
    lmlab figures --workdir=runs/attention
    lmlab train --config=experiments/attention.py:demo --workdir=runs/attention-demo

y = 2 sin x + x + e, x uniform on [0, 5], e normal with deviation 1/2. The test error is against 2 sin x + x itself,
on a grid; beside it stand the best bandwidth in hindsight and the mean of all y. `equalities` are the largest
differences between two ways of computing the same: of fixed norm, Gaussian and dot scores (h^2 = sqrt(K): scaled
ones); keys in another order; a bilinear score with W_1 = W_2 = I and dot; a hard maximum and scores times 100,000.

demo: seconds. cpu, the default: seconds, too.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.experiment import Experiment, Mean, Samples, Target
from lmlab.figures import curves, style
from lmlab.layers import scores
from lmlab.sources import Resident
from lmlab.training import optimizer

FAMILY, PAPER = "attention", "Nadaraya 1964; Watson 1964; Vaswani et al. 2017"
VARIANTS = {
    "demo": "fewer points: seconds",
    "cpu": "the same as no variant: seconds",
    "each": "a bandwidth a point, in place of one for all",
}
TARGETS = {"cpu": [Target("equalities/largest", 1e-6, math.nan, "exact in real numbers")]}
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""K, the entries of queries and keys, of which figures show scores."""
KEYS = 32  # of which the softmax is over, in those figures


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="400 steps",
        batch_size=100,
        log_every="2 %",
        evaluate_every="10 %",
        model={"bandwidth": 2.0, "each": "each" in parts},
        data={"points": 100, "noise": 0.5, "seed": 0},
        optimizer={"learning_rate": 2e-2, "schedule": "constant"},
    )
    if "demo" in parts:
        config.duration = "100 steps"
        config.batch_size = config.data.points = 80
    return config


def truth(x):
    return 2 * np.sin(x) + x


def points(config) -> dict[str, np.ndarray]:
    """The known points, in order of x."""
    draw = np.random.default_rng(config.seed)
    x = np.sort(draw.uniform(0, 5, config.points))
    y = truth(x) + config.noise * draw.normal(size=config.points)
    return {"x": x.astype(np.float32), "y": y.astype(np.float32)}


class KernelRegression(nn.Module):
    """sum_i softmax_i(-(x - x_i)^2 / 2 h_i^2) y_i, log h its only parameter. others: x_i itself has no voice at x_i."""

    known: dict[str, np.ndarray]
    bandwidth: float = 1.0
    each: bool = False

    @nn.compact
    def __call__(self, x, others: bool = False):
        keys, values = (jnp.asarray(self.known[name]) for name in ("x", "y"))
        shape = keys.shape if self.each else ()
        h = jnp.exp(self.param("log_bandwidth", nn.initializers.constant(math.log(self.bandwidth)), shape))
        found = scores.gaussian(x[None, :, None], keys[None, :, None], h)
        if others:
            found = jnp.where(x[None, :, None] == keys[None, None], -jnp.inf, found)
        context, weights = scores.attend(found, values[None, :, None])
        return context[0, :, 0], weights[0]


class Regress:
    """Squared error of each known point as the others predict it."""

    def __init__(self, model):
        self.model = model

    def init(self, key, batch):
        return dict(self.model.init(key, batch["x"]))["params"], {}

    def loss(self, params, collections, batch, key, train):
        predicted, _ = self.model.apply({"params": params}, batch["x"], others=True)
        loss = Mean.of((predicted - batch["y"]) ** 2)
        return (
            loss,
            {"loss": loss, "bandwidth": Mean.of(jnp.exp(params["log_bandwidth"]).reshape(-1))},
            collections,
        )


def build(config, assets):
    if not config.model.bandwidth > 0:
        raise ValueError(f"model.bandwidth: received {config.model.bandwidth}; allowed: above 0")
    if config.data.points < 2:
        raise ValueError(f"data.points: received {config.data.points}; allowed: at least 2")
    known = points(config.data)
    model = KernelRegression(known, **config.model)
    return Experiment(
        task=Regress(model),
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: Resident.of(known, config.batch_size, config.seed),
        evaluations={"grid": Grid(model), "equalities": Equalities()},
        show=lambda batch: Samples([f"{x:.3f} {y:.3f}" for x, y in zip(batch["x"], batch["y"], strict=True)]),
        dynamic=("optimizer.learning_rate",),
    )


class Grid:
    """Mean squared error against the truth on 500 places, beside the best single bandwidth and the mean of y."""

    held_out = False

    def __init__(self, model):
        self.model = model

    def __call__(self, variables, key):
        x = np.linspace(0, 5, 500, dtype=np.float32)
        predicted, weights = self.model.apply(variables, jnp.asarray(x))
        bandwidths = np.geomspace(0.02, 5, 60).astype(np.float32)
        of = jax.vmap(
            lambda h: self.model.clone(each=False).apply(
                {"params": {"log_bandwidth": jnp.log(h)}}, jnp.asarray(x)
            )[0]
        )
        errors = np.mean((np.asarray(of(bandwidths)) - truth(x)) ** 2, axis=1)
        scalars = {
            "loss": float(np.mean((predicted - truth(x)) ** 2)),
            "best": float(errors.min()),
            "mean": float(np.mean((self.model.known["y"].mean() - truth(x)) ** 2)),
        }
        arrays = {
            "x": x,
            "predicted": predicted,
            "weights": weights,
            "bandwidths": bandwidths,
            "errors": errors,
        }
        return scalars, arrays


class Equalities:
    """The largest difference between two ways of the same attention, over random queries, keys and values."""

    held_out = True  # they do not change in training

    def __call__(self, variables, key):
        q, k, v = (jax.random.normal(each, (2, 8, 16)) for each in jax.random.split(key, 3))
        # At 32 bits, sums of products are rounded as far as 1e-6; the claim is about the equations.
        with jax.enable_x64():
            q, k, v = (np.asarray(each, np.float64) for each in (q, k, v))
            apart = differences(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v))
            apart = {name: float(value) for name, value in apart.items()}
        return {**apart, "largest": max(apart.values())}, {}


def differences(q, k, v):
    """By name; queries and keys are scaled to norm 1 first."""
    width = q.shape[-1]
    q, k = (each / jnp.linalg.norm(each, axis=-1, keepdims=True) for each in (q, k))
    contexts = {
        "dot": scores.attend(scores.dot(q, k) / 0.3**2, v)[0],
        "scaled": scores.attend(scores.scaled(q, k), v)[0],
        "hard": jnp.take_along_axis(v, jnp.argmax(scores.dot(q, k), -1)[..., None], 1),
        "unscaled": scores.attend(scores.dot(q, k), v)[0],
    }
    order = np.random.default_rng(0).permutation(k.shape[1])
    identity = {name: {"kernel": jnp.eye(width)} for name in ("of_query", "of_key")}
    bilinear = scores.Attention("bilinear", width)
    keys = bilinear.apply({"params": identity}, k, method="keys")
    others = {
        "dot": scores.attend(scores.gaussian(q, k, 0.3), v)[0],
        "scaled": scores.attend(scores.gaussian(q, k, width**0.25), v)[0],
        "hard": scores.attend(1e5 * scores.dot(q, k), v)[0],
        "unscaled": bilinear.apply({"params": identity}, q, keys, v)[0],
    }
    turned = scores.attend(scores.scaled(q, k[:, order]), v[:, order])[0]
    equal = {
        "gaussian_is_dot": ("dot", others["dot"]),
        "gaussian_is_scaled": ("scaled", others["scaled"]),
        "order_of_keys": ("scaled", turned),
        "bilinear_is_dot": ("unscaled", others["unscaled"]),
        "hard_maximum": ("hard", others["hard"]),
    }
    return {name: jnp.max(jnp.abs(contexts[one] - other)) for name, (one, other) in equal.items()}


def statistics(width: int, count: int = 256):
    """(variance, mean entropy of the softmax over KEYS) of the scores of standard normal q and k, plain and scaled."""
    q, k = np.random.default_rng(width).normal(size=(2, count, KEYS, width)).astype(np.float32)
    found = []
    for score in (scores.dot, scores.scaled):
        values = np.asarray(score(jnp.asarray(q[:, :1]), jnp.asarray(k)), np.float64)
        logs = np.asarray(jax.nn.log_softmax(values))
        found.append((values.var(), -np.sum(np.exp(logs) * logs, -1).mean()))
    return found


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    drawn = {"loss": curves.loss(runs, ("train/loss",), ylabel="squared error, left out")}
    drawn |= {
        "variance": along_widths(0, "variance of the scores"),
        "entropy": along_widths(1, "entropy, nats"),
    }
    if len(runs) > 1:
        return drawn
    known, arrays = points(runs[0].config.data), runs[0].arrays("grid")
    return drawn | {
        "regression": regression(known, arrays),
        "weights": weights(known, arrays),
        "bandwidth": bandwidth(runs[0], arrays),
    }


def regression(known, arrays):
    figure, axes = style.new()
    axes.plot(known["x"], known["y"], "o", color=style.COLORS[4], alpha=0.4, label="known points")
    axes.plot(arrays["x"], truth(arrays["x"]), label="2 sin x + x")
    axes.plot(arrays["x"], arrays["predicted"], label="attention, learned h")
    axes.set(xlabel="x", ylabel="y")
    axes.legend()
    return figure


def weights(known, arrays):
    """What each query looks at: for a few of them, the weight over the keys."""
    figure, axes = style.new()
    for place in (50, 150, 250, 350, 450):
        axes.plot(known["x"], arrays["weights"][place], label=f"x = {arrays['x'][place]:.1f}")
    axes.set(xlabel="key", ylabel="attention weight", ylim=(None, 1.45 * float(arrays["weights"].max())))
    axes.legend(title="query", title_fontsize=style.SIZE - 1, ncols=2, loc="upper center")
    return figure


def bandwidth(run, arrays):
    figure, axes = style.new()
    axes.plot(arrays["bandwidths"], arrays["errors"], label="one bandwidth for all")
    learned = np.exp(np.asarray(run.variables["params"]["log_bandwidth"]))
    error = np.mean((arrays["predicted"] - truth(arrays["x"])) ** 2)
    label = "learned" if learned.ndim == 0 else "learned, one a point (their median)"
    axes.plot([np.median(learned)], [error], "o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="bandwidth h", ylabel="squared error against the truth")
    axes.legend()
    return figure


def along_widths(which, ylabel):
    """Of scores with and without 1 / sqrt(K), against K."""
    values = np.array([[found[which] for found in statistics(width)] for width in WIDTHS])
    figure, axes = style.new()
    for column, label in enumerate(("q · k", "q · k / √K")):
        axes.plot(WIDTHS, values[:, column], marker=style.MARKERS[column], label=label)
    if which == 1:
        axes.axhline(
            math.log(KEYS), color="0.6", linewidth=0.8, linestyle=":", label=f"uniform over {KEYS} keys"
        )
    axes.set(xlabel="K, entries of a query", ylabel=ylabel, xscale="log", yscale="linear" if which else "log")
    axes.legend()
    return figure
