"""The classifiers against NumPy and PyTorch, and what they refuse."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lmlab
from lmlab.models.classifier import CNN, INITIALIZERS, MLP, Classifier, Classify, ResNet
from lmlab.run import figures

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "classifier.py"


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def made(network, shape=(8, 8), count=6):
    task = Classify(Classifier(network, shape))
    batch = {"image": jnp.asarray(images(count, *shape)), "label": jnp.arange(count) % 10}
    params, collections = jax.jit(task.init)(jax.random.key(0), batch)
    return task, batch, nn.meta.unbox(params), nn.meta.unbox(collections)


def plain(tree):
    """Arrays of NumPy, for sums written out."""
    return jax.tree.map(np.asarray, tree)


def test_mlp_is_affine_maps_with_relu_and_shortcuts_where_widths_agree():
    task, batch, params, collections = made(MLP((5, 5, 4), residual=True))
    x = np.asarray(batch["image"]).reshape(6, 64)
    for layer in range(3):
        weights = plain(params["network"][f"Dense_{layer}"])
        y = np.maximum(x @ weights["kernel"] + weights["bias"], 0)
        x = x + y if x.shape == y.shape else y
    head = plain(params["head"])
    logits = x @ head["kernel"] + head["bias"]
    found = task.outputs({"params": params, **collections}, batch["image"], size=4)
    np.testing.assert_allclose(found[0], x, atol=1e-5)
    np.testing.assert_allclose(found[1], logits, atol=1e-5)
    assert collections == {}


def test_loss_is_that_of_the_examples_that_count():
    task, batch, params, collections = made(MLP((5,)))
    _, logits = task.outputs({"params": params}, batch["image"])
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    label = np.asarray(batch["label"])
    nats = -np.log(chances[np.arange(6), label])
    loss, metrics, _ = task.loss(params, collections, batch, jax.random.key(0), False)
    np.testing.assert_allclose(loss.value, nats.mean(), rtol=1e-5)
    right = logits.argmax(-1) == label
    np.testing.assert_allclose(metrics["accuracy"].value, right.mean(), rtol=1e-6)
    mask = np.array([1, 1, 0, 1, 0, 0], np.float32)
    loss, metrics, _ = task.loss(params, collections, {**batch, "mask": mask}, jax.random.key(0), False)
    np.testing.assert_allclose(loss.value, nats[mask == 1].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"].value, right[mask == 1].mean(), rtol=1e-6)


def test_batch_normalization_is_pytorchs():
    """In training, in its running averages (PyTorch's variance there is the unbiased one), and afterwards."""
    torch = pytest.importorskip("torch")
    task, batch, params, collections = made(MLP((7,), normalize=True), count=20)
    hidden = np.asarray(batch["image"]).reshape(20, 64) @ plain(params["network"]["Dense_0"]["kernel"])
    norm = torch.nn.BatchNorm1d(7, momentum=0.1)  # what is new weighs 0.1: our decay of 0.9
    scale = {"scale": images(7, seed=1), "bias": images(7, seed=2)}
    params["network"]["BatchNorm_0"] = jax.tree.map(jnp.asarray, scale)
    with torch.no_grad():
        norm.weight[:], norm.bias[:] = torch.tensor(scale["scale"]), torch.tensor(scale["bias"])
    theirs = norm(torch.tensor(hidden)).relu().detach().numpy()
    variables = {"params": params, **collections}
    ours, new = task.model.apply(
        variables, batch["image"], train=True, method="features", mutable=["batch_stats"]
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    kept = new["batch_stats"]["network"]["BatchNorm_0"]
    np.testing.assert_allclose(kept["mean"], norm.running_mean, atol=1e-6)
    np.testing.assert_allclose(kept["var"] - 0.9, (norm.running_var - 0.9) * 19 / 20, atol=1e-6)
    with torch.no_grad():
        norm.running_var[:] = torch.tensor(np.asarray(kept["var"]))
    theirs = norm.eval()(torch.tensor(hidden)).relu().detach().numpy()
    ours, _ = task.outputs({"params": params, **new}, batch["image"])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_training_moves_the_statistics_and_evaluation_leaves_them():
    task, batch, params, collections = made(ResNet((4, 8)))
    _, _, new = task.loss(params, collections, batch, jax.random.key(0), True)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), collections, new)
    assert all(jax.tree.leaves(moved)) and len(jax.tree.leaves(moved)) == 2 * 6
    _, _, same = task.loss(params, collections, batch, jax.random.key(0), False)
    jax.tree.map(np.testing.assert_array_equal, same, collections)


def test_cnn_is_convolutions_and_means_over_squares():
    """Against PyTorch's convolution; the order in which pixels are flattened is ours: rows, columns, channels."""
    torch = pytest.importorskip("torch")
    task, batch, params, _ = made(CNN((3, 4), hidden=5))
    weights = plain(params["network"])
    x = torch.tensor(np.array(batch["image"]))[:, None]
    for layer in range(2):
        kernel, bias = (np.asarray(weights[f"Conv_{layer}"][name]) for name in ("kernel", "bias"))
        kernel = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
        x = torch.nn.functional.conv2d(x, kernel, torch.tensor(bias), padding=1).relu()
        x = torch.nn.functional.avg_pool2d(x, 2)
    x = x.numpy().transpose(0, 2, 3, 1).reshape(6, -1)
    expected = np.maximum(x @ weights["Dense_0"]["kernel"] + weights["Dense_0"]["bias"], 0)
    np.testing.assert_allclose(task.outputs({"params": params}, batch["image"])[0], expected, atol=1e-5)


def test_shortcuts_carry_the_input_past_layers_that_are_zero():
    """With all convolutions of the branches 0, a residual network's blocks of one width are the identity."""
    for residual in (True, False):
        network = ResNet((4,), blocks=2, normalize=False, residual=residual)
        task, batch, params, _ = made(network)
        weights = params["network"]
        for name in weights:
            if name != "Conv_0":
                weights[name] = jax.tree.map(jnp.zeros_like, weights[name])
        features, _ = task.outputs({"params": params}, batch["image"])
        assert bool(features.any()) == residual


def test_kernels_begin_with_the_variance_of_their_name():
    variance = {"he": 2 / 400, "glorot": 2 / (400 + 100), "small": 1e-4}
    assert variance.keys() == INITIALIZERS.keys()
    for name, expected in variance.items():
        _, _, params, _ = made(MLP((100,), initializer=name), (20, 20))
        kernel = params["network"]["Dense_0"]["kernel"]
        np.testing.assert_allclose(kernel.var(), expected, rtol=0.05, err_msg=name)


@pytest.mark.parametrize(
    "network", [MLP((32,)), CNN((4, 8), 16), ResNet((8, 8)), MLP((32, 32), normalize=True)]
)
def test_one_batch_can_be_learnt_by_heart(network):
    task, batch, params, collections = made(network)
    adam = optax.adam(1e-2)

    @jax.jit
    def train(params, collections):
        def update(carry, _):
            params, collections, state = carry

            def loss(params):
                mean, _, new = task.loss(params, collections, batch, jax.random.key(0), True)
                return mean.value, new

            slope, new = jax.grad(loss, has_aux=True)(params)
            changes, state = adam.update(slope, state, params)
            return (optax.apply_updates(params, changes), new, state), None

        return jax.lax.scan(update, (params, collections, adam.init(params)), length=150)[0][:2]

    params, collections = train(params, collections)
    loss, metrics, _ = task.loss(params, collections, batch, jax.random.key(0), False)
    assert loss.value < 0.1 and metrics["accuracy"].value == 1


@pytest.mark.parametrize(
    ("network", "changes", "said"),
    [
        (MLP, {"features": ()}, r"features must be one width or more, each at least 1, received \(\)"),
        (CNN, {"features": (8, 0)}, r"received \(8, 0, 256\)"),
        (ResNet, {"blocks": 0}, "blocks must be at least 1, received 0"),
        (MLP, {"initializer": "zeros"}, "initializer: received 'zeros'; allowed: he, glorot, small"),
        (CNN, {"dropout": 1.0}, "dropout must be at least 0 and below 1, received 1.0"),
    ],
)
def test_what_is_refused(network, changes, said):
    with pytest.raises(ValueError, match=said):
        network(**changes)


def test_more_halvings_than_pixels_are_refused():
    with pytest.raises(
        ValueError, match="features: 4 layers, each halving the image, are too many for 8 x 8"
    ):
        made(CNN((4, 4, 4, 4), 8))


def test_a_run_with_batch_normalization_goes_on_bitwise(tmp_path):
    """3 + 3 updates are 6, parameters and running averages alike."""
    spec = f"{EXPERIMENT}:mlp_batchnorm,demo"
    leaves = {"batch_size": 8, "parallel.data": 1, "model.features": (4,), "evaluate_every": "0"}
    leaves |= {"optimizer.schedule": "constant", "optimizer.warmup": "0 steps", "checkpoint.every": "3"}
    straight = lmlab.train(spec, tmp_path / "straight", leaves | {"duration": "6 steps"})
    for duration in ("3 steps", "6 steps"):
        resumed = lmlab.train(spec, tmp_path / "resumed", leaves | {"duration": duration})
    expected, found = (run.at(6)[1] for run in (straight, resumed))
    assert expected.keys() == {"params", "batch_stats"}
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    before = straight.at(3)[1]["batch_stats"]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, expected["batch_stats"])
    assert all(jax.tree.leaves(moved)), "the averages went on after the third update"
    drawn = figures([straight, resumed])
    accuracy = 100 * straight.metrics()["validation/accuracy"].dropna().iloc[-1]
    told = [text.get_text() for text in drawn["ablation"].axes[0].texts]
    assert told == [f"{accuracy:#.4g}\n± 0"], "two runs of one setting: their mean and deviation"


def test_images_of_another_size_are_refused():
    task, _, params, _ = made(CNN((4, 4), 8))
    with pytest.raises(ValueError, match=r"images must be \(8, 8\), received \(12, 8\)"):
        task.outputs({"params": params}, images(3, 12, 8))
