"""A small regression with all that may vary within one program, and variants with what may not.

    lmlab train --config=tests/papers/swept.py:demo --workdir=runs/swept

Two layers with dropout, a penalty weighed by beta, which the evaluation adds as well; OPENED counts what is read.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.experiment import Experiment, Mean
from lmlab.layers.dropout import Dropout
from lmlab.sources import Resident, Stream
from lmlab.training import optimizer

FAMILY, PAPER = "regression", "Gauss 1809"
VARIANTS = {
    "demo": "all there is",
    "double": "in float64",
    "stream": "data that the host reads",
    "by_seed": "data drawn of the seed by NumPy",
    "by_key": "data drawn of the seed by JAX",
    "asked": "a choice by a number that is called dynamic",
    "fitted": "in closed form",
    "rollouts": "batches made on the host",
}
OPENED = []
SIZE = 4096


def get_config(variant=""):
    config = configs.base(
        duration="5 steps",
        batch_size=8,
        log_every="1",
        evaluate_every="5",
        checkpoint={"every": "5", "keep": 3},
        parallel={"data": 1},
        model={"features": 16, "dropout": 0.1},
        beta=0.5,
        variant=variant,
        optimizer={"learning_rate": 1e-2, "schedule": "cosine", "weight_decay": 0.1, "clip": 1.0},
    )
    return config


class Network(nn.Module):
    features: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.dtype)
        hidden = jnp.tanh(dense(self.features)(x))
        return dense(2)(Dropout(self.dropout)(hidden, train)), hidden


@dataclasses.dataclass(frozen=True)
class Task:
    model: Network
    beta: float

    def init(self, key, batch):
        return self.model.init(key, batch["x"], False)["params"], {}

    def loss(self, params, collections, batch, key, train):
        made, hidden = self.model.apply({"params": params}, batch["x"], train, rngs={"dropout": key})
        errors = jnp.mean((made - batch["y"]) ** 2, -1)
        loss = Mean.of(errors + self.beta * jnp.mean(hidden**2, -1))
        return loss, {"error": Mean.of(errors)}, collections


def points(name, dtype, seed=0):
    OPENED.append(name)
    x = np.random.default_rng([seed, name == "train"]).normal(size=(SIZE, 4)).astype(dtype)
    return {"x": x, "y": np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2]], -1)}


class Fit:
    held_out = False

    def __init__(self, task, dtype):
        self.task, self.dtype = task, dtype

    @functools.cached_property
    def points(self):
        return points("validation", self.dtype)

    def __call__(self, variables, key):
        mean, metrics, _ = self.task.loss(variables["params"], {}, self.points, key, False)
        return {"loss": mean.value, "error": metrics["error"].value}, {"beta": np.asarray(self.task.beta)}


class PlainFit(Fit):
    """Of the error alone: no number that varies is asked for."""

    def __call__(self, variables, key):
        made, _ = self.task.model.apply(variables, self.points["x"], False)
        return {"loss": jnp.mean((made - self.points["y"]) ** 2)}, {}


def build(config, assets):
    parts = config.variant.split(",")
    dtype = jnp.float64 if "double" in parts else jnp.float32
    if "asked" in parts and config.model.dropout > 0.5:
        raise ValueError("too much")
    assets.get("size.json", lambda: {"size": SIZE})
    task = Task(Network(dtype=dtype, **config.model), config.beta)

    def train_data():
        if "by_seed" in parts:
            data = points("train", dtype, config.seed)
        else:
            data = points("train", dtype)
        if "by_key" in parts:
            data["x"] = jax.random.normal(jax.random.key(config.seed), (SIZE, 4))
        sizes = {"num_examples": SIZE, "batch_size": config.batch_size, "seed": config.seed}
        if "stream" in parts:
            return Stream(load=lambda indices, epoch: {k: v[indices] for k, v in data.items()}, **sizes)
        return Resident(data=jax.tree.map(jnp.asarray, data), **sizes)

    plan = {"train_data": train_data, "evaluations": {"validation": Fit(task, dtype)}}
    if "fitted" in parts:
        return Experiment(fit=lambda source, key: {"w": jnp.zeros(())}, **plan)
    plan["evaluations"]["plain"] = PlainFit(task, dtype)
    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        batch_fn=(lambda variables, raw, key: raw) if "rollouts" in parts else None,
        dynamic=("optimizer.learning_rate", "optimizer.weight_decay", "model.dropout", "beta"),
        **plan,
    )
