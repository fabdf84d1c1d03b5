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


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_gelu_is_exact():
    x = jnp.linspace(-6, 6, 101)
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    slope = jax.vmap(jax.grad(gelu))(x)
    np.testing.assert_allclose(slope, jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))(x), atol=1e-6)


def to_torch(peer, params, heads):
    """Our block's weights in torch.nn.TransformerEncoderLayer."""
    import torch

    def put(target, value):
        target.data.copy_(torch.tensor(np.asarray(value)))

    qkv = params["attention"]["qkv"]
    width = qkv["kernel"].shape[0]
    put(peer.self_attn.in_proj_weight, qkv["kernel"].reshape(width, heads, 3, -1).transpose(2, 1, 3, 0).reshape(-1, width))
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


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_block_is_pytorchs_encoder_layer(pre_norm, activation):
    torch = pytest.importorskip("torch")
    x = normal(0, 2, 5, 12)
    block = Block(12, 3, 20, pre_norm, activation=gelu if activation == "gelu" else jax.nn.relu)
    variables = nn.meta.unbox(block.init(jax.random.key(0), x))
    leaves, tree = jax.tree.flatten(variables)
    variables = jax.tree.unflatten(tree, [leaf + 0.1 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])
    peer = torch.nn.TransformerEncoderLayer(
        12, 3, 20, dropout=0.0, activation=activation, batch_first=True, norm_first=pre_norm
    )
    to_torch(peer, variables["params"], 3)
    tx = torch.tensor(np.asarray(x), requires_grad=True)
    g = normal(9, 2, 5, 12)
    expected = peer(tx)
    (expected * torch.tensor(np.asarray(g))).sum().backward()
    y, pull = jax.vjp(lambda v, x: block.apply(v, x)[0], variables, x)
    grads, dx = pull(g)
    np.testing.assert_allclose(y, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(dx, tx.grad, atol=2e-5)
    np.testing.assert_allclose(
        grads["params"]["feed_forward"]["inward"]["kernel"].T, peer.linear1.weight.grad, atol=5e-5
    )
    np.testing.assert_allclose(grads["params"]["attention_norm"]["scale"], peer.norm1.weight.grad, atol=5e-5)


def build(**keywords):
    return Transformer(num_layers=2, features=8, num_heads=2, hidden=16, **keywords)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_remat_changes_nothing(dropout):
    x = normal(0, 2, 4, 8)
    plain, again = build(dropout=dropout), build(dropout=dropout, remat=True)
    variables = nn.meta.unbox(plain.init(jax.random.key(0), x))

    def loss(variables, model):
        y, _ = model.apply(variables, x, causal=True, train=True, rngs={"dropout": jax.random.key(1)})
        return jnp.sum(y**2 * x)

    assert jax.tree.structure(variables) == jax.tree.structure(nn.meta.unbox(again.init(jax.random.key(0), x)))
    values = [jax.value_and_grad(loss)(variables, model) for model in (plain, again)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *values)
    assert "remat" in str(jax.make_jaxpr(jax.grad(lambda v: loss(v, again)))(variables))


def test_decoder_in_pieces_with_a_remembered_memory_equals_at_once():
    x, memory = normal(0, 2, 5, 8), normal(1, 2, 3, 8)
    model = build(cross=True, pre_norm=False)
    variables = model.init(jax.random.key(0), x, memory=memory)
    memory_mask = jnp.array([[True, True, True], [True, False, False]])[:, None, None]
    expected, _ = model.apply(variables, x, memory=memory, memory_mask=memory_mask, causal=True)
    kept = model.apply(variables, memory, method="remember")
    cache, pieces = (KVCache.empty(2, 2, 5, 4),) * 2, []
    for t in range(5):
        y, cache = model.apply(variables, x[:, t : t + 1], memory=kept, memory_mask=memory_mask, cache=cache)
        pieces.append(y)
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), expected, atol=1e-5)


def test_a_traced_dropout_rate_reaches_every_layer():
    x = normal(0, 2, 4, 8)
    variables = build().init(jax.random.key(0), x)

    def out(rate, remat=False):
        model = build(dropout=rate, remat=remat)
        return model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})[0]

    for remat in (False, True):
        many = jax.jit(jax.vmap(lambda rate, remat=remat: out(rate, remat)))(jnp.array([0.0, 0.4]))
        np.testing.assert_allclose(many[0], out(0.0), atol=1e-5)
        np.testing.assert_allclose(many[1], out(0.4), atol=1e-5)


def test_impossible_shapes_are_refused_at_once():
    with pytest.raises(ValueError, match="received width 9, num_heads 2"):
        Transformer(num_layers=1, features=9, num_heads=2)
    with pytest.raises(ValueError, match="num_layers must be at least 1, received 0"):
        Transformer(num_layers=0, features=8, num_heads=2)
