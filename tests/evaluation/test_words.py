"""Rank correlation against SciPy, analogies of vectors made by hand, and what is left out."""

import gzip

import numpy as np
import pytest
from scipy import stats

from lmlab.evaluation.words import Analogies, Similarity, analogies, fold, nearest, spearman, unit

WORDS = ("king", "man", "woman", "queen", "Apple", "apple", "pear")
VECTORS = np.array(
    [[1, 1, 0], [0, 1, 0], [0, 1, 1], [1, 1, 1], [1, -1, 0], [1, -1, 1], [1, -2, 0]], np.float32
)


def vectors(variables):
    return variables["params"]


def scored(kind, path, words=WORDS):
    return kind(str(path), words, vectors)({"params": VECTORS[: len(words)]}, None)


def test_spearman_is_scipys_ties_and_all():
    rng = np.random.default_rng(0)
    for _ in range(5):
        first, second = rng.integers(0, 6, 30), rng.normal(size=30)
        np.testing.assert_allclose(spearman(first, second), stats.spearmanr(first, second)[0])
    assert spearman(np.ones(4), np.arange(4.0)) == 0.0


def test_of_words_that_differ_in_case_the_first_stands_for_all():
    assert fold(WORDS)["APPLE"] == 4 and len(fold(WORDS)) == 6


def test_similarity_leaves_out_pairs_that_are_not_known(tmp_path):
    (tmp_path / "pairs.txt").write_text("King\tQUEEN\t9\nman woman 8\nking pear 1\nking zebra 5\n\n")
    scalars, arrays = scored(Similarity, tmp_path / "pairs.txt")
    v = unit(VECTORS)
    cosines = [v[0] @ v[3], v[1] @ v[2], v[0] @ v[6]]
    assert scalars == {"spearman": pytest.approx(stats.spearmanr(cosines, [9, 8, 1])[0]), "pairs": 3.0}
    np.testing.assert_allclose(arrays["cosines"], cosines, rtol=1e-6)


def test_analogies_by_hand(tmp_path):
    """queen is nearest to woman - man + king but for king; the words asked for are never the answer."""
    questions = (
        ": family\nman king woman queen\nman woman king queen\nman man king king\nman king woman emperor\n"
    )
    (tmp_path / "questions.txt").write_text(questions + ": gram1-fruit\nking man apple pear\n")
    scalars, arrays = scored(Analogies, tmp_path / "questions.txt")
    assert scalars["questions"] == 4 and scalars["semantic"] == pytest.approx(2 / 3)
    assert arrays["asked"].tolist() == [3, 1] and arrays["right"][0] == 2
    assert scalars["accuracy"] == pytest.approx((2 + arrays["right"][1]) / 4)
    assert scalars["syntactic"] == arrays["right"][1]


def test_analogies_are_the_argmax_written_out():
    rng = np.random.default_rng(1)
    table, questions = rng.normal(size=(30, 5)), rng.integers(0, 30, (700, 3))
    allowed = np.arange(3, 30)
    found = analogies(table, questions, allowed)
    v = table / np.linalg.norm(table, axis=1, keepdims=True)
    for row, answer in list(zip(questions, found, strict=True))[::37]:
        a, b, c = row
        target = v[b] - v[a] + v[c]
        best = max((d for d in allowed if d not in row), key=lambda d: v[d] @ target)
        assert answer == best


def test_nearest_and_farthest():
    order, cosines = nearest(VECTORS, 1, 2)
    assert order.tolist() == [0, 2] and cosines == pytest.approx([2**-0.5] * 2)
    assert nearest(VECTORS, 1, 1, farthest=True)[0].tolist() == [6]


def test_mistakes_are_one_line(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("king queen 3\nking queen\n")
    with pytest.raises(ValueError, match="line 2: received 'king queen'; allowed: two words and a number"):
        scored(Similarity, path)
    path.write_text("king queen 3\nking zebra 4\n")
    with pytest.raises(ValueError, match=r"1 of the 2 pairs of .* are in the vocabulary; 2 are needed"):
        scored(Similarity, path)
    path.write_text(": a\nking queen man\n")
    with pytest.raises(ValueError, match="line 2: received 'king queen man'; allowed: four words"):
        scored(Analogies, path)
    path.write_text(": a\na b c d\n")
    with pytest.raises(ValueError, match=r"no question of .* has all its words"):
        scored(Analogies, path)
    path.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        scored(Similarity, path)


def test_the_real_files(data_folder):
    """All pairs and questions are read when all their words are known."""
    pairs = [line.split()[:2] for line in (data_folder / "words/wordsim353.txt").read_text().splitlines()]
    with gzip.open(data_folder / "words/questions-words.txt.gz", "rt") as file:
        asked = [line.split() for line in file if not line.startswith(":")]
    words = sorted({word for line in (*pairs, *asked) for word in line})
    table = np.random.default_rng(0).normal(size=(len(words), 8))
    for kind, path, name, count in (
        (Similarity, "words/wordsim353.txt", "pairs", 353),
        (Analogies, "words/questions-words.txt.gz", "questions", 19_544),
    ):
        scalars, _ = kind(str(data_folder / path), words, vectors)({"params": table}, None)
        assert scalars[name] == count
