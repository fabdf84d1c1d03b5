"""The vector-quantized autoencoder (van den Oord et al. 2017), with a prior over its codes."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lmlab.experiment import Mean, PyTree
from lmlab.layers.convolution import conv, conv_transpose, with_channels
from lmlab.models.autoencoder import check_sizes
from lmlab.models.gpt import GPT
from lmlab.tasks import Batch, binary_cross_entropy, cross_entropy

LEAST = 1e-20
"""Under a code's part in the batches that count. One that was not used for thousands of steps drifts to 0."""


def nearest(z: Float[Array, "*B D"], codebook: Float[Array, "K D"]) -> Int[Array, "*B"]:
    """argmin_j |z - e_j|, eq. 1. e: codebook."""
    products = jnp.einsum("...d,kd->...k", z, codebook, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(codebook**2, axis=-1).reshape((1,) * (z.ndim - 1) + (-1,))
    return jnp.argmin(squares - 2 * products, axis=-1)


def moving_sums(
    sums: dict[str, Any], z: Float[Array, "*B D"], codes: Int[Array, "*B"], decay: float
) -> dict[str, Any]:
    """N_i = g N_i + (1 - g) n_i and m_i = g m_i + (1 - g) sum_j z_ij; e_i = m_i / N_i, appendix A.1, eq. 6 to 8.

    n_i: how many z of the batch take code i. sums: {"size": N, "sum": m}; decay: g. Both are kept as parts of
    the number of z in a batch, so that the mean over parts of a batch is that of the whole; e_i is the same.
    """
    chosen = jax.nn.one_hot(codes.reshape(-1), len(sums["size"]))
    z = z.reshape(len(chosen), -1)
    total = jnp.einsum("nk,nd->kd", chosen, z, precision=jax.lax.Precision.HIGHEST) / len(z)
    new = {"size": chosen.mean(0), "sum": total}
    return jax.tree.map(lambda old, now: decay * old + (1 - decay) * now, sums, new)


def straight_through(z: Float[Array, "*B"], quantized: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """The quantized vectors, with the gradient handed on to z as if they were z (section 3.2)."""
    return z + jax.lax.stop_gradient(quantized - z)


class ResidualBlock(nn.Module):
    """x + W2 relu(W1 relu(x)), W1 of 3 x 3 and W2 of 1 x 1."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return x + conv(self.features, 1)(nn.relu(conv(self.features)(nn.relu(x))))


class VQVAE(nn.Module):
    """image - z (B, h, w, D) - the nearest of K vectors at each place - logits of the pixels.

    The networks of section 4.1: `halvings` convolutions of 4 x 4 with stride 2, two residual blocks, and the
    same backwards. ema: the K vectors are ratios of running sums, the collection `codebook`; otherwise they
    are parameters that the gradient moves.
    """

    num_codes: int = 512
    code_size: int = 64
    hidden: int = 256
    halvings: int = 2
    ema: bool = True
    image_size: int = 28

    def __post_init__(self):
        sizes = ("num_codes", "code_size", "hidden", "halvings", "image_size")
        check_sizes(**{name: getattr(self, name) for name in sizes})
        if self.image_size % 2**self.halvings:
            raise ValueError(
                f"halvings: received {self.halvings}; images of {self.image_size} x {self.image_size}"
                " cannot be halved so often"
            )
        super().__post_init__()

    @property
    def side(self) -> int:
        """Codes along each side of an image."""
        return self.image_size // 2**self.halvings

    def setup(self):
        hidden, times = self.hidden, self.halvings
        self.down = [conv(hidden, 4, 2) for _ in range(times)]
        self.before = [ResidualBlock(hidden) for _ in range(2)]
        self.to_code = conv(self.code_size, 1)
        self.from_code = conv(hidden)
        self.after = [ResidualBlock(hidden) for _ in range(2)]
        self.up = [conv_transpose(width) for width in (*[hidden] * (times - 1), 1)]
        # Nearer to each other than z's are: none begins out of reach, where it would never be taken.
        normal, shape = nn.initializers.normal(0.1), (self.num_codes, self.code_size)
        if self.ema:
            ones = jnp.full(self.num_codes, 1 / self.num_codes)
            self.size = self.variable("codebook", "size", lambda: ones)
            self.sum = self.variable(
                "codebook", "sum", lambda: normal(self.make_rng("params"), shape) / self.num_codes
            )
        else:
            self.vectors = self.param("codebook", normal, shape)

    def codebook(self) -> Float[Array, "K D"]:
        """The vectors e."""
        return self.sum.value / jnp.maximum(self.size.value, LEAST)[:, None] if self.ema else self.vectors

    def encode(self, image: Float[Array, "B H W"]) -> Float[Array, "B h w D"]:
        """z, before it is quantized."""
        if image.shape[1:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images must be {self.image_size} x {self.image_size}, received {image.shape[1:]}"
            )
        x = with_channels(image)
        for layer in self.down:
            x = nn.relu(layer(x))
        for block in self.before:
            x = block(x)
        return self.to_code(nn.relu(x))

    def decode(self, z: Float[Array, "B h w D"]) -> Float[Array, "B H W"]:
        """Logits of the pixels."""
        x = self.from_code(z)
        for block in self.after:
            x = block(x)
        for layer in self.up:
            x = layer(nn.relu(x))
        return x[..., 0]

    def codes(self, image: Float[Array, "B H W"]) -> Int[Array, "B h w"]:
        """The number of the vector at each place."""
        return nearest(self.encode(image), self.codebook())

    def picture(self, codes: Int[Array, "B h w"]) -> Float[Array, "B H W"]:
        """What codes decode to, in [0, 1]."""
        return jax.nn.sigmoid(self.decode(self.codebook()[codes]))

    def __call__(self, image: Float[Array, "B H W"]) -> Float[Array, "B H W"]:
        """Logits of the pixels, by way of the codes."""
        return self.decode(self.codebook()[self.codes(image)])


@dataclasses.dataclass(frozen=True)
class VectorQuantized:
    """-log p(x | z_q) + |sg(z_e) - e|^2 + beta |z_e - sg(e)|^2 (eq. 3), and -log p(codes) of the prior, in nats.

    The sum over pixels and places, the mean over images; sg stops the gradient, and log p(x | z_q) is minus the
    binary cross-entropy. With an EMA codebook the second term is gone: `moving_sums` takes its place. The codes
    are numbers, so the prior's loss moves the prior alone: it learns while the codes still change, beside the
    autoencoder, which it leaves as it would be without. It reads the codes row by row after a token for
    "start": `model.num_codes`, plus the label if it has a token for each.

    A batch is {"image": (B, H, W) in [0, 1], "label": (B,)} and, with padding, {"mask": (B,)}.
    """

    model: VQVAE
    prior: GPT
    beta: float | Float[Array, ""] = 0.25
    decay: float = 0.99

    def __post_init__(self):
        if isinstance(self.beta, (int, float)) and self.beta < 0:
            raise ValueError(f"beta must be at least 0, received {self.beta}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, received {self.decay}")

    def init(self, key, batch: Batch) -> tuple[PyTree, dict[str, PyTree]]:
        first, second = jax.random.split(key)
        collections = dict(self.model.init(first, batch["image"]))
        tokens = jnp.zeros((1, self.prior.context), jnp.int32)
        prior = self.prior.init(second, tokens)["params"]
        return {"autoencoder": collections.pop("params"), "prior": prior}, collections

    def loss(
        self, params, collections, batch: Batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        image, mask = batch["image"], batch.get("mask")
        variables = {"params": params["autoencoder"], **collections}
        stop = jax.lax.stop_gradient
        z = self.model.apply(variables, image, method="encode")
        codebook = self.model.apply(variables, method="codebook")
        codes = nearest(stop(z), stop(codebook))
        quantized = codebook[codes]
        logits = self.model.apply(variables, straight_through(z, quantized), method="decode")
        distortion = binary_cross_entropy(logits, image)
        commitment, moved = (z - stop(quantized)) ** 2, (stop(z) - quantized) ** 2
        nats = self.prior_loss(params, codes, batch.get("label"), key, train)
        loss = distortion.sum((1, 2)) + self.beta * commitment.sum((1, 2, 3)) + nats.sum(1)
        if not self.model.ema:
            loss = loss + moved.sum((1, 2, 3))
        means = {
            "loss": Mean.of(loss, mask),
            "reconstruction": Mean.of(distortion, mask),
            "squared_error": Mean.of((jax.nn.sigmoid(logits) - image) ** 2, mask),
            "commitment": Mean.of(commitment, mask),
            "prior": Mean.of(nats, mask),
        }
        if train and self.model.ema:
            sums = moving_sums(collections["codebook"], stop(z), codes, self.decay)
            collections = {**collections, "codebook": sums}
        return means["loss"], means, collections

    def prior_loss(self, params, codes: Int[Array, "B h w"], label, key, train: bool) -> Float[Array, "B T"]:
        """-log p(code | those before it), in nats."""
        codes = codes.reshape(len(codes), -1)
        tokens = jnp.concatenate([self.start(len(codes), label), codes[:, :-1]], axis=1)
        rngs = {"dropout": key} if train else None
        logits = self.prior.apply({"params": params["prior"]}, tokens, train=train, rngs=rngs)
        return cross_entropy(logits[..., : self.model.num_codes], codes)

    def start(self, count: int, label: Int[Array, "B"] | None) -> Int[Array, "B 1"]:
        """The first token of each sequence."""
        first = jnp.full((count, 1), self.model.num_codes, jnp.int32)
        return first + label[:, None] if self.prior.vocab_size > self.model.num_codes + 1 else first

    def step(self, params, cache, token):
        """(logits of the next code, the cache): what decoding takes."""
        logits, cache = self.prior.step({"params": params["prior"]}, cache, token)
        return logits[:, : self.model.num_codes], cache
