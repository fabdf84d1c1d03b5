"""Questions and answers by character: as a source and its target, or one behind the other."""

import functools
import random

import numpy as np
from jaxtyping import Int

from lmlab.data import reasoning
from lmlab.data.reasoning import ALPHABET, ANSWER, FAMILIES, QUESTION
from lmlab.data.tokenizers import CharTokenizer, padded, special

SPECIALS = ("<pad>", "<start>", "<end>")
SPLITS = {"train": "train", "validation": "interpolate", "test": "interpolate", "extrapolate": "extrapolate"}
"""Of which split of `reasoning` each part is; validation and test share one, and no question to the letter."""


class Problems:
    """Parts of questions by family: `count` of each for training, `held_out` of each in the other parts.

    small: the generator's small questions.
    path: "" is the generator's seven families; or a folder of mathematics_dataset's files, of which each module is a
    family: train/, interpolate/, extrapolate/ (Saxton et al. 2019).
    """

    def __init__(
        self,
        path: str = "",
        count: int = 20_000,
        held_out: int = 500,
        split_seed: int = 0,
        small: bool = False,
    ):
        for name, value in (("count", count), ("held_out", held_out)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, received {value}")
        self.path, self.count, self.held_out = path, count, held_out
        self.split_seed, self.small = split_seed, small
        self._parts: dict[str, dict[str, list[tuple[str, str]]]] = {}

    @functools.cached_property
    def tokenizer(self) -> CharTokenizer:
        return CharTokenizer.train(ALPHABET, SPECIALS)

    def part(self, name: str) -> dict[str, list[tuple[str, str]]]:
        """{family: its (question, answer)}."""
        if name not in self._parts:
            self._parts[name] = self._read(name) if self.path else self._made(name)
        return self._parts[name]

    def examples(self, name: str) -> list[tuple[str, str]]:
        """Of all families."""
        return [pair for pairs in self.part(name).values() for pair in pairs]

    def _made(self, name):
        wanted = {"train": self.count, "test": 2 * self.held_out}.get(name, self.held_out)
        found = {
            family: reasoning.generate(family, wanted, self.split_seed, SPLITS[name], self.small)
            for family in FAMILIES
        }
        return (
            {family: pairs[-self.held_out :] for family, pairs in found.items()} if name == "test" else found
        )

    def _read(self, name):
        found = {}
        for module, file in reasoning.modules(self.path, SPLITS[name]).items():
            pairs = list(dict.fromkeys(reasoning.read(file)))
            random.Random(f"{self.split_seed} {module}").shuffle(pairs)
            first = self.held_out if name == "test" else 0
            found[module] = pairs[first : first + (self.count if name == "train" else self.held_out)]
            if not found[module]:
                raise ValueError(
                    f"{str(file)!r} has {len(pairs):,} questions; held_out {self.held_out} leaves {name} none"
                )
        return found

    def sources(self, questions) -> Int[np.ndarray, "N S"]:
        """Each question and <end>; <pad> (0) behind."""
        return self._rows(
            [[*self.tokenizer.encode(question), self.end] for question in questions], QUESTION + 1
        )

    def arrays(self, name: str) -> dict[str, Int[np.ndarray, "N _"]]:
        """{"source": `sources`, "target": from <start> to <end>}, from short questions to long ones."""
        pairs = sorted(self.examples(name), key=lambda pair: len(pair[0]))
        targets = [[self.start, *self.tokenizer.encode(answer), self.end] for _, answer in pairs]
        return {
            "source": self.sources([question for question, _ in pairs]),
            "target": self._rows(targets, ANSWER + 2),
        }

    def joined(self, name: str) -> dict[str, Int[np.ndarray, "N _"]]:
        """{"tokens": question, <start>, answer and <end>}, from short to long."""
        encode = self.tokenizer.encode
        rows = [[*encode(q), self.start, *encode(a), self.end] for q, a in self.examples(name)]
        return {"tokens": self._rows(sorted(rows, key=len), QUESTION + ANSWER + 2)}

    @property
    def start(self) -> int:
        return special(self.tokenizer, "<start>")

    @property
    def end(self) -> int:
        return special(self.tokenizer, "<end>")

    def _rows(self, ids, length):
        long = next((each for each in ids if len(each) > length), None)
        if long is not None:
            raise ValueError(
                f"{self.tokenizer.decode(np.array(long))!r} is too long; questions have up to {QUESTION}"
                f" characters, answers {ANSWER}"
            )
        return padded(ids, length)
