"""The transformer's block, before or after normalization, and the stack of them."""

import math
from collections.abc import Callable

import flax.linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float

from lmlab.layers.attention import KVCache, MultiHeadAttention, check_heads
from lmlab.layers.dropout import Dropout, Rate, check_rate
from lmlab.layers.linear import Dense


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Phi(x), Phi the standard normal distribution function (Hendrycks and Gimpel 2016), exact.

    By erf: XLA's erfc, which `jax.nn.gelu` calls, takes twice as long on a CPU.
    """
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


def layer_norm(use_bias: bool = True, name: str | None = None) -> nn.LayerNorm:
    """Layer normalization (Ba et al. 2016) over the last axis, epsilon 1e-5."""
    return nn.LayerNorm(
        epsilon=1e-5,
        use_bias=use_bias,
        use_fast_variance=False,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
        name=name,
    )


class FeedForward(nn.Module):
    """W_2 f(W_1 x + b_1) + b_2 (Vaswani et al. 2017, eq. 2); F: `hidden`, f: `activation`."""

    hidden: int
    activation: Callable = gelu
    dropout: Rate = 0.0
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.xavier_uniform()
    out_init: Callable = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], train: bool = False) -> Float[Array, "B T D"]:
        inward = Dense(self.hidden, self.use_bias, ("embed", "mlp"), self.kernel_init, name="inward")
        outward = Dense(x.shape[-1], self.use_bias, ("mlp", "embed"), self.out_init, name="outward")
        return Dropout(self.dropout)(outward(self.activation(inward(x))), train)


class Block(nn.Module):
    """Self attention, cross attention if `cross`, and feed-forward, each in a residual branch.

    pre_norm: x + f(norm(x)); else the paper's norm(x + f(x)) (Vaswani et al. 2017, section 3.1).
    `hidden` None means 4 times the width.
    """

    features: int
    num_heads: int
    hidden: int | None = None
    pre_norm: bool = True
    cross: bool = False
    activation: Callable = gelu
    dropout: Rate = 0.0
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.xavier_uniform()
    out_init: Callable = nn.initializers.xavier_uniform()

    def __post_init__(self):
        check_heads(self.features, self.num_heads)
        super().__post_init__()

    def setup(self):
        shared = (self.dropout, self.use_bias, self.kernel_init, self.out_init)
        self.attention = MultiHeadAttention(self.features, self.num_heads, False, *shared)
        self.attention_norm = layer_norm(self.use_bias)
        if self.cross:
            self.cross_attention = MultiHeadAttention(self.features, self.num_heads, True, *shared)
            self.cross_norm = layer_norm(self.use_bias)
        self.feed_forward = FeedForward(self.hidden or 4 * self.features, self.activation, *shared)
        self.feed_forward_norm = layer_norm(self.use_bias)

    def remember(self, memory: Float[Array, "B S M"]) -> KVCache:
        """Keys and values of a memory, to be given in its place."""
        return self.cross_attention.remember(memory)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "#B #H #T S"] | None = None,
        memory: Float[Array, "B N M"] | KVCache | None = None,
        memory_mask: Bool[Array, "#B #H #T N"] | None = None,
        cache: KVCache | None = None,
        causal: bool = False,
        train: bool = False,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        def residual(x, norm, branch):
            return x + branch(norm(x)) if self.pre_norm else norm(x + branch(x))

        def attend(x):
            nonlocal cache
            y, cache = self.attention(x, None, mask, causal, cache, train)
            return y

        x = residual(x, self.attention_norm, attend)
        if self.cross:
            x = residual(
                x, self.cross_norm, lambda x: self.cross_attention(x, memory, memory_mask, train=train)[0]
            )
        return residual(x, self.feed_forward_norm, lambda x: self.feed_forward(x, train)), cache


class Transformer(nn.Module):
    """`num_layers` blocks and, when `pre_norm`, a last normalization.

    remat: keep only the blocks' inputs and compute the rest again in the backward pass.
    """

    num_layers: int
    features: int
    num_heads: int
    hidden: int | None = None
    pre_norm: bool = True
    cross: bool = False
    activation: Callable = gelu
    dropout: Rate = 0.0
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.xavier_uniform()
    out_init: Callable = nn.initializers.xavier_uniform()
    remat: bool = False

    def __post_init__(self):
        if self.num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, received {self.num_layers}")
        check_heads(self.features, self.num_heads)
        check_rate(self.dropout)
        super().__post_init__()

    def setup(self):
        block = nn.remat(Block, static_argnums=(6, 7)) if self.remat else Block  # causal and train; 0 is self
        self.blocks = [
            block(
                features=self.features,
                num_heads=self.num_heads,
                hidden=self.hidden,
                pre_norm=self.pre_norm,
                cross=self.cross,
                activation=self.activation,
                dropout=self.dropout,
                use_bias=self.use_bias,
                kernel_init=self.kernel_init,
                out_init=self.out_init,
            )
            for _ in range(self.num_layers)
        ]
        if self.pre_norm:
            self.norm = layer_norm(self.use_bias)

    def remember(self, memory: Float[Array, "B S M"]) -> tuple[KVCache, ...]:
        """Every layer's keys and values of a memory, to be given in its place."""
        return tuple(block.remember(memory) for block in self.blocks)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "#B #H #T S"] | None = None,
        memory: Float[Array, "B N M"] | tuple[KVCache, ...] | None = None,
        memory_mask: Bool[Array, "#B #H #T N"] | None = None,
        cache: tuple[KVCache, ...] | None = None,
        causal: bool = False,
        train: bool = False,
    ) -> tuple[Float[Array, "B T D"], tuple[KVCache, ...] | None]:
        caches = []
        for layer, block in enumerate(self.blocks):
            past = memory[layer] if isinstance(memory, tuple) else memory
            before = None if cache is None else cache[layer]
            x, after = block(x, mask, past, memory_mask, before, causal, train)
            caches.append(after)
        x = self.norm(x) if self.pre_norm else x
        return x, None if cache is None else tuple(caches)
