import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmlab.data import text
from lmlab.evaluation.likelihood import TextLikelihood
from lmlab.models.recurrent_lm import Carried, RecurrentLM
from lmlab.tasks import NextToken, cross_entropy


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


# -- a state that is carried -------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_carried_state_equals_one_long_pass(cell):
    """Windows after each other, through the collection, against all tokens at once; then anew."""
    model = RecurrentLM(11, cell, 2, 8, tie_embeddings=True)
    task, source = Carried(model), text.streams(np.asarray(tokens(1, 3 * 17 + 2)[0]), 6, 3, 0)
    rows = np.asarray(tokens(1, 3 * 17 + 2)[0])[:51].reshape(3, 17)
    batches = [jax.tree.map(np.asarray, source.batch(source.data, step)) for step in range(4)]
    params, collections = jax.jit(task.init)(jax.random.key(0), batches[0])
    params = nn.meta.unbox(params)
    assert source.steps_per_epoch == 3
    logits = apply(model, {"params": params}, jnp.asarray(rows[:, :-1]))
    each = cross_entropy(logits, jnp.asarray(rows[:, 1:]))
    loss = jax.jit(lambda collections, batch: task.loss(params, collections, batch, None, False))
    for step, batch in enumerate(batches):
        mean, _, collections = loss(collections, batch)
        of = each[:, 6 * (step % 3) : 6 * (step % 3) + 6]
        np.testing.assert_allclose(mean.value, of.mean(), rtol=1e-5)
        assert mean.count == of.size
    leaves = jax.tree.leaves(collections["carry"])
    assert all(leaf.shape == (3, 8) and np.any(leaf) for leaf in leaves)
    assert len(leaves) == 2 * (2 if cell == "lstm" else 1)


def test_a_text_is_scored_whole_with_the_state_carried():
    model, ids = RecurrentLM(11, "lstm", 2, 8, tie_embeddings=True), np.asarray(tokens(1, 31)[0])
    task = Carried(model)
    params, collections = jax.jit(task.init)(jax.random.key(0), {"tokens": tokens(4, 3)})
    variables = {"params": nn.meta.unbox(params), **collections}  # the carry of training, of other rows
    scorer = TextLikelihood(
        task, lambda: text.evaluation_windows(ids, 7), start=task.start, num_bytes=lambda: 50
    )
    scalars, _ = scorer(variables, jax.random.key(0))
    logits = apply(model, {"params": variables["params"]}, jnp.asarray(ids[None, :-1]))
    loss = float(cross_entropy(logits, jnp.asarray(ids[None, 1:])).mean())
    np.testing.assert_allclose(scalars["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(scalars["perplexity"], np.exp(loss), rtol=1e-5)
    np.testing.assert_allclose(scalars["bits_per_byte"], loss * 30 / np.log(2) / 50, rtol=1e-5)


def test_variational_masks_are_constant_in_time():
    """The embedding of one token, repeated, is dropped alike at all times, each row by a mask of its own."""
    model = RecurrentLM(11, "rnn", 1, 32, dropout=0.5, variational=True)
    ids = jnp.full((2, 6), 3)
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), ids))

    def dropped(module, ids):
        return module.drop(module.embed(ids), True)

    def masks(model):
        return nn.apply(dropped, model)(variables, ids, rngs={"dropout": jax.random.key(1)}) == 0

    fixed = masks(model)
    assert (fixed == fixed[:, :1]).all() and (fixed[0] != fixed[1]).any() and 0.2 < fixed.mean() < 0.8
    fresh = masks(RecurrentLM(11, "rnn", 1, 32, dropout=0.5))
    assert (fresh != fresh[:, :1]).any()
