"""Generative adversarial networks (Goodfellow et al. 2014): fully connected, and convolutional (DCGAN)."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lmlab.experiment import Mean, PyTree
from lmlab.layers.convolution import conv, conv_transpose, with_channels
from lmlab.layers.dropout import Dropout, Rate, check_rate
from lmlab.layers.linear import Dense
from lmlab.layers.normalization import batch_norm
from lmlab.tasks import binary_cross_entropy

INIT = nn.initializers.normal(0.02)
"""Of the convolutional networks (Radford et al. 2016, section 4)."""


def _check(features, dropout: Rate = 0.0) -> None:
    if not features or any(width < 1 for width in features):
        raise ValueError(f"features must be one width or more, each at least 1, received {tuple(features)}")
    check_rate(dropout)


class Generator(nn.Module):
    """Layers of `features` with ReLU from noise to `shape`; in [0, 1] if `bounded`."""

    features: tuple[int, ...]
    shape: tuple[int, ...]
    bounded: bool = True

    def __post_init__(self):
        _check(self.features)
        super().__post_init__()

    @nn.compact
    def __call__(self, z: Float[Array, "B Z"], train: bool = False) -> Float[Array, "B ..."]:
        x = z
        for width in self.features:
            x = nn.relu(Dense(width, kernel_init=nn.initializers.he_normal())(x))
        x = Dense(math.prod(self.shape))(x).reshape(-1, *self.shape)
        return nn.sigmoid(x) if self.bounded else x


class Discriminator(nn.Module):
    """The logit of "real": layers of `features` with leaky ReLU (0.2) and dropout."""

    features: tuple[int, ...]
    dropout: Rate = 0.0

    def __post_init__(self):
        _check(self.features, self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "B ..."], train: bool = False) -> Float[Array, "B"]:
        x = x.reshape(len(x), -1)
        for width in self.features:
            x = nn.leaky_relu(Dense(width, kernel_init=nn.initializers.he_normal())(x), 0.2)
            x = Dropout(self.dropout)(x, train)
        return Dense(1)(x)[:, 0]


class ConvGenerator(nn.Module):
    """Noise to a small image of features[0] channels, then twice the resolution a layer, to `shape`.

    Transposed convolutions of 4 x 4, batch normalization and ReLU, as Radford et al. 2016; the last layer
    is a sigmoid on what it makes of 2 x, as their tanh on [-1, 1] is.
    """

    features: tuple[int, ...]
    shape: tuple[int, ...]

    def __post_init__(self):
        _check(self.features)
        unit = 2 ** len(self.features)
        if any(size % unit for size in self.shape[:2]):
            raise ValueError(f"images must be a multiple of {unit} high and wide, received {self.shape}")
        super().__post_init__()

    @nn.compact
    def __call__(self, z: Float[Array, "B Z"], train: bool = False) -> Float[Array, "B ..."]:
        high, wide = (size // 2 ** len(self.features) for size in self.shape[:2])
        x = Dense(high * wide * self.features[0], use_bias=False, kernel_init=INIT)(z)
        x = nn.relu(batch_norm(train)(x.reshape(-1, high, wide, self.features[0])))
        for width in self.features[1:]:
            x = conv_transpose(width, use_bias=False, kernel_init=INIT)(x)
            x = nn.relu(batch_norm(train)(x))
        channels = math.prod(self.shape[2:])
        x = conv_transpose(channels, kernel_init=INIT)(x)
        return nn.sigmoid(2 * x).reshape(-1, *self.shape)


class ConvDiscriminator(nn.Module):
    """The logit of "real": convolutions of 4 x 4, half the resolution a layer, leaky ReLU (0.2).

    Batch normalization in all layers but the first; real and drawn images are normalized apart.
    """

    features: tuple[int, ...]
    dropout: Rate = 0.0

    def __post_init__(self):
        _check(self.features, self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "B H W *C"], train: bool = False) -> Float[Array, "B"]:
        x = 2 * with_channels(x) - 1
        for layer, width in enumerate(self.features):
            x = conv(width, 4, 2, use_bias=layer == 0, kernel_init=INIT)(x)
            x = nn.leaky_relu(batch_norm(train)(x) if layer else x, 0.2)
            x = Dropout(self.dropout)(x, train)
        return Dense(1, kernel_init=INIT)(x.reshape(len(x), -1))[:, 0]


@dataclasses.dataclass(frozen=True)
class Adversaries:
    """min over G, max over D of E log D(x) + E log(1 - D(G(z))) (Goodfellow et al. 2014, eq. 1).

    D descends on the negative of it, G on -log D(G(z)) (section 3, the form that does not saturate). z is
    standard normal of `latent` dimensions. A batch is {"x": (B, ...)} or {"image": (B, ...) in [0, 1]}.
    """

    generator: nn.Module
    discriminator: nn.Module
    latent: int

    def __post_init__(self):
        if self.latent < 1:
            raise ValueError(f"latent must be at least 1, received {self.latent}")

    def data(self, batch) -> Float[Array, "B ..."]:
        return batch["image"] if "image" in batch else batch["x"]

    def init(self, key, batch) -> tuple[PyTree, dict[str, PyTree]]:
        """Parameters and collections with a key for each part."""
        x, keys = self.data(batch), jax.random.split(key)
        made = {
            "generator": dict(self.generator.init(keys[0], jnp.zeros((len(x), self.latent)))),
            "discriminator": dict(self.discriminator.init(keys[1], x)),
        }
        params = {part: variables.pop("params") for part, variables in made.items()}
        collections: dict[str, PyTree] = {}
        for part, variables in made.items():
            for name, value in variables.items():
                collections.setdefault(name, {})[part] = value
        return params, collections

    def apply(self, part: str, params, collections, x, key, train: bool):
        """(what a part makes of x, the collections after it)."""
        module = {"generator": self.generator, "discriminator": self.discriminator}[part]
        own = {name: value[part] for name, value in collections.items() if part in value}
        y, new = module.apply(
            {"params": params[part], **own},
            x,
            train,
            rngs={"dropout": key},
            mutable=list(own) if train else [],
        )
        new = {name: {**collections[name], part: value} for name, value in dict(new).items()}
        return y, {**collections, **new}

    def drawn(self, params, collections, count: int, key, train: bool):
        """(G(z), the collections after it)."""
        first, second = jax.random.split(key)
        z = jax.random.normal(first, (count, self.latent))
        return self.apply("generator", params, collections, z, second, train)

    def loss(
        self, params, collections, batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        """What the discriminator descends on: 2 log 2 where it cannot tell. real, drawn: its mean D(x), D(G(z))."""
        real, keys, mask = self.data(batch), jax.random.split(key, 3), batch.get("mask")
        drawn, _ = self.drawn(params, collections, len(real), keys[0], train)
        of_real, collections = self.apply("discriminator", params, collections, real, keys[1], train)
        of_drawn, collections = self.apply("discriminator", params, collections, drawn, keys[2], train)
        ones = jnp.ones_like(of_real)
        loss = binary_cross_entropy(of_real, ones) + binary_cross_entropy(of_drawn, 0 * ones)
        metrics = {"real": Mean.of(nn.sigmoid(of_real), mask), "drawn": Mean.of(nn.sigmoid(of_drawn), mask)}
        return Mean.of(loss, mask), metrics, collections

    def generator_loss(
        self, params, collections, batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        keys = jax.random.split(key)
        count = len(self.data(batch))
        drawn, collections = self.drawn(params, collections, count, keys[0], train)
        logits, _ = self.apply("discriminator", params, collections, drawn, keys[1], train)
        return Mean.of(binary_cross_entropy(logits, jnp.ones_like(logits))), {}, collections

    def step(self, state, batch, key, update):
        """One update of the discriminator, then one of the generator."""
        first, second = jax.random.split(key)
        state, discriminator = update(self.loss, "discriminator", state, batch, first)
        state, generator = update(self.generator_loss, "generator", state, batch, second)
        return state, {**discriminator, "generator_loss": generator["loss"]}

    @functools.partial(jax.jit, static_argnames=("self", "count"))
    def sample(self, variables: dict[str, Any], key, count: int) -> Float[Array, "N ..."]:
        """G(z) for `count` draws of z."""
        collections = {name: value for name, value in variables.items() if name != "params"}
        return self.drawn(variables["params"], collections, count, key, False)[0]
