"""A file whose lines are examples of their own, such as names: in parts, by characters, between markers."""

import functools
import random
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from lmlab.data import text
from lmlab.data.corpus import Corpus
from lmlab.data.tokenizers import CharTokenizer, WordTokenizer, special, tokenizer_from_json
from lmlab.experiment import Assets

SPLITS = ("all", "published", "apart")


class Lines:
    """The lines of a file that hold something, without white space around them; `dropped`: how many do not.

    Ids are characters; 0 is <end>, which stands behind each line and, so often as a context is long, before it.
    path: "" is the words of the Python language reference. split: "all", each part is the whole; "published", 80,
    10 and 10 % as Karpathy's makemore shuffles them (seed 42), where a line that repeats may be in two parts; "apart",
    the same of the lines that differ.
    """

    PARTS = ("train", "validation", "test")

    def __init__(self, path: str, assets: Assets, split: str = "published"):
        if split not in SPLITS:
            raise ValueError(f"split: received {split!r}; allowed: {', '.join(SPLITS)}")
        self.path, self.assets, self.split = path, assets, split

    @functools.cached_property
    def tokenizer(self) -> CharTokenizer:
        def make():
            return CharTokenizer.train("".join(self.lines), ("<end>",)).to_json()

        return tokenizer_from_json(self.assets.get("tokenizer.json", make))

    @functools.cached_property
    def lines(self) -> list[str]:
        if not self.path:
            words = re.findall(r"\b[a-z]{3,12}\b", text.python_reference())
            return sorted(set(words))
        found = [line.strip() for line in text.read(self.path).split("\n")]
        lines = [line for line in found if line]
        self.dropped = len(found) - len(lines) - (found[-1] == "")
        if len(lines) < 10:
            raise ValueError(
                f"{self.path!r} has {len(lines)} lines that hold something; at least 10 are needed"
            )
        return lines

    @functools.cached_property
    def parts(self) -> dict[str, list[str]]:
        lines = list(dict.fromkeys(self.lines)) if self.split == "apart" else list(self.lines)
        if self.split == "all":
            return dict.fromkeys(self.PARTS, lines)
        random.Random(42).shuffle(lines)
        first, second = int(0.8 * len(lines)), int(0.9 * len(lines))
        return dict(zip(self.PARTS, (lines[:first], lines[first:second], lines[second:]), strict=True))

    def sequences(self, part: str) -> list[np.ndarray]:
        """The ids of each line, <end> behind them."""
        end = special(self.tokenizer, "<end>")
        return [np.append(self.tokenizer.encode(line), np.int32(end)) for line in self.parts[part]]


def lines_or_words(assets: Assets, *, path: str, words: bool, split: str) -> Lines | Corpus:
    """The lines of a file by characters; with `words` a text by words, 80, 10 and 10 % unless it is a folder of parts.

    Both have a tokenizer with <end>, and `sequences(part)` for train, validation and test.
    """
    if not words:
        return Lines(path, assets, split)
    train = functools.partial(WordTokenizer.train, specials=("<unk>", "<end>"))
    parts = tuple(zip(Lines.PARTS, (0.8, 0.1, 0.1), strict=True))
    return Corpus(path, assets, parts, train, learn="train")


def rows(sequences: Sequence[Int[np.ndarray, "_"]], context: int, start: int) -> Int[np.ndarray, "N n"]:
    """Each token of each sequence as the last of a row, after the `context` tokens before it; `start` fills."""
    if context < 0:
        raise ValueError(f"context must be at least 0, received {context}")
    filled = [part for ids in sequences for part in (np.full(context, start), ids)]
    ids = np.concatenate(filled).astype(np.int32) if filled else np.zeros(0, np.int32)
    if len(ids) <= context:
        return np.zeros((0, context + 1), np.int32)
    ends = np.cumsum([context + len(ids) for ids in sequences])
    windows = np.lib.stride_tricks.sliding_window_view(ids, context + 1)
    last = np.concatenate([np.arange(end - len(ids), end) for end, ids in zip(ends, sequences, strict=True)])
    return windows[last - context]
