"""Schedules against their formulas, decay of matrices alone, a learning rate that is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmlab.config import Clock, base
from lmlab.training import optimizer

CLOCK = Clock("100 steps", 8, 800)


def build(**changes):
    return optimizer.build(CLOCK, **{**base().optimizer.to_dict(), **changes})


def rates(kind, warmup=10, final=0.1):
    shape = optimizer.schedule_shape(kind, warmup, 100, final)
    return np.array([float(shape(step)) for step in range(121)])


def test_warm_up_is_linear_and_ends_at_the_peak():
    for kind in ("constant", "cosine", "linear", "rsqrt"):
        np.testing.assert_allclose(rates(kind)[:10], np.arange(1, 11) / 11, rtol=1e-6)
        np.testing.assert_allclose(rates(kind)[10], 1, rtol=1e-6)


def test_the_cosine_is_that_of_nanogpt():
    steps = np.arange(10, 101)
    expected = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (steps - 10) / 90))
    np.testing.assert_allclose(rates("cosine")[10:101], expected, atol=1e-6)
    np.testing.assert_allclose(rates("cosine")[100:], 0.1, atol=1e-6)  # and stays there


def test_linear_constant_and_rsqrt():
    np.testing.assert_allclose(rates("linear")[[55, 100, 120]], [0.55, 0.1, 0.1], atol=1e-6)
    np.testing.assert_allclose(rates("constant")[10:], 1)
    np.testing.assert_allclose(rates("rsqrt")[10:], np.sqrt(11 / np.arange(11, 122)), rtol=1e-6)
    noam = np.array(
        [min((s + 1) ** -0.5, (s + 1) * 11**-1.5) for s in range(121)]
    )  # Vaswani et al. 2017, eq. 3
    np.testing.assert_allclose(rates("rsqrt"), noam / noam.max(), rtol=1e-6)


def test_without_warm_up_the_first_step_has_the_peak():
    assert rates("cosine", warmup=0)[0] == 1


def test_adamw_is_optaxs():
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    grads = jax.tree.map(
        lambda leaf: jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape) - 1, params
    )
    ours, theirs = (
        build(learning_rate=0.1, weight_decay=0.01),
        optax.adamw(0.1, weight_decay=0.01, mask={"w": True, "b": False}),
    )
    states = [ours.init(params), theirs.init(params)]
    both = [params, params]
    for _ in range(3):
        for i, tx in enumerate((ours, theirs)):
            changes, states[i] = tx.update(grads, states[i], both[i])
            both[i] = optax.apply_updates(both[i], changes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *both)


def test_biases_are_not_decayed():
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    tx = build(learning_rate=0.1, weight_decay=0.5)
    changes, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(changes["w"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(changes["b"], 0)


def test_momentum_and_clipping_of_sgd():
    params = {"w": jnp.zeros((4, 4))}
    grads = {"w": jnp.full((4, 4), 10.0)}  # norm 40
    tx = build(name="sgd", learning_rate=1.0, b1=0.5, clip=4.0)
    state = tx.init(params)
    first, state = tx.update(grads, state, params)
    second, _ = tx.update(grads, state, params)
    np.testing.assert_allclose(first["w"], -1.0, rtol=1e-6)
    np.testing.assert_allclose(second["w"], -1.5, rtol=1e-6)


def test_the_learning_rate_may_be_traced():
    params = {"w": jnp.ones((3, 2))}

    @jax.vmap
    def once(rate):
        tx = build(learning_rate=rate, schedule="cosine", weight_decay=rate)
        return tx.update(params, tx.init(params), params)[0]["w"][0, 0]

    changes = once(jnp.array([0.1, 0.2]))
    for rate, change in zip((0.1, 0.2), changes, strict=True):
        tx = build(learning_rate=rate, schedule="cosine", weight_decay=rate)
        np.testing.assert_allclose(
            change, tx.update(params, tx.init(params), params)[0]["w"][0, 0], rtol=1e-6
        )


def test_decay_with_plain_adam_is_refused():
    with pytest.raises(ValueError, match="weight_decay needs"):
        build(name="adam", weight_decay=0.1)
