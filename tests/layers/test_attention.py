import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.layers.attention import (
    KVCache,
    MultiHeadAttention,
    _fused,
    causal_mask,
    scaled_dot_product_attention,
)
from lmlab.layers.positions import LearnedPositions, sinusoidal


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


def test_attention_is_the_formula():
    q, k, v = normal(0, 2, 3, 4, 5), normal(1, 2, 3, 6, 5), normal(2, 2, 3, 6, 5)
    mask = np.random.default_rng(3).random((2, 1, 4, 6)) < 0.6
    mask[..., 0] = True
    out, weights = scaled_dot_product_attention(q, k, v, jnp.asarray(mask))
    for b in range(2):
        for h in range(3):
            for t in range(4):
                e = np.exp(np.asarray(k[b, h] @ q[b, h, t]) / np.sqrt(5)) * mask[b, 0, t]
                np.testing.assert_allclose(weights[b, h, t], e / e.sum(), atol=1e-6)
                np.testing.assert_allclose(out[b, h, t], (e / e.sum()) @ np.asarray(v[b, h]), atol=1e-6)


@pytest.mark.parametrize(
    ("target", "source", "causal", "masked"),
    [(6, 6, True, False), (7, 7, True, False), (7, 7, True, True), (5, 8, False, True), (4, 7, False, False)]
    + [(5, 7, False, True), (6, 8, False, True)],
)
def test_flash_attention_of_odd_lengths_is_that_of_the_formula(target, source, causal, masked):
    """By XLA in place of cuDNN, which takes even lengths alone."""
    q, k, v = normal(0, 2, 3, target, 8), normal(1, 2, 3, source, 8), normal(2, 2, 3, source, 8)
    mask = jnp.asarray(np.random.default_rng(3).random((2, 1, 1, source)) < 0.6).at[..., 0].set(True)
    mask, seen = mask if masked else None, []

    def even(q, k, v, **options):
        seen.extend([q.shape[1], k.shape[1]])
        assert options["mask"] is None or options["mask"].shape[2:] == (q.shape[1], k.shape[1])
        return plain(q, k, v, **options | {"implementation": "xla"})

    plain = jax.nn.dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.nn, "dot_product_attention", even)
        out, pull = jax.vjp(lambda q, k, v: _fused(q, k, v, mask, causal), q, k, v)
        found = pull(out)
    assert all(length % 2 == 0 for length in seen)
    full = mask
    if causal:
        full = causal_mask(target, source)[None, None] & (True if mask is None else mask)
    expected, pull = jax.vjp(lambda q, k, v: scaled_dot_product_attention(q, k, v, full)[0], q, k, v)
    np.testing.assert_allclose(out, expected, atol=0.02)
    for ours, theirs in zip(found, pull(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.04)


def test_a_row_with_nothing_to_attend_to_stays_finite():
    x = normal(0, 1, 1, 2, 4)
    out, _ = scaled_dot_product_attention(x, x, x, jnp.zeros((1, 1, 2, 2), bool))
    assert jnp.isfinite(out).all()


def split_heads(array, heads, parts):
    """Our columns (head, part, k) -> one (..., D) array a part."""
    array = np.asarray(array)
    size = array.shape[-1] // (heads * parts)
    array = array.reshape(*array.shape[:-1], heads, parts, size)
    return [array[..., part, :].reshape(*array.shape[:-3], heads * size) for part in range(parts)]


@pytest.mark.parametrize(("cross", "masked"), [(False, False), (False, True), (True, True)])
def test_output_and_gradients_are_pytorchs(cross, masked):
    torch = pytest.importorskip("torch")
    width, heads, length, source = 12, 3, 5, 7
    x, memory = normal(0, 2, length, width), normal(1, 2, source if cross else length, width)
    if not cross:
        memory = x
    layer = MultiHeadAttention(width, heads, cross=cross)
    args = (x, memory) if cross else (x,)
    variables = make(layer, *args)
    mask = np.random.default_rng(5).random((length, memory.shape[1])) < 0.5
    mask[:, 0] = True
    ours_mask = jnp.asarray(mask)[None, None] if masked else None

    peer = torch.nn.MultiheadAttention(width, heads, batch_first=True)
    params = variables["params"]
    if cross:
        kernels = [params["q"]["kernel"], *split_heads(params["kv"]["kernel"], heads, 2)]
        biases = [params["q"]["bias"], *split_heads(params["kv"]["bias"], heads, 2)]
    else:
        kernels, biases = (split_heads(params["qkv"][name], heads, 3) for name in ("kernel", "bias"))
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.tensor(np.concatenate([np.asarray(k).T for k in kernels])))
        peer.in_proj_bias.copy_(torch.tensor(np.concatenate([np.asarray(b) for b in biases])))
        peer.out_proj.weight.copy_(torch.tensor(np.asarray(params["out"]["kernel"]).T))
        peer.out_proj.bias.copy_(torch.tensor(np.asarray(params["out"]["bias"])))
    tx = torch.tensor(np.asarray(x), requires_grad=True)
    tm = torch.tensor(np.asarray(memory), requires_grad=True) if cross else tx
    expected, weights = peer(
        tx, tm, tm, attn_mask=torch.tensor(~mask) if masked else None, average_attn_weights=False
    )
    g = normal(9, 2, length, width)
    (expected * torch.tensor(np.asarray(g))).sum().backward()

    @jax.jit
    def run(variables, *args):
        y, pull = jax.vjp(lambda *args: layer.apply(*args, mask=ours_mask)[0], variables, *args)
        return y, *pull(g)

    y, grads, dx, *dm = run(variables, *args)
    np.testing.assert_allclose(y, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(dx, tx.grad, atol=1e-5)
    if cross:
        np.testing.assert_allclose(dm[0], tm.grad, atol=1e-5)
        mine = [grads["params"]["q"]["kernel"], *split_heads(grads["params"]["kv"]["kernel"], heads, 2)]
    else:
        mine = split_heads(grads["params"]["qkv"]["kernel"], heads, 3)
    mine = np.concatenate([np.asarray(k).T for k in mine])
    np.testing.assert_allclose(mine, peer.in_proj_weight.grad, atol=2e-5)
    np.testing.assert_allclose(grads["params"]["out"]["kernel"].T, peer.out_proj.weight.grad, atol=2e-5)
    _, kept = apply(layer, variables, *args, mask=ours_mask, mutable="intermediates")
    np.testing.assert_allclose(kept["intermediates"]["weights"][0], weights.detach(), atol=1e-5)


def test_weights_are_kept_only_when_asked():
    x = normal(0, 1, 3, 4)
    layer = MultiHeadAttention(4, 2)
    assert set(jax.eval_shape(layer.init, jax.random.key(0), x)) == {"params"}
    variables = make(layer, x)
    _, kept = apply(layer, variables, x, causal=True, mutable="intermediates")
    (weights,) = kept["intermediates"]["weights"]
    assert weights.shape == (1, 2, 3, 3)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert (np.asarray(weights)[..., ~np.tril(np.ones((3, 3), bool))] == 0).all()


def test_self_attention_without_positions_is_permutation_equivariant():
    x, order = normal(0, 2, 6, 8), np.random.default_rng(1).permutation(6)
    layer = MultiHeadAttention(8, 2)
    variables = make(layer, x)
    y, _ = apply(layer, variables, x)
    permuted, _ = apply(layer, variables, x[:, order])
    np.testing.assert_allclose(permuted, y[:, order], atol=1e-5)
    causal, _ = apply(layer, variables, x[:, order], causal=True)
    assert np.abs(causal - y[:, order]).max() > 1e-2  # the property is not one of the whole class


def test_cached_in_pieces_equals_at_once():
    x = normal(0, 2, 6, 8)
    layer = MultiHeadAttention(8, 2)
    variables = make(layer, x)
    expected, _ = apply(layer, variables, x, causal=True)
    cache, pieces = KVCache.empty(2, 2, 9, 4), []
    for piece in (x[:, :3], x[:, 3:4], x[:, 4:6]):
        y, cache = apply(layer, variables, piece, cache=cache)
        pieces.append(y)
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), expected, atol=1e-5)
    assert int(cache.length) == 6


def test_remembered_memory_equals_memory():
    x, memory = normal(0, 2, 3, 8), normal(1, 2, 5, 6)
    layer = MultiHeadAttention(8, 2, cross=True)
    variables = make(layer, x, memory)
    mask = jnp.asarray(np.arange(5) < np.array([[5], [2]]))[:, None, None]
    kept = apply(layer, variables, memory, method="remember")
    expected, _ = apply(layer, variables, x, memory, mask)
    got, _ = apply(layer, variables, x, kept, mask)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    short, _ = apply(layer, variables, x[1:], memory[1:, :2])
    np.testing.assert_allclose(expected[1:], short, atol=1e-5)  # masked = absent


def test_causal_mask_with_offset():
    expected = [[True, True, True, False], [True, True, True, True]]
    np.testing.assert_array_equal(causal_mask(2, 4, 2), expected)


@pytest.mark.parametrize(("width", "heads"), [(10, 3), (8, 0), (0, 1)])
def test_a_width_that_heads_do_not_divide_is_refused_at_once(width, heads):
    with pytest.raises(ValueError, match=f"received width {width}, num_heads {heads}"):
        MultiHeadAttention(width, heads)


def test_sinusoids_have_the_papers_values():
    table = sinusoidal(jnp.arange(3), 4)
    s, c = np.sin, np.cos
    golden = [[0, 1, 0, 1], [s(1), c(1), s(0.01), c(0.01)], [s(2), c(2), s(0.02), c(0.02)]]
    np.testing.assert_allclose(table, golden, atol=1e-6)
    np.testing.assert_allclose(sinusoidal(jnp.array([7]), 6)[0, 2], s(7 / 10000 ** (2 / 6)), atol=1e-6)


def test_sinusoids_of_a_shift_are_a_rotation():
    """PE(p + k) is a linear function of PE(p), as the paper says."""
    features, shift = 8, 5
    table = np.asarray(sinusoidal(jnp.arange(40), features), np.float64)
    for i in range(features // 2):
        angle = shift / 10000 ** (2 * i / features)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        pair = table[:, 2 * i : 2 * i + 2]
        np.testing.assert_allclose(pair[:-shift] @ turn.T, pair[shift:], atol=1e-5)


def test_learned_positions_are_rows_of_a_table():
    layer = LearnedPositions(6, 4)
    variables = make(layer, jnp.arange(3))
    table = variables["params"]["table"]["embedding"]
    np.testing.assert_array_equal(apply(layer, variables, jnp.array([5, 0])), table[jnp.array([5, 0])])
