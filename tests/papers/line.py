"""A line through points: the smallest paper, trained by the tests of runs and of the command line.

    lmlab train --config=tests/papers/line.py:demo --workdir=runs/line

On one device, a second a run. It keeps an asset, has a held-out split, a sampler and a figure.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.experiment import Experiment, Mean, Samples
from lmlab.figures import curves
from lmlab.sources import Resident
from lmlab.training import optimizer

FAMILY, PAPER = "regression", "Gauss 1809"
VARIANTS = {"demo": "all there is", "steep": "a slope of 5", "silent": "without a sampler"}


def get_config(variant=""):
    config = configs.base(
        duration="6 steps",
        batch_size=8,
        log_every="2",
        evaluate_every="3",
        checkpoint={"every": "2", "keep": 3},
        parallel={"data": 1},
        model={"power": 1, "start": 0.0},
        data={"path": "", "slope": 2.0},
        optimizer={"name": "sgd", "b1": 0.0, "learning_rate": 0.1},
    )
    parts = variant.split(",")
    if "steep" in parts:
        config.data.slope = 5.0
    config.silent = "silent" in parts
    return config


class Line:
    """y = w x^power + b, by least squares."""

    def __init__(self, power, start):
        self.power, self.start = power, start

    def init(self, key, batch):
        return {"w": jnp.asarray(self.start), "b": jnp.zeros(())}, {}

    def loss(self, params, collections, batch, key, train):
        errors = (params["w"] * batch["x"] ** self.power + params["b"] - batch["y"]) ** 2
        return Mean.of(errors), {"loss": Mean.of(errors)}, collections


class Fit:
    def __init__(self, task, points, held_out=False):
        self.task, self.points, self.held_out = task, points, held_out

    def __call__(self, variables, key):
        mean, _, _ = self.task.loss(variables["params"], {}, self.points, key, False)
        return {"loss": mean.value}, {"errors": np.asarray(self.points["y"]) - variables["params"]["b"]}


def build(config, assets):
    task = Line(**config.model)
    slope = assets.get("slope.json", lambda: {"slope": config.data.slope})["slope"]
    x = np.random.default_rng(0).normal(size=48).astype(np.float32)
    points = {"x": x, "y": slope * x + np.float32(1)}

    def sample(variables, key, *, prompt: str = "y", count: int = 2, scale: float = 1.0, loud: bool = False):
        """Draws points.

        prompt: the name of what is drawn
        count: how many points
        scale: how far they lie
        """
        if scale <= 0:
            raise ValueError(f"scale must be above 0, received {scale}")
        drawn = scale * jax.random.normal(key, (count,)) + variables["params"]["w"]
        texts = [f"{prompt} = {float(value):.6f}" for value in drawn]
        return Samples([text.upper() for text in texts] if loud else texts, arrays={"y": drawn})

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: Resident(
            data={name: jnp.asarray(values[:32]) for name, values in points.items()},
            num_examples=32,
            batch_size=config.batch_size,
            seed=config.seed,
        ),
        evaluations={
            "validation": Fit(task, {name: values[32:40] for name, values in points.items()}),
            "test": Fit(task, {name: values[40:] for name, values in points.items()}, held_out=True),
        },
        sample=None if config.silent else sample,
    )


def figures(runs):
    return {"loss": curves.loss(runs)}
