"""Text to integers and back: characters, bytes. A tokenizer is saved with its run as plain JSON."""

import hashlib
import json
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer does: `decode(encode(text)) == text` for any text that it can encode."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> np.ndarray:
        """int32 ids, one axis."""

    def decode(self, ids) -> str: ...

    def to_json(self) -> dict[str, Any]:
        """Plain values, {"kind": ..., ...}; `tokenizer_from_json` makes the same tokenizer of them."""


class CharTokenizer:
    """One id a character: its place among the sorted characters of the training text."""

    def __init__(self, characters: str):
        points = _code_points(characters)
        if not len(points):
            raise ValueError("a character tokenizer needs at least one character, received none")
        if (np.diff(points.astype(np.int64)) <= 0).any():
            raise ValueError(f"characters must be sorted, each once; received {_shortened(characters)}")
        self.characters = characters
        self._points = points
        self._ids = np.full(int(points[-1]) + 1, -1, np.int32)  # code point -> id; at most 4.5 MB
        self._ids[points] = np.arange(len(points), dtype=np.int32)

    @classmethod
    def train(cls, text: str) -> "CharTokenizer":
        return cls("".join(sorted(set(text))))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "CharTokenizer":
        return cls(value["characters"])

    def to_json(self) -> dict[str, Any]:
        return {"kind": "char", "characters": self.characters}

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        points = _code_points(text)
        inside = points < len(self._ids)
        ids = self._ids[np.where(inside, points, 0)]
        unknown = ~inside | (ids < 0)
        if unknown.any():
            where = int(unknown.argmax())
            raise ValueError(
                f"character {text[where]!r} (U+{ord(text[where]):04X}, at position {where}) is not in the"
                f" vocabulary of {self.vocab_size}: {_shortened(self.characters)}"
            )
        return ids

    def decode(self, ids) -> str:
        return self._points[_checked(ids, self.vocab_size)].tobytes().decode("utf-32-le", "surrogatepass")


class ByteTokenizer:
    """The 256 bytes of UTF-8. Bytes that are not UTF-8 (a sample may hold some) decode to U+FFFD."""

    vocab_size = 256

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ByteTokenizer":
        del value
        return cls()

    def to_json(self) -> dict[str, Any]:
        return {"kind": "byte"}

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids) -> str:
        return _checked(ids, self.vocab_size).astype(np.uint8).tobytes().decode("utf-8", "replace")


KINDS = {"char": CharTokenizer, "byte": ByteTokenizer}


def tokenizer_from_json(value: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `to_json` described."""
    if value.get("kind") not in KINDS:
        raise ValueError(f"unknown kind of tokenizer {value.get('kind')!r}; allowed: {', '.join(KINDS)}")
    return KINDS[value["kind"]].from_json(value)


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """sha256 of the tokenizer's JSON: equal for two tokenizers that give the same ids."""
    return hashlib.sha256(json.dumps(tokenizer.to_json(), sort_keys=True).encode()).hexdigest()


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _checked(ids, vocab_size: int) -> np.ndarray:
    ids = np.asarray(ids)
    if not ids.size:
        return np.zeros(0, np.int32)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids must be one axis of integers, received shape {ids.shape} of {ids.dtype}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(f"ids must be in 0..{vocab_size - 1}, received {ids.min()}..{ids.max()}")
    return ids


def _shortened(characters: str, most: int = 100) -> str:
    return repr(characters) if len(characters) <= most else repr(characters[:most]) + "..."
