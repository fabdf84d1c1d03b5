"""A whole split, every example once, whatever the batch."""

import dataclasses

import jax
import numpy as np
import pytest

from lmlab.evaluation.likelihood import Likelihood, batched
from tests.training import toys


@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_the_loss_of_a_split_does_not_depend_on_the_batch(size):
    task, data = toys.Regression(toys.MLP()), toys.points(50)
    params, _ = task.init(jax.random.key(0), data)
    import flax.linen as nn

    params = nn.unbox(params)
    scalars, _ = Likelihood(task, lambda: data, size)({"params": params}, jax.random.key(0))
    y = np.asarray(toys.MLP().apply({"params": params}, data["x"]))
    np.testing.assert_allclose(scalars["loss"], ((y - data["y"]) ** 2).mean(), rtol=1e-5)
    assert scalars["error"] == scalars["loss"]


def test_padding_is_masked_and_given_masks_are_kept():
    data = {"x": np.arange(5, dtype=np.float32), "mask": np.array([1, 0, 1, 1, 1], bool)}
    batches = batched(data, 2)
    assert batches["x"].shape == (3, 2)
    np.testing.assert_array_equal(batches["mask"].reshape(-1), [1, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(batched({"x": data["x"]}, 4)["mask"].reshape(-1), [1, 1, 1, 1, 1, 0, 0, 0])


def test_data_are_opened_once_and_not_before_they_are_needed():
    opened = []
    task = toys.Regression(toys.MLP())
    likelihood = Likelihood(task, lambda: opened.append(1) or toys.points(), 16, bits=True)
    assert not opened
    import flax.linen as nn

    variables = {"params": nn.unbox(task.init(jax.random.key(0), toys.points())[0])}
    first, second = (likelihood(variables, jax.random.key(0))[0] for _ in range(2))
    assert opened == [1] and first == second
    np.testing.assert_allclose(first["bits_per_token"], first["loss"] / np.log(2), rtol=1e-12)


def test_a_mean_is_over_the_batch_not_over_batches():
    """Two batches of unequal size: the mean of means would differ."""

    @dataclasses.dataclass(frozen=True)
    class Identity:
        def loss(self, params, collections, batch, key, train):
            from lmlab.experiment import Mean

            return Mean.of(batch["x"], batch["mask"]), {}, {}

    data = {"x": np.array([0, 0, 0, 0, 10], np.float32)}
    assert Likelihood(Identity(), lambda: data, 4)({"params": {}}, jax.random.key(0))[0]["loss"] == 2.0
