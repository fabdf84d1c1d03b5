import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmlab
from lmlab.__main__ import main
from lmlab.layers import tricks
from lmlab.models.gpt import GPT
from lmlab.models.vqvae import VQVAE, VectorQuantized, moving_sums, nearest, straight_through

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


@pytest.fixture(autouse=True)
def full_precision():
    """And convolutions as XLA's own: their gradients by products compile for longer than they run here."""
    with jax.default_matmul_precision("float32"), tricks.without("kernel_gradient"):
        yield


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def images(count=4, seed=0):
    image = np.random.default_rng(seed).random((count, 8, 8))
    return {"image": jnp.asarray(image, jnp.float32), "label": jnp.arange(count, dtype=jnp.int32) % 3}


def build(classes=1, **changes):
    model = VQVAE(**{"num_codes": 6, "code_size": 3, "hidden": 4, "image_size": 8, **changes})
    prior = GPT(model.num_codes + classes, model.side**2, num_layers=1, num_heads=1, d_model=8)
    return VectorQuantized(model, prior)


def make(task):
    params, collections = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0), images()))
    return params, collections


def test_the_nearest_vector_by_brute_force():
    z, codebook = normal(0, 4, 5, 3), normal(1, 7, 3)
    distance = ((np.asarray(z)[..., None, :] - np.asarray(codebook)) ** 2).sum(-1)
    np.testing.assert_array_equal(nearest(z, codebook), distance.argmin(-1))


def test_running_sums_are_the_papers():
    """Equations 6 to 8, with counts and sums of whole batches; ours are the same, by the batch's size."""
    decay, places, codes = 0.9, 40, 5
    size, total = np.full(codes, places / codes), np.asarray(normal(0, codes, 3), np.float64)
    ours = {"size": jnp.asarray(size / places, jnp.float32), "sum": jnp.asarray(total / places, jnp.float32)}
    rng = np.random.default_rng(1)
    for step in range(6):
        z = rng.normal(size=(2, places // 2, 3))
        chosen = rng.integers(0, codes - 1, (2, places // 2))  # the last code is never taken
        ours = moving_sums(ours, jnp.asarray(z, jnp.float32), jnp.asarray(chosen), decay)
        for i in range(codes):
            size[i] = decay * size[i] + (1 - decay) * (chosen == i).sum()
            total[i] = decay * total[i] + (1 - decay) * z[chosen == i].sum(0)
        vectors = np.asarray(ours["sum"]) / np.asarray(ours["size"])[:, None]
        np.testing.assert_allclose(vectors, total / size[:, None], rtol=1e-4, err_msg=str(step))
    np.testing.assert_allclose(ours["size"].sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors[-1], normal(0, codes, 3)[-1] / 8, rtol=1e-4)  # it stays where it was


def test_the_mean_over_halves_of_a_batch_is_the_whole():
    z, codes = normal(0, 8, 2, 3), jnp.asarray(np.random.default_rng(0).integers(0, 4, (8, 2)))
    sums = {"size": jnp.full(4, 0.25), "sum": normal(1, 4, 3)}
    whole = moving_sums(sums, z, codes, 0.99)
    halves = [moving_sums(sums, z[part], codes[part], 0.99) for part in (slice(0, 4), slice(4, 8))]
    for wanted, *found in zip(*map(jax.tree.leaves, (whole, *halves)), strict=True):
        np.testing.assert_allclose(sum(found) / 2, wanted, rtol=1e-5, atol=1e-7)


def test_the_gradient_passes_straight_through():
    z, quantized, weights = normal(0, 5, 3), normal(1, 5, 3), normal(2, 5, 3)
    np.testing.assert_allclose(straight_through(z, quantized), quantized, rtol=1e-5, atol=1e-6)

    def loss(x):
        return (weights * jnp.tanh(x)).sum()

    slope, to_quantized = jax.grad(lambda z, q: loss(straight_through(z, q)), (0, 1))(z, quantized)
    np.testing.assert_allclose(slope, jax.grad(loss)(quantized), rtol=1e-4)
    assert not to_quantized.any()


def gradient(model, prior):
    """(slopes, the new collections) of the loss of a batch in training: one program for any beta."""

    @jax.jit
    def of(params, collections, batch, beta):
        def total(params):
            task = VectorQuantized(model, prior, beta)
            mean, _, new = task.loss(params, collections, batch, jax.random.key(0), True)
            return mean.value, new

        return jax.grad(total, has_aux=True)(params)

    return of


def test_each_term_moves_what_the_paper_says():
    task, batch = build(ema=False), images()
    params, collections = make(task)
    assert collections == {}
    variables, count = {"params": params["autoencoder"]}, len(batch["image"])
    encode = jax.jit(
        lambda p: task.model.apply({"params": p}, batch["image"], method="encode").reshape(-1, 3)
    )
    z, codebook = np.asarray(encode(params["autoencoder"])), np.asarray(params["autoencoder"]["codebook"])
    codes = np.asarray(task.model.apply(variables, batch["image"], method="codes")).ravel()
    slopes = gradient(task.model, task.prior)
    none, more = (slopes(params, collections, batch, beta)[0]["autoencoder"] for beta in (0.0, 2.0))

    moved = np.zeros_like(codebook)  # |sg(z) - e|^2, and nothing else
    np.add.at(moved, codes, 2 * (codebook[codes] - z) / count)
    assert moved.any() and not moved[np.bincount(codes, minlength=6) == 0].any()
    np.testing.assert_allclose(none["codebook"], moved, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(none["codebook"], more["codebook"])
    np.testing.assert_array_equal(none["from_code"]["kernel"], more["from_code"]["kernel"])

    def commitment(p):
        return ((encode(p) - codebook[codes]) ** 2).sum() / count

    expected = 2 * jax.grad(commitment)(params["autoencoder"])["to_code"]["bias"]
    np.testing.assert_allclose(
        more["to_code"]["bias"] - none["to_code"]["bias"], expected, rtol=1e-3, atol=1e-3
    )


def test_the_prior_leaves_the_autoencoder_alone():
    task, batch = build(), images()
    params, collections = make(task)
    other = jax.tree.map(lambda leaf: leaf + 0.3 * normal(5, *leaf.shape), params["prior"])
    slopes = gradient(task.model, task.prior)
    first, kept = slopes(params, collections, batch, 0.25)
    second, same = slopes({**params, "prior": other}, collections, batch, 0.25)
    of_autoencoder = ((first["autoencoder"], kept), (second["autoencoder"], same))
    for one, two in zip(*map(jax.tree.leaves, of_autoencoder), strict=True):
        np.testing.assert_array_equal(one, two)
    assert any(leaf.any() for leaf in jax.tree.leaves(first["prior"]))


def test_the_codebook_moves_in_training_alone():
    task, batch = build(), images()
    params, collections = make(task)
    variables = {"params": params["autoencoder"], **collections}
    before = np.asarray(task.model.apply(variables, method="codebook"))
    _, metrics, kept = task.loss(params, collections, batch, jax.random.key(0), False)
    assert kept is collections
    _, _, moved = task.loss(params, collections, batch, jax.random.key(0), True)
    codes = np.asarray(task.model.apply(variables, batch["image"], method="codes"))
    after = np.asarray(task.model.apply({**variables, **moved}, method="codebook"))
    used = np.bincount(codes.ravel(), minlength=6) > 0
    assert used.any() and (np.abs(after - before)[used].max(1) > 1e-4).all()
    np.testing.assert_allclose(after[~used], before[~used], rtol=1e-5)
    z = np.asarray(task.model.apply(variables, batch["image"], method="encode"))
    np.testing.assert_allclose(metrics["commitment"].value, ((z - before[codes]) ** 2).mean(), rtol=1e-4)
    picture = task.model.apply(variables, jnp.asarray(codes), method="picture")
    error = np.asarray(picture) - np.asarray(batch["image"])
    np.testing.assert_allclose(metrics["squared_error"].value, (error**2).mean(), rtol=1e-4)


def test_the_prior_reads_what_came_before_and_the_label():
    task = build(classes=3)
    params, _ = make(task)
    codes = jnp.asarray(np.random.default_rng(0).integers(0, 6, (2, 2, 2)))
    label = jnp.array([0, 2])
    prior_loss = jax.jit(lambda codes, label: task.prior_loss(params, codes, label, None, False))
    nats = prior_loss(codes, label)
    assert nats.shape == (2, 4)
    later = prior_loss(codes.at[:, 1, 0].add(1) % 6, label)
    np.testing.assert_allclose(nats[:, :2], later[:, :2], rtol=1e-5)
    assert (nats[:, 3] != later[:, 3]).all()
    np.testing.assert_array_equal(task.start(2, label), [[6], [8]])
    np.testing.assert_array_equal(build().start(2, label), [[6], [6]])
    # each step is a distribution over the codes alone: with the start tokens it would be less than 1
    firsts = jnp.arange(6).reshape(6, 1, 1) * jnp.ones((1, 2, 2), int)
    first = prior_loss(firsts, jnp.zeros(6, int))[:, 0]
    np.testing.assert_allclose(jnp.exp(-first).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["num_codes", "code_size", "hidden", "halvings"])
def test_nothing_may_be_empty(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, received 0"):
        build(**{name: 0})


def test_what_cannot_be_is_one_line():
    with pytest.raises(ValueError, match="halvings: received 4; images of 8 x 8 cannot be halved so often"):
        build(halvings=4)
    with pytest.raises(ValueError, match="beta must be at least 0, received -1"):
        VectorQuantized(build().model, build().prior, beta=-1.0)
    with pytest.raises(ValueError, match=r"decay must be at least 0 and below 1, received 1"):
        VectorQuantized(build().model, build().prior, decay=1.0)
    with pytest.raises(ValueError, match=r"images must be 8 x 8, received \(9, 8\)"):
        build().model.init(jax.random.key(0), jnp.zeros((1, 9, 8)))


def test_samples_of_a_class(tmp_path, capsys):
    short = {"duration": "2 steps", "evaluate_every": "0", "parallel.data": 1, "model.num_codes": 5}
    short |= {"prior.num_layers": 1, "prior.d_model": 8}
    run = lmlab.train("experiments/vqvae.py:conditional,demo", tmp_path / "run", short)
    drawn = run.sample(num_samples=12, label=7, seed=1)
    assert drawn.images.shape == (12, 8, 8) and drawn.arrays["codes"].shape == (12, 4, 4)
    assert drawn.arrays["codes"].min() >= 0 and drawn.arrays["codes"].max() <= 4
    again = run.sample(num_samples=12, label=7, seed=1).arrays["codes"]
    np.testing.assert_array_equal(drawn.arrays["codes"], again)
    assert main(["sample", f"--workdir={run.folder}", "--label=12"]) == 2
    said = capsys.readouterr().err.strip()
    assert "label must be from 0 to 9" in said and "received 12" in said and "\n" not in said
