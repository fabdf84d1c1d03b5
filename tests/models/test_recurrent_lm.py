import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmlab.models.recurrent_lm import RecurrentLM
from lmlab.tasks import NextToken


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


@functools.partial(jax.jit, static_argnames=("model", "method", "train"))
def apply(model, variables, *inputs, method=None, **keywords):
    return model.apply(variables, *inputs, method=method, **keywords)


def tokens(batch, length):
    return jnp.asarray(np.random.default_rng(0).integers(0, 11, (batch, length)), jnp.int32)


@pytest.mark.parametrize(
    ("cell", "tie"), [("rnn", False), ("gru", True), ("gru_inside", False), ("lstm", True)]
)
def test_step_by_step_equals_at_once(cell, tie):
    model, ids = RecurrentLM(11, cell, 2, 8, tie_embeddings=tie), tokens(3, 5)
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), ids))
    expected, cache = apply(model, variables, ids), model.start(3)
    for t in range(5):
        logits, cache = jax.jit(model.step)(variables, cache, ids[:, t])
        np.testing.assert_allclose(logits, expected[:, t], atol=1e-5)
    _, at_once = apply(model, variables, ids, cache=model.start(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cache, at_once)


def test_one_tiny_batch_can_be_learnt_by_heart():
    model, batch = RecurrentLM(11, "gru", 1, 16), {"tokens": tokens(4, 7)}
    task, adam = NextToken(model), optax.adam(2e-2)
    params = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0), batch)[0])

    @jax.jit
    def train(params):
        def update(carry, _):
            params, state = carry
            slope = jax.grad(lambda p: task.loss(p, {}, batch, None, False)[0].value)(params)
            changes, state = adam.update(slope, state, params)
            return (optax.apply_updates(params, changes), state), None

        return jax.lax.scan(update, (params, adam.init(params)), length=300)[0][0]

    metrics = jax.jit(lambda p: task.loss(p, {}, batch, None, False)[1])(train(params))
    assert metrics["accuracy"].value > 0.9 and metrics["loss"].value < 0.2


def test_dropout_falls_in_training_only():
    model, ids = RecurrentLM(11, d_model=8, dropout=0.5), tokens(2, 4)
    variables = jax.jit(model.init)(jax.random.key(0), ids)
    rngs = {"dropout": jax.random.key(1)}
    plain, given = apply(model, variables, ids), apply(model, variables, ids, rngs=rngs)
    np.testing.assert_array_equal(plain, given)
    assert (plain != apply(model, variables, ids, train=True, rngs=rngs)).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": "GRU"}, "unknown cell 'GRU'; allowed: rnn, gru, gru_inside, lstm"),
        ({"num_layers": 0}, "num_layers must be at least 1, received 0"),
        ({"d_embed": 0}, "d_embed must be at least 1, received 0"),
        ({"d_embed": 4, "tie_embeddings": True}, "need d_embed equal to d_model, received 4 and 8"),
    ],
)
def test_impossible_models_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        RecurrentLM(**{"vocab_size": 11, "d_model": 8, **changes})
