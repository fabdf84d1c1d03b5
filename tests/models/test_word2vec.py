"""Negative sampling against sums written out, its draws against distributions, its windows against a plain list."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from lmlab.experiment import Experiment
from lmlab.models.word2vec import Near, Word2Vec, keep_probability, nearby, negative_table
from lmlab.training.state import State
from lmlab.training.step import make_step

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

END, V, D = 1, 12, 4
RNG = np.random.default_rng(0)
COUNTS = np.array([0, 0, *RNG.integers(5, 50, V - 2)])
TOKENS = RNG.integers(1, V, (3, 21)).astype(np.int32)


def made(architecture="skipgram", **options):
    task = Near(
        Word2Vec(V, D),
        COUNTS,
        END,
        architecture,
        **{"window": 3, "negatives": 4, "drawn": 5, "sample": 0.02} | options,
    )
    params = nn.unbox(task.init(jax.random.key(0), {"tokens": jnp.asarray(TOKENS)})[0])
    return task, jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape), jnp.float32), params)


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


@pytest.mark.parametrize("architecture", ["cbow", "skipgram"])
def test_the_loss_is_the_sum_written_out(architecture):
    task, params = made(architecture)
    words, key = TOKENS[:, :-1], jax.random.key(3)
    near, negatives = jax.device_get(jax.jit(task.draw)(jnp.asarray(words), key))
    v, u = (np.asarray(params[name]["embedding"], np.float64) for name in ("input", "output"))
    total, pairs = 0.0, 0
    for row, of_row, drawn in zip(words, near, negatives, strict=True):
        for i, word in enumerate(row):
            around = [other for other, is_near in zip(row, of_row[i], strict=True) if is_near]
            if architecture == "skipgram":
                cases = [(v[word], other) for other in around]
            else:
                cases = [(np.mean([v[other] for other in around], 0), word)] if around else []
            for of_input, predicted in cases:
                total -= log_sigmoid(u[predicted] @ of_input)
                total -= 4 * np.mean([log_sigmoid(-u[n] @ of_input) for n in drawn])
            pairs += len(cases)
    mean, metrics, _ = jax.jit(task.loss, static_argnums=4)(
        params, {}, {"tokens": jnp.asarray(TOKENS)}, key, True
    )
    assert pairs > 20
    np.testing.assert_allclose(mean.total, total, rtol=1e-5)
    assert mean.count == words.size and metrics["loss"].count == pairs
    np.testing.assert_allclose(metrics["loss"].value, total / pairs, rtol=1e-5)


@pytest.mark.parametrize("whole", [True, False])
def test_of_a_mean_each_vector_moves_by_the_whole_error_or_by_its_share(whole):
    task, params = made("cbow", whole=whole)
    words, key = TOKENS[:, :-1], jax.random.key(3)
    near, negatives = jax.device_get(jax.jit(task.draw)(jnp.asarray(words), key))
    v, u = (np.asarray(params[name]["embedding"], np.float64) for name in ("input", "output"))
    expected = np.zeros_like(v)
    for row, of_row, drawn in zip(words, near, negatives, strict=True):
        for i, word in enumerate(row):
            around = row[of_row[i]]
            if len(around):
                mean = v[around].mean(0)
                error = -u[word] / (1 + np.exp(u[word] @ mean))
                error += 4 * np.mean([u[n] / (1 + np.exp(-u[n] @ mean)) for n in drawn], 0)
                np.add.at(expected, around, error if whole else error / len(around))
    gradient = jax.grad(lambda p: task.loss(p, {}, {"tokens": jnp.asarray(TOKENS)}, key, True)[0].total)(
        params
    )
    np.testing.assert_allclose(gradient["input"]["embedding"], expected, rtol=1e-4, atol=1e-5)


def test_windows_are_those_of_a_plain_list():
    """Words passed over are taken out first, then each looks `reach` to both sides, not beyond an end of line."""
    words = RNG.integers(1, V, 40)
    kept = (RNG.random(40) < 0.7) & (words != END)
    reach, line = RNG.integers(1, 4, 40), np.cumsum(words == END)
    expected = np.zeros((40, 40), bool)
    for number in set(line):
        left = [i for i in range(40) if line[i] == number and kept[i]]
        for place, i in enumerate(left):
            for other in range(max(0, place - reach[i]), min(len(left), place + reach[i] + 1)):
                expected[i, left[other]] = other != place
    found = jax.jit(nearby)(*(jnp.asarray(array)[None] for array in (kept, line, reach)))[0]
    np.testing.assert_array_equal(found, expected)
    assert expected.any(1).sum() > 10


def test_negatives_come_as_counts_to_three_quarters():
    task, _ = made(drawn=4000)
    _, negatives = jax.jit(task.draw)(jnp.asarray(TOKENS[:, :-1]), jax.random.key(0))
    seen = np.bincount(np.asarray(negatives).ravel(), minlength=V)
    share = COUNTS**0.75 / (COUNTS**0.75).sum()
    assert seen[:2].tolist() == [0, 0], "specials are never drawn"
    assert stats.chisquare(seen[2:], share[2:] * seen.sum()).pvalue > 1e-3
    assert stats.chisquare(seen[2:], (COUNTS / COUNTS.sum())[2:] * seen.sum()).pvalue < 1e-3


def test_a_rare_word_of_a_large_vocabulary_has_its_share():
    counts = np.full(70_000, 5)
    counts[0] = 10_000_000
    steps = np.diff(negative_table(counts).astype(np.float64)) / 2.0**32
    share = 5**0.75 / (counts**0.75).sum()
    np.testing.assert_allclose(steps[:-1], share, rtol=1e-3)


def test_frequent_words_are_passed_over_as_often_as_in_word2vec():
    counts = np.array([0, 0, 500_000, 499_000, 1000])
    p = keep_probability(counts, 1e-3)
    f = counts[2] / counts.sum()
    np.testing.assert_allclose(p[2], (np.sqrt(f / 1e-3) + 1) * 1e-3 / f, rtol=1e-6)  # as its code has it
    assert p[4] == 1 and (keep_probability(counts, 0.0) == 1).all()
    task = Near(Word2Vec(5), counts, END, window=1, sample=1e-3)
    near, _ = jax.jit(task.draw)(jnp.full((50, 200), 2, jnp.int32), jax.random.key(0))
    kept = np.asarray(near).any(2).mean()
    assert abs(kept - p[2]) < 4 * np.sqrt(p[2] / 10_000)


def test_the_gradient_touches_the_rows_of_the_batch_alone():
    task, params = made(sample=0.0)
    tokens, key = jnp.full((1, 6), 3, jnp.int32).at[0, 2].set(5), jax.random.key(1)
    _, negatives = jax.jit(task.draw)(tokens[:, :-1], key)
    gradient = jax.jit(jax.grad(lambda p: task.loss(p, {}, {"tokens": tokens}, key, True)[0].total))(params)
    moved = {
        name: set(np.flatnonzero(np.abs(g["embedding"]).sum(1)).tolist()) for name, g in gradient.items()
    }
    assert moved == {"input": {3, 5}, "output": {3, 5} | set(np.asarray(negatives).ravel().tolist())}


def test_the_step_of_rows_is_the_step_of_tables():
    """What moves the rows alone comes to what plain gradient descent on the whole tables does, step by step."""
    task, params = made()
    optimizer, batch, ends = optax.sgd(0.5), {"tokens": jnp.asarray(TOKENS)}, []
    for step in (None, task.step):
        experiment = Experiment(task=task, optimizer=lambda clock: optimizer, step=step)
        state = State(jnp.int32(0), params, optimizer.init(params), {})
        run = jax.jit(make_step(experiment, optimizer, jax.random.key(5)))
        for _ in range(5):
            state, metrics = run(state, batch)
        ends.append((state.params, metrics["loss"].value))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *ends)
    changed = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), ends[0][0], params)
    assert min(jax.tree.leaves(changed)) > 0.01


@pytest.mark.slow
def test_it_learns_which_words_stand_near_each_other():
    """Words of two themes, which never meet in a line: the nearest of each is of its theme."""
    themes = [np.arange(2, 7), np.arange(7, 12)]
    text = np.concatenate([[*RNG.choice(themes[i % 2], 8), END] for i in range(200)])
    tokens = jnp.asarray(text[:1792].reshape(-1, 64), jnp.int32)
    counts = np.bincount(text, minlength=V)
    counts[END] = 0
    adam = optax.adam(0.05)
    for architecture in ("cbow", "skipgram"):
        task = Near(Word2Vec(V, 8), counts, END, architecture, window=3, sample=0.0)
        params = nn.unbox(task.init(jax.random.key(0), {"tokens": tokens})[0])

        @jax.jit
        def trained(params, keys, task=task):
            def step(both, key):
                loss = lambda p: task.loss(p, {}, {"tokens": tokens}, key, True)[0].value  # noqa: E731
                changes, state = adam.update(jax.grad(loss)(both[0]), both[1])
                return (optax.apply_updates(both[0], changes), state), None

            return jax.lax.scan(step, (params, adam.init(params)), keys)[0][0]

        params = trained(params, jax.random.split(jax.random.key(1), 100))
        v = np.asarray(params["input"]["embedding"])[2:]
        v = v / np.linalg.norm(v, axis=1, keepdims=True)
        cosines = v @ v.T - 2 * np.eye(10)
        assert (cosines.argmax(1) // 5 == np.arange(10) // 5).all(), architecture


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="d_model must be at least 1, received 0"):
        Word2Vec(V, 0)
    for name in ("window", "negatives", "drawn"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, received 0"):
            Near(Word2Vec(V), COUNTS, END, **{name: 0})
    with pytest.raises(ValueError, match="sample must be at least 0"):
        Near(Word2Vec(V), COUNTS, END, sample=-1.0)
    with pytest.raises(ValueError, match="architecture: received 'glove'; allowed: cbow, skipgram"):
        Near(Word2Vec(V), COUNTS, END, "glove")
