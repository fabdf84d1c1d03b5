"""The Jacobian's norm against jax.jacobian; the problems have the baselines that are said of them."""

import functools
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab import config as configs
from lmlab.data import recall
from lmlab.evaluation.jacobian import log_norms
from lmlab.experiment import Assets
from lmlab.layers.recurrent import LSTMCarry, forget_bias, state_of
from lmlab.models.recall import Reader, Recall

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "vanishing_gradients.py"


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


@pytest.mark.parametrize("cell", ["rnn", "gru", "gru_inside", "lstm"])
def test_norms_are_those_of_jax_jacobian(cell):
    model = Reader(1, cell=cell, d_model=3, forget_bias=0.5)
    inputs = jax.random.normal(jax.random.key(1), (4, 2, 2))  # T, B, D
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), inputs.swapaxes(0, 1)))
    advance = functools.partial(model.advance, variables)
    read = lambda state: state_of(state[0])  # noqa: E731
    found = jax.jit(lambda xs: log_norms(advance, read, model.start(2), xs))(inputs)
    assert found.shape == (5, 2)

    @jax.jit
    def written_out(inputs):
        norms, state = [], model.start(1)
        for t in range(5):

            def last(state, t=t):
                for x in inputs[t:]:
                    state = advance(state, x)
                return read(state)[0]

            parts = jax.tree.leaves(jax.jacrev(last)(state))
            norms.append(jnp.sqrt(sum(jnp.sum(part**2) for part in parts) / 3))
            state = advance(state, inputs[t]) if t < 4 else state
        return jnp.stack(norms)

    for row in range(2):
        np.testing.assert_allclose(np.exp(found[:, row]), written_out(inputs[:, row : row + 1]), rtol=1e-4)


def test_a_norm_may_be_smaller_than_any_number_of_32_bits():
    """h' = h / 10, for 100 steps: 1e-100."""
    norms = log_norms(lambda h, x: h / 10, lambda h: h, jnp.ones((1, 4)), jnp.zeros((100, 1, 1)))
    np.testing.assert_allclose(norms[:, 0] / math.log(10), np.arange(-100, 1), rtol=1e-4, atol=1e-4)


def test_who_always_says_one_has_a_squared_error_of_a_sixth():
    examples = recall.fixed(recall.adding, 20, 20_000, 0)
    inputs, target = np.asarray(examples["inputs"]), np.asarray(examples["target"])
    np.testing.assert_allclose(np.mean((target - 1) ** 2), 1 / 6, rtol=0.03)
    np.testing.assert_allclose((inputs[..., 0] * inputs[..., 1]).sum(1), target, rtol=1e-5)
    assert (inputs[:, :10, 1].sum(1) == 1).all() and (inputs[:, 10:, 1].sum(1) == 1).all()
    assert set(inputs[:, :10, 1].argmax(1)) == set(range(10))


def test_symbols_are_to_be_said_as_many_steps_after_they_were_read():
    examples = recall.fixed(recall.copying, 7, 500, 0)
    ids, target = np.asarray(examples["inputs"]).argmax(-1), np.asarray(examples["target"])
    assert ids.shape == (500, 27) and (ids[:, :10] == target).all()
    assert (ids[:, 10:16] == 8).all() and (ids[:, 16] == 9).all() and (ids[:, 17:] == 8).all()
    counts = np.bincount(target.ravel(), minlength=8) / target.size
    np.testing.assert_allclose(-np.sum(counts * np.log(counts)), math.log(8), rtol=0.01)


def test_examples_are_new_in_each_epoch_and_none_is_of_a_split():
    source = recall.fresh(recall.adding, 4, 2, seed=0)
    draw = jax.jit(source.batch)
    steps = [draw(source.data, step)["target"] for step in (0, 0, 1, 100, 200, 300)]
    np.testing.assert_array_equal(steps[0], steps[1])
    drawn = np.concatenate(steps[1:])
    assert len(set(drawn.tolist())) == len(drawn)
    every = np.concatenate([draw(source.data, step)["target"] for step in range(400)])
    for seed in range(4):
        assert not set(every.tolist()) & set(
            np.asarray(recall.fixed(recall.adding, 4, 50, seed)["target"]).tolist()
        )


def test_the_forget_bias_is_of_the_forget_gate_alone():
    bias = forget_bias(1.5)(None, (8,))
    np.testing.assert_array_equal(bias, [0, 0, 1.5, 1.5, 0, 0, 0, 0])
    model = Reader(1, cell="lstm", d_model=2, forget_bias=1.5)
    variables = jax.tree.map(
        jnp.zeros_like, nn.meta.unbox(model.init(jax.random.key(0), jnp.ones((1, 1, 2))))
    )
    variables["params"]["recurrent"]["input_0"]["bias"] = bias
    (carry,) = model.advance(variables, (LSTMCarry(jnp.zeros((1, 2)), jnp.ones((1, 2))),), jnp.ones((1, 2)))
    np.testing.assert_allclose(carry.c, jax.nn.sigmoid(1.5) * jnp.ones((1, 2)), rtol=1e-6)


@pytest.mark.parametrize(("target", "expected"), [([0.5, 2.0], 2.125), ([[3], [3]], math.log(8))])
def test_losses_of_who_says_nothing(target, expected):
    model = Reader(8 if isinstance(target[0], list) else 1, d_model=2)
    task, inputs = Recall(model), jnp.ones((2, 3, 2))
    params = jax.tree.map(jnp.zeros_like, nn.meta.unbox(task.init(jax.random.key(0), {"inputs": inputs})[0]))
    loss, _, _ = task.loss(params, {}, {"inputs": inputs, "target": jnp.asarray(target)}, None, False)
    np.testing.assert_allclose(loss.value, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.task": "add"}, "data.task: received 'add'; allowed: adding, copying"),
        ({"data.length": 1}, "length must be at least 2, received 1"),
        ({"data.length": 0, "data.task": "copying"}, "length must be at least 1, received 0"),
    ],
)
def test_mistakes_are_one_line(changes, message):
    config, module = configs.load(f"{EXPERIMENT}:demo", changes)
    with pytest.raises(ValueError, match=message):
        module.build(config, Assets())
