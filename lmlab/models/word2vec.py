"""Word vectors from words that stand near each other and words that do not (Mikolov et al. 2013a, b).

A row of text is looked at as a whole: which of its words are near which is a matrix, so that scores of all its pairs,
and of all its words with the negatives drawn for it, are products of matrices.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from lmlab.experiment import Mean, PyTree
from lmlab.layers.linear import Embed, einsum
from lmlab.tasks import binary_cross_entropy

ARCHITECTURES = ("cbow", "skipgram")
POWER = 0.75
"""Of a word's count, to which the probability of being drawn as a negative is proportional."""


class Word2Vec(nn.Module):
    """Two vectors a word: v as an input, u as what is predicted. As in word2vec, v begins even in +-1/2D, u as 0.

    Given words and negatives: (v of the words, u of the words, u of the negatives).
    """

    vocab_size: int
    d_model: int = 100

    def __post_init__(self):
        for name in ("vocab_size", "d_model"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        super().__post_init__()

    def setup(self):
        def even(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -0.5, 0.5) / shape[1]

        self.input = Embed(self.vocab_size, self.d_model, embedding_init=even)
        self.output = Embed(self.vocab_size, self.d_model, embedding_init=nn.initializers.zeros)

    def __call__(
        self, words: Int[Array, "B T"], negatives: Int[Array, "B K"]
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"], Float[Array, "B K D"]]:
        return self.input(words), self.output(words), self.output(negatives)


def keep_probability(counts: Int[np.ndarray, "V"], sample: float) -> Float[np.ndarray, "V"]:
    """P(an occurrence stays) = min(1, sqrt(t / f) + t / f), f = count / all, t: `sample`; 1 where t is 0.

    As in word2vec's code; the paper (2013b, eq. 5) has the first term alone.
    """
    share = sample / np.maximum(counts / max(counts.sum(), 1), 1e-30)
    return (
        np.minimum(1, np.sqrt(share) + share).astype(np.float32)
        if sample
        else np.ones(len(counts), np.float32)
    )


def negative_table(counts: Int[np.ndarray, "V"]) -> UInt[np.ndarray, "V"]:
    """The sums of count^0.75 up to each word, in units of 2^-32: a draw x is the first word whose sum is above x."""
    weights = counts.astype(np.float64) ** POWER
    return np.minimum(np.cumsum(weights) / weights.sum() * 2.0**32, 2.0**32 - 1).astype(np.uint32)


@dataclasses.dataclass(frozen=True, eq=False)
class Near:
    """The loss of negative sampling (2013b, eq. 4): -log s(u_O . v_I) - k E log s(-u_n . v_I), n drawn as count^0.75.

    skipgram: a pair is a word I and each O of those near it. cbow: v_I is the mean of v over the words near O, a pair
    that and O. whole: each v of the mean moves by the whole error, as in word2vec's code and gensim; otherwise by its
    share, which is the gradient (Irsoy et al. 2021, arXiv:2012.15332). Of the occurrences of frequent words some are
    passed over (`keep_probability`), as if not there; near are the b words to each side, b drawn evenly of 1..window
    for each word, up to an end of line or of the row. k: `negatives` a pair, where the expectation is the mean over
    `drawn` of them that all pairs of a row share.

    counts: of each word of the vocabulary in the training text; what has none (specials) is passed over. end: the id
    that ends a line. A batch is {"tokens": (B, T+1)}, of which the last is the first of the next window, and left out.
    The loss logged is the mean over pairs. What is minimised is that over the T positions of B rows, and times their
    number the sum, to which word2vec's learning rate belongs.
    """

    model: Word2Vec
    counts: np.ndarray
    end: int
    architecture: str = "cbow"
    window: int = 5
    negatives: int = 5
    drawn: int = 64
    sample: float = 1e-3
    whole: bool = True

    def __post_init__(self):
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture: received {self.architecture!r}; allowed: {', '.join(ARCHITECTURES)}"
            )
        for name in ("window", "negatives", "drawn"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        if self.sample < 0:
            raise ValueError(
                f"sample must be at least 0 (0: no occurrence is passed over), received {self.sample}"
            )

    def init(self, key, batch: dict[str, Any]) -> tuple[PyTree, dict[str, PyTree]]:
        words = batch["tokens"][:, :-1]
        return self.model.init(key, words, words[:, :1])["params"], {}

    def loss(
        self, params, collections, batch: dict[str, Any], key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        del train
        words = batch["tokens"][:, :-1]
        near, negatives = self.draw(words, key)
        return *self.means(self.model.apply({"params": params}, words, negatives), near), collections

    def step(self, state, batch: dict[str, Any], key, update):
        """An update by plain gradient descent, which moves the rows of the batch alone: the same in less time.

        `update` is given the rows in place of the tables, and what it adds to each goes into the tables.
        """
        words = batch["tokens"][:, :-1]
        near, negatives = self.draw(words, jax.random.fold_in(key, 0))  # the key of the only microbatch
        rows = self.model.apply({"params": state.params}, words, negatives)

        def loss(rows, collections, batch, key, train):
            return *self.means(rows, near), collections

        new, metrics = update(loss, None, state.replace(params=rows), batch, key)
        v, u, u_n = jax.tree.map(jnp.subtract, new.params, rows)
        params = {
            "input": jax.tree.map(lambda table: table.at[words].add(v), state.params["input"]),
            "output": jax.tree.map(
                lambda table: table.at[words].add(u).at[negatives].add(u_n), state.params["output"]
            ),
        }
        return new.replace(params=params), metrics

    def means(self, rows, near) -> tuple[Mean, dict[str, Mean]]:
        """(what is minimised, what is logged)."""
        total, pairs = self.total(*rows, near)
        return Mean(total, jnp.asarray(near[..., 0].size, jnp.float32)), {"loss": Mean(total, pairs)}

    def draw(self, words: Int[Array, "B T"], key) -> tuple[Bool[Array, "B T T"], Int[Array, "B K"]]:
        """(whether the word across is near the one down, the negatives of each row)."""
        keys = jax.random.split(key, 3)
        rate = jnp.asarray(keep_probability(self.counts, self.sample) * (self.counts > 0), jnp.float32)
        kept = jax.random.uniform(keys[0], words.shape) < rate[words]
        reach = jax.random.randint(keys[1], words.shape, 1, self.window + 1)
        draws = jax.random.bits(keys[2], (len(words), self.drawn), jnp.uint32)
        negatives = jnp.searchsorted(jnp.asarray(negative_table(self.counts)), draws, side="right")
        return nearby(kept, jnp.cumsum(words == self.end, 1), reach), negatives.astype(jnp.int32)

    def total(
        self,
        v: Float[Array, "B T D"],
        u: Float[Array, "B T D"],
        u_n: Float[Array, "B K D"],
        near: Bool[Array, "B T T"],
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(the loss of all pairs, how many there are)."""
        near = near.astype(v.dtype)
        count = near.sum(2)
        if self.architecture == "skipgram":
            of_pairs = (near * _as_near(einsum("btd,bsd->bts", v, u))).sum()
        else:
            added = einsum("bts,bsd->btd", near, v)
            v = added / jnp.maximum(count, 1)[..., None]
            if self.whole:
                v = added + jax.lax.stop_gradient(v - added)
            count = jnp.minimum(count, 1)
            of_pairs = (count * _as_near((v * u).sum(2))).sum()
        scores = einsum("btd,bkd->btk", v, u_n)
        of_negatives = binary_cross_entropy(scores, jnp.zeros_like(scores)).mean(2)
        return of_pairs + self.negatives * (count * of_negatives).sum(), count.sum()


def _as_near(scores):
    return binary_cross_entropy(scores, jnp.ones_like(scores))


def nearby(
    kept: Bool[Array, "B T"], line: Int[Array, "B T"], reach: Int[Array, "B T"]
) -> Bool[Array, "B T T"]:
    """Whether, of the words kept, the one across is of the `reach` before or after the one down, on the same line."""
    place = jnp.cumsum(kept, 1)
    apart = jnp.abs(place[:, :, None] - place[:, None, :])
    both = kept[:, :, None] & kept[:, None, :] & (line[:, :, None] == line[:, None, :])
    return both & (apart > 0) & (apart <= reach[:, :, None])
