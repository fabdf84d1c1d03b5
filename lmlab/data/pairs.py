"""Sentences and their translations: read, normalized, in parts that share no sentence, as ids.

Many sentences have several translations, and those have several again. Were pairs, or sources, split at random, much
of the test would stand in the training data; so all that hangs together goes to one part (`components`).
"""

import bisect
import functools
import itertools
import random
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lmlab.data import locate, text, written
from lmlab.data.tokenizers import BPETokenizer, Tokenizer, padded, special, tokenizer_from_json
from lmlab.experiment import Assets

PARTS = ("train", "validation", "test")
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")
JOINED, LONGEST = 5, 60
"""The most pairs that are joined into one, and the most words that either side of it then has."""
NEAR = 0.6
"""The Jaccard index from which sentences are near: four words of which one is another."""
PLAIN = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "„": '"', "…": "...", "\u200b": None, "\u00ad": None}
)

Pair = tuple[str, str]


class Dropped(NamedTuple):
    """How many lines were dropped for one reason, and the number of the first of them."""

    lines: int
    first: int


class Pairs:
    """Pairs of a source and a target, in parts, under tokenizers that the run keeps.

    path: a file of columns with tabs between them, or two parallel files joined by comma, plain or .gz; "": the dates
    and numbers of `written.pairs`, French first. columns: which column, or file, is the source and which the target,
    from 0. Both sides are normalized (`normalize`; lower: in lower case). Dropped and counted are lines with "too few
    tabs", "empty" on a side, "too long" (more than `max_words` words on a side; 0: any number) or "repeated".

    fractions: of the pairs, for train, validation and test; components are shuffled by `split_seed`, and those with
    more pairs than a tenth of the smaller part held out go to train. A run keeps the sha256 of its split in text.json
    and the counts in pairs.json, and refuses to go on with another split. join: how many examples of 2 to 5 joined
    pairs, up to 60 words, train has besides. The tokenizers are byte-level BPE of `vocab_size`, learnt from train; one
    for both sides where `shared`.
    """

    def __init__(
        self,
        path: str,
        assets: Assets,
        columns: Sequence[int] = (0, 1),
        max_words: int = 0,
        lower: bool = False,
        fractions: Sequence[float] = (0.9, 0.05, 0.05),
        split_seed: int = 0,
        join: int = 0,
        vocab_size: int = 4000,
        shared: bool = True,
    ):
        if len(columns) != 2 or min(columns) < 0 or columns[0] == columns[1]:
            raise ValueError(f"columns must be two that differ, counted from 0; received {tuple(columns)}")
        if max_words < 0 or join < 0:
            raise ValueError(f"max_words and join must be at least 0, received {max_words} and {join}")
        if len(fractions) != len(PARTS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
            raise ValueError(f"fractions must be 3, at least 0, that sum to 1; received {tuple(fractions)}")
        self.path, self.assets, self.columns = path, assets, tuple(columns)
        self.max_words, self.lower, self.join = max_words, lower, join
        self.fractions, self.split_seed = tuple(fractions), split_seed
        self.vocab_size, self.shared = vocab_size, shared

    # -- what the file has ---------------------------------------------------------------------------

    @property
    def pairs(self) -> list[Pair]:
        """Those that were kept, in the order of the file."""
        return self._read[0]

    @property
    def dropped(self) -> dict[str, Dropped]:
        """By reason."""
        return self._read[1]

    @property
    def report(self) -> str:
        """What was kept and what was not, in a line."""
        count = len(self.pairs) + sum(lines for lines, _ in self.dropped.values())
        return f"{len(self.pairs):,} pairs of {count:,} lines; dropped: {_told(self.dropped)}"

    @functools.cached_property
    def _read(self) -> tuple[list[Pair], dict[str, Dropped]]:
        kept, dropped = {}, {}
        for number, fields in enumerate(self._lines(), 1):
            pair, reason = self._pair(fields)
            reason = reason or ("repeated" if pair in kept else "")
            if reason:
                lines, first = dropped.get(reason, (0, number))
                dropped[reason] = Dropped(lines + 1, first)
            else:
                kept[pair] = None
        if not kept:
            raise ValueError(f"{self.path!r} has no pair that can be used; dropped: {_told(dropped)}")
        return list(kept), dropped

    def _pair(self, fields: Sequence[str]) -> tuple[Pair, str]:
        """(the normalized pair of a line, why it cannot be used or "")."""
        if len(fields) <= max(self.columns):
            return ("", ""), "too few tabs" if any(map(str.strip, fields)) else "empty"
        source, target = (normalize(fields[column], self.lower) for column in self.columns)
        if not (source and target):
            return ("", ""), "empty"
        long = self.max_words and _words(source, target) > self.max_words
        return (source, target), "too long" if long else ""

    def _lines(self) -> Sequence[Sequence[str]]:
        """The columns of each line."""
        files = locate.text_files(self.path) if self.path else []
        if len(files) == 1:
            return [line.split("\t") for line in _lines_of(files[0])]
        if max(self.columns) > 1:
            raise ValueError(f"columns must be (0, 1) or (1, 0) of two files, received {self.columns}")
        if not files:
            return written.pairs()
        if len(files) > 2:
            raise ValueError(
                f"{self.path!r} names {len(files)} files; allowed: one of columns, or two parallel ones"
            )
        sides = [_lines_of(file) for file in files]
        if len(sides[0]) != len(sides[1]):
            told = " and ".join(f"{len(s):,} lines ({str(f)!r})" for s, f in zip(sides, files, strict=True))
            raise ValueError(f"parallel files must have as many lines, received {told}")
        return list(zip(*sides, strict=True))

    # -- parts ---------------------------------------------------------------------------------------

    @functools.cached_property
    def parts(self) -> dict[str, list[Pair]]:
        """The pairs of each part, in the order of the file, joined ones not among them."""
        component = components(self.pairs)
        size = np.bincount(component)
        held = [fraction * len(component) for fraction in self.fractions[1:]]
        order = np.array(random.Random(self.split_seed).sample(range(len(size)), len(size)))
        order = order[size[order] <= max(1, min(filter(None, held), default=0) / 10)]
        part = np.zeros(len(size), int)
        part[order] = 1 + np.searchsorted(np.cumsum(held), np.cumsum(size[order]) - 1e-6)
        part = part[component] % len(PARTS)  # past both that are held out: train
        parts = {name: [self.pairs[i] for i in np.flatnonzero(part == n)] for n, name in enumerate(PARTS)}
        for (name, pairs), fraction in zip(parts.items(), self.fractions, strict=True):
            if fraction and not pairs:
                raise ValueError(
                    f"{fraction:g} of {len(self.pairs):,} pairs in {len(size):,} components, the largest of"
                    f" {size.max():,}, leaves {name} none; allowed: another fraction, or more pairs"
                )
        whole = "\n".join(f"{name}\t{s}\t{t}" for name, pairs in parts.items() for s, t in pairs)
        text.check_same(self.assets, text.fingerprint(whole, self.path or "dates and numbers"))
        counts = {
            "pairs": {name: len(pairs) for name, pairs in parts.items()},
            "components": len(size),
            "largest": int(size.max()),
            "dropped": {reason: found._asdict() for reason, found in self.dropped.items()},
        }
        self.assets.get("pairs.json", lambda: counts)
        return parts

    def examples(self, part: str) -> list[Pair]:
        """The pairs of a part; for train, the joined ones behind them."""
        if part != "train" or not self.join:
            return self.parts[part]
        draws = joins(self.parts[part], 2, 100 * self.join, self.split_seed)
        joined = list(itertools.islice(draws, self.join))
        if len(joined) < self.join:
            raise ValueError(
                f"join: received {self.join:,}; {100 * self.join:,} draws of 2 to {JOINED} pairs gave {len(joined):,}"
                f" of at most {LONGEST} words"
            )
        return [*self.parts[part], *joined]

    def references(self, part: str) -> dict[str, list[str]]:
        """{source: its translations}."""
        found: dict[str, list[str]] = {}
        for source, target in self.parts[part]:
            found.setdefault(source, []).append(target)
        return found

    def stratified(
        self, part: str, each: int, edges: Sequence[int] = (0, 10, 20, 30, 40, 50, 60), seed: int = 0
    ) -> list[Pair]:
        """`each` examples of 1 to 5 joined pairs whose source has more than edges[i] and up to edges[i + 1] words.

        Groups follow one another, for `lmlab.evaluation.bleu.by_length` with the same edges.
        """
        if each < 1 or len(edges) < 2 or min(np.diff(edges)) < 1 or edges[0] < 0 or edges[-1] > LONGEST:
            raise ValueError(
                f"each must be at least 1 and edges increase from 0 to {LONGEST} at most; received {each} and"
                f" {tuple(edges)}"
            )
        groups: list[list[Pair]] = [[] for _ in edges[1:]]
        for source, target in joins(self.parts[part], 1, 1000 * each * len(groups), seed):
            n = bisect.bisect_left(edges, _words(source)) - 1
            if 0 <= n < len(groups) and len(groups[n]) < each:
                groups[n].append((source, target))
                if all(len(group) == each for group in groups):
                    break
        for (above, to), group in zip(itertools.pairwise(edges), groups, strict=True):
            if len(group) < each:
                raise ValueError(
                    f"{len(group)} examples of {above + 1} to {to} words were drawn from {part}, {each} are needed;"
                    f" at most {JOINED} of its sentences are joined, to at most {LONGEST} words"
                )
        return [pair for group in groups for pair in group]

    # -- ids -----------------------------------------------------------------------------------------

    @functools.cached_property
    def tokenizers(self) -> tuple[BPETokenizer, BPETokenizer]:
        """Of the source and of the target."""

        def kept(name, *sides):
            def make():
                texts = (pair[side] for pair in self.parts["train"] for side in sides)
                return BPETokenizer.train(texts, self.vocab_size, SPECIALS).to_json()

            return tokenizer_from_json(self.assets.get(name, make))

        if self.shared:
            return (kept("tokenizer.json", 0, 1),) * 2
        return kept("source_tokenizer.json", 0), kept("target_tokenizer.json", 1)

    def arrays(self, part: str, by_length: bool = False) -> dict[str, Int[np.ndarray, "N _"]]:
        """`encode` of the examples of a part.

        by_length: in the order of the tokens of the source, then of the target, so that a source of `grouped`
        batches gives some of like length.
        """
        arrays = self.encode(self.examples(part))
        if not by_length:
            return arrays
        order = np.lexsort([(arrays[side] > 0).sum(1) for side in ("target", "source")])
        return {side: ids[order] for side, ids in arrays.items()}

    def encode(self, examples: Sequence[Pair]) -> dict[str, Int[np.ndarray, "N _"]]:
        """{"source": [N, S], each with <end>; "target": [N, T + 1], from <start> to <end>}, <pad> (0) behind them."""
        return {
            "source": _rows(self.tokenizers[0], [source for source, _ in examples]),
            "target": _rows(self.tokenizers[1], [target for _, target in examples], "<start>"),
        }

    def encode_sources(self, sentences: Sequence[str]) -> Int[np.ndarray, "N S"]:
        """Sentences as a person types them, normalized, as sources."""
        return _rows(self.tokenizers[0], [normalize(sentence, self.lower) for sentence in sentences])


def normalize(sentence: str, lower: bool = False) -> str:
    """One spelling for what is typed in several.

    NFC; apostrophes and quotes of typewriters, « and » too; "..." for the ellipsis; neither soft hyphens nor spaces of
    no width; no space before ; : ! ? and %, where French has one, and one between words.
    """
    if not sentence.isascii():
        sentence = unicodedata.normalize("NFC", sentence.translate(PLAIN))
        sentence = re.sub(r"«\s*|\s*»", '"', sentence)
    sentence = " ".join(re.sub(r"\s+(?=[;:!?%])", "", sentence).split())
    return sentence.lower() if lower else sentence


def components(pairs: Sequence[Pair]) -> Int[np.ndarray, "N"]:
    """The number of each pair's connected component; pairs are connected by the same source or the same target.

    Sentences are the same whose words are, whatever their case and punctuation.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    places: tuple[dict[str, int], dict[str, int]] = {}, {}
    ends = [
        [known.setdefault(" ".join(_bare(sentence)) or sentence, len(known)) for sentence in side]
        for known, side in zip(places, zip(*pairs, strict=True), strict=True)
    ]
    nodes = len(places[0]) + len(places[1])
    edges = np.array(ends[0]), np.array(ends[1]) + len(places[0])
    graph = coo_array((np.ones(len(pairs)), edges), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1][edges[0]]


def joins(pairs: Sequence[Pair], least: int, draws: int, seed: int) -> Iterator[Pair]:
    """`least` to 5 pairs drawn, side by side, as one; of so many draws those with at most 60 words on both sides."""
    draw = random.Random(seed)
    for _ in range(draws):
        drawn = draw.choices(pairs, k=draw.randint(least, JOINED))
        source, target = (" ".join(side) for side in zip(*drawn, strict=True))
        if _words(source, target) <= LONGEST:
            yield source, target


def nearest(train: Sequence[Pair], sources: Sequence[str]) -> tuple[list[str], Float[np.ndarray, "N"]]:
    """(the translation of the training source most like each source, how like the two are).

    Likeness: the Jaccard index of their sets of words, |a and b| / |a or b|, whatever case and punctuation; of those
    that are as like, the first. A source has a near neighbour where it is at least `NEAR`.
    """
    known: dict[str, str] = {}
    for source, target in train:
        known.setdefault(source, target)
    bags, targets = [set(_bare(source)) for source in known], list(known.values())
    sizes, places = np.array([len(bag) for bag in bags]), {}
    for i, bag in enumerate(bags):
        for word in bag:
            places.setdefault(word, []).append(i)
    places = {word: np.array(found) for word, found in places.items()}
    answers, likeness = [], np.zeros(len(sources))
    for n, source in enumerate(sources):
        bag = set(_bare(source))
        found = [places[word] for word in bag if word in places]
        both = np.bincount(np.concatenate(found or [[]]).astype(int), minlength=len(sizes))
        index = both / np.maximum(sizes + len(bag) - both, 1)
        answers.append(targets[index.argmax()])
        likeness[n] = index.max()
    return answers, likeness


def _bare(sentence: str) -> list[str]:
    """Its words, without case and punctuation."""
    return re.findall(r"\w+", sentence.lower())


def _words(*sentences: str) -> int:
    """How many words the longest has."""
    return max(len(sentence.split()) for sentence in sentences)


def _lines_of(file: Path) -> list[str]:
    lines = text.read(file).split("\n")
    return lines if lines[-1] else lines[:-1]


def _rows(tokenizer: Tokenizer, sentences: Sequence[str], *first: str) -> Int[np.ndarray, "N _"]:
    """The ids of the specials `first`, of each sentence and of <end>; <pad>s behind."""
    start, end = [special(tokenizer, name) for name in first], special(tokenizer, "<end>")
    return padded([[*start, *tokenizer.encode(sentence), end] for sentence in sentences])


def _told(dropped: dict[str, Dropped]) -> str:
    told = (f"{lines:,} {reason} (the first: line {first:,})" for reason, (lines, first) in dropped.items())
    return ", ".join(told) or "none"
