import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.layers.attention import KVCache
from lmlab.layers.transformer import Block, Transformer, gelu


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


@functools.partial(jax.jit, static_argnames=("model", "method", "causal", "train", "mutable"))
def apply(model, variables, *inputs, method=None, **keywords):
    return model.apply(variables, *inputs, method=method, **keywords)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def make(layer, *inputs, **keywords):
    """Weights drawn by NumPy, none of them 0: no initialization to compile."""
    shapes = nn.meta.unbox(jax.eval_shape(layer.init, jax.random.key(0), *inputs, **keywords))
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [0.4 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


def test_gelu_is_exact():
    x = jnp.linspace(-6, 6, 101)
    exact = functools.partial(jax.nn.gelu, approximate=False)
    np.testing.assert_allclose(gelu(x), exact(x), atol=1e-6)
    slope, expected = (jax.grad(lambda x, f=f: f(x).sum())(x) for f in (gelu, exact))
    np.testing.assert_allclose(slope, expected, atol=1e-6)


def to_torch(peer, params, heads):
    """Our block's weights in torch.nn.TransformerEncoderLayer."""
    import torch

    def put(target, value):
        target.data.copy_(torch.tensor(np.asarray(value)))

    qkv = params["attention"]["qkv"]
    width = qkv["kernel"].shape[0]
    kernel = qkv["kernel"].reshape(width, heads, 3, -1).transpose(2, 1, 3, 0)
    put(peer.self_attn.in_proj_weight, kernel.reshape(-1, width))
    put(peer.self_attn.in_proj_bias, qkv["bias"].reshape(heads, 3, -1).transpose(1, 0, 2).reshape(-1))
    for target, source in (
        (peer.self_attn.out_proj, params["attention"]["out"]),
        (peer.linear1, params["feed_forward"]["inward"]),
        (peer.linear2, params["feed_forward"]["outward"]),
    ):
        put(target.weight, source["kernel"].T)
        put(target.bias, source["bias"])
    for target, source in ((peer.norm1, params["attention_norm"]), (peer.norm2, params["feed_forward_norm"])):
        put(target.weight, source["scale"])
        put(target.bias, source["bias"])


@pytest.mark.parametrize(("pre_norm", "activation"), [(True, "gelu"), (False, "relu")])
def test_block_is_pytorchs_encoder_layer(pre_norm, activation):
    torch = pytest.importorskip("torch")
    x = normal(0, 2, 5, 12)
    block = Block(12, 3, 20, pre_norm, activation=gelu if activation == "gelu" else jax.nn.relu)
    variables = make(block, x)
    peer = torch.nn.TransformerEncoderLayer(
        12, 3, 20, dropout=0.0, activation=activation, batch_first=True, norm_first=pre_norm
    )
    to_torch(peer, variables["params"], 3)
    tx = torch.tensor(np.asarray(x), requires_grad=True)
    g = normal(9, 2, 5, 12)
    expected = peer(tx)
    (expected * torch.tensor(np.asarray(g))).sum().backward()

    @jax.jit
    def run(variables, x):
        y, pull = jax.vjp(lambda *args: block.apply(*args)[0], variables, x)
        return y, *pull(g)

    y, grads, dx = run(variables, x)
    np.testing.assert_allclose(y, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(dx, tx.grad, atol=2e-5)
    np.testing.assert_allclose(
        grads["params"]["feed_forward"]["inward"]["kernel"].T, peer.linear1.weight.grad, atol=5e-5
    )
    np.testing.assert_allclose(grads["params"]["attention_norm"]["scale"], peer.norm1.weight.grad, atol=5e-5)


def build(**keywords):
    return Transformer(num_layers=2, features=8, num_heads=2, hidden=16, **keywords)


def test_remat_changes_nothing():
    x = normal(0, 2, 4, 8)
    plain, again = build(dropout=0.3), build(dropout=0.3, remat=True)
    variables = make(plain, x)

    def loss(variables, model):
        y, _ = model.apply(variables, x, causal=True, train=True, rngs={"dropout": jax.random.key(1)})
        return jnp.sum(y**2 * x)

    assert jax.tree.structure(variables) == jax.tree.structure(make(again, x))
    values = [
        jax.jit(jax.value_and_grad(loss), static_argnums=1)(variables, model) for model in (plain, again)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *values)
    assert "remat" in str(jax.make_jaxpr(jax.grad(lambda v: loss(v, again)))(variables))


def test_decoder_in_pieces_with_a_remembered_memory_equals_at_once():
    x, memory = normal(0, 2, 5, 8), normal(1, 2, 3, 8)
    model = build(cross=True, pre_norm=False)
    variables = make(model, x, memory=memory)
    memory_mask = jnp.array([[True, True, True], [True, False, False]])[:, None, None]
    expected, _ = apply(model, variables, x, memory=memory, memory_mask=memory_mask, causal=True)
    kept = apply(model, variables, memory, method="remember")
    cache, pieces = (KVCache.empty(2, 2, 5, 4),) * 2, []
    for t in range(5):
        y, cache = apply(model, variables, x[:, t : t + 1], memory=kept, memory_mask=memory_mask, cache=cache)
        pieces.append(y)
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), expected, atol=1e-5)


def test_a_traced_dropout_rate_reaches_every_layer():
    x = normal(0, 2, 4, 8)
    variables = make(build(), x)

    def out(rate):
        model = build(dropout=rate, remat=True)
        return model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})[0]

    many = jax.jit(jax.vmap(out))(jnp.array([0.0, 0.4]))
    for got, rate in zip(many, (0.0, 0.4), strict=True):
        np.testing.assert_allclose(got, jax.jit(out, static_argnums=0)(rate), atol=1e-5)


def test_impossible_shapes_are_refused_at_once():
    with pytest.raises(ValueError, match="received width 9, num_heads 2"):
        Transformer(num_layers=1, features=9, num_heads=2)
    with pytest.raises(ValueError, match="num_layers must be at least 1, received 0"):
        Transformer(num_layers=0, features=8, num_heads=2)
