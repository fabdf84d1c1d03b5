"""The Kalman filter and smoother against the joint Gaussian of all states and observations, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from lmlab.models.kalman import LinearGaussian, filtered, moving, smoothed

T, D, E = 6, 3, 2


@pytest.fixture(scope="module")
def setting():
    """(a model, observations, what the dense Gaussian says), all in float64."""
    rng = np.random.default_rng(0)

    def covariance(n):
        root = rng.normal(size=(n, n))
        return root @ root.T + 0.1 * np.eye(n)

    F, H, m = 0.7 * rng.normal(size=(D, D)), rng.normal(size=(E, D)), rng.normal(size=D)
    model = LinearGaussian(F, covariance(D), H, covariance(E), m, covariance(D))
    return model, rng.normal(size=(T, E)), Dense(model)


def on_device(*arrays):
    """In float64."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), arrays)


class Dense:
    """z = (z_1, ..., z_T) as one Gaussian, and x = H z + noise."""

    def __init__(self, model):
        F, Q, self.H, self.R, m, P = model
        means, covs = [m], [P]
        for _ in range(T - 1):
            means.append(F @ means[-1])
            covs.append(F @ covs[-1] @ F.T + Q)
        self.mean, self.cov = np.concatenate(means), np.zeros((T * D, T * D))
        for t in range(T):
            for s in range(t + 1):  # Cov(z_t, z_s) = F^(t - s) Cov(z_s)
                block = np.linalg.matrix_power(F, t - s) @ covs[s]
                self.cov[t * D : (t + 1) * D, s * D : (s + 1) * D] = block
                self.cov[s * D : (s + 1) * D, t * D : (t + 1) * D] = block.T

    def observed(self, count):
        """(the matrix that picks the first `count` observations, their mean and covariance)."""
        pick = np.zeros((count * E, T * D))
        for t in range(count):
            pick[t * E : (t + 1) * E, t * D : (t + 1) * D] = self.H
        return pick, pick @ self.mean, pick @ self.cov @ pick.T + np.kron(np.eye(count), self.R)

    def given(self, x, t):
        """(mean, covariance) of z_t given the observations x."""
        pick, mean, cov = self.observed(len(x))
        gain = self.cov @ pick.T @ np.linalg.inv(cov)
        place = slice(t * D, (t + 1) * D)
        return (self.mean + gain @ (x.ravel() - mean))[place], (self.cov - gain @ pick @ self.cov)[
            place, place
        ]


def test_the_filter_is_the_posterior_of_what_was_seen_so_far(setting):
    model, x, dense = setting
    with jax.enable_x64(True):
        found = jax.device_get(filtered(*on_device(model, x)))
    for t in range(T):
        for mean, cov, seen in (
            (found.mean, found.cov, x[: t + 1]),
            (found.ahead_mean, found.ahead_cov, x[:t]),
        ):
            expected = dense.given(seen, t) if len(seen) else (model.m, model.P)
            np.testing.assert_allclose(mean[t], expected[0], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(cov[t], expected[1], rtol=1e-9, atol=1e-9)


def test_the_smoother_is_the_posterior_of_all(setting):
    model, x, dense = setting
    with jax.enable_x64(True):
        means, covs = jax.device_get(smoothed(on_device(model, x)[0], filtered(*on_device(model, x))))
    for t in range(T):
        mean, cov = dense.given(x, t)
        np.testing.assert_allclose(means[t], mean, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(covs[t], cov, rtol=1e-8, atol=1e-9)


def test_the_likelihood_is_that_of_all_observations(setting):
    model, x, dense = setting
    with jax.enable_x64(True):
        found = filtered(*on_device(model, x)).log_likelihood.sum()
    _, mean, cov = dense.observed(T)
    np.testing.assert_allclose(found, multivariate_normal(mean, cov).logpdf(x.ravel()))


def test_float32_holds_over_a_long_track():
    model = moving(0.1, 1.0)
    x = model.draw(0, 1, 500)[1][0]
    single = filtered(model, jnp.asarray(x, jnp.float32))
    with jax.enable_x64(True):
        double = filtered(*on_device(model, x))
    np.testing.assert_allclose(single.mean, double.mean, atol=2e-2)
    np.testing.assert_allclose(single.cov, double.cov, rtol=1e-3, atol=1e-4)


def test_what_is_drawn_is_of_the_model():
    """Over many tracks: the last state's covariance, and how far the observations are from what is observed."""
    model = jax.tree.map(np.asarray, moving(0.5, 2.0))
    states, x = model.draw(1, 4000, 10)
    cov = model.P
    for _ in range(9):
        cov = model.F @ cov @ model.F.T + model.Q
    np.testing.assert_allclose(np.cov(states[:, -1].T), cov, atol=0.1 * cov[0, 0])
    np.testing.assert_allclose((x - states[..., :2]).std(), 2.0, rtol=0.02)
