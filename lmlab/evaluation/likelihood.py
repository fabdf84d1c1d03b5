"""The loss of a task over a whole split, every example once, and tighter bounds of a likelihood."""

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

    def begin(self) -> dict[str, Any]:
        """Collections that each batch takes from the one before it, as they are before the first."""
        return {}

    @functools.cached_property
    def _batches(self):
        return batched(self.data(), self.batch_size)

    @functools.cached_property
    def _run(self):
        @jax.jit
        def run(variables, key, batches):
            params = variables["params"]
            collections = {name: value for name, value in variables.items() if name != "params"}

            def one(carried, batch):
                mean, metrics, new = self.task.loss(params, {**collections, **carried}, batch, key, False)
                return {name: new[name] for name in carried}, {"loss": mean, **metrics}

            def body(state, batch):
                carried, sums = one(state[0], batch)
                return (carried, jax.tree.map(jnp.add, state[1], sums)), None

            shapes = jax.eval_shape(one, self.begin(), jax.tree.map(lambda leaf: leaf[0], batches))[1]
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            return jax.lax.scan(body, (self.begin(), zeros), batches)[0][1]

        return run


@dataclasses.dataclass(kw_only=True)
class TextLikelihood(Likelihood):
    """Of one text, read once from its beginning to its end, a window after the other, the state carried throughout.

    data(): {"tokens": (windows, T + 1), "mask": (windows, T)} in order. start: `start(rows)`, the collections before
    the first window. num_bytes(): the length of the text in UTF-8. Adds perplexity = exp loss, bits_per_token and
    bits_per_byte, the bits of all tokens but the first, which is given, over all bytes.
    """

    start: Callable[[int], dict[str, Any]]
    num_bytes: Callable[[], int]
    batch_size: int = dataclasses.field(default=1, init=False)
    bits: bool = dataclasses.field(default=True, init=False)

    def __call__(self, variables, key) -> tuple[dict[str, float], dict[str, Any]]:
        scalars, arrays = super().__call__(variables, key)
        scalars["perplexity"] = math.exp(min(scalars["loss"], 700.0))
        tokens = float(self._batches["mask"].sum())
        scalars["bits_per_byte"] = scalars["bits_per_token"] * tokens / self.num_bytes()
        return scalars, arrays

    def begin(self) -> dict[str, Any]:
        return self.start(self.batch_size)


@dataclasses.dataclass
class ImportanceWeighted:
    """L_k = E[log 1/k sum_i p(x, z_i) / q(z_i | x)], z_i drawn of q (Burda et al. 2016, eq. 8), on `data()`.

    The scalar `bound_k` is -L_k in nats an example, an upper bound of -log p(x), for each k of `samples`, of
    which each must divide the next: all come from the same draws, the smaller k as means over groups, so that
    by Jensen's inequality no bound is above that of a smaller k. log_weight: `log_weight(variables, batch,
    key)`, the logarithm of the ratio for one draw an example.
    """

    log_weight: Callable[[dict[str, Any], dict[str, Any], Any], Any]
    data: Callable[[], dict[str, Any]]
    samples: tuple[int, ...] = (1, 5, 50, 500)
    batch_size: int = 100
    held_out: bool = True

    def __post_init__(self):
        pairs = zip((1, *self.samples), self.samples, strict=False)
        if not self.samples or any(k < 1 or k % before for before, k in pairs):
            raise ValueError(f"samples must each divide the next, received {self.samples}")

    def __call__(self, variables, key) -> tuple[dict[str, float], dict[str, Any]]:
        batches = batched(self.data(), self.batch_size)
        keys = jax.random.split(key, len(batches["mask"]))
        sums = jax.device_get(self._run(variables, keys, batches))
        count = float(batches["mask"].sum())
        return {f"bound_{k}": -float(total) / count for k, total in zip(self.samples, sums, strict=True)}, {}

    @functools.cached_property
    def _run(self):
        @jax.jit
        def run(variables, keys, batches):
            def one(inputs):
                key, batch = inputs
                draws = jax.random.split(key, self.samples[-1])
                weights = jax.lax.map(lambda draw: self.log_weight(variables, batch, draw), draws)
                bounds = [
                    jax.nn.logsumexp(weights.reshape(-1, k, weights.shape[1]), axis=1) - math.log(k)
                    for k in self.samples
                ]
                return jnp.stack([(bound.mean(0) * batch["mask"]).sum() for bound in bounds])

            return jax.lax.map(one, (keys, batches)).sum(0)

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
