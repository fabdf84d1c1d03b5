"""The objectives that families share: next token, with and without a source, and reconstruction."""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lmlab.experiment import Mean, PyTree
from lmlab.layers.largest import argmax

Batch = dict[str, Any]


def cross_entropy(logits: Float[Array, "*B V"], labels: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """-log softmax(logits)[label], in nats."""
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def binary_cross_entropy(logits: Float[Array, "*B"], targets: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """-t log s(x) - (1 - t) log(1 - s(x)) = log(1 + exp(x)) - x t, s the sigmoid, in nats."""
    return _softplus(logits) - logits * targets


# `jax.nn.softplus` also minds what no loss meets (infinite arguments), at twice the time.
@jax.custom_jvp
def _softplus(x):
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


_softplus.defjvps(lambda dx, _, x: dx * jax.nn.sigmoid(x))


def _init(model, key, *inputs) -> tuple[PyTree, dict[str, PyTree]]:
    collections = dict(model.init(key, *inputs))
    return collections.pop("params"), collections


def _apply(model, params, collections, key, train, *inputs):
    rngs = {"dropout": key} if train else None
    return model.apply({"params": params, **collections}, *inputs, train=train, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Cross-entropy in nats of each token given those before it.

    The model maps tokens (B, T) to logits (B, T, V). A batch is {"tokens": (B, T+1)} and, where some
    targets do not count, {"mask": (B, T)}: 1 for those that do.
    """

    model: nn.Module

    def init(self, key, batch: Batch) -> tuple[PyTree, dict[str, PyTree]]:
        return _init(self.model, key, batch["tokens"][:, :-1])

    def loss(
        self, params, collections, batch: Batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        logits = _apply(self.model, params, collections, key, train, inputs)
        mask = batch.get("mask")
        loss = Mean.of(cross_entropy(logits, targets), mask)
        right = (argmax(logits) == targets).astype(logits.dtype)
        return loss, {"loss": loss, "accuracy": Mean.of(right, mask)}, collections


@dataclasses.dataclass(frozen=True)
class LastToken:
    """Cross-entropy in nats of the last token of each row, of which the model is given those before it.

    The model maps tokens (B, N) to logits (B, V). A batch is {"tokens": (B, N+1)} and {"mask": (B,)}: 0 for padding.
    """

    model: nn.Module

    def init(self, key, batch: Batch) -> tuple[PyTree, dict[str, PyTree]]:
        return _init(self.model, key, batch["tokens"][:, :-1])

    def loss(
        self, params, collections, batch: Batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        inputs, target = batch["tokens"][:, :-1], batch["tokens"][:, -1]
        rngs = {"dropout": key} if train else None
        kept = list(collections) if train else []
        variables = {"params": params, **collections}
        logits, new = self.model.apply(variables, inputs, train=train, rngs=rngs, mutable=kept)
        loss = Mean.of(cross_entropy(logits, target), batch.get("mask"))
        return loss, {"loss": loss}, dict(new) if train else collections


@dataclasses.dataclass(frozen=True)
class NextTargetToken:
    """Cross-entropy in nats of each token of a target given those before it and a source.

    The model maps (source (B, S), tokens (B, T)) to logits (B, T, V). A batch is {"source": (B, S), "target":
    (B, T+1)}, of which 0 is padding and does not count, and, where some rows are padding, {"mask": (B,)}.
    """

    model: nn.Module

    def init(self, key, batch: Batch) -> tuple[PyTree, dict[str, PyTree]]:
        return _init(self.model, key, batch["source"], batch["target"][:, :-1])

    def loss(
        self, params, collections, batch: Batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        target = batch["target"]
        logits = _apply(self.model, params, collections, key, train, batch["source"], target[:, :-1])
        labels = target[:, 1:]
        counted = labels > 0
        if "mask" in batch:
            counted &= batch["mask"][:, None] > 0
        loss = Mean.of(cross_entropy(logits, labels), counted)
        right = (argmax(logits) == labels).astype(logits.dtype)
        return loss, {"loss": loss, "accuracy": Mean.of(right, counted)}, collections


@dataclasses.dataclass(frozen=True)
class Narrowed:
    """`task` on batches without the columns that are padding in every row, so that short ones take less time.

    A batch is cut to the least of `widths` that holds it, for each of which a program is compiled. keys: its arrays of
    token ids, 0 behind each row. Of what `loss` gives, the total of the loss alone may be differentiated, by params
    alone and in reverse: other gradients are 0. The `task` is what `lmlab plan` counts.
    """

    task: Any
    keys: tuple[str, ...]
    widths: tuple[int, ...]

    def init(self, key, batch: Batch) -> tuple[PyTree, dict[str, PyTree]]:
        return self.task.init(key, batch)

    def loss(
        self, params, collections, batch: Batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        most = max(batch[name].shape[1] for name in self.keys)
        widths = (*(width for width in sorted(self.widths) if width < most), most)
        filled = [jnp.any(batch[name] > 0, axis=0) for name in self.keys]
        longest = jnp.stack(
            [jnp.max(jnp.where(each, jnp.arange(1, len(each) + 1), 0)) for each in filled]
        ).max()

        number = jnp.searchsorted(jnp.array(widths), longest)

        def cost(width, params, rest):
            collections, batch, key = rest
            cut = {**batch, **{name: batch[name][:, :width] for name in self.keys}}
            mean, metrics, new = self.task.loss(params, collections, cut, key, train)
            return mean.total, (mean.count, metrics, new)

        def of_width(number, function, *operands):
            return jax.lax.switch(number, [partial(function, width) for width in widths], *operands)

        # Autodiff of a switch keeps what every branch would, filled up with zeros. Here each makes its own gradient.
        @jax.custom_vjp
        def chosen(number, params, rest):
            return of_width(number, cost, params, rest)

        def forward(number, params, rest):
            return of_width(number, jax.value_and_grad(cost, argnums=1, has_aux=True), params, rest)

        def backward(gradient, cotangent):
            return None, jax.tree.map(lambda leaf: cotangent[0] * leaf, gradient), None

        chosen.defvjp(forward, backward)
        total, (count, metrics, new) = chosen(number, params, (collections, batch, key))
        return Mean(total, count), metrics, new


@dataclasses.dataclass(frozen=True)
class Reconstruct:
    """Binary cross-entropy of images from their reconstruction, the mean over pixels and examples.

    The model maps images (B, ...) to logits of the same shape. A batch is {"image": (B, ...) in [0, 1]}
    and, where some examples are padding, {"mask": (B,)}: 0 for those.
    """

    model: nn.Module

    def init(self, key, batch: Batch) -> tuple[PyTree, dict[str, PyTree]]:
        return _init(self.model, key, batch["image"])

    def loss(
        self, params, collections, batch: Batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        logits = _apply(self.model, params, collections, key, train, batch["image"])
        loss = Mean.of(binary_cross_entropy(logits, batch["image"]), batch.get("mask"))
        return loss, {"loss": loss}, collections
