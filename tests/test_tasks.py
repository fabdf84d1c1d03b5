import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.experiment import Mean
from lmlab.models.autoencoder import Autoencoder
from lmlab.models.gpt import GPT
from lmlab.models.recurrent_lm import RecurrentLM
from lmlab.models.seq2seq import Seq2Seq
from lmlab.tasks import Narrowed, NextTargetToken, NextToken, Reconstruct, binary_cross_entropy, cross_entropy

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


def start(task, batch):
    """(the task's loss, compiled; unboxed params)."""
    params, collections = jax.jit(task.init)(jax.random.key(0), batch)
    assert collections == {}
    return jax.jit(task.loss, static_argnames="train"), nn.meta.unbox(params)


def test_cross_entropy_is_the_log_of_the_softmax():
    logits = np.random.default_rng(0).normal(size=(3, 4, 7)) * 5
    labels = np.random.default_rng(1).integers(0, 7, (3, 4))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(p, labels[..., None], -1)[..., 0])
    got = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert jnp.isfinite(cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([1]))).all()


def test_binary_cross_entropy_is_the_log_of_the_sigmoid():
    logits = np.random.default_rng(0).normal(size=(3, 4)) * 4
    targets = np.random.default_rng(1).random((3, 4))
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
    task, ids = NextToken(MODELS[name]), tokens(4, 7)
    loss, params = start(task, {"tokens": ids})
    rows = jnp.broadcast_to(jnp.array([1, 0, 1, 0])[:, None], (4, 6))
    masked, metrics, _ = loss(params, {}, {"tokens": ids, "mask": rows}, None, train=False)
    subset, expected, _ = loss(params, {}, {"tokens": ids[::2]}, None, train=False)
    np.testing.assert_allclose(masked.value, subset.value, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"].value, expected["accuracy"].value, rtol=1e-6)
    assert masked.count == subset.count == 12


@pytest.mark.parametrize("name", list(MODELS))
def test_masked_gradient_is_the_gradient_of_the_subset(name):
    """The models are causal: leaving out the last targets is the same as never giving them."""
    task, ids = NextToken(MODELS[name]), tokens(4, 7)
    _, params = start(task, {"tokens": ids})
    slope = jax.jit(jax.grad(lambda params, batch: task.loss(params, {}, batch, None, False)[0].value))
    mask = jnp.broadcast_to((jnp.arange(6) < 4)[None], (4, 6))
    masked, short = slope(params, {"tokens": ids, "mask": mask}), slope(params, {"tokens": ids[:, :5]})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), masked, short)


@pytest.mark.parametrize("name", list(MODELS))
def test_loss_is_the_mean_over_targets_and_the_key_matters_in_training_only(name):
    model, ids = MODELS[name], tokens(2, 5)
    loss, params = start(NextToken(model), {"tokens": ids})
    first, second = jax.random.split(jax.random.key(1))
    got, metrics, after = loss(params, {}, {"tokens": ids}, first, train=False)
    logits = np.asarray(jax.jit(model.apply)({"params": params}, ids[:, :4]), np.float64)
    targets = np.asarray(ids)[:, 1:, None]
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(got.value, -np.take_along_axis(logs, targets, -1).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"].value, (logits.argmax(-1) == targets[..., 0]).mean())
    assert got.count == 8 and metrics["loss"].value == got.value and after == {}

    def value(key, train):
        return float(loss(params, {}, {"tokens": ids}, key, train=train)[0].value)

    assert value(first, True) != value(second, True)
    assert value(first, True) == value(first, True)
    assert value(first, False) == value(second, False)


def test_padded_images_have_no_voice():
    image = jnp.asarray(np.random.default_rng(0).random((5, 3, 4)), jnp.float32)
    loss, params = start(Reconstruct(Autoencoder((8,), 4, 12)), {"image": image})
    mask = jnp.array([1, 1, 1, 0, 0])
    padded, _, _ = loss(params, {}, {"image": image, "mask": mask}, None, train=False)
    subset, metrics, _ = loss(params, {}, {"image": image[:3]}, None, train=False)
    np.testing.assert_allclose(padded.value, subset.value, rtol=1e-6)
    assert padded.count == subset.count == 36  # pixels: the mean is over pixels and examples
    np.testing.assert_allclose(metrics["loss"].value, subset.value)


@pytest.mark.usefixtures("compiled_in_haste")
def test_a_batch_without_its_empty_columns_costs_the_same():
    """Loss and gradient, whichever width holds it."""
    task = NextTargetToken(Seq2Seq(9, 9, "gru", d_model=8, d_embed=4, score="dot"))
    narrow = Narrowed(task, ("source", "target"), (3, 5))
    draw = np.random.default_rng(0)
    rows = jnp.asarray(draw.integers(3, 9, (4, 8)))
    params = nn.meta.unbox(task.init(jax.random.key(0), {"source": rows, "target": rows})[0])

    def gradient(task):
        return jax.jit(
            jax.value_and_grad(
                lambda params, batch: task.loss(params, {}, batch, jax.random.key(0), False)[0].value
            )
        )

    plain, cut = gradient(task), gradient(narrow)
    for longest in (2, 3, 4, 6, 8):
        batch = {
            "source": rows * (jnp.arange(8)[None] < longest - 1),
            "target": rows * (jnp.arange(8)[None] < longest),
        }
        one, other = plain(params, batch), cut(params, batch)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


@pytest.mark.usefixtures("compiled_in_haste")
def test_the_gradient_of_a_cut_batch_goes_through_what_is_put_round_it():
    task = NextTargetToken(Seq2Seq(9, 9, "gru", d_model=8, d_embed=4))
    narrow, rows = Narrowed(task, ("source", "target"), (3,)), jnp.full((2, 5), 4)
    batch = {"source": rows * (jnp.arange(5)[None] < 2), "target": rows * (jnp.arange(5)[None] < 3)}
    params = nn.meta.unbox(task.init(jax.random.key(0), batch)[0])

    def total(params, batch):
        return narrow.loss(params, {}, batch, jax.random.key(0), True)[0].total

    def scanned(params, batch):
        batches = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), batch)
        return jax.lax.scan(lambda sum, batch: (sum + total(params, batch), None), 0.0, batches)[0] / 2

    wanted = jax.grad(lambda params: task.loss(params, {}, batch, jax.random.key(0), True)[0].total)(params)
    for wrapped in (jax.jit(total), jax.checkpoint(total), scanned):
        found = jax.grad(wrapped)(params, batch)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)


def test_the_width_is_the_least_that_holds_the_batch():
    class Widths:
        def loss(self, params, collections, batch, key, train):
            return Mean(jnp.float32(batch["target"].shape[1]), jnp.ones(())), {}, {}

    narrow = Narrowed(Widths(), ("source", "target"), (3, 5, 20))
    for source, target, width in ((1, 2, 3), (3, 1, 3), (2, 4, 5), (5, 5, 5), (6, 2, 8), (0, 0, 3)):
        batch = {"source": jnp.arange(8)[None] < source, "target": jnp.arange(8)[None] < target}
        batch = {name: array.astype(int) for name, array in batch.items()}
        assert float(narrow.loss({}, {}, batch, None, True)[0].total) == width
