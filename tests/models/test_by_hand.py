"""Gradients and Adam by hand against JAX's autodiff, Optax and PyTorch; and that they are by hand."""

import ast
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmlab.models import by_hand
from lmlab.models.nplm import NPLM
from lmlab.tasks import LastToken

TOKENS = np.random.default_rng(0).integers(0, 11, (32, 4)).astype(np.int32)
TASK = LastToken(NPLM(11, d_embed=5, hidden=6, normalize=True))
KINDS = pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-13)])


def made(dtype):
    """(params that are not where they begin, running averages)."""
    params, collections = nn.unbox(jax.jit(TASK.init)(jax.random.key(0), {"tokens": jnp.asarray(TOKENS)}))
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda leaf: jnp.asarray(leaf + 0.3 * rng.normal(size=leaf.shape), dtype), params)
    return moved, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), collections["batch_stats"])


def loss(params, stats, tokens):
    mean, _, new = TASK.loss(params, {"batch_stats": stats}, {"tokens": tokens}, jax.random.key(0), True)
    return mean.value, new["batch_stats"]


@KINDS
def test_gradients_are_autodiffs(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        (params, stats), tokens = made(dtype), jnp.asarray(TOKENS)
        (value, new), expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, stats, tokens)
        seen = by_hand.forward(params, tokens)
        found = by_hand.backward(params, tokens, seen)
        np.testing.assert_allclose(seen.loss, value, rtol=tolerance)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for (path, wanted), leaf in zip(
            jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True
        ):
            assert leaf.dtype == dtype
            far = float(jnp.abs(leaf - wanted).max() / jnp.abs(wanted).max())
            assert far < tolerance, (jax.tree_util.keystr(path), far)
        averages = by_hand.running(stats, seen)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), averages, new)


@KINDS
def test_adam_is_optaxs(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        ours, theirs = by_hand.Adam(0.01, 0.8, 0.99, 1e-7), optax.adam(0.01, 0.8, 0.99, 1e-7)
        params = made(dtype)[0]
        state, other = ours.init(params), theirs.init(params)
        update, expect = jax.jit(ours.update), jax.jit(theirs.update)
        for number in range(5):
            grads = jax.tree.map(lambda leaf, n=number: jnp.sin((n + 1) * leaf), params)
            changes, state = update(grads, state)
            expected, other = expect(grads, other)
            far = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max() / jnp.abs(b).max()), changes, expected)
            assert max(jax.tree.leaves(far)) < tolerance
            params = jax.tree.map(jnp.add, params, changes)


def test_a_first_step_is_the_sign_of_the_gradient():
    """m / sqrt(v) without its first bias: what the two divisions are for."""
    adam = by_hand.Adam(0.1, eps=0.0)
    grads = {"w": jnp.array([3.0, -1e-3])}
    np.testing.assert_allclose(adam.update(grads, adam.init(grads))[0]["w"], [-0.1, 0.1], rtol=1e-5)


def test_gradients_are_pytorchs():
    torch = pytest.importorskip("torch")
    params = jax.device_get(made("float32")[0])
    leaf = lambda array: torch.tensor(array, dtype=torch.float64, requires_grad=True)  # noqa: E731
    p = {layer: {name: leaf(array) for name, array in rows.items()} for layer, rows in params.items()}
    x = p["embed"]["embedding"][torch.tensor(TOKENS[:, :-1])].reshape(len(TOKENS), -1)
    h = x @ p["inward"]["kernel"]
    norm = p["BatchNorm_0"]
    n = torch.nn.functional.batch_norm(h, None, None, norm["scale"], norm["bias"], training=True, eps=1e-5)
    y = torch.tanh(n) @ p["outward"]["kernel"] + p["outward"]["bias"]
    torch.nn.functional.cross_entropy(y, torch.tensor(TOKENS[:, -1]).long()).backward()
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda array: jnp.asarray(array, jnp.float64), params)
        found = by_hand.backward(exact, jnp.asarray(TOKENS), by_hand.forward(exact, jnp.asarray(TOKENS)))
    for layer, leaves in p.items():
        for name, tensor in leaves.items():
            np.testing.assert_allclose(found[layer][name], tensor.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_nothing_differentiates_by_itself(monkeypatch):
    """Neither in its text, nor when it runs."""
    tree = ast.parse(inspect.getsource(by_hand))
    named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    named |= {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    automatic = ("grad", "value_and_grad", "vjp", "jvp", "linearize", "jacfwd", "jacrev", "hessian")
    assert not named & {*automatic, "optax"}

    def refuse(*args, **options):
        raise AssertionError("automatic")

    params, stats = made("float32")
    for name in automatic:
        monkeypatch.setattr(jax, name, refuse)

    def step(params, stats, tokens):
        seen = by_hand.forward(params, tokens)
        adam = by_hand.Adam(0.1)
        grads = by_hand.backward(params, tokens, seen)
        return adam.update(grads, adam.init(params)), by_hand.running(stats, seen)

    program = str(jax.make_jaxpr(step)(params, stats, jnp.asarray(TOKENS)))
    assert "custom_vjp" not in program and "custom_jvp" not in program and "tanh" in program
