"""The loss of a task over a whole split, every example once."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmlab.experiment import Task


@dataclasses.dataclass
class Likelihood:
    """The task's own loss and metrics on `data()`, a dict of arrays with a common first axis.

    The last batch is padded with examples of weight 0 (the entry "mask"), so the mean is over the split
    and over nothing else. `bits`: adds bits_per_token = loss / ln 2.
    """

    task: Task
    data: Callable[[], dict[str, Any]]
    batch_size: int = 64
    held_out: bool = False
    bits: bool = False

    def __call__(self, variables, key) -> tuple[dict[str, float], dict[str, Any]]:
        scalars = self.score(variables, key, self._batches)
        if self.bits:
            scalars["bits_per_token"] = scalars["loss"] / math.log(2)
        return scalars, {}

    def score(self, variables, key, batches) -> dict[str, float]:
        """The means over `batches`, arrays as `batched` makes them."""
        sums = jax.device_get(self._run(variables, key, batches))
        return {name: float(mean.total) / (float(mean.count) or 1.0) for name, mean in sums.items()}

    @functools.cached_property
    def _batches(self):
        return batched(self.data(), self.batch_size)

    @functools.cached_property
    def _run(self):
        @jax.jit
        def run(variables, key, batches):
            params = variables["params"]
            collections = {name: value for name, value in variables.items() if name != "params"}

            def one(batch):
                mean, metrics, _ = self.task.loss(params, collections, batch, key, False)
                return {"loss": mean, **metrics}

            shapes = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], batches))
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            return jax.lax.scan(
                lambda sums, batch: (jax.tree.map(jnp.add, sums, one(batch)), None), zeros, batches
            )[0]

        return run


def batched(data: dict[str, Any], size: int) -> dict[str, Any]:
    """Arrays (N, ...) as (batches, size, ...), padded at the end; "mask" is 0 for the padding."""
    data = {name: np.asarray(array) for name, array in data.items()}
    count = len(next(iter(data.values())))
    data.setdefault("mask", np.ones(count, np.float32))
    size = min(size, count)
    batches = -(-count // size)
    padding = {
        name: np.zeros((batches * size - count, *array.shape[1:]), array.dtype)
        for name, array in data.items()
    }
    return {
        name: jnp.asarray(np.concatenate([array, padding[name]]).reshape(batches, size, *array.shape[1:]))
        for name, array in data.items()
    }
