import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.layers.dropout import Dropout
from lmlab.layers.linear import Dense, Embed, compute_dtype, einsum, matmul


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_dense_is_an_affine_map():
    x = normal(0, 2, 3, 4)
    layer = Dense(5, bias_init=jax.nn.initializers.normal())
    variables = layer.init(jax.random.key(0), x)
    kernel, bias = (np.asarray(variables["params"][name].unbox()) for name in ("kernel", "bias"))
    assert bias.any()
    np.testing.assert_allclose(layer.apply(variables, x), np.asarray(x) @ kernel + bias, atol=1e-5)


def test_weights_carry_logical_axes():
    variables = Dense(5, axes=("heads", "embed")).init(jax.random.key(0), jnp.ones((1, 4)))
    assert variables["params"]["kernel"].names == ("heads", "embed")
    assert variables["params"]["bias"].names == ("embed",)
    table = Embed(7, 4).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]["embedding"]
    assert table.names == ("vocab", "embed")


def test_embed_and_attend_share_one_table():
    layer, tokens = Embed(7, 4), jnp.array([[1, 6]])
    variables = layer.init(jax.random.key(0), tokens)
    table = np.asarray(variables["params"]["embedding"].unbox())
    x = layer.apply(variables, tokens)
    np.testing.assert_array_equal(x, table[[[1, 6]]])
    np.testing.assert_allclose(layer.apply(variables, x, method="attend"), np.asarray(x) @ table.T, atol=1e-5)
    assert jnp.isnan(layer.apply(variables, jnp.array([[7]]))).all()  # past the table: loud


def test_compute_dtype_follows_the_setting():
    with jax.default_matmul_precision("float32"):
        assert compute_dtype() == jnp.float32
    with jax.default_matmul_precision("bfloat16"):
        assert compute_dtype() == jnp.bfloat16


def rounded(x):
    return np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32))


def test_bfloat16_rounds_operands_and_keeps_float32_sums_in_both_directions():
    x, w, g = normal(0, 6, 64), normal(1, 64, 8), normal(2, 6, 8)
    with jax.default_matmul_precision("bfloat16"):
        y, pull = jax.vjp(matmul, x, w)
        dx, dw = pull(g)
    assert {y.dtype, dx.dtype, dw.dtype} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(y, rounded(x) @ rounded(w), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, rounded(g) @ rounded(w).T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw, rounded(x).T @ rounded(g), rtol=1e-5, atol=1e-5)
    assert np.abs(y - x @ w).max() > 1e-3  # it did round


def test_on_a_gpu_activations_leave_a_product_rounded_and_gradients_of_weights_do_not(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, w, g = normal(0, 6, 64), normal(1, 64, 8), normal(2, 6, 8)
    with jax.default_matmul_precision("bfloat16"):
        y, pull = jax.vjp(matmul, x, w)
        dx, dw = pull(g)
        scores, pull = jax.vjp(lambda q, k: einsum("td,sd->ts", q, k), x, w.T)
        gradients = pull(g)
    assert {a.dtype for a in (y, dx, dw, scores, *gradients)} == {jnp.dtype(jnp.float32)}
    for narrow in (y, dx, scores, *gradients):
        np.testing.assert_array_equal(narrow, rounded(narrow))
    np.testing.assert_allclose(y, rounded(x) @ rounded(w), rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(dx, rounded(g) @ rounded(w).T, rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(dw, rounded(x).T @ rounded(g), rtol=1e-5, atol=1e-5)
    assert np.abs(dw - rounded(dw)).max() > 1e-4


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_product_of_the_backward_pass_is_at_the_set_precision(precision):
    q, k = normal(0, 2, 3, 4, 8), normal(1, 2, 3, 5, 8)
    with jax.default_matmul_precision(precision):
        square = jax.grad(lambda q, k: jnp.sum(einsum("bhtk,bhsk->bhts", q, k) ** 2), (0, 1))
        jaxpr = jax.make_jaxpr(square)(q, k)
    products = [eqn for eqn in _flat(jaxpr.jaxpr) if eqn.primitive.name == "dot_general"]
    assert len(products) == 3
    assert {var.aval.dtype for eqn in products for var in eqn.invars} == {jnp.dtype(precision)}


def _flat(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _flat(inner)


def test_matmul_keeps_float64():
    with jax.enable_x64(True):
        assert matmul(jnp.ones((2, 3)), jnp.ones((3, 4))).dtype == jnp.float64


def test_dropout_keeps_the_mean_and_the_rate():
    x = jnp.ones((200, 500))
    y = Dropout(0.3).apply({}, x, True, rngs={"dropout": jax.random.key(1)})
    assert abs(float((y == 0).mean()) - 0.3) < 0.006  # four deviations: sqrt(0.21 / 1e5) = 0.00145
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-6)


def test_dropout_of_rate_0_or_outside_training_does_nothing_and_needs_no_key():
    x = normal(0, 3, 4)
    assert Dropout(0.0).apply({}, x, True) is x
    assert Dropout(0.5).apply({}, x, False) is x


def test_a_traced_rate_gives_what_the_number_gives():
    x, rngs = jnp.ones((50, 50)), {"dropout": jax.random.key(1)}

    def drop(rate):
        return Dropout(rate).apply({}, x, True, rngs=rngs)

    many = jax.jit(jax.vmap(drop))(jnp.array([0.0, 0.25, 0.5]))
    for got, rate in zip(many, [0.0, 0.25, 0.5], strict=True):
        np.testing.assert_allclose(got, drop(rate), rtol=1e-6)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(ValueError, match=f"dropout must be .*received {rate}"):
        Dropout(rate)
