"""Each trick against float64 without any, and its switch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lmlab.layers import linear, tricks
from lmlab.layers.largest import argmax, largest
from lmlab.layers.recurrent import CELLS, Recurrent
from lmlab.models.recurrent_lm import RecurrentLM

PRECISION = functools.partial(jax.default_matmul_precision, "highest")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def in_float64(function, *inputs):
    """function of the inputs as float64, without tricks."""
    with jax.enable_x64(True), tricks.without("all"), PRECISION():
        return jax.tree.map(
            np.asarray, function(*jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), inputs))
        )


def in_float32(function, *inputs):
    with PRECISION():
        return jax.tree.map(
            np.asarray, jax.jit(function)(*jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), inputs))
        )


def assert_close(ours, reference, tolerance):
    for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance * np.abs(right).max())


@pytest.mark.parametrize("cell", list(CELLS))
@pytest.mark.parametrize("ragged", [False, True])
def test_recurrent_gradient_is_that_of_float64(cell, ragged):
    x, weight = normal(0, 3, 6, 4), normal(1, 3, 6, 10)
    lengths = jnp.array([6, 2, 4]) if ragged else None
    layer = Recurrent(5, cell, num_layers=2, bidirectional=True)
    shapes = nn.unbox(jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((3, 6, 4))))
    leaves, tree = jax.tree.flatten(shapes)
    variables = jax.tree.unflatten(tree, [0.5 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])

    def gradient(variables, x, weight):
        def loss(variables, x):
            y, carry = layer.apply(variables, x, lengths=lengths)
            return jnp.sum(weight * y) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(carry))

        return jax.grad(loss, argnums=(0, 1))(variables, x)

    assert_close(in_float32(gradient, variables, x, weight), in_float64(gradient, variables, x, weight), 1e-5)


def test_recurrent_gradient_takes_one_product_for_all_steps():
    def products(*off):
        """Shapes of the products of the backward pass that lie outside a scan."""
        layer, x = Recurrent(5, "lstm"), jnp.ones((3, 6, 4))
        variables = nn.unbox(layer.init(jax.random.key(0), x))
        with tricks.without(*off):
            jaxpr = jax.make_jaxpr(jax.grad(lambda v: jnp.sum(layer.apply(v, x)[0])))(variables)
        return [eqn.outvars[0].aval.shape for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]

    assert (5, 20) in products() and (5, 20) not in products("recurrent_gradient")


def test_forward_mode_goes_without_the_recurrent_gradient():
    layer, x = Recurrent(5, "gru"), jnp.asarray(normal(0, 2, 3, 4), jnp.float32)
    variables = nn.unbox(layer.init(jax.random.key(0), x))
    function = lambda x: layer.apply(variables, x)[0]  # noqa: E731
    dx, dy = jnp.asarray(normal(1, 2, 3, 4), jnp.float32), jnp.asarray(normal(2, 2, 3, 5), jnp.float32)
    with PRECISION(), tricks.without("recurrent_gradient"):
        forward = jax.jvp(function, (x,), (dx,))[1]
    with PRECISION():
        (backward,) = jax.vjp(function, x)[1](dy)
    np.testing.assert_allclose(jnp.vdot(forward, dy), jnp.vdot(backward, dx), rtol=1e-4)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_table_rows_changes_neither_logits_nor_gradients(cell):
    model = RecurrentLM(7, cell, 1, 5, d_embed=4)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 7, (3, 6)), jnp.int32)
    variables = nn.unbox(model.init(jax.random.key(0), tokens))
    weight = normal(1, 3, 6, 7)

    def gradient(variables, weight):
        return jax.value_and_grad(lambda v: jnp.sum(weight * model.apply(v, tokens)))(variables)

    assert_close(in_float32(gradient, variables, weight), in_float64(gradient, variables, weight), 1e-5)


def test_table_rows_maps_the_table_only_where_that_is_shorter():
    layer = linear.Embed(7, 4)

    def rows(number, *off):
        variables = layer.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        with tricks.without(*off):
            return layer.apply(variables, jnp.zeros((1, number), jnp.int32), method="rows")

    assert isinstance(rows(8), linear.Rows)
    assert rows(7).shape == (1, 7, 4) and rows(8, "table_rows").shape == (1, 8, 4)


def test_a_number_past_the_table_is_nan_through_its_map_too():
    rows = linear.Rows(jnp.ones((7, 4)), jnp.array([[6, 7]]))
    layer = linear.Dense(3)
    mapped = layer.apply(layer.init(jax.random.key(0), jnp.ones((1, 4))), rows)
    assert jnp.isnan(mapped[0, 1]).all() and jnp.isfinite(mapped[0, 0]).all()


@pytest.mark.parametrize(("narrow", "wide"), [(16, 64), (64, 16), (24, 24), (128, 65)])
@pytest.mark.parametrize("tied", [False, True])
def test_turned_operand_gives_the_gradients_of_rounded_operands(narrow, wide, tied):
    def rounded(x):
        return np.asarray(jnp.asarray(x, jnp.float32).astype(jnp.bfloat16).astype(jnp.float32), np.float64)

    x, w, g = normal(0, 40, narrow), normal(1, narrow, wide), normal(2, 40, wide)

    def pull(x, w, g):
        product = (lambda x, table: linear.matmul(x, table.T)) if tied else linear.matmul
        return jax.vjp(product, x, w.T if tied else w)[1](g)

    for off in ((), ("turned_operand",)):
        with jax.default_matmul_precision("bfloat16"), tricks.without(*off):
            dx, dw = jax.jit(lambda *inputs: pull(*inputs))(*(jnp.asarray(a, jnp.float32) for a in (x, w, g)))
        expected = rounded(x).T @ rounded(g)
        assert_close((dx, dw), (rounded(g) @ rounded(w).T, expected.T if tied else expected), 1e-5)


def test_turned_operand_serves_attention():
    a, v, g = normal(0, 2, 3, 6, 8), normal(1, 2, 3, 8, 4), normal(2, 2, 3, 6, 4)
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (a, v, g)]
    with jax.default_matmul_precision("bfloat16"):
        function = functools.partial(linear.einsum, "bhts,bhsk->bhtk")
        inputs = [jnp.asarray(x, jnp.float32) for x in (a, v, g)]
        text = str(jax.make_jaxpr(lambda a, v, g: jax.vjp(function, a, v)[1](g))(*inputs))
        da, dv = jax.jit(lambda a, v, g: jax.vjp(function, a, v)[1](g))(*inputs)
    assert "optimization_barrier" in text
    a, v, g = rounded
    assert_close((da, dv), (g @ v.swapaxes(-1, -2), a.swapaxes(-1, -2) @ g), 1e-5)


def test_switches(monkeypatch):
    assert all(tricks.uses(name) for name in tricks.NAMES)
    with tricks.without("table_rows"):
        assert not tricks.uses("table_rows") and tricks.uses("turned_operand")
    monkeypatch.setenv("LMLAB_WITHOUT", "turned_operand, table_rows")
    assert {name for name in tricks.NAMES if not tricks.uses(name)} == {"turned_operand", "table_rows"}
    with tricks.without():  # says which are off, whatever the environment says
        assert tricks.uses("table_rows")
    monkeypatch.setenv("LMLAB_WITHOUT", "all")
    assert not any(tricks.uses(name) for name in tricks.NAMES)
    monkeypatch.setenv("LMLAB_WITHOUT", "speed")
    with pytest.raises(ValueError, match="unknown trick 'speed'; allowed: all, turned_operand"):
        tricks.uses("table_rows")


def test_on_a_gpu_the_gradient_of_recurrent_weights_is_not_rounded(monkeypatch):
    layer, x = Recurrent(4, "lstm"), jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    variables = nn.meta.unbox(layer.init(jax.random.key(0), x))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with jax.default_matmul_precision("bfloat16"):
        gradient = jax.grad(lambda v: jnp.sum(layer.apply(v, x)[0] ** 2))(variables)
    kernels = [leaf for leaf in jax.tree.leaves(gradient) if leaf.ndim == 2]
    assert len(kernels) == 2  # of the input and of the state
    for leaf in kernels:
        assert (leaf != leaf.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.5


def test_tricks_are_off_where_they_do_not_serve(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [name for name in tricks.NAMES if tricks.uses(name)] == ["recurrent_gradient"]
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not any(tricks.uses(name) for name in tricks.NAMES)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("count", [5, 64, 400, 421, 437, 440, 441, 1000])
def test_largest_is_top_k(count, k):
    drawn = np.random.default_rng(count + k)
    x = drawn.normal(size=(4, 3, count)).astype(np.float32)
    x[1] = drawn.integers(0, 3, x[1].shape)  # many are equal
    x[2] = -np.inf
    x[2, 0, -1], x[2, 1, :k], x[2, 2] = 1, 2, 0
    x[3, 1, -1] = np.inf
    x = jnp.asarray(x)
    values, places = jax.jit(functools.partial(largest, k=k))(x)
    with tricks.without("all"):
        expected, where = jax.jit(functools.partial(largest, k=k))(x)
    finite = np.asarray(expected) > -np.inf  # of what is as small as can be, any
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(np.asarray(places)[finite], np.asarray(where)[finite])
    some = np.array([0, 1, 3])
    np.testing.assert_array_equal(argmax(x)[some], np.argmax(x, -1)[some])
