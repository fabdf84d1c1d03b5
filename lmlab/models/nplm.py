"""The neural probabilistic language model (Bengio et al. 2003): a network over the last tokens, side by side."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lmlab.layers.linear import Dense, Embed
from lmlab.layers.normalization import batch_norm

GAIN = 5 / 3
"""Of tanh: what keeps the deviation of its outputs, by which the layer before it is scaled up."""


class NPLM(nn.Module):
    """Logits y = b + W x + U tanh(d + H x), x = (C(w_1), ..., C(w_N)) (Bengio et al. 2003, eq. 1 and the text after).

    C: d_embed features a token; H: `hidden` units. direct: whether there is W. normalize: d + H x goes through batch
    normalization (Ioffe and Szegedy 2015). naive: every weight of H and U begins as N(0, 1), as one would without
    thinking, and not so that tanh is in its middle and y near 0.
    """

    vocab_size: int
    context: int = 3
    d_embed: int = 10
    hidden: int = 200
    direct: bool = False
    normalize: bool = False
    naive: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "context", "d_embed", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: Int[Array, "B N"], train: bool = False) -> Float[Array, "B V"]:
        if tokens.shape[1] != self.context:
            raise ValueError(f"a context is {self.context} tokens, received {tokens.shape[1]}")
        normal = nn.initializers.normal
        x = Embed(self.vocab_size, self.d_embed, embedding_init=normal(1.0), name="embed")(tokens)
        x = x.reshape(len(x), -1)
        inward = normal(1.0) if self.naive else nn.initializers.variance_scaling(GAIN**2, "fan_in", "normal")
        h = Dense(self.hidden, not self.normalize, kernel_init=inward, name="inward")(x)
        if self.normalize:
            h = batch_norm(train)(h)
        h = jnp.tanh(h)
        self.sow("intermediates", "hidden", h)
        outward = normal(1.0) if self.naive else normal(0.01)
        y = Dense(self.vocab_size, True, ("mlp", "vocab"), outward, name="outward")(h)
        if self.direct:
            y = y + Dense(self.vocab_size, False, ("embed", "vocab"), normal(0.01), name="direct")(x)
        return y
