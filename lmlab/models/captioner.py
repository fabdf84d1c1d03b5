"""Show, attend and tell (Xu et al. 2015): a sentence about an image by an LSTM that looks where it writes of.

Soft attention. The paper's encoder is a VGG trained on photographs before; this one is small and learns with the rest.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from lmlab.experiment import Mean, PyTree
from lmlab.layers.convolution import conv, mean_pool, with_channels
from lmlab.layers.dropout import Dropout, Rate, check_rate
from lmlab.layers.linear import Dense, Embed
from lmlab.layers.recurrent import LSTMCarry, Weights, lstm
from lmlab.layers.scores import Attention
from lmlab.layers.transformer import layer_norm
from lmlab.tasks import Batch, cross_entropy


class Memory(NamedTuple):
    """What the decoder sees of an image: the features of its locations, as keys and as values."""

    keys: Float[Array, "B L A"]
    values: Float[Array, "B L D"]


class Captioner(nn.Module):
    """P(y_t | y_1 ... y_{t-1}, image), given by an LSTM that reads E y_{t-1} and the context z_t side by side.

    z_t = beta_t sum_l alpha_tl a_l with alpha_t = softmax_l f(a_l, h_{t-1}) and the gate beta_t = s(f_beta(h_{t-1}));
    h_0 and c_0 are tanh of linear maps of the mean of a; logits are L_o (E y_{t-1} + L_h h_t + L_z z_t) (Xu et al.
    2015, eq. 1 to 7, 13 and section 4.2.1).

    a: the features of L locations in rows from the top left, by convolutions of 3 x 3 with ReLU, of widths `features`;
    the mean over squares of 2 x 2 follows each of the first `halvings`. Before the last ReLU the features of a location
    are normalized (Ba et al. 2016): features that learn with the rest begin small, and attention to them even. Then
    comes a bias for each location, so that they tell where they are: their windows, unlike VGG's, do not span the
    image. Dropout falls on E y and before L_o.
    """

    vocab_size: int
    image_shape: tuple[int, int] = (48, 48)
    features: tuple[int, ...] = (32, 64, 128, 128)
    halvings: int = 2
    d_embed: int = 128
    d_model: int = 256
    d_attention: int = 128
    dropout: Rate = 0.0

    def __post_init__(self):
        check_rate(self.dropout)
        for name in ("vocab_size", "d_embed", "d_model", "d_attention"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        if not self.features or min(self.features) < 1:
            raise ValueError(f"features must be one width or more, each at least 1, received {self.features}")
        if not 0 <= self.halvings <= len(self.features):
            raise ValueError(f"halvings must be from 0 to {len(self.features)}, received {self.halvings}")
        if min(self.image_shape) < 1 or any(side % 2**self.halvings for side in self.image_shape):
            raise ValueError(
                f"image_shape must be multiples of {2**self.halvings}, for {self.halvings} halvings;"
                f" received {self.image_shape}"
            )
        super().__post_init__()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of locations."""
        high, wide = (side // 2**self.halvings for side in self.image_shape)
        return high, wide

    def setup(self):
        last = len(self.features) - 1
        self.convolutions = [conv(width, use_bias=i < last) for i, width in enumerate(self.features)]
        shape = tuple(side // 2 ** min(self.halvings, last) for side in self.image_shape)
        self.norm = layer_norm(use_bias=False)
        self.place = self.param("place", nn.initializers.zeros, (*shape, self.features[-1]))
        self.first = Dense(2 * self.d_model)
        # tanh is made again for the gradient: to keep B L A of them for each word costs a CPU several times as much.
        self.attend = nn.remat(Attention, prevent_cse=False)("additive", self.d_attention)
        self.gate = Dense(1, axes=("embed", None))
        self.embed = Embed(self.vocab_size, self.d_embed, embedding_init=nn.initializers.normal(0.1))
        self.drop = Dropout(self.dropout)
        self.word, self.context = Dense(4 * self.d_model), Dense(4 * self.d_model, False)
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        self.recurrent = self.param("recurrent", init, (self.d_model, 4 * self.d_model))
        self.from_state, self.from_context = Dense(self.d_embed), Dense(self.d_embed, False)
        self.head = Dense(self.vocab_size, False, ("embed", "vocab"))

    def locations(self, image: Float[Array, "B h w"]) -> Float[Array, "B L D"]:
        """a, of images in [0, 1]."""
        if image.shape[1:] != self.image_shape:
            raise ValueError(f"images must be {self.image_shape}, received {image.shape[1:]}")
        x = with_channels(image)
        for i, layer in enumerate(self.convolutions):
            x = layer(x)
            x = nn.relu(x if i < len(self.features) - 1 else self.norm(x) + self.place[None])
            x = mean_pool(x) if i < self.halvings else x
        return x.reshape(len(x), -1, x.shape[-1])

    def encode(self, image: Float[Array, "B h w"]) -> tuple[Memory, LSTMCarry]:
        """(what the decoder attends to, its first carry)."""
        a = self.locations(image)
        carry = LSTMCarry(*jnp.split(jnp.tanh(self.first(a.mean(1))), 2, axis=-1))
        return Memory(self.attend.keys(a), a), carry

    def __call__(
        self, image: Float[Array, "B h w"], tokens: Int[Array, "B T"], train: bool = False
    ) -> tuple[Float[Array, "B T V"], Float[Array, "B T L"]]:
        """(logits of the next word after each of these, the attention by which it was found)."""
        return self.read(*self.encode(image), tokens, train)[:2]

    def read(
        self, memory: Memory, carry: LSTMCarry, tokens: Int[Array, "R T"], train: bool = False
    ) -> tuple[Float[Array, "R T V"], Float[Array, "R T L"], LSTMCarry]:
        """(logits, weights, carry) after each word of `tokens`.

        There may be several rows an image, side by side: R is then a multiple of the B of the memory.
        """
        tick = nn.scan(
            lambda model, carry, x: model._tick(memory, carry, x),
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        y = self.drop(self.embed(tokens), train)
        carry, (h, z, weights) = tick(self, carry, self.word(y))
        logits = self.head(self.drop(y + self.from_state(h) + self.from_context(z), train))
        return logits, weights, carry

    def _tick(self, memory, carry, x):
        """(the carry, (h, z, weights)) after one more word, which x is the projected embedding of."""
        queries = carry.h.reshape(len(memory.keys), -1, self.d_model)
        z, weights = (found.reshape(len(x), -1) for found in self.attend(queries, *memory))
        z = nn.sigmoid(self.gate(carry.h)) * z
        carry, _ = lstm(carry, x + self.context(z), Weights((self.recurrent,)))
        return carry, (carry.h, z, weights)

    def begin(self, variables: dict[str, Any], image: Float[Array, "B h w"]) -> tuple[Partial, LSTMCarry]:
        """(`step` with variables and memory bound, the first carry), for `lmlab.decoding`."""
        memory, carry = self.apply(variables, image, method="encode")
        return Partial(self.step, variables, memory), carry

    def step(
        self, variables: dict[str, Any], memory: Memory, cache: LSTMCarry, token: Int[Array, "R"]
    ) -> tuple[Float[Array, "R V"], LSTMCarry]:
        """(logits after one more word, the carry)."""
        logits, _, cache = self.apply(variables, memory, cache, token[:, None], method="read")
        return logits[:, 0], cache

    def weights(
        self, variables: dict[str, Any], image: Float[Array, "B h w"], tokens: Int[Array, "B N"]
    ) -> Float[Array, "B T L"]:
        """Where the model looks for each word of captions but the first: weights[:, t] for tokens[:, t + 1]."""
        return self.apply(variables, image, tokens[:, :-1])[1]


def doubly_stochastic(weights: Float[Array, "B T L"], mask: Bool[Array, "B T"]) -> Float[Array, "B"]:
    """sum_l (1 - sum_t alpha_tl)^2 over the words that count: least where all places are looked at alike (eq. 14)."""
    return jnp.sum((1 - jnp.sum(weights * mask[..., None], axis=1)) ** 2, axis=1)


@dataclasses.dataclass(frozen=True)
class Caption:
    """-log P(caption | image) + penalty * `doubly_stochastic`, over the number of words (Xu et al. 2015, eq. 14).

    A batch is {"image": (B, h, w) in [0, 1], "tokens": (B, T+1)}, <start> before each caption and 0 behind it, and,
    where some examples are padding, {"mask": (B,)}. Beside the loss: `cross_entropy` a word, `penalty` a caption.
    """

    model: Captioner
    penalty: float | Float[Array, ""] = 1.0

    def __post_init__(self):
        if isinstance(self.penalty, (int, float)) and self.penalty < 0:
            raise ValueError(f"penalty must be at least 0, received {self.penalty}")

    def init(self, key, batch: Batch) -> tuple[PyTree, dict[str, PyTree]]:
        return self.model.init(key, batch["image"], batch["tokens"][:, :-1])["params"], {}

    def loss(
        self, params, collections, batch: Batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        rngs = {"dropout": key} if train else None
        logits, weights = self.model.apply({"params": params}, batch["image"], inputs, train, rngs=rngs)
        mask = batch.get("mask", jnp.ones(len(targets)))
        counted = (targets != 0) * mask[:, None]
        words = Mean.of(cross_entropy(logits, targets), counted)
        uneven = Mean.of(doubly_stochastic(weights, targets != 0), mask)
        loss = Mean(words.total + self.penalty * uneven.total, words.count)
        right = (jnp.argmax(logits, axis=-1) == targets).astype(logits.dtype)
        metrics = {
            "loss": loss,
            "cross_entropy": words,
            "accuracy": Mean.of(right, counted),
            "penalty": uneven,
        }
        return loss, metrics, collections
