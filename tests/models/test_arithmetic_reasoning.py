from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.data.problems import Problems
from lmlab.experiment import load_module
from lmlab.models.gpt import GPT

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

FILE = load_module(Path(__file__).parents[2] / "experiments" / "arithmetic_reasoning.py")
PROBLEMS = Problems(count=2, held_out=2)


@pytest.fixture(scope="module")
def made():
    model = GPT(PROBLEMS.tokenizer.vocab_size, 192, num_layers=1, num_heads=1, d_model=8)
    tokens = jnp.asarray(PROBLEMS.joined("train")["tokens"])
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), tokens[:, :-1]))
    return model, jax.tree.map(lambda p: 8 * p, variables), tokens


def test_the_loss_is_of_answers_alone(made):
    model, variables, tokens = made
    task = FILE.Answers(model, PROBLEMS.start)
    loss, _, _ = jax.jit(lambda b: task.loss(variables["params"], {}, b, jax.random.key(0), False))(
        {"tokens": tokens}
    )
    logs = np.asarray(jax.nn.log_softmax(jax.jit(model.apply)(variables, tokens[:, :-1])))
    total = count = 0
    for row, log in zip(np.asarray(tokens), logs, strict=True):
        begin, end = (
            int(np.flatnonzero(row == PROBLEMS.start)[0]),
            int(np.flatnonzero(row == PROBLEMS.end)[0]),
        )
        for t in range(begin + 1, end + 1):
            total, count = total - log[t - 1, row[t]], count + 1
    assert float(loss.count) == count
    np.testing.assert_allclose(float(loss.total), total, rtol=1e-4)
    half = {"tokens": tokens, "mask": jnp.arange(len(tokens)) < 1}
    assert float(task.loss(variables["params"], {}, half, jax.random.key(0), False)[0].count) < count


def test_answers_go_on_from_their_questions_one_letter_at_a_time(made):
    """In a batch of questions of all lengths, as in a loop over whole texts."""
    model, variables, _ = made
    questions = [question for question, _ in PROBLEMS.examples("test")][:3]
    answers = FILE.continued(model, PROBLEMS, variables, questions)
    apply = jax.jit(lambda tokens: model.apply(variables, tokens))
    for question, answer in zip(questions, answers, strict=True):
        ids = [*PROBLEMS.tokenizer.encode(question), PROBLEMS.start]
        begin = len(ids)
        while len(ids) < begin + 30 and ids[-1] != PROBLEMS.end:
            row = np.zeros((1, 192), np.int32)
            row[0, : len(ids)] = ids
            ids.append(int(apply(jnp.asarray(row))[0, len(ids) - 1].argmax()))
        said = np.array([i for i in ids[begin:] if i != PROBLEMS.end])
        assert answer == PROBLEMS.tokenizer.decode(said)


def test_wilsons_interval():
    """Known values: 0 of 10 and 5 of 10 (Wilson 1927)."""
    low, high = FILE.wilson([0, 5], [10, 10])
    np.testing.assert_allclose(low, [0.0, 0.2366], atol=1e-4)
    np.testing.assert_allclose(high, [0.2775, 0.7634], atol=1e-4)
