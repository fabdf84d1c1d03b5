"""Naive Bayes and logistic regression are scikit-learn's; draws are even; errors are counted."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab import config as configs
from lmlab.data import images
from lmlab.experiment import Assets

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "generative_vs_discriminative.py"


@pytest.fixture(scope="module")
def module():
    return configs.load(f"{EXPERIMENT}:demo")[1]


@pytest.fixture(scope="module")
def bits(module):
    """(x, y, unseen x) of binary digits."""
    train, unseen = (module.binary(images.digits(name)) for name in ("train", "validation"))
    x, y = module.draws(train["image"], train["label"], 12, 1, 0)
    return x[0], y[0], unseen["image"].reshape(-1, 64) // 255


def test_naive_bayes_is_scikit_learns(module, bits):
    from sklearn.naive_bayes import BernoulliNB

    x, y, unseen = bits
    ours = jax.jit(module.naive_bayes)(jnp.asarray(x), jnp.asarray(y))
    theirs = BernoulliNB(alpha=1.0).fit(x, y)
    joint = unseen @ np.asarray(ours["kernel"]) + np.asarray(ours["bias"])
    np.testing.assert_allclose(joint, theirs.predict_joint_log_proba(unseen), rtol=1e-4)


def test_logistic_regression_is_scikit_learns(module, bits):
    from sklearn.linear_model import LogisticRegression

    x, y, unseen = bits
    ours = jax.jit(module.logistic, static_argnums=2)(jnp.asarray(x), jnp.asarray(y), 1.0)
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(x, y)
    np.testing.assert_allclose(ours["kernel"], theirs.coef_.T, atol=2e-3)
    logits = unseen @ np.asarray(ours["kernel"]) + np.asarray(ours["bias"])
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(chances, theirs.predict_proba(unseen), atol=2e-3)


def test_draws_have_as_many_of_each_class_and_differ(module):
    train = module.binary(images.digits("train"))
    x, y = module.draws(train["image"], train["label"], 7, 3, 0)
    assert x.shape == (3, 70, 64) and set(np.unique(x)) == {0, 1}
    assert all(np.bincount(row).tolist() == [7] * 10 for row in y)
    assert (x[0] != x[1]).any()
    again, _ = module.draws(train["image"], train["label"], 7, 3, 0)
    np.testing.assert_array_equal(again, x)


def test_errors_are_shares_of_wrong_answers(module):
    unseen = {"image": np.full((4, 1, 2), 255, np.uint8), "label": np.array([0, 1, 1, 2])}
    right = {"kernel": jnp.zeros((2, 10)), "bias": jnp.arange(10) == 1}
    params = jax.tree.map(lambda leaf: jnp.stack([1.0 * leaf, -1.0 * leaf]), right)
    both = {"params": {name: {"3": params} for name in module.OURS}}
    scalars, arrays = module.Errors(lambda: unseen, (3,))(both, jax.random.key(0))
    # the first draw always says 1, the second never: it says 0, the first of the others
    np.testing.assert_allclose(arrays["logistic"], [[0.5, 0.75]])
    np.testing.assert_allclose(scalars["naive_bayes_30"], 0.625)
    np.testing.assert_allclose(scalars["lead_30"], 0.0)
    chance = np.exp(1) / (np.exp(1) + 9)
    np.testing.assert_allclose(
        scalars["loss"], -(2 * np.log(chance) + 2 * np.log(chance / np.exp(1))) / 4, rtol=1e-5
    )


def test_curves_are_over_the_draws_of_all_runs(module):
    """Three sizes, of which scikit-learn's were fitted to two; two draws in each of two runs."""

    def run(error):
        ours = {"naive_bayes": np.array([[0.2, 0.4]] * 3), "logistic": np.full((3, 2), error)}
        beside = {name: np.full((2, 2), error) for name in module.BESIDE}
        return SimpleNamespace(arrays=lambda name: {**ours, **beside, "examples": np.array([10, 20, 50])})

    left, right = module.figures([run(0.1), run(0.3)])["errors"].axes
    lines = {line.get_label(): line for line in left.lines}
    np.testing.assert_allclose(lines["naive Bayes"].get_ydata(), 30)
    np.testing.assert_allclose(lines["logistic regression"].get_ydata(), 20)
    np.testing.assert_array_equal(lines["support vectors"].get_xdata(), [10, 20])
    np.testing.assert_allclose(right.lines[0].get_ydata(), -10)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sizes": (5, 2)}, r"sizes must increase from 1 on, received \(5, 2\)"),
        ({"sizes": (0, 2)}, r"sizes must increase from 1 on, received \(0, 2\)"),
        ({"draws": 0}, "draws must be above 0, received 0"),
        ({"sizes": (1, 5000)}, "sizes: received 5000; allowed: up to 1"),
    ],
)
def test_what_is_refused(module, changes, said):
    config, _ = configs.load(f"{EXPERIMENT}:demo", changes)
    with pytest.raises(ValueError, match=said):
        module.build(config, Assets()).train_data()
