"""Attention as queries, keys and values: attention(q, (k, v)) = sum_i softmax_i a(q, k_i) v_i, for any score a.

Nadaraya-Watson regression is attention with `gaussian` scores (Nadaraya 1964, Watson 1964).
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lmlab.layers.attention import masked_softmax
from lmlab.layers.linear import Dense, einsum

SCORES = ("dot", "scaled", "bilinear", "additive")


def dot(q: Float[Array, "B T K"], k: Float[Array, "B S K"]) -> Float[Array, "B T S"]:
    """a(q, k) = q . k (Luong et al. 2015, eq. 8)."""
    return einsum("btk,bsk->bts", q, k)


def scaled(q: Float[Array, "B T K"], k: Float[Array, "B S K"]) -> Float[Array, "B T S"]:
    """a(q, k) = q . k / sqrt(K), of variance 1 where the entries of q and k are independent and have it.

    Vaswani et al. 2017, section 3.2.1.
    """
    return dot(q, k) / math.sqrt(q.shape[-1])


def additive(
    q: Float[Array, "B T F"], k: Float[Array, "B S F"], v: Float[Array, "F"]
) -> Float[Array, "B T S"]:
    """a(q, k) = v . tanh(q + k), of queries and keys that are mapped already (Bahdanau et al. 2015, A.1.2)."""
    return jnp.tanh(q[:, :, None] + k[:, None]) @ v


def gaussian(
    q: Float[Array, "B T K"],
    k: Float[Array, "B S K"],
    bandwidth: float | Float[Array, ""] | Float[Array, "S"],
) -> Float[Array, "B T S"]:
    """a(q, k) = -|q - k|^2 / (2 h^2), h one for all or one a key.

    Of queries and keys of fixed norm and one h, its softmax is that of q . k / h^2.
    """
    squares = jnp.sum((q[:, :, None] - k[:, None]) ** 2, axis=-1)
    return -squares / (2 * jnp.broadcast_to(bandwidth, k.shape[1:2]) ** 2)[None, None]


def attend(
    scores: Float[Array, "B T S"], values: Float[Array, "B S V"], mask: Bool[Array, "B S"] | None = None
) -> tuple[Float[Array, "B T V"], Float[Array, "B T S"]]:
    """(sum_i softmax_i(scores) v_i, the weights). mask: True where attended."""
    weights = masked_softmax(scores, None if mask is None else mask[:, None])
    return einsum("bts,bsv->btv", weights, values), weights


class Attention(nn.Module):
    """`attend` by a score of SCORES; bilinear: (W_1 q) . (W_2 k), additive: v . tanh(W_1 q + W_2 k + b).

    features: F of both maps. Keys are mapped once by `keys`, for all queries to come.
    """

    score: str = "additive"
    features: int = 128

    def __post_init__(self):
        if self.score not in SCORES:
            raise ValueError(f"unknown score {self.score!r}; allowed: {', '.join(SCORES)}")
        if self.features < 1:
            raise ValueError(f"features must be at least 1, received {self.features}")
        super().__post_init__()

    def setup(self):
        if self.score in ("bilinear", "additive"):
            self.of_query = Dense(self.features, self.score == "additive")
            self.of_key = Dense(self.features, False)
        if self.score == "additive":
            init = nn.with_logical_partitioning(nn.initializers.normal(self.features**-0.5), ("mlp",))
            self.v = self.param("v", init, (self.features,))

    def keys(self, memory: Float[Array, "B S K"]) -> Float[Array, "B S F"]:
        """The memory as keys: as it is, or W_2 k."""
        return self.of_key(memory) if self.score in ("bilinear", "additive") else memory

    def __call__(
        self,
        query: Float[Array, "B T Q"],
        keys: Float[Array, "B S F"],
        values: Float[Array, "B S V"],
        mask: Bool[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B T V"], Float[Array, "B T S"]]:
        """(contexts, weights). ValueError: dot and scaled want queries as wide as keys."""
        if self.score in ("bilinear", "additive"):
            query = self.of_query(query)
        elif query.shape[-1] != keys.shape[-1]:
            received = f"{query.shape[-1]} and {keys.shape[-1]}"
            raise ValueError(
                f"the score {self.score!r} wants queries and keys of one width, received {received}"
            )
        if self.score == "additive":
            scores = additive(query, keys, self.v)
        else:
            scores = scaled(query, keys) if self.score == "scaled" else dot(query, keys)
        return attend(scores, values, mask)
