import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from lmlab.decoding import beam
from lmlab.decoding.sampling import sample
from lmlab.models.gpt import GPT
from lmlab.models.recurrent_lm import RecurrentLM

V, END, LONGEST = 4, 3, 3
MODELS = {
    "gpt": GPT(vocab_size=V, context=8, num_layers=1, num_heads=2, d_model=8),
    "recurrent": RecurrentLM(V, "lstm", d_model=8),
}
PROMPTS = jnp.array([[0, 1], [2, 2], [1, 0]])


pytestmark = pytest.mark.usefixtures("compiled_in_haste")


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def load(name, scale=5.0):
    model = MODELS[name]
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 2), jnp.int32)))
    return model, jax.tree.map(lambda p: scale * p, variables)


def find(name, size, prompts=PROMPTS, end=END, max_tokens=LONGEST, **options):
    model, variables = load(name)
    cache = model.start(len(prompts), prompts.shape[1] + max_tokens)
    return beam.search(Partial(model.step, variables), cache, prompts, size, max_tokens, end, **options)


def brute_force(name, prompt, penalty):
    """All sequences with their scores, by whole-sequence logits: those that end, and those as long as may be."""
    model, variables = load(name)
    every = np.array(list(itertools.product(range(V), repeat=LONGEST)))
    rows = jnp.asarray(np.concatenate([np.tile(prompt, (len(every), 1)), every], axis=1))
    logits = jax.jit(model.apply)(variables, rows[:, :-1])[:, len(prompt) - 1 :]
    logs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), every[..., None], 2)[..., 0]
    found = {}
    for tokens, log in zip(every.tolist(), logs, strict=True):
        length = tokens.index(END) + 1 if END in tokens else LONGEST
        found[tuple(tokens[:length])] = log[:length].sum() / ((5 + length) / 6) ** penalty
    return sorted(found.items(), key=lambda item: -item[1])


@pytest.mark.parametrize(("name", "penalty"), [("gpt", 0.0), ("recurrent", 1.0)])
def test_a_beam_of_full_width_is_brute_force(name, penalty, monkeypatch):
    """3 + 9 + 27 x 4... sequences fit in no beam of at most V: hence the search itself, without its check."""
    model, variables = load(name)
    expected = [brute_force(name, prompt, penalty) for prompt in PROMPTS.tolist()]
    size = len(expected[0])
    assert size == 1 + 3 + 9 * 4
    cache = model.start(len(PROMPTS), PROMPTS.shape[1] + LONGEST)
    options = {"beam_size": size, "max_tokens": LONGEST, "end": END}
    found = beam._search(Partial(model.step, variables), cache, PROMPTS, penalty, **options)
    for row, wanted in enumerate(expected):
        np.testing.assert_allclose(found.scores[row], [score for _, score in wanted], atol=1e-4)
        for i, (tokens, _) in enumerate(wanted[:5]):
            length = int(found.lengths[row, i])
            assert tuple(found.tokens[row, i, :length].tolist()) == tokens
            np.testing.assert_allclose(
                found.log_probs[row, i].sum() / ((5 + length) / 6) ** penalty, found.scores[row, i], rtol=1e-5
            )


@pytest.mark.parametrize(("name", "end"), [("gpt", END), ("recurrent", None)])
def test_a_beam_of_one_is_greedy(name, end):
    model, variables = load(name)
    found = find(name, 1, end=end, max_tokens=6)
    cache, lengths = model.start(3, 8), jnp.full(3, 2)
    greedy = sample(
        Partial(model.step, variables), cache, PROMPTS, lengths, jax.random.key(0), 6, 0.0, end=end
    )
    np.testing.assert_array_equal(found.tokens[:, 0], greedy.tokens[:, 2:])
    np.testing.assert_allclose(found.log_probs[:, 0], greedy.log_probs[:, 2:], atol=1e-4)
    np.testing.assert_allclose(found.entropies[:, 0], greedy.entropies[:, 2:], atol=1e-4)
    np.testing.assert_array_equal(found.lengths[:, 0] + 2, greedy.lengths)


@pytest.mark.parametrize("name", list(MODELS))
def test_a_batch_is_its_rows_one_by_one_and_the_best_come_first(name):
    together = find(name, 3, max_tokens=5, length_penalty=0.6)
    for row in range(3):
        alone = find(name, 3, PROMPTS[row : row + 1], max_tokens=5, length_penalty=0.6)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[row], b[0], atol=1e-4)
    assert (np.diff(together.scores, axis=1) <= 0).all()
    assert len({tuple(row) for row in together.tokens.reshape(9, -1).tolist()[:3]}) == 3


def test_a_finished_hypothesis_never_revives():
    """Its tokens are `end` behind its length, its score its own, whatever the model would say after `end`."""
    table = jnp.array(
        [[0.0, 1.0, 0.5, 0.9], [0.4, 0.0, 0.2, 1.0], [1.0, 0.3, 0.0, 0.6], [9.0, 0.0, 0.0, -9.0]]
    )
    found = beam.search(
        lambda cache, token: (table[token], cache), jnp.zeros((1, 1)), jnp.zeros((1, 1), int), 4, 8, END
    )
    for tokens, logs, entropies, length in zip(*(np.asarray(part[0]) for part in found[:4]), strict=True):
        ends = np.flatnonzero(tokens == END)
        assert len(ends) == 0 or (length == ends[0] + 1 and (tokens[ends[0] :] == END).all())
        assert not logs[length:].any() and not entropies[length:].any()
    ended = found.tokens[0] == END
    assert ended.any()


def test_a_wider_beam_finds_no_worse():
    best = [np.asarray(find("recurrent", size, max_tokens=6).scores[:, 0]) for size in (1, 4)]
    assert (best[-1] >= best[0] - 1e-5).all()


def test_the_cache_of_a_hypothesis_is_its_own():
    """A model that remembers the sum of what it read: the log-probabilities are those of reading each anew."""

    def step(cache, token):
        total = cache + token
        return jnp.sin(total[:, None] * jnp.arange(1.0, 6.0)[None]), total

    found = beam.search(step, jnp.zeros(2), jnp.array([[1], [2]]), 4, 5)
    for row in range(2):
        for i in range(4):
            total, logs = float(row + 1), []
            for token in found.tokens[row, i].tolist():
                logs.append(float(jax.nn.log_softmax(jnp.sin(total * jnp.arange(1.0, 6.0)))[token]))
                total += token
            np.testing.assert_allclose(found.log_probs[row, i], logs, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"beam_size": 0}, "beam_size must be between 1 and the vocabulary, 4; received 0"),
        ({"beam_size": 5}, "beam_size must be between 1 and the vocabulary, 4; received 5"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, received 0"),
    ],
)
def test_bad_input_is_one_line(options, told):
    given = {"beam_size": 2, "max_tokens": 3, **options}
    with pytest.raises(ValueError) as error:
        beam.search(
            lambda c, t: (jnp.zeros((t.shape[0], V)), c), jnp.zeros(1), jnp.zeros((1, 1), int), **given
        )
    assert str(error.value) == told
