"""N-grams against counting by hand and against NLTK, where that is installed."""

import math

import numpy as np
import pytest

from lmlab.data.lines import rows
from lmlab.models.ngram import SMOOTHINGS, NGram

V = 6


def sequences(count=40, seed=0):
    rng = np.random.default_rng(seed)
    return [np.append(rng.integers(1, V - 1, rng.integers(1, 7)), 0) for _ in range(count)]  # 5 is never seen


def test_rows_of_each_token_after_those_before_it():
    found = rows([np.array([1, 2]), np.array([3])], 2, 0)
    assert found.tolist() == [[0, 0, 1], [0, 1, 2], [0, 0, 3]]
    assert rows([np.array([4, 5])], 0, 0).tolist() == [[4], [5]]
    assert rows([], 2, 0).shape == (0, 3)


def test_bigrams_by_hand():
    text = rows([np.array([1, 1, 2, 0])], 1, 0)  # 01 11 12 20
    model = NGram(3, 2, k=0.5)
    p = model.probabilities(model.fit(text), np.array([[1, 1], [1, 2], [1, 0], [2, 0], [2, 1]]))
    np.testing.assert_allclose(p, [1.5 / 3.5, 1.5 / 3.5, 0.5 / 3.5, 1.5 / 2.5, 0.5 / 2.5])
    maximum = NGram(3, 2, k=0.0)
    p = maximum.probabilities(maximum.fit(text[:2]), np.array([[0, 1], [1, 1], [2, 0]]))
    np.testing.assert_allclose(p, [1, 1, 1 / 3], err_msg="a context never seen: all alike")


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("order", [1, 2, 4])
def test_every_history_sums_to_one(smoothing, order):
    model = NGram(V, order, smoothing)
    tables = model.fit(rows(sequences(), order - 1, 0))
    rng = np.random.default_rng(1)
    for history in rng.integers(0, V, (30, order)):
        p = model.distribution(tables, history)
        assert p.shape == (V,) and p.min() >= 0
        np.testing.assert_allclose(p.sum(), 1, rtol=1e-12)


def test_interpolation_written_out():
    order, weight = 3, 0.6
    text = rows(sequences(), order - 1, 0)
    model = NGram(V, order, "interpolated", weight=weight)
    found = model.probabilities(model.fit(text), text[:50])

    def p(row, length):
        if length < 0:
            return 1 / V
        same = [r for r in text if list(r[len(r) - 1 - length : -1]) == list(row[len(row) - 1 - length : -1])]
        if not same:
            return p(row, length - 1)
        return weight * np.mean([r[-1] == row[-1] for r in same]) + (1 - weight) * p(row, length - 1)

    np.testing.assert_allclose(found, [p(row, order - 1) for row in text[:50]])


@pytest.mark.parametrize("order", [2, 3, 4])
def test_kneser_ney_is_nltks(order):
    lm = pytest.importorskip("nltk.lm", reason="needs nltk")
    text = rows(sequences(), order - 1, 0)
    model = NGram(V, order, "kneser_ney", discount=0.7)
    other = lm.KneserNeyInterpolated(order, discount=0.7)
    grams = [tuple(map(str, row[-n:])) for row in text for n in range(1, order + 1)]
    other.fit([grams], vocabulary_text=list(map(str, range(V))))
    asked = np.concatenate([text, np.random.default_rng(2).integers(0, V - 1, (50, order))])
    expected = [other.score(str(row[-1]), list(map(str, row[:-1]))) for row in asked]
    np.testing.assert_allclose(model.probabilities(model.fit(text), asked), expected, rtol=1e-12)


def test_add_k_of_what_is_counted_is_the_likeliest():
    """No other bigram model gives its own text more."""
    text = rows(sequences(), 1, 0)
    best = NGram(V, 2, k=0.0)
    least = -np.log(best.probabilities(best.fit(text), text)).mean()
    for k in (0.01, 1.0):
        model = NGram(V, 2, k=k)
        assert -np.log(model.probabilities(model.fit(text), text)).mean() > least
    assert least < math.log(V)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"order": 0}, "order must be at least 1, received 0"),
        ({"smoothing": "turing"}, "smoothing: received 'turing'; allowed: add, interpolated, kneser_ney"),
        ({"k": -1.0}, "k must be at least 0"),
        ({"discount": 1.5}, "discount must be from 0 to 1"),
    ],
)
def test_what_cannot_be_is_told(options, told):
    with pytest.raises(ValueError, match=told):
        NGram(V, **options)


def test_wrong_rows_are_told():
    with pytest.raises(ValueError, match=r"rows must be \(N, 2\)"):
        NGram(V, 2).fit(np.zeros((3, 3), np.int32))
    with pytest.raises(ValueError, match="at least 2 tokens is needed, received 1"):
        model = NGram(V, 3)
        model.distribution(model.fit(rows(sequences(), 2, 0)), np.array([1]))
