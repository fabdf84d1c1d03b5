"""Convolutions, whatever they are made of, against XLA's own in float64 and PyTorch's; patches and means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lmlab.layers import convolution, tricks


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def value_and_gradients(function, x, w, weight):
    """(y, dx, dw) of the sum of y times a weight."""

    def run(x, w, weight):
        y, gradient = jax.vjp(function, x, w)
        return y, *gradient(weight)

    return jax.jit(run)(x, w, weight)


CASES = [(3, 1), (3, 2), (4, 2), (1, 1), (1, 2), (5, 3), (2, 1), (2, 3), (4, 4)]


@pytest.mark.parametrize("name", ["convolved", "transposed"])
@pytest.mark.parametrize(("size", "stride"), CASES)
def test_values_and_gradients_are_xlas_in_float64(name, size, stride):
    """Heights and widths that the stride divides and that it does not."""
    function = getattr(convolution, name)
    x, w = normal(0, 2, 7, 6, 3), normal(1, size, size, 3, 5)
    shape = jax.eval_shape(lambda x, w: function(x, w, stride), jnp.zeros(x.shape), jnp.zeros(w.shape)).shape
    weight = normal(2, *shape)
    found = value_and_gradients(
        lambda x, w: function(x, w, stride), *(jnp.asarray(each, jnp.float32) for each in (x, w, weight))
    )
    with jax.enable_x64(True), tricks.without("all"):
        arrays = (jnp.asarray(each, jnp.float64) for each in (x, w, weight))
        expected = value_and_gradients(lambda x, w: function(x, w, stride), *arrays)
    for ours, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-5 * float(np.abs(reference).max()) * size)


def test_a_layer_is_flaxs():
    x = jnp.asarray(normal(0, 2, 8, 8, 3), jnp.float32)
    for ours, theirs in (
        (convolution.conv(5, 4, 2), nn.Conv(5, (4, 4), 2)),
        (convolution.conv_transpose(5, 3), nn.ConvTranspose(5, (3, 3), (2, 2))),
    ):
        variables = jax.tree.map(lambda leaf: leaf + 0.1, nn.unbox(ours.init(jax.random.key(0), x)))
        np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), atol=1e-4)


def test_transposed_is_the_adjoint_of_the_convolution():
    """<conv(x), y> = <x, conv^T(y)>, with the kernel turned round and its channels exchanged."""
    x, y, w = (
        jnp.asarray(normal(*each), jnp.float32)
        for each in ((0, 2, 8, 8, 3), (1, 2, 4, 4, 5), (2, 4, 4, 3, 5))
    )
    turned = w[::-1, ::-1].swapaxes(2, 3)
    left = jnp.sum(convolution.convolved(x, w, 2) * y)
    np.testing.assert_allclose(left, jnp.sum(x * convolution.transposed(y, turned, 2)), rtol=1e-4)


def test_the_trick_leaves_no_gradient_of_a_kernel_to_xla():
    """In the backward pass the only convolution is that which gives dx; dW is nine products."""

    def primitives(*off):
        with tricks.without(*off):
            slope = jax.grad(lambda w: jnp.sum(convolution.convolved(jnp.ones((1, 4, 4, 2)), w, 1) ** 2))
            text = str(jax.make_jaxpr(slope)(jnp.ones((3, 3, 2, 2))))
        return text.count("conv_general_dilated["), text.count("dot_general[")

    assert primitives() == (2, 9) and primitives("kernel_gradient") == (2, 0)


def test_patches_are_cut_and_put_back():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).astype(jnp.float32)
    cut = convolution.to_patches(x, 2)
    assert cut.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(cut[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])
    np.testing.assert_array_equal(convolution.from_patches(cut, 2), x)


def test_means_of_squares_and_pixels_repeated():
    x = jnp.asarray(normal(0, 2, 5, 6, 3), jnp.float32)
    np.testing.assert_allclose(convolution.mean_pool(x), nn.avg_pool(x, (2, 2), (2, 2)), atol=1e-6)
    grown = convolution.upsample(x, 3)
    assert grown.shape == (2, 15, 18, 3)
    np.testing.assert_array_equal(grown[:, 1::3, 2::3], x)
    np.testing.assert_allclose(convolution.mean_pool(grown, 3), x, atol=1e-6)
