"""Words of letters that all differ, and the same letters from the last to the first, or in the order of the alphabet.

A target's alignment is known: which letter of the source each of its letters is.
"""

import functools
import string

import numpy as np
from jaxtyping import Int

from lmlab.data.tokenizers import CharTokenizer, padded, special

KINDS = ("reversing", "sorting")
SPECIALS = ("<pad>", "<start>", "<end>")


class Rearranged:
    """`count` examples for training and a tenth of it each for validation and test, none of which is there twice.

    Of `shortest` to `longest` letters. Its face is that of `lmlab.data.pairs.Pairs`.
    """

    def __init__(
        self, kind: str, shortest: int = 3, longest: int = 12, count: int = 20_000, split_seed: int = 0
    ):
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}; allowed: {', '.join(KINDS)}")
        if not 1 <= shortest <= longest <= 26:
            raise ValueError(
                f"shortest and longest must be 1 to 26, in this order; received {shortest} and {longest}"
            )
        if count < 10:
            raise ValueError(f"count must be at least 10, received {count}")
        self.kind, self.shortest, self.longest = kind, shortest, longest
        self.count, self.split_seed = count, split_seed

    @functools.cached_property
    def tokenizers(self) -> tuple[CharTokenizer, CharTokenizer]:
        return (CharTokenizer.train(string.ascii_lowercase, SPECIALS),) * 2

    @functools.cached_property
    def parts(self) -> dict[str, list[tuple[str, str]]]:
        draw, letters, found = np.random.default_rng(self.split_seed), np.array([*string.ascii_lowercase]), {}
        wanted = self.count + 2 * (self.count // 10)
        for _ in range(20 * wanted):
            length = draw.integers(self.shortest, self.longest + 1)
            word = "".join(draw.permutation(letters)[:length])
            found[word] = word[::-1] if self.kind == "reversing" else "".join(sorted(word))
            if len(found) == wanted:
                break
        else:
            raise ValueError(
                f"count: received {self.count:,}; words of {self.shortest} to {self.longest} letters are too few"
            )
        pairs, first, second = list(found.items()), self.count, self.count + self.count // 10
        return {"train": pairs[:first], "validation": pairs[first:second], "test": pairs[second:]}

    def examples(self, part: str) -> list[tuple[str, str]]:
        return self.parts[part]

    def references(self, part: str) -> dict[str, list[str]]:
        return {source: [target] for source, target in self.parts[part]}

    def arrays(self, part: str, by_length: bool = False) -> dict[str, Int[np.ndarray, "N _"]]:
        """{"source": [N, S], each with <end>; "target": [N, T + 1], from <start> to <end>}, <pad> (0) behind them."""
        pairs = self.parts[part]
        if by_length:
            pairs = sorted(pairs, key=lambda pair: len(pair[0]))
        targets = self._rows([target for _, target in pairs])
        start = np.full((len(pairs), 1), special(self.tokenizers[0], "<start>"), np.int32)
        return {
            "source": self._rows([source for source, _ in pairs]),
            "target": np.concatenate([start, targets], axis=1),
        }

    def encode_sources(self, sentences) -> Int[np.ndarray, "N S"]:
        return self._rows(sentences)

    def alignment(self, part: str) -> Int[np.ndarray, "N T"]:
        """The place in its source of each letter of a target; -1 for <end> and behind it."""
        places = np.full((len(self.parts[part]), self.longest + 1), -1)
        for row, (source, target) in zip(places, self.parts[part], strict=True):
            row[: len(target)] = [source.index(letter) for letter in target]
        return places

    def _rows(self, words):
        tokenizer = self.tokenizers[0]
        end = special(tokenizer, "<end>")
        return padded([[*tokenizer.encode(word), end] for word in words], self.longest + 1)
