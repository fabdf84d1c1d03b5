"""Accumulation, masks, keys, averages: one update against the large batch and against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmlab.experiment import Experiment
from lmlab.training.state import State
from lmlab.training.step import create, make_step
from tests.training import toys


def one_step(experiment, batch, accumulate=1, ema=0.0, steps=1, tx=None):
    tx = tx or optax.sgd(0.1)
    root = jax.random.key(7)
    state = jax.jit(lambda: create(experiment, tx, jax.random.key(0), batch, ema > 0))()
    state = jax.tree.map(lambda leaf: leaf, jax.device_get(_unboxed(state)))
    step = jax.jit(make_step(experiment, tx, root, accumulate=accumulate, ema=ema))
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, metrics


def _unboxed(state):
    import flax.linen as nn

    return nn.unbox(state)


def close(a, b, tolerance=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=tolerance, atol=tolerance)


@pytest.fixture
def batch():
    return {name: jnp.asarray(array[:8]) for name, array in toys.points().items()}


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulation_is_the_large_batch(batch, accumulate):
    experiment = toys.regression(toys.config())
    whole, told = one_step(experiment, batch)
    parts, also = one_step(experiment, batch, accumulate)
    close(whole.params, parts.params)
    close([told["loss"].value, told["grad_norm"].value], [also["loss"].value, also["grad_norm"].value])


def test_microbatches_with_unequal_padding_still_make_the_large_batch(batch):
    """Dividing each microbatch by its own count would weigh the examples unequally."""
    experiment = toys.regression(toys.config())
    mask = jnp.array([1, 0, 0, 0, 1, 1, 1, 1], jnp.float32)
    masked, _ = one_step(experiment, {**batch, "mask": mask}, accumulate=2)
    kept = np.flatnonzero(mask)
    subset, _ = one_step(experiment, {name: array[kept] for name, array in batch.items()})
    close(masked.params, subset.params)


def test_the_gradient_step_is_numpys(batch):
    """One step of SGD on a linear model, written out."""

    class Linear:
        def init(self, key, batch):
            return {"w": jnp.ones((16, 4))}, {}

        def loss(self, params, collections, batch, key, train):
            from lmlab.experiment import Mean

            error = jnp.sum((batch["x"] @ params["w"] - batch["y"]) ** 2, -1)
            return Mean.of(error), {}, collections

    state, metrics = one_step(Experiment(task=Linear()), batch)
    x, y = np.asarray(batch["x"], np.float64), np.asarray(batch["y"], np.float64)
    gradient = 2 * x.T @ (x @ np.ones((16, 4)) - y) / 8
    close(state.params["w"], 1 - 0.1 * gradient, 1e-5)
    close(metrics["grad_norm"].value, np.sqrt((gradient**2).sum()), 1e-5)


def test_dropout_masks_differ_between_microbatches_and_steps(batch):
    experiment = toys.regression(toys.config(), dropout=0.5)
    same = {name: jnp.broadcast_to(array[:1], array.shape) for name, array in batch.items()}
    alone, _ = one_step(experiment, {name: array[:4] for name, array in same.items()})
    twice, _ = one_step(experiment, same, accumulate=2)
    differ = [
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (alone.params, twice.params)), strict=True)
    ]
    assert max(differ) > 1e-4  # the second microbatch drew another mask


def test_batch_statistics_are_averaged_over_microbatches(batch):
    experiment = toys.regression(toys.config(), norm=True)
    parts, _ = one_step(experiment, batch, accumulate=2)
    first, _ = one_step(experiment, {name: array[:4] for name, array in batch.items()})
    second, _ = one_step(experiment, {name: array[4:] for name, array in batch.items()})
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first.collections, second.collections)
    close(parts.collections, mean)


def test_a_carry_is_split_like_the_batch(batch):
    experiment = toys.carrying(toys.config())
    whole, _ = one_step(experiment, batch, steps=2)
    parts, _ = one_step(experiment, batch, accumulate=4, steps=2)
    close(whole.collections["carry"], parts.collections["carry"])
    close(whole.params, parts.params)


def test_the_average_of_parameters_is_numpys(batch):
    experiment = toys.regression(toys.config())
    averaged, history = None, []
    for steps in range(4):
        state, _ = one_step(experiment, batch, ema=0.9, steps=steps) if steps else (None, None)
        if state is None:
            start = create(experiment, optax.sgd(0.1), jax.random.key(0), batch, True)
            history.append(jax.tree.leaves(_unboxed(start.params)))
        else:
            history.append(jax.tree.leaves(state.params))
            averaged = state
    expected = history[0]
    for params in history[1:]:
        expected = [0.9 * np.asarray(a) + 0.1 * np.asarray(b) for a, b in zip(expected, params, strict=True)]
    close(jax.tree.leaves(averaged.ema), expected)
    assert averaged.variables["params"] is averaged.ema


def test_a_part_moves_alone(batch):
    """`update(loss, part, ...)` leaves the other part and its optimizer untouched."""
    task = toys.Adversaries()

    def step(state, batch, key, update):
        return update(task.critic, "critic", state, batch, key)

    tx = {"generator": optax.adam(0.1), "critic": optax.adam(0.1)}
    experiment = Experiment(task=task, step=step)
    before = create(experiment, tx, jax.random.key(0), batch, False)
    after, _ = one_step(experiment, batch, tx=tx)
    close(before.params["generator"], after.params["generator"], 0)
    close(before.opt_state["generator"], after.opt_state["generator"], 0)
    assert np.abs(np.asarray(before.params["critic"]["v"] - after.params["critic"]["v"])).min() > 1e-3


def test_optimizers_must_fit_the_parts(batch):
    with pytest.raises(ValueError, match="optimizers for"):
        create(
            Experiment(task=toys.Adversaries()),
            {"generator": optax.sgd(1.0)},
            jax.random.key(0),
            batch,
            False,
        )


def test_steps_are_counted_by_the_step(batch):
    state, _ = one_step(toys.regression(toys.config()), batch, steps=3)
    assert isinstance(state, State) and int(state.step) == 3
