"""What word vectors are scored by: the similarities that people gave to pairs of words, and analogies.

Case is not minded, as in word2vec's own compute-accuracy: of words that differ in it alone, the most frequent stands
for all. What is not in the vocabulary is left out, and how much was not is told.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float, Int, Num

from lmlab.data import text

BATCH = 512
"""Analogies that are looked at together."""


def fold(words: Sequence[str]) -> dict[str, int]:
    """{word in capitals: the place of the first so spelt}; `words`: the most frequent first."""
    return {word.upper(): place for place, word in reversed(list(enumerate(words)))}


def place_of(word: str, words: Sequence[str]) -> int | None:
    """The place of a word as it is spelt, or where there is none that of the first spelt so in capitals."""
    return words.index(word) if word in words else fold(words).get(word.upper())


def unit(vectors: Float[Any, "V D"]) -> Float[np.ndarray, "V D"]:
    """Each at length 1; 0 stays 0."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def spearman(first: Num[Any, "N"], second: Num[Any, "N"]) -> float:
    """Pearson's correlation of the ranks, where those that tie have the mean of theirs (Spearman 1904)."""
    ranks = [scipy.stats.rankdata(values) for values in (first, second)]
    deviations = [rank - rank.mean() for rank in ranks]
    below = np.sqrt(np.prod([deviation @ deviation for deviation in deviations]))
    return float(deviations[0] @ deviations[1] / below) if below else 0.0


def analogies(
    vectors: Float[Any, "V D"], questions: Int[np.ndarray, "N 3"], allowed: Int[np.ndarray, "_"]
) -> Int[np.ndarray, "N"]:
    """argmax_d cos(d, b - a + c) over allowed words d that are none of a, b, c (3CosAdd; Mikolov et al. 2013c)."""
    vectors = unit(vectors)
    candidates, answers = vectors[allowed], []
    places = np.full(len(vectors), -1)
    places[allowed] = np.arange(len(allowed))
    for start in range(0, len(questions), BATCH):
        chosen = questions[start : start + BATCH]
        a, b, c = (vectors[column] for column in chosen.T)
        scores = (b - a + c) @ candidates.T
        rows, excluded = np.repeat(np.arange(len(chosen)), 3), places[chosen].ravel()
        scores[rows[excluded >= 0], excluded[excluded >= 0]] = -np.inf
        answers.append(allowed[scores.argmax(1)])
    return np.concatenate(answers) if answers else np.zeros(0, int)


def nearest(
    vectors: Float[Any, "V D"], word: int, count: int, farthest: bool = False
) -> tuple[Int[np.ndarray, "_"], Float[np.ndarray, "_"]]:
    """(the `count` words whose cosine with `word` is highest, or lowest, but itself; the cosines)."""
    vectors = unit(vectors)
    cosines = vectors @ vectors[word]
    order = np.argsort(cosines if farthest else -cosines, kind="stable")
    order = order[order != word][:count]
    return order, cosines[order]


@dataclasses.dataclass
class Similarity:
    """Spearman's correlation of cosines with what people said, over the pairs that are known.

    path: lines of WORD, WORD and a number, apart by tabs or spaces, such as WordSim-353 (Finkelstein et al. 2002).
    words: of the rows of `vectors(variables)`, the most frequent first. Scalars: spearman; pairs, how many are known.
    """

    path: str
    words: Sequence[str]
    vectors: Callable[[dict[str, Any]], Any]
    held_out: bool = True

    def __call__(self, variables, key) -> tuple[dict[str, float], dict[str, Any]]:
        pairs, given = self.known
        vectors = unit(self.vectors(variables))
        cosines = (vectors[pairs[:, 0]] * vectors[pairs[:, 1]]).sum(1)
        scalars = {"spearman": spearman(cosines, given), "pairs": float(len(pairs))}
        return scalars, {"pairs": pairs, "given": given, "cosines": cosines}

    @functools.cached_property
    def known(self) -> tuple[np.ndarray, np.ndarray]:
        places, pairs, given = fold(self.words), [], []
        lines = [line.split() for line in text.read(self.path).splitlines() if line.strip()]
        for number, line in enumerate(lines, 1):
            try:
                first, second, score = line[0], line[1], float(line[2])
            except (IndexError, ValueError):
                raise ValueError(
                    f"{self.path!r}, line {number}: received {' '.join(line)!r}; allowed: two words and a number"
                ) from None
            found = places.get(first.upper()), places.get(second.upper())
            if None not in found:
                pairs.append(found)
                given.append(score)
        if len(pairs) < 2:
            raise ValueError(
                f"{len(pairs)} of the {len(lines)} pairs of {self.path!r} are in the vocabulary; 2 are needed"
            )
        return np.array(pairs), np.array(given)


@dataclasses.dataclass
class Analogies:
    """How many questions "a is to b as c is to ?" are answered, of those whose four words are known.

    path: lines of four words, in groups that begin with a line ": name" (Mikolov et al. 2013a; its groups "gram..." are
    syntactic, the others semantic). Scalars: accuracy, semantic and syntactic; questions, how many are known.
    """

    path: str
    words: Sequence[str]
    vectors: Callable[[dict[str, Any]], Any]
    held_out: bool = True

    def __call__(self, variables, key) -> tuple[dict[str, float], dict[str, Any]]:
        questions, group, names = self.known
        allowed = np.array(sorted(fold(self.words).values()))
        vectors = np.asarray(self.vectors(variables))
        right = analogies(vectors, questions[:, :3], allowed) == questions[:, 3]
        scalars = {"accuracy": right.mean(), "questions": float(len(questions))}
        syntactic = np.array([name.startswith("gram") for name in names])[group]
        for name, part in (("semantic", ~syntactic), ("syntactic", syntactic)):
            if part.any():
                scalars[name] = right[part].mean()
        asked, answered = (np.bincount(group, each, len(names)) for each in (None, right))
        return scalars, {"group": np.array(names), "asked": asked, "right": answered.astype(int)}

    @functools.cached_property
    def known(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        places, questions, groups, names = fold(self.words), [], [], []
        for number, line in enumerate(text.read(self.path).splitlines(), 1):
            if line.startswith(":"):
                names.append(line[1:].strip())
            elif words := line.split():
                if len(words) != 4:
                    raise ValueError(f"{self.path!r}, line {number}: received {line!r}; allowed: four words")
                names = names or [""]
                found = [places.get(word.upper()) for word in words]
                if None not in found:
                    questions.append(found)
                    groups.append(len(names) - 1)
        if not questions:
            raise ValueError(f"no question of {self.path!r} has all its words in the vocabulary")
        return np.array(questions), np.array(groups), names
