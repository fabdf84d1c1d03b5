"""Images that people described: any folder of them, and a file of captions."""

import csv
import functools
import io
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from lmlab.data import locate, text
from lmlab.data.tokenizers import WordTokenizer, tokenizer_from_json
from lmlab.experiment import Assets

PARTS = ("train", "validation", "test")
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")
FILES = {"captions.tsv": "\t", "captions.csv": ","}
"""What the file of captions is called, and what stands between its fields."""


class Captions:
    """Captions in parts of 80, 10 and 10 % of the images, which are shuffled by `split_seed`.

    path: a folder with captions.tsv or captions.csv: a file name, seen from the folder, and a caption a line; an image
    may have several. A first line whose second field is "caption" is a header. Fields of .csv may stand in quotes.
    Images become grey, `size` = (height, width), whatever their proportions. Captions become lower case, words and
    punctuation apart; words are known that are in the train part `min_count` times. length: the most words of a
    caption; the rest is cut off.

    A line that is no such pair or whose image is missing or damaged is left out: `dropped` tells of each by file and
    line. A run keeps that and the hash of what is left, and refuses to go on with another.
    """

    def __init__(
        self,
        path: str,
        assets: Assets,
        size: tuple[int, int] = (64, 64),
        split_seed: int = 0,
        min_count: int = 1,
        length: int = 30,
    ):
        if min(size) < 1:
            raise ValueError(f"size must be at least 1 x 1, received {size[0]} x {size[1]}")
        if length < 1:
            raise ValueError(f"length must be at least 1, received {length}")
        self.path, self.assets, self.size = path, assets, size
        self.split_seed, self.min_count, self.length = split_seed, min_count, length
        self.dropped: list[str] = []

    @functools.cached_property
    def tokenizer(self) -> WordTokenizer:
        def make():
            told = "\n".join(caption for name in self.parts["train"] for caption in self.captions[name])
            return WordTokenizer.train(told, 0, SPECIALS, self.min_count).to_json()

        return tokenizer_from_json(self.assets.get("tokenizer.json", make))

    @functools.cached_property
    def parts(self) -> dict[str, list[str]]:
        """The file names of each part."""
        names = sorted(self.captions)
        random.Random(self.split_seed).shuffle(names)
        return dict(zip(PARTS, text.split(names, (0.8, 0.1, 0.1)), strict=True))

    @property
    def captions(self) -> dict[str, list[str]]:
        """{file name: its captions}."""
        return self._read[0]

    def arrays(self, part: str) -> dict[str, np.ndarray]:
        """{"image": uint8 [N, H, W], "tokens": int32 [N, T + 1]} as `rows` has them: one a caption."""
        longest = max(len(caption.split()) for name in self.parts["train"] for caption in self.captions[name])
        images, captions = self.references(part)
        told = [caption for each in captions for caption in each]
        tokens = rows(self.tokenizer, told, min(self.length, longest))
        return {"image": np.repeat(images, [len(each) for each in captions], axis=0), "tokens": tokens}

    def references(self, part: str) -> tuple[np.ndarray, list[list[str]]]:
        """Each image of a part once, uint8 [M, H, W], and all that was said of it."""
        names = self.parts[part]
        return np.stack([self._read[1][name] for name in names]), [self.captions[name] for name in names]

    @functools.cached_property
    def _read(self) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
        """(captions, images), each by file name."""
        folder = locate.text_folder(self.path)
        file = next((folder / name for name in FILES if (folder / name).is_file()), None) if folder else None
        if file is None:
            raise FileNotFoundError(
                f"no {' or '.join(FILES)} in {self.path!r}, nor in it below LMLAB_DATA; set --config.data.path=FOLDER"
            )
        captions, images = {}, {}
        for line, fields in _lines(file):
            try:
                name, caption = _pair(fields)
                if name not in images:
                    images[name] = read_image(folder / name, self.size)
                captions.setdefault(name, []).append(caption)
            except ValueError as error:
                self.dropped.append(f"{file.name}:{line}: {error}")
        told = f"{len(self.dropped):,} lines left out, the first: {self.dropped[0]}" if self.dropped else ""
        if len(captions) < 10:
            raise ValueError(
                f"{str(file)!r} has {len(captions)} images with captions; at least 10 are needed"
                + (f"; {told}" if told else "")
            )
        if told:
            print(f"warning: {str(file)!r}: {told}", file=sys.stderr)
        joined = "\n".join(f"{name}\t{caption}" for name in sorted(captions) for caption in captions[name])
        text.check_same(self.assets, {**text.fingerprint(joined, self.path), "dropped": self.dropped})
        return captions, images


def words(caption: str) -> str:
    """In lower case, words and marks of punctuation apart by one space."""
    return " ".join(re.findall(r"\w+(?:['’-]\w+)*|[^\w\s]", caption.lower()))


def rows(tokenizer: WordTokenizer, captions: Sequence[str], length: int) -> Int[np.ndarray, "N n"]:
    """<start>, the words, <end>, then <pad>, which is 0: n = length + 2.

    A caption of more than `length` words is cut off, and then has no <end>.
    """
    start, tokens = SPECIALS.index("<start>"), np.zeros((len(captions), length + 2), np.int32)
    for row, caption in zip(tokens, captions, strict=True):
        ids = [start, *tokenizer.encode(caption + "\n")][: len(row)]
        row[: len(ids)] = ids
    return tokens


def _lines(file: Path):
    """(number, fields) of each line that is not empty, but for a header."""
    mark = FILES[file.name]
    quoting = csv.QUOTE_NONE if mark == "\t" else csv.QUOTE_MINIMAL
    lines = csv.reader(io.StringIO(text.read(file), newline=""), delimiter=mark, quoting=quoting, strict=True)
    try:
        for number, fields in enumerate(lines):
            header = number == 0 and fields[1:] == ["caption"]
            if fields and not header:
                yield lines.line_num, fields
    except csv.Error as error:
        raise ValueError(f"{str(file)!r}, line {lines.line_num}: {error}") from None


def _pair(fields: list[str]) -> tuple[str, str]:
    """(file name, caption), the words apart."""
    if len(fields) != 2:
        raise ValueError(f"2 fields are needed, a file name and a caption; received {len(fields)}")
    name, caption = fields[0], words(fields[1])
    if not caption:
        raise ValueError(f"the caption of {name!r} has no words")
    return name, caption


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W]; ValueError where there is none."""
    from PIL import Image, ImageOps

    if not path.is_file():
        raise ValueError(f"no image {path.name!r}")
    high, wide = size
    try:
        with Image.open(path) as image:
            image.draft("L", (2 * wide, 2 * high))  # a JPEG is decoded no larger than it need be
            return np.asarray(ImageOps.exif_transpose(image).convert("L").resize((wide, high)))
    except Exception as error:  # each format's reader raises what it likes
        told = " ".join(str(error).replace(str(path), path.name).split())
        raise ValueError(f"the image {path.name!r} cannot be read: {told or type(error).__name__}") from None
