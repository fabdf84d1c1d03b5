import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmlab.models.autoencoder import Autoencoder
from lmlab.tasks import Reconstruct


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


def test_one_tiny_batch_can_be_learnt_by_heart():
    model, batch = Autoencoder((16,), 8, 9), {"image": images(4, 9).round()}
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
