"""Images as sequences: their bytes in order, bits counted by hand, halves that are gone on with, the VAE's images."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab import config as configs
from lmlab.data import images
from lmlab.experiment import Assets

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TINY = {"model.num_layers": 1, "model.num_heads": 1, "model.d_model": 8, "data.halved": True}


def built(spec, changes):
    config, module = configs.load(f"{EXPERIMENTS}/{spec}", changes)
    return module, module.build(config, Assets())


@pytest.fixture(scope="module")
def tiny():
    """(module, experiment, variables) of a network at its beginning, on digits of 4 x 4."""
    module, made = built("pixels.py:demo", TINY)
    params, _ = jax.jit(made.task.init)(jax.random.key(0), made.train_data().example())
    return module, made, {"params": params}


def test_an_image_is_its_bytes_row_by_row_after_the_token_that_begins_it(tiny):
    module, made, _ = tiny
    tokens = made.evaluations["test"].data()["tokens"]
    digits = images.digits("test")["image"]
    assert tokens.shape == (180, 17) and (tokens[:, 0] == module.START).all()
    assert tokens[3, 1 + 4 + 2] == round(float(digits[3, 2:4, 4:6].mean()))
    shown = made.show({"tokens": tokens}).images
    np.testing.assert_array_equal(shown, images.halved(images.digits("test"))["image"])


def test_the_test_images_are_those_of_the_discretized_vae(tiny):
    _, vae = built("vae.py:discretized,demo", {"data.halved": True})
    theirs = np.asarray(vae.evaluations["test"].data()["image"])
    ours = tiny[1].evaluations["test"].data()["tokens"][:, 1:]
    np.testing.assert_array_equal(ours.reshape(theirs.shape), np.rint(255 * theirs))


def test_bits_per_dimension_are_those_of_each_pixel_given_those_before(tiny):
    _, made, variables = tiny
    test = made.evaluations["test"]
    scores, _ = test(variables, jax.random.key(0))
    tokens = test.data()["tokens"]
    logits = np.asarray(test.model.apply(variables, jnp.asarray(tokens[:, :-1])), np.float64)
    logits -= logits.max(-1, keepdims=True)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    bits = -np.log2(np.take_along_axis(chances, tokens[:, 1:, None], -1))
    np.testing.assert_allclose(scores["bits_per_dim"], bits.mean(), rtol=1e-5)
    blind = jax.tree.map(jnp.zeros_like, variables)  # knows nothing: all 257 tokens are as likely
    np.testing.assert_allclose(test(blind, jax.random.key(0))[0]["bits_per_dim"], math.log2(257), rtol=1e-5)


@pytest.mark.slow
def test_halves_are_gone_on_with_pixel_by_pixel(tiny):
    """At temperature 0 each pixel is the likeliest after those before it."""
    module, made, variables = tiny
    test = made.evaluations["test"]
    upper = test.data()["tokens"][:5, 1:9].astype(np.uint8)
    found = module.draw(test.model, variables, jax.random.key(0), upper, temperature=0.0)
    np.testing.assert_array_equal(found[:, :8], upper)
    expected = np.concatenate([np.full((5, 1), module.START), upper], axis=1)
    for _ in range(8):
        best = np.asarray(test.model.apply(variables, jnp.asarray(expected)))[:, -1].argmax(-1)
        expected = np.concatenate([expected, best[:, None]], axis=1)
    np.testing.assert_array_equal(found, expected[:, 1:].clip(0, 255))
    shown = test.completed(variables, jax.random.key(1))
    assert (shown["given"][:, 2:] == 0).all()
    np.testing.assert_array_equal(shown["completed 2"][:, :2], shown["original"][:, :2])
    assert (shown["completed 1"] != shown["completed 2"]).any(), "three draws"


def test_no_samples_are_refused(tiny):
    with pytest.raises(ValueError, match="num_samples must be at least 1, received 0"):
        tiny[1].sample(tiny[2], jax.random.key(0), num_samples=0)
