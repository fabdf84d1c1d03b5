"""A deep autoencoder of images (Hinton and Salakhutdinov 2006), trained from end to end."""

import math

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from lmlab.layers.linear import Dense


class Autoencoder(nn.Module):
    """input - features - code - features reversed - input, with ReLU at every layer but the last.

    The output are logits of pixels in [0, 1]; the loss applies the sigmoid. Kernels begin Glorot uniform,
    biases 0.
    """

    features: tuple[int, ...] = (128,)
    code: int = 32
    input_size: int = 784

    def __post_init__(self):
        for name in ("code", "input_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        if any(width < 1 for width in self.features):
            raise ValueError(f"features must each be at least 1, received {tuple(self.features)}")
        super().__post_init__()

    def setup(self):
        glorot = nn.initializers.glorot_uniform()
        self.encoder = [Dense(width, kernel_init=glorot) for width in (*self.features, self.code)]
        widths = (*reversed(self.features), self.input_size)
        self.decoder = [Dense(width, kernel_init=glorot) for width in widths]

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
