"""Autoencoders of images (Hinton and Salakhutdinov 2006), trained from end to end; noise and sparsity."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lmlab.experiment import Mean, PyTree
from lmlab.layers.convolution import conv, conv_transpose, with_channels
from lmlab.layers.linear import Dense
from lmlab.tasks import Batch, Reconstruct, binary_cross_entropy

GLOROT = nn.initializers.glorot_uniform()


def check_sizes(**sizes: int | tuple[int, ...]) -> None:
    """ValueError unless each size, and each item of a tuple of sizes, is at least 1."""
    for name, size in sizes.items():
        if any(each < 1 for each in (size if isinstance(size, tuple) else (size,))):
            each = "each " * isinstance(size, tuple)
            raise ValueError(f"{name} must {each}be at least 1, received {size}")


class Autoencoder(nn.Module):
    """input - features - code - features reversed - input, with ReLU at every layer but the last.

    The output are logits of pixels in [0, 1]; the loss applies the sigmoid. Kernels begin Glorot uniform,
    biases 0.
    """

    features: tuple[int, ...] = (128,)
    code: int = 32
    input_size: int = 784

    def __post_init__(self):
        check_sizes(features=self.features, code=self.code, input_size=self.input_size)
        super().__post_init__()

    def setup(self):
        self.encoder = [Dense(width, kernel_init=GLOROT) for width in (*self.features, self.code)]
        widths = (*reversed(self.features), self.input_size)
        self.decoder = [Dense(width, kernel_init=GLOROT) for width in widths]

    def encode(self, image: Float[Array, "B ..."]) -> Float[Array, "B C"]:
        """The code of each image."""
        x = image.reshape(image.shape[0], math.prod(image.shape[1:]))
        if x.shape[1] != self.input_size:
            raise ValueError(f"images must have {self.input_size} pixels, received {x.shape[1]}")
        for layer in self.encoder:
            x = jax.nn.relu(layer(x))
        return x

    def decode(self, code: Float[Array, "B C"]) -> Float[Array, "B N"]:
        """Logits of the pixels."""
        x = code
        for layer in self.decoder[:-1]:
            x = jax.nn.relu(layer(x))
        return self.decoder[-1](x)

    def __call__(self, image: Float[Array, "B ..."], train: bool = False) -> Float[Array, "B ..."]:
        """Logits in the shape of the images."""
        return self.decode(self.encode(image)).reshape(image.shape)


class ConvolutionalAutoencoder(nn.Module):
    """Convolutions of 3 x 3, each halving the resolution, a linear map to the code, and the same way back.

    The code is as wide as that of `Autoencoder`, so that the two can be compared; logits and ReLU likewise.
    """

    features: tuple[int, ...] = (16, 32)
    code: int = 32
    image_size: int = 28

    def __post_init__(self):
        check_sizes(features=self.features, code=self.code, image_size=self.image_size)
        if not self.features or self.image_size % 2 ** len(self.features):
            raise ValueError(
                f"features must be one width or more, each halving images of {self.image_size}"
                f" x {self.image_size}; received {self.features}"
            )
        super().__post_init__()

    def setup(self):
        self.side = self.image_size // 2 ** len(self.features)
        self.encoder = [conv(width, stride=2) for width in self.features]
        self.to_code = Dense(self.code, kernel_init=GLOROT)
        self.from_code = Dense(self.side**2 * self.features[-1], kernel_init=GLOROT)
        self.decoder = [conv_transpose(width, 3) for width in (*reversed(self.features[:-1]), 1)]

    def encode(self, image: Float[Array, "B H W *C"]) -> Float[Array, "B C"]:
        """The code of each image."""
        x = with_channels(image)
        if x.shape[1:] != (self.image_size, self.image_size, 1):
            raise ValueError(
                f"images must be {self.image_size} x {self.image_size}, received {image.shape[1:]}"
            )
        for layer in self.encoder:
            x = jax.nn.relu(layer(x))
        return jax.nn.relu(self.to_code(x.reshape(len(x), self.side**2 * self.features[-1])))

    def decode(self, code: Float[Array, "B C"]) -> Float[Array, "B N"]:
        """Logits of the pixels."""
        x = jax.nn.relu(self.from_code(code)).reshape(-1, self.side, self.side, self.features[-1])
        for layer in self.decoder[:-1]:
            x = jax.nn.relu(layer(x))
        return self.decoder[-1](x).reshape(len(code), self.image_size**2)

    def __call__(self, image: Float[Array, "B H W *C"], train: bool = False) -> Float[Array, "B H W *C"]:
        """Logits in the shape of the images."""
        return self.decode(self.encode(image)).reshape(image.shape)


def add_noise(key: Key[Array, ""], image: Float[Array, "B ..."], deviation: float) -> Float[Array, "B ..."]:
    """The image with noise of N(0, deviation^2) in each pixel, cut to [0, 1]."""
    return jnp.clip(image + deviation * jax.random.normal(key, image.shape), 0, 1)


@dataclasses.dataclass(frozen=True)
class Regularized(Reconstruct):
    """Images from noisy ones (Vincent et al. 2008, section 2.3), with the L1 norm of the code as a penalty.

    The mean over images x of L(x, g(f(x'))) + sparsity |f(x')|_1, where L is the binary cross-entropy, the mean
    over pixels, f and g encode and decode, and x' = clip(x + noise N(0, 1), 0, 1). A batch that brings
    "noisy" images has them taken for x'; otherwise the noise is drawn anew each time.
    """

    noise: float = 0.0
    sparsity: float = 0.0

    def __post_init__(self):
        for name in ("noise", "sparsity"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, received {getattr(self, name)}")

    def loss(
        self, params, collections, batch: Batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        image, mask = batch["image"], batch.get("mask")
        noisy = batch["noisy"] if "noisy" in batch else add_noise(key, image, self.noise)
        code = self.model.apply({"params": params}, noisy, method="encode")
        logits = self.model.apply({"params": params}, code, method="decode")
        reconstruction = Mean.of(binary_cross_entropy(logits.reshape(image.shape), image), mask)
        activation = Mean.of(code, mask)  # at least 0, by the ReLU
        penalty = self.sparsity * activation.total * math.prod(image.shape[1:])
        loss = Mean(reconstruction.total + penalty, reconstruction.count)
        return loss, {"loss": loss, "reconstruction": reconstruction, "activation": activation}, collections
