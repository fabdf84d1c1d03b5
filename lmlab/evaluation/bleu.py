"""BLEU of a corpus (Papineni et al. 2002) as sacreBLEU counts it (Post 2018), with what chance makes of it.

BLEU = exp(min(0, 1 - r / c) + mean over n = 1..4 of log(m_n / t_n)) in percent: c words were answered, r are in the
references, each sentence's nearest in length; of t_n n-grams m_n are in a reference of their sentence, as often at
most as there. The first m_n of 0 counts as 1/2, the second as 1/4, and so on ("exp" smoothing). All are sums over
sentences, so that any choice of sentences is scored from the statistics of each.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Difference(NamedTuple):
    """BLEU of the second system less that of the first, 95 % of its resamples, and p of no difference."""

    value: float
    low: float
    high: float
    p: float


def corpus_bleu(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """(BLEU, sacreBLEU's signature) of an output for each source, which has one reference or several."""
    from sacrebleu.metrics import BLEU

    _check(outputs, references)
    metric, most = BLEU(force=True), max(map(len, references))
    filled = [[*each, *[None] * (most - len(each))] for each in references]
    score = metric.corpus_score(list(outputs), list(zip(*filled, strict=True))).score
    return float(score), str(metric.get_signature())


def statistics(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Int[np.ndarray, "N 10"]:
    """(c, r, m_1, ..., m_4, t_1, ..., t_4) of each sentence."""
    from sacrebleu.metrics import BLEU

    _check(outputs, references)
    metric = BLEU(force=True, effective_order=True)  # which changes sentences' scores, not their counts
    scores = [metric.sentence_score(*both) for both in zip(outputs, map(list, references), strict=True)]
    return np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores])


def bleu(statistics: Int[np.ndarray, "N 10"]) -> Float[np.ndarray, "N"]:
    """BLEU of each row, the sum of the statistics of some sentences; 0 where no n-gram of some n was answered."""
    c, r = statistics[:, 0], statistics[:, 1]
    matches, total = np.split(statistics[:, 2:], 2, axis=1)
    halved = np.cumsum(matches == 0, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.where(matches > 0, matches, 0.5**halved) / total)
        score = 100 * np.exp(np.minimum(0, 1 - r / c) + logs.mean(1))
    return np.where((matches > 0).any(1) & (total > 0).all(1), score, 0.0)


def interval(statistics: Int[np.ndarray, "N 10"], draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % of the BLEUs of as many sentences, drawn with replacement."""
    low, high = np.quantile(bleu(_resampled(statistics, draws, seed)), [0.025, 0.975])
    return float(low), float(high)


def paired_bootstrap(
    first: Int[np.ndarray, "N 10"], second: Int[np.ndarray, "M 10"], draws: int = 1000, seed: int = 0
) -> Difference:
    """How much higher the second system's BLEU is, by draws of sentences that both translated (Koehn 2004).

    p: how often a difference, less the mean of all, is as far from 0 as what was found (Riezler and Maxwell 2005), the
    one that was found counted with them.
    """
    if first.shape != second.shape:
        raise ValueError(f"both systems must translate as many, received {len(first)} and {len(second)}")
    found = float((bleu(second.sum(0)[None]) - bleu(first.sum(0)[None]))[0])
    drawn = [bleu(_resampled(each, draws, seed)) for each in (first, second)]
    differences = drawn[1] - drawn[0]
    low, high = np.quantile(differences, [0.025, 0.975])
    farther = np.abs(differences - differences.mean()) >= abs(found)
    return Difference(found, float(low), float(high), float((farther.sum() + 1) / (draws + 1)))


def by_length(
    statistics: Int[np.ndarray, "N 10"],
    lengths: Int[np.ndarray, "N"],
    edges: Sequence[int],
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """BLEU of the sources with more than edges[i] and up to edges[i + 1] words, where there are any.

    Of each such group: above, to (its edges), sentences (how many), bleu, low and high (`interval`).
    """
    if len(edges) < 2 or (np.diff(edges) <= 0).any():
        raise ValueError(f"edges must be at least 2 and increase, received {tuple(edges)}")
    rows = []
    for above, to in itertools.pairwise(edges):
        group = statistics[(lengths > above) & (lengths <= to)]
        if len(group):
            score = bleu(group.sum(0)[None])[0]
            rows.append((above, to, len(group), score, *interval(group, draws, seed)))
    if not rows:
        raise ValueError(f"no source has more than {edges[0]} and up to {edges[-1]} words")
    names = ("above", "to", "sentences", "bleu", "low", "high")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _resampled(statistics, draws: int, seed: int):
    """Sums over as many sentences, drawn with replacement; the same sentences for the same seed."""
    draw, count = np.random.default_rng(seed), len(statistics)
    return np.stack([statistics[draw.integers(count, size=count)].sum(0) for _ in range(draws)])


def _check(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not outputs or len(outputs) != len(references) or not all(references):
        raise ValueError(
            f"BLEU needs an output and at least one reference a sentence; received {len(outputs)} outputs and"
            f" {len(references)} lists of references, {sum(not each for each in references)} of them empty"
        )
