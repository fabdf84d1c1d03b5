"""Sentences in, sentences out: n-best lists, whole files, for any model with `begin`.

`model.begin(variables, inputs) -> (step, cache)` reads what is given, such as sources or images; `step` and `cache` are
those of `lmlab.decoding.beam`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from lmlab.decoding import beam, sampling

WIDTH = 8
"""Rows of ids are as wide as a multiple of it, so that few shapes are compiled."""


class Answer(NamedTuple):
    """One hypothesis: its text, its score, and its ids from <start> to <end>, if that came."""

    text: str
    score: float
    ids: Int[np.ndarray, "N"]


class Translator:
    """model: with `begin`. tokenizer: of the target. most: tokens of an answer.

    encode: sentences to rows of ids, 0 behind them, for whole files.
    """

    def __init__(
        self, model: Any, tokenizer: Any, encode: Callable[[Sequence[str]], Any] | None, most: int = 100
    ):
        self.model, self.tokenizer, self.encode, self.most = model, tokenizer, encode, most
        self.start, self.end = map(tokenizer.specials.index, ("<start>", "<end>"))
        self._begin = jax.jit(model.begin)

    def answers(
        self,
        variables,
        rows: Int[np.ndarray, "N S"],
        beam_size: int = 1,
        length_penalty: float = 0.0,
        batch_size: int = 64,
        progress: bool = False,
    ) -> list[list[Answer]]:
        """The n-best list of each row, in their order; batches are of rows of like length."""
        found: list[list[Answer]] = [[]] * len(rows)
        for places, batch in _batches(rows, batch_size, progress):
            best = self.best(variables, batch, beam_size, length_penalty)
            for place, answers in zip(places, best, strict=False):  # a batch that was filled up is longer
                found[place] = answers
        return found

    def best(
        self, variables, inputs: Any, beam_size: int = 1, length_penalty: float = 0.0
    ) -> list[list[Answer]]:
        """The n-best list of each row of one batch of what the model's `begin` takes."""
        step, cache = self._begin(variables, inputs)
        prompts = jnp.full((len(inputs), 1), self.start, jnp.int32)
        found = beam.search(step, cache, prompts, beam_size, self.most, self.end, length_penalty)
        found = jax.device_get(found)
        rows = zip(found.tokens, found.lengths, found.scores, strict=True)
        return [
            [self._answer(*each) for each in zip(*row, strict=True) if np.isfinite(each[2])] for row in rows
        ]

    def draws(self, variables, rows, key, **options) -> list[Answer]:
        """One answer a row, drawn by `sampling.sample` with its temperature, top_k, top_p and min_p."""
        step, cache = self._begin(variables, jnp.asarray(rows))
        prompts = jnp.full((len(rows), 1), self.start, jnp.int32)
        drawn = sampling.sample(
            step, cache, prompts, jnp.ones(len(rows), jnp.int32), key, self.most, end=self.end, **options
        )
        parts = jax.device_get((drawn.tokens[:, 1:], drawn.lengths - 1, drawn.log_probs.sum(1)))
        return [self._answer(*each) for each in zip(*parts, strict=True)]

    def texts(self, variables, rows, **options) -> list[str]:
        """The best answer to each row; options as of `answers`."""
        return [best[0].text for best in self.answers(variables, rows, **options)]

    def _answer(self, tokens, length, score):
        ids = tokens[:length]
        text = self.tokenizer.decode(ids[:-1] if length and ids[-1] == self.end else ids)
        return Answer(text, float(score), np.concatenate([[self.start], ids]).astype(np.int32))

    def file(self, variables, source: str, output: str, longest: int, **options) -> list[str]:
        """Translates the lines of a file; returns what was wrong with which, whose lines are left empty."""
        try:
            lines = Path(source).expanduser().read_bytes().split(b"\n")
        except OSError as error:
            raise ValueError(f"input: {source!r} cannot be read: {error.strerror}") from None
        lines = lines[:-1] if lines and not lines[-1] else lines
        good, wrong = {}, []
        for number, line in enumerate(lines, 1):
            try:
                sentence = line.decode("utf-8").strip()
                if not sentence:
                    raise ValueError("empty")
                row = self.encode([sentence])[0]
                row = row[row > 0]
                if len(row) > longest:
                    raise ValueError(f"{len(row)} tokens; allowed: up to {longest}")
                good[number] = row
            except UnicodeDecodeError as error:
                wrong.append(
                    f"line {number}: not UTF-8, byte {error.object[error.start]:#04x} at {error.start}"
                )
            except ValueError as error:
                wrong.append(f"line {number}: {error}")
        rows = np.zeros((len(good), max(map(len, good.values()), default=0)), np.int32)
        for row, ids in zip(rows, good.values(), strict=True):
            row[: len(ids)] = ids
        texts = dict(zip(good, self.texts(variables, rows, progress=True, **options), strict=True))
        target = Path(output).expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        whole = (texts.get(number, "").replace("\n", " ") + "\n" for number in range(1, len(lines) + 1))
        target.write_text("".join(whole), encoding="utf-8")
        return wrong


def _batches(rows, size: int, progress: bool) -> Iterator[tuple[np.ndarray, Any]]:
    """(places, their rows), from short to long, each as wide as its longest; a last batch is filled up with copies."""
    if not len(rows):
        return
    lengths = (rows > 0).sum(1)
    order, size = np.argsort(lengths, kind="stable"), min(size, len(rows))
    with tqdm(total=len(rows), unit="sentence", dynamic_ncols=True, disable=not progress) as bar:
        for begin in range(0, len(order), size):
            places = order[begin : begin + size]
            width = -(-max(int(lengths[places].max()), 1) // WIDTH) * WIDTH
            batch = np.zeros((size, width), np.int32)
            kept = rows[places, :width]
            batch[: len(kept), : kept.shape[1]] = kept
            batch[len(kept) :] = batch[0]
            yield places, jnp.asarray(batch)
            bar.update(len(places))
