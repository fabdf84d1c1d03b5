"""Each network trains on its own images and by its own loss alone; gaps are counted on clean images."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab import config as configs
from lmlab.data import images
from lmlab.experiment import Assets
from lmlab.models.autoencoder import Autoencoder
from lmlab.tasks import Reconstruct

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "memorization.py"
TINY = {"sizes": (3, 10), "model.features": (4,), "model.code": 2}


def built(changes):
    config, module = configs.load(f"{EXPERIMENT}:demo", changes)
    return module.build(config, Assets())


@pytest.fixture(scope="module")
def tiny():
    """(experiment, a batch, its parameters at the beginning)."""
    made = built(TINY)
    batch = made.train_data().example()
    params, _ = jax.jit(made.task.init)(jax.random.key(0), batch)
    return made, batch, params


def test_a_subset_is_seen_evenly_and_holds_the_smaller_ones(tiny):
    source = tiny[0].train_data()
    count, n = source.num_examples, 10
    batch = source.take(source.data, jnp.arange(count), 0, 0)
    seen, times = np.unique(np.asarray(batch[str(n)]).reshape(count, -1), axis=0, return_counts=True)
    assert len(seen) == n and times.max() - times.min() <= 1
    smaller = {image.tobytes() for image in np.asarray(batch["3"])}
    assert len(smaller) == 3 and smaller <= {image.tobytes() for image in np.asarray(batch[str(n)])}
    other = built({**TINY, "seed": 1}).train_data()
    assert (other.data[:10] != source.data[:10]).any(), "the seed draws the subset"


def test_networks_begin_alike_and_each_has_the_gradient_of_its_own_loss(tiny):
    made, batch, params = tiny
    assert set(params) == {"plain_3", "plain_10", "denoising_3", "denoising_10"}
    for arm in params.values():
        jax.tree.map(np.testing.assert_array_equal, arm, params["plain_3"])

    def loss(params):
        return made.task.loss(params, {}, batch, jax.random.key(0), True)[0].value

    slope = jax.jit(jax.grad(loss))(params)
    model = Autoencoder(features=(4,), code=2, input_size=64)
    for n in ("3", "10"):
        alone = jax.grad(
            lambda arm, n=n: (
                Reconstruct(model).loss(arm, {}, {"image": batch[n]}, jax.random.key(0), True)[0].value
            )
        )(params[f"plain_{n}"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), slope[f"plain_{n}"], alone)
        differs = jax.tree.map(lambda a, b: bool((a != b).any()), slope[f"denoising_{n}"], alone)
        assert all(jax.tree.leaves(differs)), "it sees noise"


def test_gaps_are_of_clean_images_on_test_less_on_those_of_training(tiny):
    made, _, params = tiny
    params = jax.tree.map(lambda leaf: leaf, params)
    params["denoising_10"] = jax.tree.map(lambda leaf: 2.0 * leaf, params["plain_10"])
    scores, kept = made.evaluations["test"]({"params": params}, jax.random.key(0))
    model, train = Autoencoder(features=(4,), code=2, input_size=64), made.train_data().data

    def entropy(arm, image):
        x = np.asarray(image, np.float64).reshape(len(image), 64) / 255
        logits = np.asarray(model.apply({"params": params[arm]}, jnp.asarray(x, jnp.float32)), np.float64)
        return np.mean(np.log1p(np.exp(-logits)) * x + np.log1p(np.exp(logits)) * (1 - x))

    test = images.digits("test")["image"]
    gap = {arm: entropy(arm, test) - entropy(arm, train[:10]) for arm in ("plain_10", "denoising_10")}
    for arm, value in gap.items():
        np.testing.assert_allclose(scores[f"gap_{arm}"], value, atol=1e-5)
    np.testing.assert_allclose(scores["mitigation_10"], gap["plain_10"] - gap["denoising_10"], atol=1e-5)
    assert kept["train"].shape == kept["test"].shape == (2, 2)
    np.testing.assert_allclose(kept["test"][1, 1] - kept["train"][1, 1], gap["denoising_10"], atol=1e-5)


@pytest.mark.parametrize("sizes", [(), (0, 5), (5, 5)])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes must be one or more, different, each at least 1"):
        built({"sizes": sizes})


def test_more_images_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"sizes: received \(5, 2000\); there are 1,437 training images"):
        built({"sizes": (5, 2000)}).train_data()
