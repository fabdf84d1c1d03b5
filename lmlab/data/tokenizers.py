"""Text to integers and back: characters, bytes, words, byte-level BPE. A tokenizer is saved with its run as JSON.

Specials stand for no text: `<pad>` fills, `<start>` and `<end>` are markers of where a text begins and ends, `<unk>`
is what is not in the vocabulary, `<mask>` what is hidden. A tokenizer has those that it is given, as its first ids.
"""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

LONGEST = 1 << 20  # characters of a word
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>", "<mask>")


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer does: `decode(encode(text)) == text` for text without what it does not know."""

    specials: tuple[str, ...]

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> np.ndarray:
        """int32 ids, one axis; never those of specials, but for what is unknown and for the ends of lines of words."""

    def decode(self, ids) -> str:
        """Specials by their names."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, {"kind": ..., ...}; `tokenizer_from_json` makes the same tokenizer of them."""


class CharTokenizer:
    """One id a character: its place among the sorted characters of the training text, after the specials."""

    def __init__(self, characters: str, specials: Sequence[str] = ()):
        points = _code_points(characters)
        if not len(points):
            raise ValueError("a character tokenizer needs at least one character, received none")
        if (np.diff(points.astype(np.int64)) <= 0).any():
            raise ValueError(f"characters must be sorted, each once; received {_shortened(characters)}")
        self.characters, self.specials = characters, check_specials(specials)
        self._points, first = points, len(self.specials)
        self._ids = np.full(int(points[-1]) + 1, -1, np.int32)  # code point -> id; at most 4.5 MB
        self._ids[points] = np.arange(first, first + len(points), dtype=np.int32)

    @classmethod
    def train(cls, text: str, specials: Sequence[str] = ()) -> "CharTokenizer":
        return cls("".join(sorted(set(text))), specials)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "CharTokenizer":
        return cls(value["characters"], value.get("specials", ()))

    def to_json(self) -> dict[str, Any]:
        return {"kind": "char", "characters": self.characters} | _told(self.specials)

    @property
    def vocab_size(self) -> int:
        return len(self.specials) + len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        points = _code_points(text)
        inside = points < len(self._ids)
        ids = self._ids[np.where(inside, points, 0)]
        unknown = ~inside | (ids < 0)
        if unknown.any() and "<unk>" in self.specials:
            return np.where(unknown, self.specials.index("<unk>"), ids).astype(np.int32)
        if unknown.any():
            where = int(unknown.argmax())
            raise ValueError(
                f"character {text[where]!r} (U+{ord(text[where]):04X}, at position {where}) is not in the"
                f" vocabulary of {len(self.characters)}: {_shortened(self.characters)}"
            )
        return ids

    def decode(self, ids) -> str:
        def plain(ids):
            points = self._points[ids - len(self.specials)]
            return points.tobytes().decode("utf-32-le", "surrogatepass")

        return _decode(_checked(ids, self.vocab_size), self.specials, plain)


class ByteTokenizer:
    """The 256 bytes of UTF-8. Bytes that are not UTF-8 (a sample may hold some) decode to U+FFFD."""

    def __init__(self, specials: Sequence[str] = ()):
        self.specials = check_specials(specials)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ByteTokenizer":
        return cls(value.get("specials", ()))

    def to_json(self) -> dict[str, Any]:
        return {"kind": "byte"} | _told(self.specials)

    @property
    def vocab_size(self) -> int:
        return len(self.specials) + 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) + len(self.specials)

    def decode(self, ids) -> str:
        def plain(ids):
            return (ids - len(self.specials)).astype(np.uint8).tobytes().decode("utf-8", "replace")

        return _decode(_checked(ids, self.vocab_size), self.specials, plain)


class WordTokenizer:
    """One id a word, what stands between white space; most frequent first, those as frequent in alphabetical order.

    With `<end>` each end of a line is one, which decodes to it; what is not in the vocabulary is `<unk>`, as
    is a word so spelt. Decoding puts one space between words: other white space is lost.
    """

    def __init__(self, words: Sequence[str], specials: Sequence[str] = ("<unk>",)):
        self.specials, self.words = check_specials(specials), tuple(words)
        if "<unk>" not in self.specials:
            raise ValueError(f"a word tokenizer needs the special <unk>; received {self.specials}")
        self._names = (*self.specials, *self.words)
        self._ids = {word: i for i, word in enumerate(self._names)}
        if len(self._ids) < len(self._names) or any(word.split() != [word] for word in self.words):
            raise ValueError("words must each be there once, without white space")

    @classmethod
    def train(
        cls, text: str, vocab_size: int = 0, specials: Sequence[str] = ("<unk>",), min_count: int = 1
    ) -> "WordTokenizer":
        """vocab_size: specials and the most frequent words; 0: all words. min_count: how often a word must be there."""
        if min_count < 1:
            raise ValueError(f"min_count must be at least 1, received {min_count}")
        counts = Counter(text.split())
        known = {word for word, count in counts.items() if count >= min_count} - set(specials)
        if min_count > 1 and not known:
            most = max(counts.values(), default=0)
            raise ValueError(
                f"min_count {min_count:,} leaves no word: the most frequent of {len(counts):,} is there {most:,} times"
            )
        words = sorted(known, key=lambda word: (-counts[word], word))
        if vocab_size and vocab_size <= len(specials):
            raise ValueError(f"vocab_size must be above {len(specials)}, the specials; received {vocab_size}")
        return cls(words[: vocab_size - len(specials)] if vocab_size else words, specials)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "WordTokenizer":
        return cls(value["words"], value["specials"])

    def to_json(self) -> dict[str, Any]:
        return {"kind": "word", "words": list(self.words)} | _told(self.specials)

    @property
    def vocab_size(self) -> int:
        return len(self._names)

    def encode(self, text: str) -> np.ndarray:
        unknown, ids = self._ids["<unk>"], self._ids.get
        if "<end>" not in self.specials:
            return np.array([ids(word, unknown) for word in text.split()], np.int32)
        end, out = self._ids["<end>"], []
        for line in _lines(text):
            out += [ids(word, unknown) for word in line.split()]
            out += [end] if line.endswith("\n") else []
        return np.array(out, np.int32)

    def decode(self, ids) -> str:
        text = " ".join(self._names[i] for i in _checked(ids, self.vocab_size))
        return re.sub(" ?<end> ?", "\n", text)


class BPETokenizer:
    """Byte-level byte pair encoding (Sennrich et al. 2016; Radford et al. 2019), by the `tokenizers` library.

    Nothing is unknown: the 256 bytes are in the vocabulary. Lines are encoded one by one, so that no token holds
    what stands on both sides of a line's end. See bpe.py for the algorithm.
    """

    def __init__(self, model: dict[str, Any]):
        from tokenizers import Tokenizer as Library

        try:
            self._library = Library.from_str(json.dumps(model))
        except Exception as error:  # the library's own has no other type
            raise ValueError(f"not the JSON of a tokenizer of the tokenizers library: {error}") from None
        self._library.encode_special_tokens = True  # a text that spells a special is a text
        self._model = model
        self.specials = tuple(entry["content"] for entry in model["added_tokens"])

    @classmethod
    def train(
        cls, texts: str | Iterable[str], vocab_size: int, specials: Sequence[str] = ()
    ) -> "BPETokenizer":
        """vocab_size: specials, the bytes and the merges; fewer where no pair is left that stands there twice."""
        from tokenizers import Tokenizer as Library
        from tokenizers import decoders, models, pre_tokenizers, trainers

        least = 256 + len(check_specials(specials))
        if vocab_size < least:
            raise ValueError(
                f"vocab_size must be at least {least}, the bytes and {len(specials)} specials, received {vocab_size}"
            )
        library = Library(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=list(specials),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        texts = [texts] if isinstance(texts, str) else texts
        library.train_from_iterator((line for text in texts for line in _lines_of_words(text)), trainer)
        return cls(json.loads(library.to_str()))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "BPETokenizer":
        return cls(value["model"])

    def to_json(self) -> dict[str, Any]:
        return {"kind": "bpe", "model": self._model}

    @property
    def vocab_size(self) -> int:
        return self._library.get_vocab_size()

    def encode(self, text: str) -> np.ndarray:
        encoded = self._library.encode_batch_fast(list(_lines_of_words(text)), add_special_tokens=False)
        return np.array([i for line in encoded for i in line.ids], np.int32)

    def decode(self, ids) -> str:
        def plain(ids):
            return self._library.decode(ids.tolist(), skip_special_tokens=False)

        return _decode(_checked(ids, self.vocab_size), self.specials, plain)


KINDS = {"char": CharTokenizer, "byte": ByteTokenizer, "word": WordTokenizer, "bpe": BPETokenizer}


def tokenizer_from_json(value: Any) -> Tokenizer:
    """The tokenizer that `to_json` described."""
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in KINDS:
        raise ValueError(f"unknown kind of tokenizer {kind!r}; allowed: {', '.join(KINDS)}")
    try:
        return KINDS[kind].from_json(value)
    except KeyError as error:
        raise ValueError(f"a tokenizer of kind {kind!r} has {error}, which is not there") from None


def padded(ids: Sequence[Any], width: int = 0) -> Int[np.ndarray, "N _"]:
    """Ids as rows of `width` or as wide as the longest, whichever is more; 0 behind each."""
    rows = np.zeros((len(ids), max(width, max(map(len, ids), default=0))), np.int32)
    for row, each in zip(rows, ids, strict=True):
        row[: len(each)] = each
    return rows


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """sha256 of the tokenizer's JSON: equal for two tokenizers that give the same ids."""
    return hashlib.sha256(json.dumps(tokenizer.to_json(), sort_keys=True).encode()).hexdigest()


def special(tokenizer: Tokenizer, name: str) -> int:
    """The id of a special, such as "<end>"."""
    if name not in tokenizer.specials:
        raise ValueError(
            f"the tokenizer has no special {name}; it has: {', '.join(tokenizer.specials) or 'none'}"
        )
    return tokenizer.specials.index(name)


def check_specials(specials: Sequence[str]) -> tuple[str, ...]:
    """As a tuple, if all are known."""
    if set(specials) - set(SPECIALS) or len(set(specials)) < len(specials):
        raise ValueError(f"specials must be of {', '.join(SPECIALS)}, each once; received {tuple(specials)}")
    return tuple(specials)


def _told(specials: tuple[str, ...]) -> dict[str, Any]:
    return {"specials": list(specials)} if specials else {}


def _lines(text: str) -> Iterator[str]:
    """With their ends, which are line feeds and nothing else."""
    return iter(io.StringIO(text, newline="\n"))


def _lines_of_words(text: str) -> Iterator[str]:
    """Lines whose words are not so long that pairs of neighbours in them take minutes to merge."""
    for line in _lines(text):
        longest = max(map(len, line.split()), default=0) if len(line) > LONGEST else 0
        if longest > LONGEST:
            raise ValueError(
                f"a word of {longest:,} characters, from {_shortened(line.lstrip(), 20)}; allowed for pairs of bytes:"
                f" up to {LONGEST:,} without white space"
            )
        yield line


def _decode(ids: np.ndarray, specials: tuple[str, ...], plain) -> str:
    """The text of ids, of which the first stand for specials and the others are decoded by `plain`."""
    if not specials or not (ids < len(specials)).any():
        return plain(ids) if len(ids) else ""
    runs = np.split(ids, np.flatnonzero(np.diff(ids < len(specials))) + 1)
    return "".join(
        "".join(specials[i] for i in run) if run[0] < len(specials) else plain(run) for run in runs
    )


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
