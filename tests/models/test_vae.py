import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmlab
from lmlab.__main__ import main
from lmlab.evaluation.likelihood import ImportanceWeighted
from lmlab.models.vae import VAE, VariationalBound, discretized_logistic, gaussian_kl, gaussian_log_prob


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def batch(count=6, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 2, (count, 2, 3)).astype(np.float32)
    return {"image": jnp.asarray(image), "label": jnp.asarray(rng.integers(0, 4, count), jnp.int32)}


def build(**changes):
    return VAE(**{"latent": 2, "hidden": (5,), "image_shape": (2, 3), **changes})


def make(model, scale=0.7):
    """Weights drawn by NumPy, none of them 0."""
    first = batch()
    label = first["label"] if model.num_classes else None
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), first["image"], label))
    leaves, tree = jax.tree.flatten(shapes["params"])
    rng = np.random.default_rng(1)
    drawn = [jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, drawn)


def affine(x, layer):
    return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)


def reference(params, image, label, noise):
    """(reconstruction, kl) of each image, in NumPy."""
    x = np.asarray(image, np.float64).reshape(len(image), -1)
    extra = np.eye(4)[np.asarray(label)] if label is not None else np.zeros((len(x), 0))
    h = np.maximum(affine(np.concatenate([x, extra], 1), params["encoder_0"]), 0)
    mean, log_variance = np.split(affine(h, params["posterior"]), 2, axis=1)
    z = mean + np.exp(log_variance / 2) * noise
    h = np.maximum(affine(np.concatenate([z, extra], 1), params["decoder_0"]), 0)
    p = 1 / (1 + np.exp(-affine(h, params["pixels"])))
    reconstruction = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum(1)
    return reconstruction, 0.5 * (np.exp(log_variance) + mean**2 - 1 - log_variance).sum(1)


@pytest.mark.parametrize("num_classes", [0, 4])
def test_the_bound_is_the_papers(num_classes):
    model, data, key = build(num_classes=num_classes), batch(), jax.random.key(3)
    params = make(model)
    loss, metrics, collections = VariationalBound(model, beta=3.0).loss(params, {}, data, key, True)
    noise = np.asarray(jax.random.normal(key, (6, 2)))
    distortion, rate = reference(params, data["image"], data["label"] if num_classes else None, noise)
    np.testing.assert_allclose(metrics["reconstruction"].value, distortion.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"].value, rate.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["bound"].value, (distortion + rate).mean(), rtol=1e-5)
    np.testing.assert_allclose(loss.value, (distortion + 3 * rate).mean(), rtol=1e-5)
    assert collections == {}


def test_padding_does_not_count():
    model, data, key = build(), batch(), jax.random.key(3)
    params, task = make(model), VariationalBound(model)
    mask = jnp.array([1, 1, 0, 1, 0, 1.0])
    masked = task.loss(params, {}, {**data, "mask": mask}, key, False)[0]
    noise = np.asarray(jax.random.normal(key, (6, 2)))
    expected = sum(reference(params, data["image"], None, noise))[np.asarray(mask) > 0].mean()
    np.testing.assert_allclose(masked.value, expected, rtol=1e-5)


def test_kl_in_closed_form_is_that_of_a_million_draws():
    mean, log_variance = normal(0, 1, 3), normal(1, 1, 3)
    z = mean + jnp.exp(log_variance / 2) * jax.random.normal(jax.random.key(0), (1_000_000, 3))
    several = functools.partial(jnp.broadcast_to, shape=z.shape)
    ratio = gaussian_log_prob(z, several(mean), several(log_variance))
    ratio = np.asarray(ratio - gaussian_log_prob(z, 0 * z, 0 * z))
    error = ratio.std() / 1000
    assert abs(ratio.mean() - float(gaussian_kl(mean, log_variance)[0])) < 4 * error < 0.02
    assert float(gaussian_kl(jnp.zeros((1, 3)), jnp.zeros((1, 3)))[0]) == 0


@pytest.mark.parametrize(("mean", "log_scale"), [(0.5, -1.0), (0.0, -3.0), (0.98, -5.0), (-2.0, -6.5)])
def test_the_levels_of_a_discretized_logistic_sum_to_one(mean, log_scale):
    levels = jnp.arange(256) / 255
    full = functools.partial(jnp.full, 256)
    log_probs = discretized_logistic(levels, full(mean), full(log_scale))
    assert abs(float(jnp.exp(log_probs).sum()) - 1) < 1e-4

    scale, x = np.exp(log_scale), np.arange(256) / 255
    cdf = 1 / (1 + np.exp(np.clip(-(np.arange(255) + 0.5 - 255 * mean) / 255 / scale, -700, 700)))
    expected = np.diff(np.concatenate([[0], cdf, [1]]))
    seen = expected > 1e-6  # below, the reference itself has lost its digits
    assert seen.sum() > 3 or mean == -2.0
    np.testing.assert_allclose(np.exp(log_probs)[seen], expected[seen], rtol=2e-3)
    slopes = jax.grad(lambda m, s: discretized_logistic(jnp.asarray(x), full(m), full(s)).sum(), (0, 1))
    assert all(np.isfinite(slope) for slope in slopes(mean, log_scale))


def test_bits_per_dimension_of_a_discretized_model():
    model, data = build(discretized=True), batch()
    params = make(model)
    _, metrics, _ = VariationalBound(model).loss(params, {}, data, jax.random.key(0), False)
    bits = metrics["bound"].value / 6 / np.log(2)
    np.testing.assert_allclose(metrics["bits_per_dim"].value, bits, rtol=1e-6)
    picture = model.apply({"params": params}, normal(0, 3, 2), method="picture")
    assert picture.shape == (3, 2, 3) and picture.min() >= 0 and picture.max() <= 1


def test_importance_weighted_bounds_fall_with_k_and_begin_at_the_bound():
    model, data = build(), {"image": batch(7)["image"]}
    params, task = make(model), VariationalBound(model)
    weighted = ImportanceWeighted(task.log_weight, lambda: data, (1, 5, 50, 2000), batch_size=4)
    bounds = list(weighted({"params": params}, jax.random.key(0))[0].values())
    assert all(tighter < looser for looser, tighter in itertools.pairwise(bounds))
    assert bounds[0] - bounds[-1] > 0.1, "the posterior is not exact"
    loss = jax.jit(jax.vmap(lambda key: task.loss(params, {}, data, key, False)[0].value))
    drawn = np.asarray(loss(jax.random.split(jax.random.key(1), 5000)))
    assert abs(bounds[0] - drawn.mean()) < 5 * drawn.std() * np.sqrt(1 / 5000 + 1 / 2000)
    # p(x) itself, on a grid over the plane of z
    line = np.linspace(-6, 6, 121)
    z = jnp.asarray(np.stack(np.meshgrid(line, line), -1).reshape(-1, 2), jnp.float32)
    prior = gaussian_log_prob(z, 0 * z, 0 * z) + 2 * np.log(0.1)
    true = [
        -jax.nn.logsumexp(
            prior
            + model.apply({"params": params}, jnp.tile(x[None], (len(z), 1, 1)), z, method="log_likelihood")
        )
        for x in data["image"]
    ]
    assert np.mean(true) - 0.02 < bounds[-1] < bounds[0]
    assert abs(bounds[-1] - np.mean(true)) < 0.05


def test_bits_are_drawn_anew_in_training_alone():
    model, grey = build(), {"image": jnp.full((400, 2, 3), 0.5)}
    params, task = make(model, 0.0), VariationalBound(model, dynamic=True)
    params["pixels"]["bias"] = jnp.full(6, 2.0)  # -log p of a bit: log(1 + e^2) - 2 x
    trained = [task.loss(params, {}, grey, jax.random.key(seed), True)[0].value for seed in (0, 1)]
    assert trained[0] != trained[1]
    seen = task.loss(params, {}, grey, jax.random.key(0), False)[0].value
    np.testing.assert_allclose(seen, 6 * (np.log1p(np.exp(2.0)) - 1), rtol=1e-5)
    np.testing.assert_allclose(np.mean(trained), seen, atol=0.5)


def test_beta_may_be_traced():
    model, data = build(), batch()
    params = make(model)

    def loss(beta):
        return VariationalBound(model, beta).loss(params, {}, data, jax.random.key(0), True)[0].value

    slope = jax.jit(jax.grad(loss))(2.0)
    _, metrics, _ = VariationalBound(model).loss(params, {}, data, jax.random.key(0), True)
    np.testing.assert_allclose(slope, metrics["kl"].value, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"latent": 0}, {"hidden": (3, 0)}, {"image_shape": (0, 3)}])
def test_an_empty_layer_is_refused(changes):
    with pytest.raises(ValueError, match=r"must .*be at least 1, received"):
        build(**changes)


def test_what_a_model_has_not_is_one_line():
    with pytest.raises(ValueError, match="num_classes must be at least 0, received -1"):
        build(num_classes=-1)
    with pytest.raises(ValueError, match="beta must be at least 0, received -1"):
        VariationalBound(build(), beta=-1.0)
    with pytest.raises(ValueError, match=r"images must be \(2, 3\), received \(3, 2\)"):
        build().init(jax.random.key(0), jnp.zeros((1, 3, 2)))


def test_labels_of_samples(tmp_path, capsys):
    """A conditional run draws the class it is asked for, and refuses in one line what is none."""
    short = {"duration": "2 steps", "evaluate_every": "0", "parallel.data": 1}
    run = lmlab.train("experiments/vae.py:conditional,demo", tmp_path / "run", short)
    sample = ["sample", f"--workdir={run.folder}", "--num_samples=3", "--seed=1"]
    assert main([*sample, "--label=7"]) == 0 and main([*sample, "--label=7"]) == 0
    assert main([*sample, "--label=6"]) == 0
    seven, again, six = (np.load(run.folder / "samples" / f"seed-1{name}.npz") for name in ("", "-2", "-3"))
    assert seven["images"].shape == (3, 8, 8)
    np.testing.assert_array_equal(seven["images"], again["images"])
    np.testing.assert_array_equal(seven["latent"], six["latent"])
    assert np.abs(seven["images"] - six["images"]).max() > 1e-4
    capsys.readouterr()
    for label in ("10", "-2"):
        assert main([*sample, f"--label={label}"]) == 2
        said = capsys.readouterr().err.strip()
        assert "label must be from 0 to 9" in said and f"received {label}" in said and "\n" not in said
    assert main(["sample", f"--workdir={run.folder}", "--num_samples=0"]) == 2
    assert "num_samples must be at least 1, received 0" in capsys.readouterr().err
