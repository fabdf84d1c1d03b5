import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmlab import config as configs
from lmlab.experiment import Assets
from lmlab.models.autoencoder import Autoencoder, ConvolutionalAutoencoder, Regularized, add_noise
from lmlab.tasks import Reconstruct
from lmlab.training.loop import Trainer


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


@functools.partial(jax.jit, static_argnames=("model", "method"))
def apply(model, variables, *inputs, method=None, **keywords):
    return model.apply(variables, *inputs, method=method, **keywords)


def images(*shape):
    return jnp.asarray(np.random.default_rng(0).random(shape), jnp.float32)


def test_it_is_four_affine_maps_with_relu_between():
    model, x = Autoencoder(), images(5, 28, 28)
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), x))
    params = variables["params"]
    h = np.asarray(x).reshape(5, 784)
    for name in ("encoder_0", "encoder_1", "decoder_0", "decoder_1"):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        limit = np.sqrt(6 / sum(kernel.shape))
        assert 0.95 * limit < np.abs(kernel).max() <= limit and not bias.any()
        h = h @ np.asarray(kernel)
        if name != "decoder_1":
            h = np.maximum(h, 0)
        if name == "encoder_1":
            np.testing.assert_allclose(apply(model, variables, x, method="encode"), h, atol=1e-4)
            assert h.shape == (5, 32)
    np.testing.assert_allclose(apply(model, variables, x), h.reshape(5, 28, 28), atol=1e-4)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 784 * 128 * 2 + 128 * 32 * 2 + 1072


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Autoencoder((16,), 8, 9), (4, 9)),
        (Autoencoder((), 8, 9), (4, 9)),
        (ConvolutionalAutoencoder((16, 32), 8, 8), (4, 8, 8)),
    ],
)
def test_one_tiny_batch_can_be_learnt_by_heart(model, shape):
    batch = {"image": images(*shape).round()}
    task, adam = Reconstruct(model), optax.adam(1e-2)
    params = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0), batch)[0])

    @jax.jit
    def train(params):
        def update(carry, _):
            params, state = carry
            slope = jax.grad(lambda p: task.loss(p, {}, batch, None, False)[0].value)(params)
            changes, state = adam.update(slope, state, params)
            return (optax.apply_updates(params, changes), state), None

        return jax.lax.scan(update, (params, adam.init(params)), length=400)[0][0]

    assert jax.jit(lambda p: task.loss(p, {}, batch, None, False)[0].value)(train(params)) < 0.05


@pytest.mark.parametrize("changes", [{"code": 0}, {"code": -3}, {"input_size": 0}, {"features": (16, 0)}])
def test_an_empty_layer_is_refused(changes):
    with pytest.raises(ValueError, match=r"must .*be at least 1, received"):
        Autoencoder(**changes)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="images must have 784 pixels, received 9"):
        Autoencoder().init(jax.random.key(0), images(2, 3, 3))


def test_convolutions_halve_and_the_code_is_a_map_of_what_is_left():
    """The encoder in NumPy: 3 x 3 windows at every second place, what lies outside is 0."""
    model, x = ConvolutionalAutoencoder((2, 3), 4, 8), images(2, 8, 8)
    params = nn.meta.unbox(model.init(jax.random.key(0), x)["params"])
    h = np.asarray(x)[..., None]
    for name in ("encoder_0", "encoder_1"):
        kernel, side = np.asarray(params[name]["kernel"]), h.shape[1] // 2
        padded = np.pad(h, ((0, 0), (0, 1), (0, 1), (0, 0)))
        out = np.zeros((2, side, side, kernel.shape[-1]))
        for i in range(side):
            for j in range(side):
                window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                out[:, i, j] = np.einsum("bhwc,hwcd->bd", window, kernel)
        h = np.maximum(out, 0)
    code = np.maximum(h.reshape(2, -1) @ np.asarray(params["to_code"]["kernel"]), 0)
    np.testing.assert_allclose(apply(model, {"params": params}, x, method="encode"), code, atol=1e-5)
    assert code.shape == (2, 4) and apply(model, {"params": params}, x).shape == x.shape


def test_convolutions_refuse_what_cannot_be_halved():
    with pytest.raises(ValueError, match=r"each halving images of 28 x 28; received \(1, 2, 3\)"):
        ConvolutionalAutoencoder((1, 2, 3))
    with pytest.raises(ValueError, match="code must be at least 1, received 0"):
        ConvolutionalAutoencoder(code=0)
    with pytest.raises(ValueError, match=r"images must be 28 x 28, received \(8, 8\)"):
        ConvolutionalAutoencoder().init(jax.random.key(0), images(1, 8, 8))


def test_penalty_and_noise_against_numpy():
    model, image, noisy = Autoencoder((), 5, 9), images(4, 3, 3), images(4, 3, 3) ** 2
    params = nn.meta.unbox(model.init(jax.random.key(0), image)["params"])
    task = Regularized(model, noise=0.4, sparsity=0.1)
    mask = jnp.array([1.0, 0, 1, 1])
    batch = {"image": image, "noisy": noisy, "mask": mask}
    loss, metrics, _ = task.loss(params, {}, batch, jax.random.key(0), True)
    x, seen = (np.asarray(array).reshape(4, 9)[[0, 2, 3]] for array in (image, noisy))
    code = np.maximum(seen @ np.asarray(params["encoder_0"]["kernel"]), 0)
    p = 1 / (1 + np.exp(-code @ np.asarray(params["decoder_0"]["kernel"])))
    reconstruction = -(x * np.log(p) + (1 - x) * np.log(1 - p)).mean()
    np.testing.assert_allclose(metrics["reconstruction"].value, reconstruction, rtol=1e-5)
    np.testing.assert_allclose(metrics["activation"].value, code.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss.value, reconstruction + 0.1 * code.sum(1).mean(), rtol=1e-5)


def test_noise_is_drawn_anew_where_a_batch_brings_none():
    model, batch = Autoencoder((), 5, 9), {"image": images(4, 3, 3)}
    params = nn.meta.unbox(model.init(jax.random.key(0), batch["image"])["params"])

    def loss(task, seed):
        return float(task.loss(params, {}, batch, jax.random.key(seed), True)[0].value)

    noisy = Regularized(model, noise=0.4)
    assert loss(noisy, 0) == loss(noisy, 0) != loss(noisy, 1)
    assert loss(Regularized(model), 0) == pytest.approx(loss(Reconstruct(model), 0), rel=1e-6)
    for name in ("noise", "sparsity"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0, received -1"):
            Regularized(model, **{name: -1.0})


def test_noise_is_normal_and_cut_to_grey():
    grey = add_noise(jax.random.key(0), jnp.full((200, 500), 0.5), 0.4)
    assert grey.min() == 0 and grey.max() == 1
    inside = np.asarray(grey)[(grey > 0) & (grey < 1)]
    # 0.5 lies 1.25 deviations from either end: 0.7887 of a normal variable are inside
    assert abs(len(inside) / 1e5 - 0.7887) < 0.005 and abs(inside.mean() - 0.5) < 0.005


def memorization(**changes):
    overrides = {"sizes": (50, 200), "noise": 0.0, "duration": "3 steps", "parallel.data": 1, **changes}
    config, module = configs.load("experiments/memorization.py:demo", overrides)
    return module.build(config, Assets()), config


def test_arms_learn_as_if_alone(tmp_path):
    """A network among others becomes what it would by itself, and kinds without noise are the same."""
    both = Trainer(*memorization()).run(tmp_path / "both").params
    alone = Trainer(*memorization(sizes=(50,))).run(tmp_path / "alone").params
    assert set(both) == {f"{kind}_{n}" for kind in ("plain", "denoising") for n in (50, 200)}
    for wanted, *found in zip(
        *map(jax.tree.leaves, (alone["plain_50"], both["plain_50"], both["denoising_50"])), strict=True
    ):
        for leaf in found:
            np.testing.assert_allclose(leaf, wanted, atol=2e-5)
    first, other = (both[name]["encoder_0"]["kernel"] for name in ("plain_50", "plain_200"))
    assert np.abs(first - other).max() > 1e-4


def test_arms_see_their_own_images_equally_often():
    source = memorization(batch_size=479)[0].train_data()  # a third of the 1,437
    seen = {"50": [], "200": []}
    for step in range(source.steps_per_epoch):
        for n, images in source.batch(source.data, step).items():
            seen[n] += [image.tobytes() for image in np.asarray(images)]
    subset = [image.tobytes() for image in np.asarray(source.data[:200].astype(jnp.float32) / 255)]
    for n, images in seen.items():
        counts = [images.count(image) for image in subset[: int(n)]]
        assert set(images) == set(subset[: int(n)]) and max(counts) - min(counts) <= 1


def test_sizes_that_cannot_be_are_one_line():
    for sizes in ((), (0, 5), (5, 5)):
        with pytest.raises(ValueError, match="sizes must be one or more, different, each at least 1"):
            memorization(sizes=sizes)
    with pytest.raises(ValueError, match=r"sizes: received \(2000,\); there are 1,437 training images"):
        memorization(sizes=(2000,))[0].train_data()
