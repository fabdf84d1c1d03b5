"""The variational autoencoder (Kingma and Welling 2013), of images, with labels if wanted."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lmlab.experiment import Mean, PyTree
from lmlab.layers.linear import Dense
from lmlab.models.autoencoder import check_sizes
from lmlab.tasks import Batch, binary_cross_entropy

LOG_2_PI = math.log(2 * math.pi)


def gaussian_kl(mean: Float[Array, "B Z"], log_variance: Float[Array, "B Z"]) -> Float[Array, "B"]:
    """KL(N(mu, sigma^2) || N(0, 1)) = -1/2 sum_j (1 + log sigma_j^2 - mu_j^2 - sigma_j^2), in nats.

    Kingma and Welling 2013, appendix B. mean: mu; log_variance: log sigma^2.
    """
    return -0.5 * jnp.sum(1 + log_variance - mean**2 - jnp.exp(log_variance), axis=-1)


def gaussian_log_prob(
    z: Float[Array, "B Z"], mean: Float[Array, "B Z"], log_variance: Float[Array, "B Z"]
) -> Float[Array, "B"]:
    """log N(z; mu, sigma^2), summed over the axes of z."""
    return -0.5 * jnp.sum(LOG_2_PI + log_variance + (z - mean) ** 2 / jnp.exp(log_variance), axis=-1)


def discretized_logistic(
    x: Float[Array, "*B"], mean: Float[Array, "*B"], log_scale: Float[Array, "*B"]
) -> Float[Array, "*B"]:
    """log P(x) for x of 256 levels k / 255: a logistic density integrated over each level's interval.

    log[s((x + 1/510 - m) / b) - s((x - 1/510 - m) / b)], s the sigmoid, where the lowest level reaches down to
    -inf and the highest up to inf (Salimans et al. 2017, eq. 2, one component). mean: m; log_scale: log b,
    at least -7.
    """
    rate = jnp.exp(-jnp.maximum(log_scale, -7.0))
    upper, lower = rate * (x - mean + 1 / 510), rate * (x - mean - 1 / 510)
    below, above = jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower)
    # s(u) - s(l) = s(u) s(-l) (1 - exp(l - u)): nothing cancels far from the mean.
    inside = below + above + jnp.log(-jnp.expm1(-rate / 255))
    return jnp.where(x < 0.5 / 255, below, jnp.where(x > 254.5 / 255, above, inside))


class VAE(nn.Module):
    """image - hidden - (mean, log variance) of the latent z; z - hidden reversed - pixels; ReLU in hidden layers.

    num_classes: of the label that encoder and decoder are given besides, as one-hot; 0: none. discretized: a
    pixel is one of 256 levels, by a mean and a log scale, and not one of two, by a logit.
    """

    latent: int = 20
    hidden: tuple[int, ...] = (500,)
    image_shape: tuple[int, int] = (28, 28)
    num_classes: int = 0
    discretized: bool = False

    def __post_init__(self):
        check_sizes(latent=self.latent, hidden=self.hidden, image_shape=self.image_shape)
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, received {self.num_classes}")
        super().__post_init__()

    def setup(self):
        self.encoder = [Dense(width) for width in self.hidden]
        self.posterior = Dense(2 * self.latent)
        self.decoder = [Dense(width) for width in reversed(self.hidden)]
        self.pixels = Dense(math.prod(self.image_shape) * (2 if self.discretized else 1))

    def encode(
        self, image: Float[Array, "B H W"], label: Int[Array, "B"] | None = None
    ) -> tuple[Float[Array, "B Z"], Float[Array, "B Z"]]:
        """(mean, log variance) of q(z | x)."""
        if image.shape[1:] != self.image_shape:
            raise ValueError(f"images must be {self.image_shape}, received {image.shape[1:]}")
        x = self._with_label(image.reshape(len(image), -1), label)
        for layer in self.encoder:
            x = jax.nn.relu(layer(x))
        mean, log_variance = jnp.split(self.posterior(x), 2, axis=-1)
        return mean, log_variance

    def decode(
        self, z: Float[Array, "B Z"], label: Int[Array, "B"] | None = None
    ) -> Float[Array, "B H W"] | tuple[Float[Array, "B H W"], Float[Array, "B H W"]]:
        """Logits of the pixels; discretized: (means, log scales)."""
        x = self._with_label(z, label)
        for layer in self.decoder:
            x = jax.nn.relu(layer(x))
        if not self.discretized:
            return self.pixels(x).reshape(-1, *self.image_shape)
        mean, log_scale = jnp.split(self.pixels(x), 2, axis=-1)
        return mean.reshape(-1, *self.image_shape), log_scale.reshape(-1, *self.image_shape) - 2

    def _with_label(self, x, label):
        if not self.num_classes:
            return x
        if label is None:
            raise ValueError("a conditional model needs labels")
        return jnp.concatenate([x, jax.nn.one_hot(label, self.num_classes)], axis=-1)

    def __call__(self, image: Float[Array, "B H W"], label: Int[Array, "B"] | None = None):
        """What is decoded from the mean of q(z | x)."""
        return self.decode(self.encode(image, label)[0], label)

    def picture(self, z: Float[Array, "B Z"], label: Int[Array, "B"] | None = None) -> Float[Array, "B H W"]:
        """The mean of p(x | z), in [0, 1]."""
        pixels = self.decode(z, label)
        return jnp.clip(pixels[0], 0, 1) if self.discretized else jax.nn.sigmoid(pixels)

    def log_likelihood(
        self, image: Float[Array, "B H W"], z: Float[Array, "B Z"], label: Int[Array, "B"] | None = None
    ) -> Float[Array, "B"]:
        """log p(x | z), summed over the pixels, in nats."""
        pixels = self.decode(z, label)
        if self.discretized:
            return discretized_logistic(image, *pixels).sum((1, 2))
        return -binary_cross_entropy(pixels, image).sum((1, 2))


@dataclasses.dataclass(frozen=True)
class VariationalBound:
    """-E_q[log p(x | z)] + beta KL(q(z | x) || p(z)), one draw of z an image, the mean over images, in nats.

    Kingma and Welling 2013, eq. 7, by the reparameterization z = mu + sigma N(0, 1); beta other than 1:
    Higgins et al. 2017, eq. 4. `bound` is the same with beta = 1, an upper bound of -log p(x).
    dynamic: in training each pixel is drawn anew as Bernoulli(grey) whenever an image is used. A batch is {"image":
    (B, H, W) in [0, 1]}, {"label": (B,)} where the model wants it, and {"mask": (B,)}: 0 for padding.
    """

    model: VAE
    beta: float | Float[Array, ""] = 1.0
    dynamic: bool = False

    def __post_init__(self):
        if isinstance(self.beta, (int, float)) and self.beta < 0:
            raise ValueError(f"beta must be at least 0, received {self.beta}")

    def init(self, key, batch: Batch) -> tuple[PyTree, dict[str, PyTree]]:
        return self.model.init(key, batch["image"], self._label(batch))["params"], {}

    def loss(
        self, params, collections, batch: Batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        image = batch["image"]
        if self.dynamic and train:
            of_image, key = jax.random.split(key)
            image = jax.random.bernoulli(of_image, image).astype(image.dtype)
        z, mean, log_variance = self._draw(params, image, batch, key)
        distortion, rate = -self._decoded(params, image, z, batch), gaussian_kl(mean, log_variance)
        mask = batch.get("mask")
        values = {
            "loss": distortion + self.beta * rate,
            "bound": distortion + rate,
            "reconstruction": distortion,
            "kl": rate,
        }
        if self.model.discretized:
            values["bits_per_dim"] = values["bound"] / (math.prod(self.model.image_shape) * math.log(2))
        means = {name: Mean.of(value, mask) for name, value in values.items()}
        return means["loss"], means, collections

    def log_weight(self, variables: dict[str, PyTree], batch: Batch, key) -> Float[Array, "B"]:
        """log p(x, z) - log q(z | x) for one z drawn of q: what importance-weighted bounds are made of."""
        params, image = variables["params"], batch["image"]
        z, mean, log_variance = self._draw(params, image, batch, key)
        prior = gaussian_log_prob(z, jnp.zeros_like(z), jnp.zeros_like(z))
        return self._decoded(params, image, z, batch) + prior - gaussian_log_prob(z, mean, log_variance)

    def _label(self, batch: Batch):
        return batch["label"] if self.model.num_classes else None

    def _draw(self, params, image, batch: Batch, key: Key[Array, ""]):
        """(z, mean, log variance): z is drawn from q(z | x)."""
        mean, log_variance = self.model.apply({"params": params}, image, self._label(batch), method="encode")
        return mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape), mean, log_variance

    def _decoded(self, params, image, z, batch: Batch):
        return self.model.apply({"params": params}, image, z, self._label(batch), method="log_likelihood")
