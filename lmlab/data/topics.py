"""Texts of several topics: examples of a few lines, one file a topic; and equations of five kinds, generated."""

import functools
import math
import random
from collections.abc import Sequence

import numpy as np

from lmlab.data import locate, text
from lmlab.data.tokenizers import CharTokenizer, special, tokenizer_from_json
from lmlab.experiment import Assets

PARTS = ("train", "validation", "test")


class Topics:
    """Examples by topic in parts, by characters between <end>s.

    path: a folder, or what else `locate.text_files` takes, with a file a topic, named as it is; an example is `lines`
    lines. test: the same of the test part; "": a thirtieth of the examples that differ, as validation always is. path
    "": `equations`. A run keeps the names and the sha256 of its text, and refuses to go on with another.
    """

    def __init__(self, path: str, assets: Assets, test: str = "", lines: int = 2):
        if lines < 1:
            raise ValueError(f"lines must be at least 1, received {lines}")
        self.path, self.assets, self.test, self.lines = path, assets, test, lines

    @functools.cached_property
    def names(self) -> list[str]:
        return self._kept["names"]

    @functools.cached_property
    def tokenizer(self) -> CharTokenizer:
        def make():
            both = [*self.texts.values(), *self._test_texts.values()]
            return CharTokenizer.train("".join("".join(texts) for texts in both), ("<end>",)).to_json()

        return tokenizer_from_json(self.assets.get("tokenizer.json", make))

    @functools.cached_property
    def texts(self) -> dict[str, list[str]]:
        """The examples that differ, of each topic."""
        return self._read(self.path) if self.path else equations()

    @functools.cached_property
    def parts(self) -> dict[str, dict[str, list[str]]]:
        """{part: {topic: examples}}."""
        kept, found = self._kept["sha256"][:12], self._found["sha256"][:12]
        if kept != found:
            raise ValueError(
                f"the text {self._found['source']!r} (sha256 {found}) is not the one of this run,"
                f" {self._kept['source']!r} ({kept})"
            )
        parts = {part: {} for part in PARTS}
        for name, examples in self.texts.items():
            mixed = random.Random(42).sample(examples, len(examples))
            held = -(-len(mixed) // 30)
            parts["validation"][name] = mixed[:held]
            parts["test"][name] = self._test_texts.get(name) or mixed[held : 2 * held]
            parts["train"][name] = mixed[held if self.test else 2 * held :]
        return parts

    def arrays(self, part: str, topics: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """tokens (N, L + 1), filled with <end>; mask (N, L), 0 past the first of them; topic (N, K), one-hot.

        L is that of the longest example of all; N goes topic by topic, of `topics` or of all.
        """
        end = special(self.tokenizer, "<end>")
        chosen = [(name, example) for name in topics or self.names for example in self.parts[part][name]]
        tokens = np.full((len(chosen), self.longest + 2), end, np.int32)
        mask = np.zeros((len(chosen), self.longest + 1), np.float32)
        for i, (_, example) in enumerate(chosen):
            tokens[i, 1 : 1 + len(example)] = self.tokenizer.encode(example)
            mask[i, : 1 + len(example)] = 1
        places = [self.names.index(name) for name, _ in chosen]
        return {"tokens": tokens, "mask": mask, "topic": np.eye(len(self.names), dtype=np.float32)[places]}

    @functools.cached_property
    def longest(self) -> int:
        return max(
            len(example)
            for texts in (self.texts, self._test_texts)
            for examples in texts.values()
            for example in examples
        )

    @functools.cached_property
    def _test_texts(self) -> dict[str, list[str]]:
        if not self.test:
            return {}
        texts = self._read(self.test)
        if set(texts) != set(self.texts):
            raise ValueError(
                f"{self.test!r} must have the topics of {self.path!r}: {', '.join(sorted(self.texts))};"
                f" it has: {', '.join(sorted(texts))}"
            )
        return texts

    def _read(self, path: str) -> dict[str, list[str]]:
        texts = {}
        for file in locate.text_files(path):
            whole = text.read(file).splitlines(keepends=True)
            if len(whole) < 30 * self.lines:
                raise ValueError(
                    f"{str(file)!r} has {len(whole)} lines; at least {30 * self.lines} are needed"
                )
            if len(whole) % self.lines:
                raise ValueError(
                    f"{str(file)!r} has {len(whole)} lines, which are no examples of {self.lines}"
                )
            examples = ["".join(whole[i : i + self.lines]) for i in range(0, len(whole), self.lines)]
            texts[file.name.split(".")[0]] = list(dict.fromkeys(examples))
        if len(texts) < 2:
            raise ValueError(f"at least 2 topics are needed, a file each; {path!r} has {', '.join(texts)}")
        return texts

    @property
    def _kept(self) -> dict:
        return self.assets.get("topics.json", lambda: {"names": list(self.texts), **self._found})

    @functools.cached_property
    def _found(self) -> dict:
        whole = "".join(f"{name}\n{''.join(examples)}" for name, examples in self.texts.items())
        return text.fingerprint(whole, self.path or "equations")


# -- equations ---------------------------------------------------------------------------------------


def _sum(rng):
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    return f"{a} + {b} = {a + b}"


def _fraction(rng):
    a, b = rng.randint(1, 20), rng.randint(2, 20)
    factor = rng.randint(2, 9)
    common = math.gcd(a, b)
    return rf"\frac{{{factor * a}}}{{{factor * b}}} = \frac{{{a // common}}}{{{b // common}}}"


def _derivative(rng):
    a, n = rng.randint(2, 30), rng.randint(3, 12)
    return rf"\frac{{d}}{{dx}} {a}x^{{{n}}} = {a * n}x^{{{n - 1}}}"


def _integral(rng):
    a, n = rng.randint(2, 30), rng.randint(2, 11)
    return rf"\int {a * (n + 1)}x^{{{n}}} \, dx = {a}x^{{{n + 1}}} + C"


def _determinant(rng):
    a, b, c, d = (rng.randint(0, 5) for _ in range(4))
    return rf"\begin{{vmatrix}} {a} & {b} \\ {c} & {d} \end{{vmatrix}} = {a * d - b * c}"


KINDS = {
    "sums": _sum,
    "fractions": _fraction,
    "derivatives": _derivative,
    "integrals": _integral,
    "determinants": _determinant,
}


def equations(count: int = 1000, seed: int = 0) -> dict[str, list[str]]:
    """Equations in LaTeX that hold, by kind: those that differ of `count` drawn."""
    rng = random.Random(seed)
    return {name: list(dict.fromkeys(f"{draw(rng)}\n" for _ in range(count))) for name, draw in KINDS.items()}
