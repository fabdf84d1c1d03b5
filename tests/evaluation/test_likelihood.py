"""A whole split, every example once, whatever the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.evaluation.likelihood import ImportanceWeighted, Likelihood, batched
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


def gaussian(x, mean, variance):
    return -0.5 * (jnp.log(2 * jnp.pi * variance) + (x - mean) ** 2 / variance)


def weights(mean, variance):
    """log p(x, z) - log q(z | x) of z ~ N(0, 1), x ~ N(z, 1); the posterior is N(x / 2, 1 / 2), x itself N(0, 2)."""

    def log_weight(variables, batch, key):
        x = batch["x"]
        z = mean * x + jnp.sqrt(variance) * jax.random.normal(key, x.shape)
        return gaussian(z, 0.0, 1.0) + gaussian(x, z, 1.0) - gaussian(z, mean * x, variance)

    return log_weight


def test_importance_weighted_bounds_of_a_known_density():
    data = {"x": np.array([-1.5, 0.3, 0.0, 2.0, 0.7], np.float32)}
    true = -float(gaussian(data["x"], 0.0, 2.0).mean())
    exact = ImportanceWeighted(weights(0.5, 0.5), lambda: data, (1, 4, 12), batch_size=2)
    np.testing.assert_allclose(list(exact({}, jax.random.key(0))[0].values()), true, rtol=1e-5)
    loose = ImportanceWeighted(weights(0.0, 1.0), lambda: data, (1, 10, 100, 4000), batch_size=2)
    scalars, arrays = loose({}, jax.random.key(0))
    assert list(scalars) == ["bound_1", "bound_10", "bound_100", "bound_4000"] and arrays == {}
    bounds = list(scalars.values())
    assert sorted(bounds, reverse=True) == bounds
    # k = 1: E_q[-log p(x | z)] + KL, which is 0 here, = (log 2 pi + x^2 + 1) / 2
    first = float(np.mean((np.log(2 * np.pi) + data["x"] ** 2 + 1) / 2))
    np.testing.assert_allclose(bounds[0], first, atol=0.05)
    np.testing.assert_allclose(bounds[-1], true, atol=0.03)


@pytest.mark.parametrize("samples", [(), (0,), (2, 3), (5, 1)])
def test_numbers_of_draws_must_divide_one_another(samples):
    with pytest.raises(ValueError, match="samples must each divide the next, received"):
        ImportanceWeighted(weights(0.5, 0.5), dict, samples)
