"""A text as a language model sees it: in parts, tokenized, opened on first use."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lmlab.data import locate, text
from lmlab.data.tokenizers import CharTokenizer, Tokenizer, tokenizer_from_json
from lmlab.experiment import Assets

FILES = {"train": "train", "validation": "valid", "test": "test"}


class Corpus:
    """Parts of a text, by name, under one tokenizer that the run keeps.

    path: as `text.read` takes it, and cut at fractions; or a folder that holds a file of each part, train.txt,
    valid.txt and test.txt or the same with .gz; "" is the Python language reference, which every Python carries. A
    run keeps the sha256 of its text, and refuses to go on with another. learn: the part that the tokenizer is
    trained on, or "" for all of them.
    """

    def __init__(
        self,
        path: str,
        assets: Assets,
        parts: Sequence[tuple[str, float]] = (("train", 0.9), ("validation", 0.1)),
        train_tokenizer: Callable[[str], Tokenizer] = CharTokenizer.train,
        learn: str = "",
    ):
        self.path, self.assets, self.parts = path, assets, parts
        self.train_tokenizer, self.learn = train_tokenizer, learn

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        def make():
            return self.train_tokenizer(self.pieces[self.learn] if self.learn else self.text).to_json()

        return tokenizer_from_json(self.assets.get("tokenizer.json", make))

    @functools.cached_property
    def files(self) -> dict[str, str]:
        """The file of each part, where the path is a folder of them."""
        folder = locate.text_folder(self.path) if self.path else None
        if folder is None:
            return {}
        found = {
            name: [path for end in (".txt", ".txt.gz") if (path := folder / f"{FILES[name]}{end}").is_file()]
            for name, _ in self.parts
            if name in FILES
        }
        return {name: str(paths[0]) for name, paths in found.items()} if all(found.values()) else {}

    @functools.cached_property
    def pieces(self) -> dict[str, str]:
        """The text of each part."""
        names, fractions = zip(*self.parts, strict=True)
        if self.files:
            pieces = [text.read(self.files[name]) for name in names]
        else:
            whole = text.read(self.path) if self.path else text.python_reference()
            pieces = text.split(whole, fractions)
        text.check_same(
            self.assets, text.fingerprint("".join(pieces), self.path or text.python_reference_source())
        )
        return dict(zip(names, pieces, strict=True))

    @property
    def text(self) -> str:
        """All parts, one after the other."""
        return "".join(self.pieces.values())

    @functools.cached_property
    def ids(self) -> dict[str, np.ndarray]:
        """The token ids of each part."""
        return {name: self.tokenizer.encode(piece) for name, piece in self.pieces.items()}

    def sequences(self, part: str) -> list[np.ndarray]:
        """The ids of a part, which is one sequence."""
        return [self.ids[part]]

    def num_bytes(self, part: str) -> int:
        """The length of a part in UTF-8."""
        return len(self.pieces[part].encode("utf-8"))

    def windows(self, part: str, context: int) -> Callable[[], dict[str, Any]]:
        """A function that opens the part as evaluation windows (see `text.evaluation_windows`)."""
        return lambda: text.evaluation_windows(self.ids[part], context)
