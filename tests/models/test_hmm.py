"""Hidden Markov models against sums over all paths, and against hmmlearn, where that is installed."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.evaluation.likelihood import Likelihood
from lmlab.models.hmm import HMM, backward, forward, posterior, viterbi

K, V, T = 3, 4, 5
MODEL = HMM(K, V)
TOKENS = np.random.default_rng(0).integers(0, V, (6, T)).astype(np.int32)
IDS = jnp.asarray(TOKENS)


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(1))


def joint(params, tokens):
    """{path: P(path, tokens)}, written out."""
    params, found = jax.device_get(params), {}
    for path in itertools.product(range(K), repeat=len(tokens)):
        p = params["start"][path[0]]
        for a, b in itertools.pairwise(path):
            p = p * params["transition"][a, b]
        found[path] = p * math.prod(params["emission"][s, o] for s, o in zip(path, tokens, strict=True))
    return found


def test_rows_sum_to_one(params):
    for rows in params.values():
        np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-5)


def test_forward_is_the_sum_over_all_paths(params):
    _, scale = forward(params, IDS)
    expected = [sum(joint(params, tokens).values()) for tokens in TOKENS]
    np.testing.assert_allclose(np.prod(scale, 1), expected, rtol=1e-5)


def test_forward_and_backward_are_posteriors(params):
    alpha, scale = forward(params, IDS)
    beta = backward(params, IDS, scale)
    gamma = posterior(params, IDS)
    paths = joint(params, TOKENS[0])
    for t, state in itertools.product(range(T), range(K)):
        through = sum(p for path, p in paths.items() if path[t] == state)
        np.testing.assert_allclose(gamma[0, t, state], through / sum(paths.values()), rtol=1e-4)
        until = joint(params, TOKENS[0][: t + 1])
        share = sum(p for path, p in until.items() if path[t] == state) / sum(until.values())
        np.testing.assert_allclose(alpha[0, t, state], share, rtol=1e-4)
    np.testing.assert_allclose((alpha * beta).sum(-1), 1, rtol=1e-4)


def test_viterbi_is_the_best_of_all_paths(params):
    for tokens in TOKENS:
        paths = joint(params, tokens)
        path, log_p = viterbi(params, jnp.asarray(tokens))
        best = max(paths, key=paths.get)
        assert tuple(path.tolist()) == best
        np.testing.assert_allclose(log_p, math.log(paths[best]), rtol=1e-5)


def test_a_step_of_em_is_the_shares_of_expected_counts(params):
    new = MODEL.fit(TOKENS, jax.random.key(0), 1, params=params, block=4)  # two blocks, one of them padded
    counts = {name: np.zeros(rows.shape) for name, rows in params.items()}
    for tokens in TOKENS:
        paths = joint(params, tokens)
        for path, p in paths.items():
            share = p / sum(paths.values())
            counts["start"][path[0]] += share
            for a, b in itertools.pairwise(path):
                counts["transition"][a, b] += share
            for state, symbol in zip(path, tokens, strict=True):
                counts["emission"][state, symbol] += share
    for name, rows in counts.items():
        np.testing.assert_allclose(new[name], rows / rows.sum(-1, keepdims=True), rtol=1e-4)


def test_em_never_makes_the_data_less_likely():
    with jax.enable_x64(True):
        fitted = MODEL.fit(np.tile(TOKENS, (4, 1)), jax.random.key(2), 60)
        rise = np.diff(np.asarray(fitted["log_likelihood"]))
    assert rise.min() >= -1e-14 and rise.sum() > 0.1


def test_likelihood_and_em_are_hmmlearns(params):
    hmmlearn = pytest.importorskip("hmmlearn.hmm", reason="needs hmmlearn")
    other = hmmlearn.CategoricalHMM(K, n_features=V, init_params="", n_iter=5, tol=-np.inf)
    names = {"start": "startprob_", "transition": "transmat_", "emission": "emissionprob_"}
    for name, theirs in names.items():
        rows = np.asarray(params[name], np.float64)
        setattr(other, theirs, rows / rows.sum(-1, keepdims=True))
    lengths, column = [T] * len(TOKENS), TOKENS.reshape(-1, 1)
    with jax.enable_x64(True):
        begun = {name: jnp.asarray(getattr(other, theirs)) for name, theirs in names.items()}
        ours = jax.device_get(MODEL.fit(TOKENS, jax.random.key(0), 5, params=begun))
        path, log_p = viterbi(begun, IDS[0])
    log_likelihood = ours["log_likelihood"] * TOKENS.size
    np.testing.assert_allclose(log_likelihood[0], other.score(column, lengths))
    expected_log_p, expected_path = other.decode(TOKENS[:1].T)
    assert path.tolist() == expected_path.tolist()
    np.testing.assert_allclose(log_p, expected_log_p)
    other.fit(column, lengths)
    np.testing.assert_allclose(list(other.monitor_.history), log_likelihood[:5])
    for name, theirs in names.items():
        np.testing.assert_allclose(ours[name], getattr(other, theirs), rtol=1e-9, atol=1e-12)


def test_as_a_language_model_it_is_scored_and_stepped_alike(params):
    """The loss of the symbols after the first, masked as padding is; and the sampler's step gives the same."""
    mask = np.ones((6, T - 1), bool)
    mask[-1, 2:] = False
    scores, _ = Likelihood(MODEL, lambda: {"tokens": TOKENS, "mask": mask}, 4)({"params": params}, None)
    log_p, cache = [], MODEL.start(6)
    for t in range(T - 1):
        logits, cache = MODEL.step({"params": params}, cache, jnp.asarray(TOKENS[:, t]))
        np.testing.assert_allclose(np.exp(logits).sum(-1), 1, rtol=1e-5)
        log_p.append(np.asarray(logits)[np.arange(6), TOKENS[:, t + 1]])
    np.testing.assert_allclose(scores["loss"], -np.stack(log_p, 1)[mask].mean(), rtol=1e-5)


def test_what_was_never_seen_is_impossible_unless_smoothed():
    seen = TOKENS % (V - 1)
    for smoothing, finite in ((0.0, False), (1e-3, True)):
        fitted = MODEL.fit(seen, jax.random.key(0), 3, smoothing)
        _, scale = forward(fitted, jnp.array([[0, V - 1, 0]]))
        assert bool((scale > 0).all()) == finite and not np.isnan(scale).any()


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="states must be at least 1, received 0"):
        HMM(0, 5)
    with pytest.raises(ValueError, match="iterations must be at least 0"):
        MODEL.fit(TOKENS, jax.random.key(0), -1)
    with pytest.raises(ValueError, match=r"T at least 2; received \(6, 1\)"):
        MODEL.fit(TOKENS[:, :1], jax.random.key(0), 1)
