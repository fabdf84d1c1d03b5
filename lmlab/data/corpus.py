"""A text as a character-level language model sees it: split, tokenized, opened on first use."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lmlab.data import text
from lmlab.data.tokenizers import CharTokenizer, Tokenizer, tokenizer_from_json
from lmlab.experiment import Assets


class Corpus:
    """Contiguous parts of one text, by name, under one tokenizer that the run keeps.

    path: as `text.read` takes it; "" is the Python language reference, which every Python carries. A run
    keeps the sha256 of its text, and refuses to go on with another.
    """

    def __init__(
        self,
        path: str,
        assets: Assets,
        parts: Sequence[tuple[str, float]] = (("train", 0.9), ("validation", 0.1)),
        train_tokenizer: Callable[[str], Tokenizer] = CharTokenizer.train,
    ):
        self.path, self.assets, self.parts = path, assets, parts
        self.train_tokenizer = train_tokenizer

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        make = self.train_tokenizer
        return tokenizer_from_json(self.assets.get("tokenizer.json", lambda: make(self.text).to_json()))

    @functools.cached_property
    def text(self) -> str:
        content = text.read(self.path) if self.path else text.python_reference()
        found = text.fingerprint(content, self.path or text.python_reference_source())
        kept = self.assets.get("text.json", lambda: found)
        if kept["sha256"] != found["sha256"]:
            raise ValueError(
                f"the text {found['source']!r} ({found['characters']:,} characters,"
                f" sha256 {found['sha256'][:12]}) is not the one of this run,"
                f" {kept['source']!r} ({kept['characters']:,}, {kept['sha256'][:12]})"
            )
        return content

    @functools.cached_property
    def ids(self) -> dict[str, np.ndarray]:
        """The token ids of each part."""
        names, fractions = zip(*self.parts, strict=True)
        pieces = text.split(self.text, fractions)
        return {name: self.tokenizer.encode(piece) for name, piece in zip(names, pieces, strict=True)}

    def windows(self, part: str, context: int) -> Callable[[], dict[str, Any]]:
        """A function that opens the part as evaluation windows (see `text.evaluation_windows`)."""
        return lambda: text.evaluation_windows(self.ids[part], context)
