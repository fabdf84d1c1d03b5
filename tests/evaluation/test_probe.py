"""The probe against scikit-learn, on a feature that was planted and on noise."""

import numpy as np
import pytest

from lmlab.evaluation import probe


def planted(count=400, width=12, seed=0, noise=0.3):
    """(vectors, labels): the label shifts them along one direction."""
    rng = np.random.default_rng(seed)
    direction = np.random.default_rng(99).normal(size=width)
    yes = rng.integers(0, 2, count) == 1
    return rng.normal(size=(count, width)) * noise + np.outer(2 * yes - 1, direction), yes


def test_a_planted_direction_is_found_and_holds_on_others():
    fitted = probe.fit(*planted())
    x, yes = planted(seed=1)
    assert ((fitted(x) > 0) == yes).mean() > 0.99


def test_noise_holds_nothing():
    rng = np.random.default_rng(0)
    x, yes = rng.normal(size=(600, 10)), rng.integers(0, 2, 600) == 1
    fitted = probe.fit(x[:300], yes[:300])
    assert abs(((fitted(x[300:]) > 0) == yes[300:]).mean() - 0.5) < 0.1


@pytest.mark.parametrize("decay", [1e-3, 0.1])
def test_it_is_scikit_learns(decay):
    linear = pytest.importorskip("sklearn.linear_model")
    x, yes = planted(120, noise=4.0)
    fitted = probe.fit(x, yes, decay)
    scaled = (x - x.mean(0)) / x.std(0)
    peer = linear.LogisticRegression(C=1 / (decay * len(x)), tol=1e-10, max_iter=10_000).fit(scaled, yes)
    np.testing.assert_allclose(fitted.weight, peer.coef_[0], atol=1e-4)
    np.testing.assert_allclose(fitted(x), peer.decision_function(scaled), atol=1e-3)


def test_neither_scale_nor_a_feature_that_stands_still_matters():
    x, yes = planted(noise=3.0)
    more = np.hstack([1000 * x - 5, np.ones((len(x), 1))])
    np.testing.assert_allclose(probe.fit(more, yes)(more), probe.fit(x, yes)(x), rtol=1e-6, atol=1e-9)


def test_an_interval_over_groups_is_wider_where_a_group_is_alike():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 25)
    alike, single = (rng.random(40) < 0.7)[group], rng.random(1000) < 0.7
    wide, narrow = (np.ptp(probe.interval(right, group)) for right in (alike, single))
    assert wide > 3 * narrow
    low, high = probe.interval(single, np.arange(1000))
    error = 1.96 * np.sqrt(single.mean() * (1 - single.mean()) / 1000)
    np.testing.assert_allclose([low, high], [single.mean() - error, single.mean() + error], atol=0.006)


def test_mistakes_are_one_line():
    x, yes = planted(10)
    with pytest.raises(ValueError, match="examples of both kinds, received 10 yes of 10"):
        probe.fit(x, np.ones(10, bool))
    with pytest.raises(ValueError, match=r"decay must be above 0, received 0.0"):
        probe.fit(x, yes, 0.0)
