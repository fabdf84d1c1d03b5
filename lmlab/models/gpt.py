"""GPT: a decoder-only transformer (Radford et al. 2019), with the choices of nanoGPT."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lmlab.layers.attention import KVCache, check_heads
from lmlab.layers.dropout import Dropout, Rate, check_rate
from lmlab.layers.linear import Dense, Embed
from lmlab.layers.positions import LearnedPositions
from lmlab.layers.transformer import Transformer


class GPTCache(NamedTuple):
    """What decoding carries: each layer's keys and values, how many tokens were read, the last of them.

    `window` is None when the caller promised never to pass the context.
    """

    layers: tuple[KVCache, ...]
    length: Int[Array, ""]
    window: Int[Array, "B C"] | None


class GPT(nn.Module):
    """Pre-norm blocks over token and learned position embeddings; logits of the next token.

    Initialization as in GPT-2: normal with deviation 0.02, residual projections 0.02 / sqrt(2 num_layers).
    bias: whether linear maps and normalizations have one.
    """

    vocab_size: int
    context: int
    num_layers: int
    num_heads: int
    d_model: int
    dropout: Rate = 0.0
    tie_embeddings: bool = True
    bias: bool = True
    remat: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "context", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        check_heads(self.d_model, self.num_heads)
        check_rate(self.dropout)
        super().__post_init__()

    def setup(self):
        normal = nn.initializers.normal(0.02)
        self.embed = Embed(self.vocab_size, self.d_model, embedding_init=normal)
        self.positions = LearnedPositions(self.context, self.d_model, normal)
        self.drop = Dropout(self.dropout)
        self.transformer = Transformer(
            num_layers=self.num_layers,
            features=self.d_model,
            num_heads=self.num_heads,
            dropout=self.dropout,
            use_bias=self.bias,
            kernel_init=normal,
            out_init=nn.initializers.normal(0.02 / math.sqrt(2 * self.num_layers)),
            remat=self.remat,
        )
        if not self.tie_embeddings:
            self.head = Dense(self.vocab_size, False, ("embed", "vocab"), normal)

    def __call__(
        self, tokens: Int[Array, "B T"], train: bool = False, cache: GPTCache | None = None
    ) -> Float[Array, "B T V"] | tuple[Float[Array, "B T V"], GPTCache]:
        """Logits; with a cache (which must have room for the tokens), (logits, the cache after them)."""
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(f"{length} tokens are more than the context of {self.context}")
        first = 0 if cache is None else cache.length
        positions = first + jnp.arange(length, dtype=jnp.int32)
        layers = None if cache is None else cache.layers
        logits, layers = self.logits(self.embed(tokens), positions, train, layers)
        if cache is None:
            return logits
        window = cache.window
        if window is not None:
            window = lax.dynamic_update_slice(window, tokens.astype(window.dtype), (0, cache.length))
        return logits, GPTCache(layers, cache.length + length, window)

    def logits(
        self,
        embedded: Float[Array, "B T D"],
        positions: Int[Array, "T"],
        train: bool = False,
        cache: tuple[KVCache, ...] | None = None,
    ) -> tuple[Float[Array, "B T V"], tuple[KVCache, ...] | None]:
        """(logits, layers' caches) from the tokens' embeddings, by which one can differentiate."""
        x = self.drop(embedded + self.positions(positions)[None], train)
        x, cache = self.transformer(x, cache=cache, causal=True, train=train)
        return (self.embed.attend(x) if self.tie_embeddings else self.head(x)), cache

    def start(self, batch: int, length: int | None = None) -> GPTCache:
        """An empty cache. `length`: the most tokens that will be read, if known; saves memory and time."""
        room = self.context if length is None else min(length, self.context)
        empty = KVCache.empty(batch, self.num_heads, room, self.d_model // self.num_heads)
        slides = length is None or length > self.context
        window = jnp.zeros((batch, self.context), jnp.int32) if slides else None
        return GPTCache((empty,) * self.num_layers, jnp.zeros((), jnp.int32), window)

    def step(
        self, variables: dict[str, Any], cache: GPTCache, token: Int[Array, "B"]
    ) -> tuple[Float[Array, "B V"], GPTCache]:
        """(logits after one more token, the cache); past the context, those of the last `context` tokens."""

        def cached(cache):
            logits, cache = self.apply(variables, token[:, None], cache=cache)
            return logits[:, 0], cache

        def sliding(cache):
            # Learned positions move with the window, so every key changes: nothing kept is of use.
            window = jnp.concatenate([cache.window[:, 1:], token[:, None].astype(jnp.int32)], axis=1)
            logits = self.apply(variables, window)[:, -1]
            return logits, cache._replace(length=cache.length + 1, window=window)

        if cache.window is None:
            return cached(cache)
        return lax.cond(cache.length < self.context, cached, sliding, cache)


def flops_per_token(num_params: int, num_layers: int, d_model: int, context: int) -> float:
    """6 N + 12 L D T, forward and backward (Chowdhery et al. 2022, appendix B); N counts parameters."""
    return 6.0 * num_params + 12.0 * num_layers * d_model * context
