"""N-gram language models by counts: add-k, interpolation, Kneser-Ney. In NumPy: they are tables and look-ups.

The h of P(w | h) are the n - 1 tokens before w. Contexts are kept as a tree: a context's parent is the context
without its oldest token, which is what all smoothing falls back on.
"""

import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float, Int

from lmlab.layers.linear import Embed

SMOOTHINGS = ("add", "interpolated", "kneser_ney")
Tables = list[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class NGram:
    """P(w | h) of order n, by counts c in the training text.

    add (Laplace):  (c(h w) + k) / (c(h) + k V); where c(h) + k = 0, 1 / V.
    interpolated (Jelinek and Mercer 1980):  weight c(h w) / c(h) + (1 - weight) P(w | h'), h' without the
        oldest token, at last 1 / V.
    kneser_ney (Kneser and Ney 1995, as interpolated by Chen and Goodman 1999, section 3.7):
        max(c(h w) - d, 0) / c(h) + d N1+(h .) / c(h) P(w | h'), where in all but the longest h the count of
        h w is the number of tokens that it follows, N1+(. h w), and P(w) = N1+(. w) / N1+(. .).
    A context that was not seen is passed over. V: vocab_size; d: discount.
    """

    vocab_size: int
    order: int = 2
    smoothing: str = "add"
    k: float = 1.0
    weight: float = 0.7
    discount: float = 0.75

    def __post_init__(self):
        if self.order < 1:
            raise ValueError(f"order must be at least 1, received {self.order}")
        if self.smoothing not in SMOOTHINGS:
            raise ValueError(f"smoothing: received {self.smoothing!r}; allowed: {', '.join(SMOOTHINGS)}")
        if self.k < 0:
            raise ValueError(f"k must be at least 0, received {self.k}")
        for name in ("weight", "discount"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, received {getattr(self, name)}")

    # -- counting ------------------------------------------------------------------------------------

    def fit(self, rows: Int[np.ndarray, "N n"]) -> Tables:
        """The counts of a text's rows, n tokens that follow each other: a table for each length of context from 0 on.

        parent, token: of each context, sorted, the one without its oldest token, and that token (of length 0 there
        is one, empty). context, word, count: of each pair of context and word, sorted, how often.
        """
        if rows.shape[1:] != (self.order,) or not len(rows):
            raise ValueError(f"rows must be (N, {self.order}), N at least 1; received {rows.shape}")
        at, tables = np.zeros(len(rows), np.int64), []
        for length in range(self.order):
            table = {}
            if length:
                keys, at = np.unique(at * self.vocab_size + rows[:, -1 - length], return_inverse=True)
                table = dict(zip(("parent", "token"), np.divmod(keys, self.vocab_size), strict=True))
            keys, count = np.unique(at * self.vocab_size + rows[:, -1], return_counts=True)
            context, word = np.divmod(keys, self.vocab_size)
            table |= {"context": context, "word": word, "count": count}
            tables.append({name: array.astype(np.int32) for name, array in table.items()})
        return tables

    # -- probabilities -------------------------------------------------------------------------------

    def probabilities(self, tables: Tables, rows: Int[np.ndarray, "N n"]) -> Float[np.ndarray, "N"]:
        """P of the last token of each row, given those before it."""
        p = np.full(len(rows), 1 / self.vocab_size)
        levels = list(self._levels(tables, rows))
        if self.smoothing == "add":
            count, of_context, _ = levels[-1]
            below = of_context + self.k * self.vocab_size
            return np.divide(count + self.k, below, out=p, where=below > 0)
        for length, (count, of_context, types) in enumerate(levels):
            seen = of_context > 0
            total = np.where(seen, of_context, 1)
            if self.smoothing == "interpolated":
                new = self.weight * count / total + (1 - self.weight) * p
            elif length == 0:
                new = count / total
            else:
                new = (np.maximum(count - self.discount, 0) + self.discount * types * p) / total
            p = np.where(seen, new, p)
        return p

    def distribution(self, tables: Tables, history: Int[np.ndarray, "_"]) -> Float[np.ndarray, "V"]:
        """P(w | the last n - 1 tokens of `history`) for all w."""
        context = np.asarray(history, np.int32)[len(history) - self.order + 1 :]
        if len(context) < self.order - 1:
            raise ValueError(
                f"a history of at least {self.order - 1} tokens is needed, received {len(history)}"
            )
        words = np.arange(self.vocab_size, dtype=np.int32)[:, None]
        return self.probabilities(tables, np.hstack([np.tile(context, (self.vocab_size, 1)), words]))

    def _levels(self, tables: Tables, rows) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each length of context: the count of each row, that of its context, and in how many words it goes on."""
        at = np.zeros(len(rows), np.int64)  # the place of each row's context; -1: not seen
        for length, table in enumerate(tables):
            if length:
                at = self._find(table["parent"], table["token"], at, rows[:, -1 - length])
            count = table["count"].astype(np.float64)
            if self.smoothing == "kneser_ney" and length + 1 < len(tables):
                count = self._continuations(table, tables[length + 1])
            contexts = len(table["parent"]) if length else 1
            total = np.bincount(table["context"], count, contexts)
            types = np.bincount(table["context"], minlength=contexts)
            pair = self._find(table["context"], table["word"], at, rows[:, -1])
            none = at < 0
            yield (
                np.where(pair < 0, 0, count[pair]),
                np.where(none, 0, total[at]),
                np.where(none, 0, types[at]),
            )

    def _continuations(self, table, longer) -> np.ndarray:
        """N1+(. h w) of each pair in a table, from the one whose contexts are longer by a token."""
        places = self._find(
            table["context"], table["word"], longer["parent"][longer["context"]], longer["word"]
        )
        return np.bincount(places, minlength=len(table["word"])).astype(np.float64)

    def _find(self, first, second, left, right) -> np.ndarray:
        """Where (left, right) stands among the sorted pairs (first, second); -1: nowhere, or left is -1."""
        keys = first.astype(np.int64) * self.vocab_size + second
        wanted = np.asarray(left, np.int64) * self.vocab_size + right
        places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where((keys[places] == wanted) & (np.asarray(left) >= 0), places, -1)


class Bigram(nn.Module):
    """Logits of the next token as one linear layer of the last one as one-hot: a row of a table."""

    vocab_size: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "B N"], train: bool = False) -> Float[Array, "B V"]:
        del train
        return Embed(self.vocab_size, self.vocab_size, ("embed", "vocab"), name="table")(tokens[:, -1])
