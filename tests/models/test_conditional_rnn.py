"""A model whose first state is its topic, against the language model alone and NumPy; and its experiment."""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab import config as configs
from lmlab import experiment
from lmlab.experiment import Assets
from lmlab.models.conditional_rnn import ConditionalRNN, NextTokenOfTopic
from lmlab.models.recurrent_lm import RecurrentLM

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "conditional_rnn.py"
TOKENS = np.random.default_rng(0).integers(0, 9, (3, 6)).astype(np.int32)
TOPICS = np.eye(3, dtype=np.float32)


@functools.partial(jax.jit, static_argnames=("model", "method"))
def apply(model, variables, *inputs, method=None):
    return model.apply(variables, *map(jnp.asarray, inputs), method=method)


def made(cell="gru", layers=2):
    model = ConditionalRNN(9, cell, layers, 5)
    return model, nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.asarray(TOKENS), jnp.asarray(TOPICS)))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_of_zeros_nothing_is_told(cell):
    """Then it is the language model alone, to the last bit; and of a topic it is not."""
    model, variables = made(cell)
    alone = RecurrentLM(9, cell, 2, 5)
    expected = apply(alone, {"params": variables["params"]["language"]}, TOKENS)
    np.testing.assert_array_equal(apply(model, variables, TOKENS, 0 * TOPICS), expected)
    told = apply(model, variables, TOKENS, TOPICS)
    assert np.abs(told - expected).max() > 1e-3


def test_each_layer_begins_at_a_row_of_its_own():
    model, variables = made()
    kernel = np.asarray(variables["params"]["first"]["kernel"])
    first, second = apply(model, variables, TOPICS, method="begin")
    np.testing.assert_allclose(first, np.tanh(kernel[:, :5]), atol=1e-6)
    np.testing.assert_allclose(second, np.tanh(kernel[:, 5:]), atol=1e-6)
    both = apply(model, variables, TOPICS[:1] + TOPICS[1:2], method="begin")[0]
    np.testing.assert_allclose(both[0], np.tanh(kernel[0, :5] + kernel[1, :5]), atol=1e-6)


def test_step_by_step_equals_at_once():
    model, variables = made()
    expected = apply(model, variables, TOKENS, TOPICS)
    cache, step = apply(model, variables, TOPICS, method="begin"), jax.jit(model.step)
    for t in range(TOKENS.shape[1]):
        logits, cache = step(variables, cache, jnp.asarray(TOKENS[:, t]))
        np.testing.assert_allclose(logits, expected[:, t], atol=1e-5)


def test_padding_has_no_voice():
    model, variables = made()
    task, mask = NextTokenOfTopic(model), np.array([[1, 1, 0, 0, 0], [1] * 5, [0] * 5], np.float32)
    batch = {"tokens": jnp.asarray(TOKENS), "topic": jnp.asarray(TOPICS), "mask": jnp.asarray(mask)}
    loss = jax.jit(lambda params: task.loss(params, {}, batch, None, False)[0])(variables["params"])
    p = jax.nn.log_softmax(apply(model, variables, TOKENS[:, :-1], TOPICS))
    own = -np.take_along_axis(np.asarray(p), TOKENS[:, 1:, None], 2)[..., 0]
    np.testing.assert_allclose(loss.value, own[mask > 0].mean(), rtol=1e-5)


# -- the experiment ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module():
    return experiment.load_module(EXPERIMENT)


@pytest.fixture(scope="module")
def tiny(module):
    """(experiment, its parameters at the beginning), and the same that is never told a topic."""
    found = []
    for variant in ("demo", "unconditional,demo"):
        config, _ = configs.load(f"{EXPERIMENT}:{variant}", {"model.d_model": 4})
        made = module.build(config, Assets())
        params, _ = nn.unbox(jax.jit(made.task.init)(jax.random.key(0), made.train_data().example()))
        found.append((made, {"params": params}))
    return found


def test_a_wrong_topic_is_each_of_the_others_in_turn(module):
    topic = np.eye(5, dtype=np.float32)[np.repeat(np.arange(5), 8)]
    wrong = module.tell(topic, "wrong")
    assert not (wrong * topic).any() and (wrong.sum(1) == 1).all()
    times = topic.T @ wrong
    np.testing.assert_array_equal(times, 2 * (1 - np.eye(5)))
    assert module.tell(topic, "given") is topic and not module.tell(topic, "without").any()


def test_bits_are_means_over_characters(tiny):
    """And without the topic, the same as of the variant that is told none, its parameters being the same."""
    (told, variables), (untold, _) = tiny
    scalars, by_topic = told.evaluations["validation"](variables, None)
    alone, _ = untold.evaluations["validation"](variables, None)
    np.testing.assert_allclose(scalars["bits_without"], alone["bits"], rtol=1e-6)
    assert set(alone) == {"loss", "bits"} and set(by_topic) == {"given", "without", "wrong"}
    arrays = jax.tree.map(jnp.asarray, told.evaluations["validation"].topics.arrays("validation"))
    loss = jax.jit(lambda params: told.task.loss(params, {}, arrays, None, False)[0])(variables["params"])
    np.testing.assert_allclose(scalars["bits"], float(loss.value) / np.log(2), rtol=1e-5)
    assert told.evaluations["test"].held_out and not told.evaluations["validation"].held_out


def test_training_without_a_topic_is_told_none(tiny):
    assert [float(made.train_data().example()["topic"].sum()) for made, _ in tiny] == [32, 0]


def test_samples_name_their_topic(tiny):
    made, variables = tiny[0]
    drawn = made.sample(variables, jax.random.key(0), num_samples=2, max_tokens=5).texts
    assert [text.split(":")[0] for text in drawn] == [
        name for name in made.evaluations["test"].topics.names for _ in "ab"
    ]
    one = made.sample(variables, jax.random.key(0), topic="sums", num_samples=2, max_tokens=5).texts
    assert len(one) == 2 and all(text.startswith("sums: ") for text in one)
    with pytest.raises(ValueError, match="topic: received 'sum'; allowed: sums, fractions, derivatives"):
        made.sample(variables, jax.random.key(0), topic="sum")
