"""Small experiments of every kind the spine hosts, for its tests: none needs a model of lmlab's."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.experiment import Experiment, Mean
from lmlab.sources import Resident, Stream
from lmlab.training import optimizer


def config(**leaves):
    """Six steps of eight examples on one device, saved every two."""
    defaults = {"duration": "6 steps", "batch_size": 8, "log_every": "3 steps", "evaluate_every": "3 steps"}
    value = configs.base(**{**defaults, "checkpoint": {"every": "2 steps", "keep": 10}, **leaves})
    value.parallel.data = leaves.get("parallel", {}).get("data", 1)
    return value


def points(size=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 16)).astype(np.float32)
    return {"x": x, "y": (x @ rng.normal(size=(16, 4))).astype(np.float32)}


def resident(config, data=None):
    data = jax.tree.map(jnp.asarray, data or points())
    count = len(jax.tree.leaves(data)[0])
    return Resident(data=data, num_examples=count, batch_size=config.batch_size, seed=config.seed)


def stream(config, data=None):
    data = data or points()

    def load(indices, epoch):
        return {name: array[indices] for name, array in data.items()}

    return Stream(load=load, num_examples=len(data["x"]), batch_size=config.batch_size, seed=config.seed)


class MLP(nn.Module):
    """Two layers with logical axis names, dropout and, on demand, batch statistics."""

    dropout: float = 0.0
    norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        named = nn.with_logical_partitioning
        dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.dtype)
        x = dense(32, kernel_init=named(nn.initializers.lecun_normal(), ("embed", "mlp")))(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x) if self.norm else x
        x = nn.Dropout(self.dropout, deterministic=not train)(jnp.tanh(x))
        return dense(4, kernel_init=named(nn.initializers.lecun_normal(), ("mlp", "embed")))(x)


@dataclasses.dataclass(frozen=True)
class Regression:
    """Squared error; a batch may hold "mask"."""

    model: nn.Module

    def init(self, key, batch):
        collections = dict(self.model.init(key, batch["x"]))
        return collections.pop("params"), collections

    def loss(self, params, collections, batch, key, train):
        variables = {"params": params, **collections}
        rngs = {"dropout": key}
        y, new = self.model.apply(variables, batch["x"], train=train, rngs=rngs, mutable=list(collections))
        error = jnp.mean((y - batch["y"]) ** 2, axis=-1)
        mean = Mean.of(error, batch.get("mask"))
        return mean, {"error": mean}, dict(new)


@dataclasses.dataclass
class Loss:
    """An evaluation: the task's loss on all points."""

    task: Regression
    held_out: bool = False

    def __call__(self, variables, key):
        collections = {name: value for name, value in variables.items() if name != "params"}
        mean, _, _ = self.task.loss(variables["params"], collections, points(seed=1), key, False)
        return {"loss": mean.value}, {"predictions": self.task.model.apply(variables, points(seed=1)["x"])}


def regression(config, source=resident, double=False, **model):
    task = Regression(MLP(dtype=jnp.float64 if double else jnp.float32, **model))
    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: source(config),
        evaluations={"validation": Loss(task)},
    )


class Adversaries:
    """Two parts with optimizers of their own, moved one after the other in one step."""

    def init(self, key, batch):
        a, b = jax.random.split(key)
        return {
            "generator": {"w": jax.random.normal(a, (16,))},
            "critic": {"v": jax.random.normal(b, (16,))},
        }, {}

    def loss(self, params, collections, batch, key, train):
        raise AssertionError("an experiment with a step of its own does not use the task's loss")

    def critic(self, params, collections, batch, key, train):
        fake = jax.random.normal(key, batch["x"].shape) * params["generator"]["w"][None]
        values = jnp.tanh(fake @ params["critic"]["v"]) - jnp.tanh(batch["x"] @ params["critic"]["v"])
        return Mean.of(values), {}, collections

    def generator(self, params, collections, batch, key, train):
        fake = jax.random.normal(key, batch["x"].shape) * params["generator"]["w"][None]
        return Mean.of(-jnp.tanh(fake @ params["critic"]["v"])), {}, collections


def adversarial(config):
    task = Adversaries()

    def step(state, batch, key, update):
        a, b = jax.random.split(key)
        state, critic = update(task.critic, "critic", state, batch, a)
        state, generator = update(task.generator, "generator", state, batch, b)
        return state, {"critic": critic["loss"], "generator": generator["loss"]}

    def optimizers(clock):
        build = functools.partial(optimizer.build, clock, **config.optimizer)
        return {"generator": build(), "critic": build()}

    return Experiment(task=task, optimizer=optimizers, train_data=lambda: resident(config), step=step)


class Carrying:
    """A recurrent state a row that goes on from batch to batch."""

    def init(self, key, batch):
        params = {"w": jax.random.normal(key, (16, 16)) / 4}
        return params, {"carry": {"h": jnp.zeros((batch["x"].shape[0], 16))}}

    def loss(self, params, collections, batch, key, train):
        h = jnp.tanh(batch["x"] + collections["carry"]["h"] @ params["w"])
        return (
            Mean.of(jnp.mean((h[:, :4] - batch["y"]) ** 2, -1)),
            {},
            {"carry": {"h": jax.lax.stop_gradient(h)}},
        )


def carrying(config):
    return Experiment(
        task=Carrying(),
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: resident(config),
    )


class Policy:
    """REINFORCE on a bandit of 16 arms: rollouts are drawn on the host before each step."""

    def init(self, key, batch):
        return {"logits": jnp.zeros(16)}, {}

    def loss(self, params, collections, batch, key, train):
        log_probs = jax.nn.log_softmax(params["logits"])[batch["arm"]]
        return Mean.of(-log_probs * batch["reward"]), {"reward": Mean.of(batch["reward"])}, collections


def rollouts(config):
    def batch_fn(variables, raw, key):
        arms = jax.random.categorical(key, variables["params"]["logits"], shape=(config.batch_size,))
        return {"arm": np.asarray(arms), "reward": (np.asarray(arms) == 3).astype(np.float32)}

    return Experiment(
        task=Policy(),
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: stream(config),
        batch_fn=batch_fn,
    )


def closed_form(config):
    """Least squares: fitted, not trained."""

    def fit(source, key):
        return {"w": jnp.linalg.lstsq(source.data["x"], source.data["y"])[0]}

    return Experiment(fit=fit, train_data=lambda: resident(config))


KINDS = {
    "plain": regression,
    "plain64": functools.partial(regression, double=True),
    "stream": functools.partial(regression, source=stream),
    "dropout": functools.partial(regression, dropout=0.5),
    "batch_statistics": functools.partial(regression, norm=True),
    "adversarial": adversarial,
    "carrying": carrying,
    "rollouts": rollouts,
}
