"""Classifiers of images: fully connected, convolutional, residual; and the objective that trains them."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lmlab.experiment import Mean, PyTree
from lmlab.layers.convolution import conv, mean_pool, with_channels
from lmlab.layers.dropout import Dropout, Rate, check_rate
from lmlab.layers.linear import Dense
from lmlab.layers.normalization import batch_norm
from lmlab.tasks import cross_entropy

INITIALIZERS = {
    "he": nn.initializers.he_normal(),  # variance 2 / fan_in (He et al. 2015a, eq. 10)
    "glorot": nn.initializers.glorot_normal(),  # 2 / (fan_in + fan_out) (Glorot and Bengio 2010, eq. 12)
    "small": nn.initializers.normal(0.01),  # as AlexNet (Krizhevsky et al. 2012, section 5)
}
"""How kernels of hidden layers begin; biases begin at 0."""


def _check(widths, initializer: str, dropout: Rate) -> None:
    if not widths or any(width < 1 for width in widths):
        raise ValueError(f"features must be one width or more, each at least 1, received {tuple(widths)}")
    if initializer not in INITIALIZERS:
        raise ValueError(f"initializer: received {initializer!r}; allowed: {', '.join(INITIALIZERS)}")
    check_rate(dropout)


class MLP(nn.Module):
    """Layers x -> dropout(relu(norm(W x + b))); `residual` adds x where the widths agree."""

    features: tuple[int, ...] = (256, 128, 100)
    normalize: bool = False
    residual: bool = False
    initializer: str = "he"
    dropout: Rate = 0.0

    def __post_init__(self):
        _check(self.features, self.initializer, self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, image: Float[Array, "B ..."], train: bool) -> Float[Array, "B D"]:
        x = image.reshape(image.shape[0], -1)
        for width in self.features:
            y = Dense(width, not self.normalize, kernel_init=INITIALIZERS[self.initializer])(x)
            y = batch_norm(train)(y) if self.normalize else y
            y = Dropout(self.dropout)(nn.relu(y), train)
            x = x + y if self.residual and x.shape == y.shape else y
        return x


class CNN(nn.Module):
    """Convolutions of 3 x 3 with ReLU, each followed by a mean over squares of 2 x 2; then a hidden layer.

    The network of Flax's MNIST example, with dropout before and after the hidden layer.
    """

    features: tuple[int, ...] = (32, 64)
    hidden: int = 256
    normalize: bool = False
    initializer: str = "he"
    dropout: Rate = 0.0

    def __post_init__(self):
        _check((*self.features, self.hidden), self.initializer, self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, image: Float[Array, "B H W *C"], train: bool) -> Float[Array, "B D"]:
        x, init = with_channels(image), INITIALIZERS[self.initializer]
        if min(x.shape[1:3]) < 2 ** len(self.features):
            raise ValueError(
                f"features: {len(self.features)} layers, each halving the image, are too many for"
                f" {x.shape[1]} x {x.shape[2]} pixels"
            )
        for width in self.features:
            x = conv(width, use_bias=not self.normalize, kernel_init=init)(x)
            x = batch_norm(train)(x) if self.normalize else x
            x = mean_pool(nn.relu(x))
        x = Dropout(self.dropout)(x.reshape(x.shape[0], -1), train)
        return Dropout(self.dropout)(nn.relu(Dense(self.hidden, kernel_init=init)(x)), train)


class ResNet(nn.Module):
    """A residual network for small images (He et al. 2015b, section 4.2): 2 len(features) blocks + 2 layers.

    A convolution, then `blocks` blocks at each width, the resolution halved before all but the first; the
    mean over positions. A block is relu(x + norm(W2 relu(norm(W1 x)))), a shortcut of another shape a
    convolution of 1 x 1 (option B). Without `residual` the same layers in a row.
    """

    features: tuple[int, ...] = (16, 32, 64)
    blocks: int = 1
    normalize: bool = True
    residual: bool = True
    initializer: str = "he"
    dropout: Rate = 0.0

    def __post_init__(self):
        _check(self.features, self.initializer, self.dropout)
        if self.blocks < 1:
            raise ValueError(f"blocks must be at least 1, received {self.blocks}")
        super().__post_init__()

    @nn.compact
    def __call__(self, image: Float[Array, "B H W *C"], train: bool) -> Float[Array, "B D"]:
        def layer(x, width, stride=1, size=3):
            init = INITIALIZERS[self.initializer]
            x = conv(width, size, stride, use_bias=not self.normalize, kernel_init=init)(x)
            return batch_norm(train)(x) if self.normalize else x

        x = nn.relu(layer(with_channels(image), self.features[0]))
        for level, width in enumerate(self.features):
            for block in range(self.blocks):
                stride = 2 if level > 0 and block == 0 else 1
                y = layer(nn.relu(layer(x, width, stride)), width)
                if self.residual:
                    y = y + (x if x.shape == y.shape else layer(x, width, stride, 1))
                x = nn.relu(y)
        return Dropout(self.dropout)(x.mean((1, 2)), train)


class Classifier(nn.Module):
    """A network from images to features, then a linear map to the logits of the classes."""

    network: nn.Module
    image_shape: tuple[int, ...] = (28, 28)
    num_classes: int = 10

    def setup(self):
        self.head = Dense(self.num_classes, axes=("embed", None))

    def features(self, image: Float[Array, "B ..."], train: bool = False) -> Float[Array, "B D"]:
        """What the classes are read off: the last hidden layer."""
        if image.shape[1:] != self.image_shape:
            raise ValueError(f"images must be {self.image_shape}, received {image.shape[1:]}")
        return self.network(image, train)

    def __call__(self, image: Float[Array, "B ..."], train: bool = False) -> Float[Array, "B K"]:
        return self.head(self.features(image, train))

    def both(self, image: Float[Array, "B ..."]) -> tuple[Float[Array, "B D"], Float[Array, "B K"]]:
        """(features, logits)."""
        features = self.features(image)
        return features, self.head(features)


@dataclasses.dataclass(frozen=True)
class Classify:
    """Cross-entropy in nats of the right class.

    A batch is {"image": (B, ...), "label": (B,)} and, where some examples are padding, {"mask": (B,)}. inputs: what
    the model is given in place of "image".
    """

    model: nn.Module
    inputs: str = "image"

    def init(self, key, batch) -> tuple[PyTree, dict[str, PyTree]]:
        collections = dict(self.model.init(key, batch[self.inputs]))
        return collections.pop("params"), collections

    def loss(
        self, params, collections, batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        logits, new = self.model.apply(
            {"params": params, **collections},
            batch[self.inputs],
            train=train,
            rngs={"dropout": key},
            mutable=list(collections) if train else [],
        )
        loss = Mean.of(cross_entropy(logits, batch["label"]), batch.get("mask"))
        right = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(logits.dtype)
        metrics = {"loss": loss, "accuracy": Mean.of(right, batch.get("mask"))}
        return loss, metrics, dict(new) if train else collections

    def outputs(self, variables, images, size: int = 500) -> tuple[np.ndarray, np.ndarray]:
        """(features, logits) of any number of images in [0, 1], `size` at a time."""
        parts = [
            self._both(variables, jnp.asarray(images[i : i + size])) for i in range(0, len(images), size)
        ]
        features, logits = zip(*parts, strict=True)
        return np.concatenate(features), np.concatenate(logits)

    @functools.cached_property
    def _both(self) -> Any:
        return jax.jit(functools.partial(self.model.apply, method="both"))
