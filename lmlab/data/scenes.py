"""Scenes of one or two handwritten digits, and a sentence that the picture alone decides.

"a four", "an eight left of a small two", "a small three above a nine". A large digit is twice as high as a small one,
which is said to be small. Two digits either have no column in common, and rows, or no row, and columns: then the left
one is named first, "left of" the other, or the upper one, "above" it. So each picture has one sentence.
"""

import functools
import random
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from lmlab.data import captions, images
from lmlab.data.tokenizers import WordTokenizer, tokenizer_from_json
from lmlab.experiment import Assets

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = ("above", "left of")
"""By the axis, rows or columns, along which the two are apart."""
WORDS = (*DIGITS, "a", "above", "an", "left", "of", "small")
LENGTH = 8  # words of the longest sentence
SIDES = {"mnist": 20, "digits": 16}
"""The most pixels that a large digit of a data set is high or wide."""
GAP = 2  # pixels between two digits, or more


class Scene(NamedTuple):
    """boxes: (y0, x0, y1, x1) of each digit's ink, in the order in which they are named; the ends are outside."""

    image: UInt8[np.ndarray, "H W"]
    caption: str
    boxes: tuple[tuple[int, int, int, int], ...]


class Scenes:
    """Scenes by part, made of the digits of that part of a data set alone: number i follows from (seed, part, i).

    name: "mnist", whose digits are large as they are and small at half the size; or "digits", scikit-learn's, small as
    they are and large with each pixel twice. canvas: height and width. count: how many scenes there are for training;
    validation and test have a tenth of it each. Three of four scenes hold two digits.
    """

    def __init__(
        self,
        name: str,
        assets: Assets,
        tfds_dir: str = "",
        canvas: int = 48,
        count: int = 50_000,
        seed: int = 0,
    ):
        if name not in SIDES:
            raise ValueError(f"scenes are made of {' or '.join(SIDES)}, received {name!r}")
        least = 2 * SIDES[name] + GAP
        if canvas < least:
            raise ValueError(f"canvas must be at least {least} for two digits of {name}, received {canvas}")
        if count < 10:
            raise ValueError(f"count must be at least 10, received {count}")
        self.assets, self.canvas, self.count, self.seed = assets, canvas, count, seed
        self._digits = functools.cache(functools.partial(_digits, images.parts(name, tfds_dir)))
        self._scenes = functools.cache(self._make)

    @functools.cached_property
    def tokenizer(self) -> WordTokenizer:
        made = self.assets.get("tokenizer.json", lambda: WordTokenizer(WORDS, captions.SPECIALS).to_json())
        return tokenizer_from_json(made)

    def scene(self, part: str, number: int) -> Scene:
        """One scene of a part."""
        draw = random.Random(f"{self.seed} {part} {number}")
        return compose(*self._digits(part), self.canvas, draw)

    def arrays(self, part: str) -> dict[str, np.ndarray]:
        """{"image": uint8 [N, S, S], "tokens": int32 [N, 10], "boxes": int32 [N, 2, 4], "named": int32 [N, 2]}.

        tokens: as `captions.rows` has them. named: the places in them of the words for the digits whose boxes these
        are. Where a scene holds one digit, the second box and place are 0.
        """
        made = self._scenes(part)
        boxes, named = np.zeros((len(made), 2, 4), np.int32), np.zeros((len(made), 2), np.int32)
        for i, scene in enumerate(made):
            boxes[i, : len(scene.boxes)] = scene.boxes
            # <start> is at 0, so that the first word's place is 1.
            places = [place for place, word in enumerate(scene.caption.split(), 1) if word in DIGITS]
            named[i, : len(places)] = places
        tokens = captions.rows(self.tokenizer, [scene.caption for scene in made], LENGTH)
        image = np.stack([scene.image for scene in made])
        return {"image": image, "tokens": tokens, "boxes": boxes, "named": named}

    def references(self, part: str) -> tuple[np.ndarray, list[list[str]]]:
        """The images of a part, uint8 [N, S, S], and of each its sentence, the only one."""
        made = self._scenes(part)
        return np.stack([scene.image for scene in made]), [[scene.caption] for scene in made]

    def _make(self, part):
        count = self.count if part == "train" else self.count // 10
        return [self.scene(part, number) for number in range(count)]


def compose(
    sizes: tuple[UInt8[np.ndarray, "N H W"], UInt8[np.ndarray, "N h w"]],
    labels: Int[np.ndarray, "N"],
    canvas: int,
    draw: random.Random,
) -> Scene:
    """A scene of what `draw` chooses of the digits, which `sizes` holds large and small."""
    chosen = [(draw.randrange(len(labels)), draw.randrange(2)) for _ in range(draw.choice((1, 2, 2, 2)))]
    digits = [_inked(sizes[small][index]) for index, small in chosen]
    corners, relation = _arrange([digit.shape for digit in digits], canvas, draw)
    image, boxes = np.zeros((canvas, canvas), np.uint8), []
    for digit, (y, x) in zip(digits, corners, strict=True):
        box = (y, x, y + digit.shape[0], x + digit.shape[1])
        image[box[0] : box[2], box[1] : box[3]] = digit
        boxes.append(box)
    phrases = [_phrase(DIGITS[labels[index]], small) for index, small in chosen]
    return Scene(image, f" {relation} ".join(phrases), tuple(boxes))


def _digits(read, part):
    """((large, small), labels) of a part."""
    data = read(part)
    image = data["image"]
    if image.shape[1] > SIDES["digits"]:
        return (image, images.halved(data)["image"]), data["label"]
    return (image.repeat(2, axis=1).repeat(2, axis=2), image), data["label"]


def _inked(image):
    """The image cut to its ink, the pixels that are not 0."""
    rows, columns = np.nonzero(image)
    return image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _arrange(sizes, canvas, draw):
    """(the corners (y, x) of one box or two, what the first of two is to the second)."""
    if len(sizes) == 1:
        return [tuple(draw.randint(0, canvas - side) for side in sizes[0])], ""
    axis = draw.randrange(2)
    first, second = (size[axis] for size in sizes)
    near = draw.randint(0, canvas - first - GAP - second)
    far = draw.randint(near + first + GAP, canvas - second)
    # Along the other axis they share half of the smaller one at least: so no pair lies on a diagonal.
    first, second = (size[1 - axis] for size in sizes)
    shared = (min(first, second) + 1) // 2
    one = draw.randint(0, canvas - first)
    other = draw.randint(max(0, one + shared - second), min(canvas - second, one + first - shared))
    corners = [(near, one), (far, other)]
    return [corner[:: 1 - 2 * axis] for corner in corners], RELATIONS[axis]


def _phrase(digit, small):
    words = f"small {digit}" if small else digit
    return f"an {words}" if words == "eight" else f"a {words}"
