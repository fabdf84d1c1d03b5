"""BLEU against one written out, and what chance makes of it against what it must be."""

import math
from collections import Counter

import numpy as np
import pytest

from lmlab.evaluation import bleu

ANSWERS = ["the cat sat on the mat today", "a dog barks", "he reads a good long book", "yes"]
REFERENCES = [
    ["the cat sat on a mat today", "today the cat sat on the mat"],
    ["a dog barks loudly at night", "a dog barked", "the dog barks"],
    ["he reads a long book"],
    ["yes it is", "no"],
]


def written_out(answers, references):
    """Papineni et al. 2002 for words apart by spaces; precisions of 0 are 1 / 2, 1 / 4, ... of an n-gram."""
    matches, totals, c, r = [0] * 4, [0] * 4, 0, 0
    for answer, several in zip(answers, references, strict=True):
        words, several = answer.split(), [reference.split() for reference in several]
        c += len(words)
        r += min((abs(len(each) - len(words)), len(each)) for each in several)[1]
        for n in range(1, 5):
            grams, *there = (
                Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
                for text in [words, *several]
            )
            totals[n - 1] += sum(grams.values())
            matches[n - 1] += sum(
                min(count, max(each[gram] for each in there)) for gram, count in grams.items()
            )
    if 0 in totals or not any(matches):
        return 0.0
    share, product = 1.0, 1.0
    for match, total in zip(matches, totals, strict=True):
        share /= 1 if match else 2
        product *= (match or share) / total
    return 100 * min(1, math.exp(1 - r / c)) * product**0.25


def drawn(rng, count):
    """Sentences of a few words, so that n-grams agree by chance; 1 to 3 references each."""

    def sentence():
        return " ".join(rng.choice(list("abcd"), rng.integers(1, 9)))

    return [sentence() for _ in range(count)], [
        [sentence() for _ in range(rng.integers(1, 4))] for _ in range(count)
    ]


def test_it_is_the_one_written_out():
    score, signature = bleu.corpus_bleu(ANSWERS, REFERENCES)
    assert 0 < score < 100 and score == pytest.approx(written_out(ANSWERS, REFERENCES))
    assert signature.startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    rng = np.random.default_rng(0)
    for count in [1, 1, 1, 2, 3, 5, 50] * 5:
        answers, references = drawn(rng, count)
        expected = written_out(answers, references)
        assert bleu.corpus_bleu(answers, references)[0] == pytest.approx(expected, abs=1e-9)
        counted = bleu.statistics(answers, references)
        assert bleu.bleu(counted.sum(0)[None])[0] == pytest.approx(expected, abs=1e-9)


def test_one_reference_says_so_and_a_perfect_answer_has_100():
    score, signature = bleu.corpus_bleu(ANSWERS, [several[:1] for several in REFERENCES])
    assert signature.startswith("nrefs:1|") and score < bleu.corpus_bleu(ANSWERS, REFERENCES)[0]
    perfect = [several[-1] for several in REFERENCES]
    assert bleu.corpus_bleu(perfect, REFERENCES)[0] == pytest.approx(100)


def test_statistics_add_up_and_nothing_answered_has_0():
    counted = bleu.statistics(ANSWERS, REFERENCES)
    assert counted[1].tolist() == [3, 3, 3, 2, 1, 0, 3, 2, 1, 0]
    assert bleu.bleu(bleu.statistics(["", "x"], [["a"], ["b"]])).tolist() == [0, 0]
    assert bleu.corpus_bleu(["", ""], [["a"], ["b"]])[0] == 0


def test_resamples_are_drawings_of_sentences():
    """Of two sentences there are three drawings: both, or one of them twice, with 1/2, 1/4 and 1/4."""
    good, bad = bleu.statistics(["a b c d e", "a b c d x y"], [["a b c d e"], ["a b c d e f"]])
    scores = bleu.bleu(np.stack([2 * good, 2 * bad, good + bad]))
    assert bleu.interval(np.stack([good, bad])) == pytest.approx((scores[1], scores[0]))
    drawn = np.round(bleu.bleu(bleu._resampled(np.stack([good, bad]), 4000, 0)), 6)
    shares = [np.mean(drawn == round(score, 6)) for score in scores]
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.5], atol=0.04)


def systems(differ):
    """Two systems on 400 sentences: each breaks a tenth of its words, the first `differ` more."""
    rng = np.random.default_rng(1)
    sentences = [rng.choice(list("abcdefghij"), rng.integers(5, 15)) for _ in range(400)]

    def broken(share):
        changed = [np.where(rng.random(len(words)) < share, "x", words) for words in sentences]
        return bleu.statistics([" ".join(w) for w in changed], [[" ".join(w)] for w in sentences])

    return broken(0.1 + differ), broken(0.1)


def test_a_paired_bootstrap_tells_systems_apart():
    first, second = systems(0.1)
    found = bleu.paired_bootstrap(first, second)
    assert found.value == pytest.approx(float(np.diff(bleu.bleu(np.stack([first.sum(0), second.sum(0)])))[0]))
    assert 0 < found.low < found.value < found.high and found.p == pytest.approx(1 / 1001)
    back = bleu.paired_bootstrap(second, first)
    assert (back.value, back.low, back.high, back.p) == pytest.approx(
        (-found.value, -found.high, -found.low, found.p)
    )
    alike = bleu.paired_bootstrap(*systems(0.0))
    assert alike.low < 0 < alike.high and alike.p > 0.05
    assert bleu.paired_bootstrap(first, first) == (0, 0, 0, 1)


def test_pairing_is_what_makes_it_sharp():
    """Two systems that break the same words but one differ by far less than either varies."""
    first, second = systems(0.0)
    second = first.copy()
    worst = first[:, 2].argmax()
    second[worst, 2:6] = second[worst, 6:]
    paired = bleu.paired_bootstrap(first, second)
    low, high = bleu.interval(first)
    assert paired.high - paired.low < (high - low) / 5


def test_its_chance_is_that_of_sacrebleu():
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    rng = np.random.default_rng(2)
    sentences = [" ".join(rng.choice(list("abcdefgh"), 9)) for _ in range(100)]
    answers = [
        [" ".join(np.where(rng.random(9) < share, "x", s.split())) for s in sentences]
        for share in (0.26, 0.2)
    ]
    test = PairedTest(
        [("first", answers[0]), ("second", answers[1])],
        {"BLEU": BLEU(references=[sentences])},
        None,
        "bs",
        1000,
    )
    theirs = test()[1]["BLEU"][1]
    first, second = (bleu.statistics(each, [[s] for s in sentences]) for each in answers)
    ours = bleu.paired_bootstrap(first, second)
    assert 0.01 < theirs.p_value < 0.5 and ours.p == pytest.approx(theirs.p_value, abs=0.04)


def test_by_length_each_group_is_scored_alone():
    rng = np.random.default_rng(3)
    answers, references = drawn(rng, 60)
    lengths = rng.integers(1, 30, 60)
    table = bleu.by_length(bleu.statistics(answers, references), lengths, (0, 10, 20, 40, 50))
    assert table["above"].tolist() == [0, 10, 20] and table["to"].tolist() == [10, 20, 40]
    for i, (above, to) in enumerate(((0, 10), (10, 20), (20, 40))):
        group = [n for n in range(60) if above < lengths[n] <= to]
        assert table["sentences"][i] == len(group)
        expected = written_out([answers[n] for n in group], [references[n] for n in group])
        assert table["bleu"][i] == pytest.approx(expected) and table["low"][i] <= expected <= table["high"][i]


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="received 1 outputs and 2 lists of references, 1 of them empty"):
        bleu.corpus_bleu(["a"], [["a"], []])
    with pytest.raises(ValueError, match="received 0 outputs"):
        bleu.statistics([], [])
    counted = bleu.statistics(ANSWERS, REFERENCES)
    with pytest.raises(ValueError, match="must translate as many, received 4 and 3"):
        bleu.paired_bootstrap(counted, counted[1:])
    with pytest.raises(ValueError, match=r"at least 2 and increase, received \(0, 9, 9\)"):
        bleu.by_length(counted, np.arange(4), (0, 9, 9))
    with pytest.raises(ValueError, match="no source has more than 50 and up to 60 words"):
        bleu.by_length(counted, np.arange(4), (50, 60))
