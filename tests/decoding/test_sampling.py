import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from lmlab.decoding import sampling
from lmlab.decoding.sampling import min_p, sample, top_k, top_p
from lmlab.models.gpt import GPT
from lmlab.models.recurrent_lm import RecurrentLM

MODELS = {
    "gpt": GPT(vocab_size=9, context=5, num_layers=1, num_heads=2, d_model=8),  # shorter than what is drawn
    "recurrent": RecurrentLM(9, "lstm", d_model=8),
}


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def load(name):
    model = MODELS[name]
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
    return model, jax.tree.map(lambda p: 5 * p, variables)  # far from uniform


def table_step(logits):
    """A model whose next token depends on the last alone."""

    def step(cache, token):
        return logits[token], cache + 1

    return step


PROMPTS, LENGTHS = jnp.array([[1, 2, 3], [4, 0, 0], [5, 6, 0]]), jnp.array([3, 1, 2])


@pytest.mark.parametrize("name", list(MODELS))
def test_a_ragged_batch_equals_its_rows_one_by_one(name):
    model, variables = load(name)
    step, key = Partial(model.step, variables), jax.random.key(3)
    options = {"max_tokens": 6, "temperature": 1.2, "top_p": 0.95, "top_k": 7}
    tokens, log_probs, lengths, _ = sample(step, model.start(3), PROMPTS, LENGTHS, key, **options)
    np.testing.assert_array_equal(lengths, LENGTHS + 6)
    for row, length in enumerate(LENGTHS.tolist()):
        prompt = PROMPTS[row : row + 1].at[:, length:].set(8)  # other padding: it must not matter
        keys = jax.random.fold_in(key, row)[None]
        alone = sample(step, model.start(1), prompt, LENGTHS[row : row + 1], keys, **options)
        np.testing.assert_array_equal(tokens[row], alone[0][0])
        np.testing.assert_allclose(log_probs[row], alone[1][0], atol=1e-4)
        np.testing.assert_array_equal(tokens[row, :length], PROMPTS[row, :length])
        assert not tokens[row, length + 6 :].any() and not log_probs[row, length + 6 :].any()


@pytest.mark.parametrize("name", list(MODELS))
def test_greedy_is_argmax_and_its_log_probabilities_are_the_models(name):
    model, variables = load(name)
    step = Partial(model.step, variables)
    tokens, log_probs, *_ = sample(step, model.start(1), PROMPTS[:1], LENGTHS[:1], jax.random.key(0), 5, 0.0)
    known = PROMPTS[0].tolist()
    for t in range(3, 8):
        logits = jax.jit(model.apply)(variables, jnp.array([known[-5:]] if name == "gpt" else [known]))[0, -1]
        known.append(int(logits.argmax()))
        np.testing.assert_allclose(log_probs[0, t], jax.nn.log_softmax(logits).max(), atol=1e-4)
    assert tokens[0].tolist() == known
    assert not log_probs[0, :3].any()


def test_frequencies_are_the_softmax_at_the_temperature():
    logits = jnp.array([[0.0, 1.0, 2.0, -1.0]] * 4)
    n = 4000
    first = jnp.zeros((n, 1), jnp.int32)
    for temperature in (0.5, 1.0):
        tokens, *_ = sample(
            table_step(logits), jnp.zeros(()), first, jnp.ones(n, int), jax.random.key(1), 5, temperature
        )
        seen = np.bincount(np.asarray(tokens[:, 1:]).ravel(), minlength=4) / (5 * n)
        expected = np.asarray(jax.nn.softmax(logits[0] / temperature))
        assert np.abs(seen - expected).max() < 4.5 * np.sqrt(0.25 / (5 * n))


def test_a_traced_temperature_and_nucleus_give_what_numbers_give_without_compiling_again():
    model, variables = load("recurrent")
    step, key = Partial(model.step, variables), jax.random.key(3)

    def draw(temperature, p):
        return sample(step, model.start(3), PROMPTS, LENGTHS, key, 5, temperature, top_p=p)[0]

    traced = jax.jit(draw)
    for temperature, p in ((0.0, 0.9), (0.7, 1.0), (1.3, 0.5)):
        np.testing.assert_array_equal(traced(temperature, p), draw(temperature, p))
    assert traced._cache_size() == 1
    draw(0.9, 0.8)
    before = sampling._sample._cache_size()
    draw(0.8, 0.7)
    assert sampling._sample._cache_size() == before


def test_the_end_token_ends_a_row():
    # 0 -> 1 -> 2 -> 3 -> 0, greedily.
    logits = 10 * jnp.roll(jnp.eye(4), 1, axis=1)
    prompts, lengths = jnp.array([[0, 3], [2, 0]]), jnp.array([2, 1])  # the first 3 is the prompt's own
    tokens, log_probs, lengths, _ = sample(
        table_step(logits), jnp.zeros(()), prompts, lengths, jax.random.key(0), 6, 0.0, end=3
    )
    assert tokens.tolist() == [[0, 3, 0, 1, 2, 3, 3, 3], [2, 3, 3, 3, 3, 3, 3, 3]]
    assert lengths.tolist() == [6, 2]
    assert ((log_probs != 0).sum(1) == jnp.array([4, 1])).all()


def test_top_k_is_numpys():
    logits = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    for k in (1, 3, 11):
        expected = np.where(logits >= np.sort(logits, -1)[:, [-k]], logits, -np.inf)
        np.testing.assert_array_equal(top_k(jnp.asarray(logits), k), expected)
    for k in (0, 12, 100):
        np.testing.assert_array_equal(top_k(jnp.asarray(logits), k), logits)


def nucleus(logits, p):
    """The fewest most probable tokens whose probabilities reach p, row by row."""
    out = np.full_like(logits, -np.inf)
    for row, values in enumerate(logits.astype(np.float64)):
        probabilities, reached = np.exp(values) / np.exp(values).sum(), 0.0
        for token in np.argsort(-values):
            out[row, token] = logits[row, token]
            reached += probabilities[token]
            if reached >= p:
                break
    return out


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_is_numpys(p):
    logits = (2 * np.random.default_rng(0).normal(size=(20, 12))).astype(np.float32)
    np.testing.assert_array_equal(top_p(jnp.asarray(logits), p), nucleus(logits, p))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_min_p_is_numpys(p):
    logits = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.where(probabilities >= p * probabilities.max(-1, keepdims=True), logits, -np.inf)
    np.testing.assert_array_equal(min_p(jnp.asarray(logits), p), expected)


def test_filters_compose_on_what_another_left():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    kept = top_p(top_k(logits, 2), 0.5)  # 0.4 / 0.7 reaches 0.5 alone
    assert (kept > -jnp.inf).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0 and finite, received -1.0"),
        ({"temperature": float("nan")}, "temperature must be at least 0 and finite, received nan"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1 .*, received 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1 .*, received 1.5"),
        ({"top_k": -1}, "top_k must be at least 0 .*, received -1"),
        ({"min_p": 2.0}, "min_p must be between 0 and 1 .*, received 2.0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, received 0"),
        ({"lengths": jnp.array([4, 1, 2])}, r"prompt lengths must be between 1 and 3, received \[4, 1, 2\]"),
        ({"lengths": jnp.array([0, 1, 2])}, r"prompt lengths must be between 1 and 3, received \[0, 1, 2\]"),
        ({"prompts": jnp.zeros((3, 0), int)}, "prompts must hold at least one token each, received none"),
    ],
)
def test_impossible_requests_are_refused_in_one_line(changes, message):
    given = {"prompts": PROMPTS, "lengths": LENGTHS, "key": jax.random.key(0), "max_tokens": 2, **changes}
    with pytest.raises(ValueError, match=message) as error:
        sample(table_step(jnp.eye(9)), jnp.zeros(()), **given)
    assert "\n" not in str(error.value)
