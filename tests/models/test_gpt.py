import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmlab.models.gpt import GPT, flops_per_token
from lmlab.tasks import NextToken


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


@functools.partial(jax.jit, static_argnames=("model", "method"))
def apply(model, variables, *inputs, method=None, **keywords):
    return model.apply(variables, *inputs, method=method, **keywords)


def build(**changes):
    return GPT(**{"vocab_size": 11, "context": 6, "num_layers": 2, "num_heads": 2, "d_model": 8, **changes})


def tokens(batch, length, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 11, (batch, length)), jnp.int32)


def make(model):
    """Weights drawn by NumPy, none of them 0: no initialization to compile."""
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens(1, 3)))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(
        tree, [jnp.asarray(0.4 * rng.normal(size=p.shape), jnp.float32) for p in leaves]
    )


def torch_gpt(torch, params, ids, num_layers, heads, bias):
    """The model written out in PyTorch, from our weights as tensors."""
    functional = torch.nn.functional

    def norm(x, p):
        return functional.layer_norm(x, x.shape[-1:], p["scale"], p.get("bias"), 1e-5)

    def dense(x, p):
        return x @ p["kernel"] + p["bias"] if bias else x @ p["kernel"]

    x = params["embed"]["embedding"][ids] + params["positions"]["table"]["embedding"][: ids.shape[1]]
    batch, length, width = x.shape
    for layer in range(num_layers):
        p = params["transformer"][f"blocks_{layer}"]
        qkv = dense(norm(x, p["attention_norm"]), p["attention"]["qkv"])
        q, k, v = qkv.view(batch, length, heads, 3, width // heads).permute(3, 0, 2, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + dense(y.transpose(1, 2).reshape(batch, length, width), p["attention"]["out"])
        hidden = functional.gelu(dense(norm(x, p["feed_forward_norm"]), p["feed_forward"]["inward"]))
        x = x + dense(hidden, p["feed_forward"]["outward"])
    x = norm(x, params["transformer"]["norm"])
    return x @ params["embed"]["embedding"].T if "head" not in params else x @ params["head"]["kernel"]


@pytest.mark.parametrize(("bias", "tie"), [(True, True), (False, False)])
def test_logits_and_gradients_are_those_of_pytorch_written_out(bias, tie):
    torch = pytest.importorskip("torch")
    model, batch = build(bias=bias, tie_embeddings=tie), {"tokens": tokens(3, 7)}
    variables = make(model)
    loaded = jax.tree.map(lambda p: torch.tensor(np.asarray(p), requires_grad=True), variables["params"])
    ids = torch.tensor(np.asarray(batch["tokens"])).long()
    expected = torch_gpt(torch, loaded, ids[:, :-1], 2, 2, bias)
    loss = torch.nn.functional.cross_entropy(expected.reshape(-1, 11), ids[:, 1:].reshape(-1))
    loss.backward()
    np.testing.assert_allclose(apply(model, variables, batch["tokens"][:, :-1]), expected.detach(), atol=1e-5)

    task = NextToken(model)
    objective = jax.value_and_grad(lambda p: task.loss(p, {}, batch, None, False)[0].value)
    value, grads = jax.jit(objective)(variables["params"])
    np.testing.assert_allclose(value, loss.item(), atol=1e-5)
    jax.tree.map(lambda g, p: np.testing.assert_allclose(g, p.grad, atol=1e-5), grads, loaded)


def test_no_logit_depends_on_a_later_token():
    model, ids = build(), tokens(1, 6)
    variables = make(model)
    table = variables["params"]["embed"]["embedding"]

    def out(embedded):
        positions = jnp.arange(6, dtype=jnp.int32)
        return model.apply(variables, embedded, positions, method="logits")[0].sum((0, 2))

    jacobian = jax.jit(jax.jacrev(out))(table[ids])[:, 0]  # (T out, T in, D)
    reach = np.abs(jacobian).max(-1)
    assert (reach[~np.tril(np.ones((6, 6), bool))] == 0).all()
    assert (reach[np.tril(np.ones((6, 6), bool))] > 1e-6).all()


def test_cached_logits_are_those_of_the_last_tokens_of_the_context_always():
    model, ids = build(), tokens(2, 11)
    variables, step = make(model), jax.jit(model.step)
    cache = model.start(2)
    for t in range(11):  # the context is 6
        logits, cache = step(variables, cache, ids[:, t])
        expected = apply(model, variables, ids[:, max(0, t - 5) : t + 1])[:, -1]
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert int(cache.length) == 11


def test_a_promised_length_keeps_a_smaller_cache_and_the_same_logits():
    model, ids = build(), tokens(2, 4)
    variables, cache = make(model), model.start(2, length=4)
    assert cache.window is None and cache.layers[0].keys.shape[2] == 4
    assert model.start(2, length=7).window is not None
    for t in range(4):
        logits, cache = jax.jit(model.step)(variables, cache, ids[:, t])
    np.testing.assert_allclose(logits, apply(model, variables, ids)[:, -1], atol=1e-5)


def test_a_prompt_may_be_read_at_once():
    model, ids = build(), tokens(2, 9)
    variables = make(model)
    logits, cache = apply(model, variables, ids[:, :4], cache=model.start(2))
    np.testing.assert_allclose(logits, apply(model, variables, ids[:, :4]), atol=1e-5)
    for t in range(4, 9):
        logits, cache = jax.jit(model.step)(variables, cache, ids[:, t])
    np.testing.assert_allclose(logits, apply(model, variables, ids[:, 3:])[:, -1], atol=1e-5)


def test_initialization_has_gpt2s_scales():
    model = build(d_model=64, num_layers=3, vocab_size=200)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), tokens(1, 3)))["params"]
    block = params["transformer"]["blocks_1"]
    residual = 0.02 / math.sqrt(6)
    for weights, expected in (
        (params["embed"]["embedding"], 0.02),
        (block["attention"]["qkv"]["kernel"], 0.02),
        (block["feed_forward"]["inward"]["kernel"], 0.02),
        (block["attention"]["out"]["kernel"], residual),
        (block["feed_forward"]["outward"]["kernel"], residual),
    ):
        assert abs(float(weights.std()) / expected - 1) < 0.05
    assert not block["attention"]["qkv"]["bias"].any()
    loss = jax.jit(lambda p: NextToken(model).loss(p, {}, {"tokens": tokens(8, 7)}, None, False)[0].value)(
        params
    )
    assert abs(float(loss) - math.log(200)) < 0.15  # knows nothing yet


def test_parameter_count_is_gpt2s():
    model = GPT(vocab_size=50257, context=1024, num_layers=12, num_heads=12, d_model=768)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.meta.unbox(shapes))) == 124_439_808


def test_no_bias_anywhere_without_bias():
    params = jax.eval_shape(build(bias=False).init, jax.random.key(0), tokens(1, 3))
    assert not [path for path, _ in jax.tree_util.tree_leaves_with_path(params) if "bias" in str(path)]


def test_remat_reaches_every_block():
    batch = {"tokens": tokens(2, 7)}

    def blocks_computed_again(**changes):
        model = build(**changes)
        loss, params = NextToken(model).loss, make(model)["params"]
        slope = jax.grad(lambda p: loss(p, {}, batch, jax.random.key(2), True)[0].total)
        return str(jax.make_jaxpr(slope)(params)).count("remat")

    assert blocks_computed_again() == 0 < blocks_computed_again(remat=True, dropout=0.2)


def test_a_vmapped_dropout_rate_is_each_rate():
    batch, key = {"tokens": tokens(2, 7)}, jax.random.key(2)
    params = make(build())["params"]

    def loss(rate):
        return NextToken(build(dropout=rate)).loss(params, {}, batch, key, True)[0].value

    many = jax.jit(jax.vmap(loss))(jnp.array([0.0, 0.3]))
    one = jax.jit(loss, static_argnums=0)
    np.testing.assert_allclose(many, [one(0.0), one(0.3)], rtol=1e-5)


def test_one_tiny_batch_can_be_learnt_by_heart():
    model, batch = build(d_model=16), {"tokens": tokens(4, 7)}
    task, adam = NextToken(model), optax.adam(1e-2)
    params, _ = jax.jit(task.init)(jax.random.key(0), batch)
    params = nn.meta.unbox(params)

    @jax.jit
    def train(params):
        def update(carry, _):
            params, state = carry
            slope = jax.grad(lambda p: task.loss(p, {}, batch, None, False)[0].value)(params)
            changes, state = adam.update(slope, state, params)
            return (optax.apply_updates(params, changes), state), None

        return jax.lax.scan(update, (params, adam.init(params)), length=300)[0][0]

    metrics = jax.jit(lambda p: task.loss(p, {}, batch, None, False)[1])(train(params))
    # The first tokens of rows may coincide: then no model knows which row it is in.
    assert metrics["accuracy"].value > 0.9 and metrics["loss"].value < 0.2


def test_flops_of_a_token():
    assert flops_per_token(1000, 2, 8, 6) == 6 * 1000 + 12 * 2 * 8 * 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 9}, "received width 9, num_heads 2"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, received 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, received 0"),
        ({"dropout": 1.0}, "dropout must be .* received 1.0"),
    ],
)
def test_impossible_models_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        build(**changes)
    assert "\n" not in str(error.value)


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ValueError, match="7 tokens are more than the context of 6"):
        build().init(jax.random.key(0), tokens(1, 7))
