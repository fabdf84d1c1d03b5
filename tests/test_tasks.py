import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.models.autoencoder import Autoencoder
from lmlab.models.gpt import GPT
from lmlab.models.recurrent_lm import RecurrentLM
from lmlab.tasks import NextToken, Reconstruct, binary_cross_entropy, cross_entropy

MODELS = {
    "gpt": GPT(vocab_size=7, context=6, num_layers=1, num_heads=2, d_model=8, dropout=0.3),
    "recurrent": RecurrentLM(7, d_model=8, dropout=0.3),
}


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def tokens(batch, length):
    return jnp.asarray(np.random.default_rng(0).integers(0, 7, (batch, length)), jnp.int32)


def test_cross_entropy_is_the_log_of_the_softmax():
    logits = np.random.default_rng(0).normal(size=(3, 4, 7)) * 5
    labels = np.random.default_rng(1).integers(0, 7, (3, 4))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(p, labels[..., None], -1)[..., 0])
    got = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert jnp.isfinite(cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([1]))).all()


def test_binary_cross_entropy_is_the_log_of_the_sigmoid():
    logits, targets = np.random.default_rng(0).normal(size=(3, 4)) * 4, np.random.default_rng(1).random((3, 4))
    p = 1 / (1 + np.exp(-logits))
    expected = -targets * np.log(p) - (1 - targets) * np.log(1 - p)
    got = binary_cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(binary_cross_entropy(jnp.array([1e4, -1e4]), jnp.array([0.0, 0.0])), [1e4, 0])


def test_slope_of_binary_cross_entropy_is_sigmoid_minus_target():
    x, t = jnp.array([-3.0, 0.0, 0.5, 40.0]), jnp.array([0.2, 0.7, 0.0, 1.0])
    slope = jax.grad(lambda x: binary_cross_entropy(x, t).sum())(x)
    np.testing.assert_allclose(slope, jax.nn.sigmoid(x) - t, atol=1e-6)


@pytest.mark.parametrize("name", list(MODELS))
def test_masked_loss_is_the_loss_of_the_subset(name):
    task, batch = NextToken(MODELS[name]), {"tokens": tokens(4, 7)}
    params = nn.meta.unbox(task.init(jax.random.key(0), batch)[0])
    rows = {"tokens": batch["tokens"], "mask": jnp.array([1, 0, 1, 0])[:, None] * jnp.ones((1, 6), jnp.int32)}
    masked, metrics, _ = task.loss(params, {}, rows, None, False)
    subset, expected, _ = task.loss(params, {}, {"tokens": batch["tokens"][::2]}, None, False)
    np.testing.assert_allclose(masked.value, subset.value, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"].value, expected["accuracy"].value, rtol=1e-6)
    assert masked.count == subset.count == 12
    # The models are causal: leaving out the last targets is the same as never giving them.
    head = {**batch, "mask": jnp.broadcast_to((jnp.arange(6) < 4)[None], (4, 6))}
    short = {"tokens": batch["tokens"][:, :5]}
    slopes = [jax.grad(lambda p, b=b: task.loss(p, {}, b, None, False)[0].value)(params) for b in (head, short)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *slopes)


@pytest.mark.parametrize("name", list(MODELS))
def test_loss_is_the_mean_over_targets(name):
    model, batch = MODELS[name], {"tokens": tokens(2, 5)}
    task = NextToken(model)
    params, collections = task.init(jax.random.key(0), batch)
    assert collections == {}
    loss, metrics, after = task.loss(params, collections, batch, None, False)
    logits = np.asarray(model.apply({"params": params}, batch["tokens"][:, :4]), np.float64)
    targets = np.asarray(batch["tokens"])[:, 1:]
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(loss.value, -np.take_along_axis(logs, targets[..., None], -1).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"].value, (logits.argmax(-1) == targets).mean())
    assert loss.count == 8 and after == {}


@pytest.mark.parametrize("name", list(MODELS))
def test_the_key_matters_in_training_only(name):
    task, batch = NextToken(MODELS[name]), {"tokens": tokens(2, 5)}
    params, _ = task.init(jax.random.key(0), batch)

    def loss(seed, train):
        return float(task.loss(params, {}, batch, jax.random.key(seed), train)[0].value)

    assert loss(1, True) != loss(2, True)
    assert loss(1, True) == loss(1, True)
    assert loss(1, False) == loss(2, False)


def test_padded_images_have_no_voice():
    task = Reconstruct(Autoencoder((8,), 4, 12))
    image = jnp.asarray(np.random.default_rng(0).random((5, 3, 4)), jnp.float32)
    params = nn.meta.unbox(task.init(jax.random.key(0), {"image": image})[0])
    padded, _, _ = task.loss(params, {}, {"image": image, "mask": jnp.array([1, 1, 1, 0, 0])}, None, True)
    subset, metrics, _ = task.loss(params, {}, {"image": image[:3]}, None, True)
    np.testing.assert_allclose(padded.value, subset.value, rtol=1e-6)
    assert padded.count == subset.count == 36  # pixels: the mean is over pixels and examples
    assert metrics["loss"].value == subset.value
