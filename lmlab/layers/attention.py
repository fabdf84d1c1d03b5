"""Scaled dot-product and multi-head attention (Vaswani et al. 2017), with an explicit cache.

Arrays are (B, H, T, K) inside: on a CPU its products are half as fast again as those of (B, T, H, K).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lmlab.layers.dropout import Dropout, Rate, is_zero
from lmlab.layers.linear import Dense, compute_dtype, einsum


class KVCache(NamedTuple):
    """Keys and values of the tokens read so far; the first `length` of S places are taken.

    `length` is a scalar: the rows of a batch advance together.
    """

    keys: Float[Array, "B H S K"]
    values: Float[Array, "B H S K"]
    length: Int[Array, ""]

    @classmethod
    def empty(cls, batch: int, num_heads: int, length: int, head_size: int) -> "KVCache":
        zeros = jnp.zeros((batch, num_heads, length, head_size))
        return cls(zeros, zeros, jnp.zeros((), jnp.int32))


def causal_mask(target: int, source: int, offset: int | Int[Array, ""] = 0) -> Bool[Array, "T S"]:
    """True where source position j <= target position i + offset."""
    return jnp.arange(source)[None, :] <= jnp.arange(target)[:, None] + offset


def attention_weights(
    q: Float[Array, "B H T K"], k: Float[Array, "B H S K"], mask: Bool[Array, "#B #H #T S"] | None = None
) -> Float[Array, "B H T S"]:
    """softmax(q k^T / sqrt(K)) over the sources where `mask` is True (Vaswani et al. 2017, eq. 1)."""
    return masked_softmax(einsum("bhtk,bhsk->bhts", q, k) / math.sqrt(q.shape[-1]), mask)


def masked_softmax(scores: Float[Array, "... S"], mask: Bool[Array, "..."] | None) -> Float[Array, "... S"]:
    """softmax over the sources where `mask`, which is broadcast, is True."""
    if mask is not None:
        # The least number, not -inf: a row with nothing to attend to (padding) stays finite.
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores)


def scaled_dot_product_attention(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    mask: Bool[Array, "#B #H #T S"] | None = None,
) -> tuple[Float[Array, "B H T K"], Float[Array, "B H T S"]]:
    """(softmax(q k^T / sqrt(K)) v, the weights) (Vaswani et al. 2017, eq. 1); mask: True where attended."""
    weights = attention_weights(q, k, mask)
    return einsum("bhts,bhsk->bhtk", weights, v), weights


def _fused(q, k, v, mask, causal):
    """The same by cuDNN's flash attention, which keeps no weights.

    It takes even lengths alone, so an odd one gets a place more, to which nothing attends, and masks that are whole.
    """
    target, source = q.shape[2], k.shape[2]
    odd, odd_source = target % 2, source % 2
    if mask is None and odd_source and not (causal and target == source):
        mask = jnp.ones((1, 1, 1, 1), bool)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], target, source))
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, odd), (0, odd_source)))
    q = jnp.pad(q, ((0, 0), (0, 0), (0, odd), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, odd_source), (0, 0))) for x in (k, v))
    q, k, v = (x.astype(jnp.bfloat16).swapaxes(1, 2) for x in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="cudnn")
    return out.swapaxes(1, 2)[:, :, :target].astype(jnp.float32)


def _can_fuse(q: Float[Array, "B H T K"]) -> bool:
    supported = q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and q.shape[2] > 1  # cuDNN's head sizes
    return jax.default_backend() == "gpu" and compute_dtype() == jnp.bfloat16 and supported


class MultiHeadAttention(nn.Module):
    """head_h = attention(x W^Q_h, m W^K_h, m W^V_h), y = [head_1; ...; head_H] W^O.

    Vaswani et al. 2017, section 3.2.2; m is x itself or, with `cross`, a memory. The columns of a fused
    kernel are ordered by head, within a head by query, key, value, so that a split of the columns over
    devices falls between heads. The weights are kept for figures when "intermediates" is mutable.
    """

    features: int
    num_heads: int
    cross: bool = False
    dropout: Rate = 0.0
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.xavier_uniform()
    out_init: Callable = nn.initializers.xavier_uniform()

    def __post_init__(self):
        check_heads(self.features, self.num_heads)
        super().__post_init__()

    def setup(self):
        def inward(parts):
            return Dense(parts * self.features, self.use_bias, ("embed", "heads"), self.kernel_init)

        if self.cross:
            self.q, self.kv = inward(1), inward(2)
        else:
            self.qkv = inward(3)
        self.out = Dense(self.features, self.use_bias, ("heads", "embed"), self.out_init)
        self.drop_weights, self.drop_out = Dropout(self.dropout), Dropout(self.dropout)

    def _heads(self, x, parts):
        """`parts` arrays (B, H, T, K) out of one projection (B, T, parts * D)."""
        x = x.reshape(*x.shape[:2], self.num_heads, parts, self.features // self.num_heads)
        return tuple(x.transpose(3, 0, 2, 1, 4))

    def remember(self, memory: Float[Array, "B S M"]) -> KVCache:
        """Keys and values of a memory that many calls attend to."""
        k, v = self._heads(self.kv(memory), 2)
        return KVCache(k, v, jnp.asarray(memory.shape[1], jnp.int32))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        memory: Float[Array, "B S M"] | KVCache | None = None,
        mask: Bool[Array, "#B #H #T S"] | None = None,
        causal: bool = False,
        cache: KVCache | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """(y, the cache with x's keys and values added). `cache`: self attention only; implies causal."""
        if self.cross:
            past = memory if isinstance(memory, KVCache) else self.remember(memory)
            (q,), k, v = self._heads(self.q(x), 1), past.keys, past.values
        else:
            q, k, v = self._heads(self.qkv(x), 3)
        plain_causal = causal and cache is None
        if cache is not None:
            at = (0, 0, cache.length, 0)
            k, v = lax.dynamic_update_slice(cache.keys, k, at), lax.dynamic_update_slice(cache.values, v, at)
            mask = _and(mask, causal_mask(x.shape[1], k.shape[2], cache.length))
            cache = KVCache(k, v, cache.length + x.shape[1])

        wanted = self.is_mutable_collection("intermediates")
        dropping = train and not is_zero(self.dropout)
        if _can_fuse(q) and not wanted and not dropping:
            y = _fused(q, k, v, mask, plain_causal)
        else:
            if plain_causal:
                mask = _and(mask, causal_mask(x.shape[1], k.shape[2]))
            weights = attention_weights(q, k, mask)
            if wanted:
                self.sow("intermediates", "weights", weights)
            y = einsum("bhts,bhsk->bhtk", self.drop_weights(weights, train), v)
        y = self.out(y.swapaxes(1, 2).reshape(x.shape[:2] + (self.features,)))
        return self.drop_out(y, train), cache


def check_heads(features: int, num_heads: int) -> None:
    if num_heads < 1 or features < 1 or features % num_heads:
        received = f"width {features}, num_heads {num_heads}"
        raise ValueError(f"the width must be a multiple of num_heads, received {received}")


def _and(mask, other):
    return other[None, None] if mask is None else mask & other[None, None]
