"""The U-Net as such: the pixels of a digit among the strokes of others, each told by its class.

Ronneberger et al. 2015, on images in the manner of the cluttered MNIST of Mnih et al. 2014: a digit anywhere
on a larger canvas, over pieces of 8 x 8 cut from other digits. A pixel is labelled by construction: 0 the
background and all pieces, 1 to 10 the digit's own pixels. Images are made anew each epoch.

    lmlab train --config=experiments/segmentation.py:demo --workdir=runs/seg-demo
    lmlab train --config=experiments/segmentation.py:cpu --workdir=runs/segmentation     # needs MNIST
    lmlab evaluate --workdir=runs/segmentation          # intersection over union, by class
    lmlab figures --workdir=runs/segmentation

demo: a minute on two cores (digits of 8 x 8). cpu: 8 minutes. default: a wider network, for a GPU (not run).
Digits and pieces of the test images come from test digits; nothing is chosen.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import colormaps

from lmlab import config as configs
from lmlab.data import images as data
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Mean, Samples
from lmlab.figures import curves, images
from lmlab.models.unet import UNet
from lmlab.sources import Resident
from lmlab.tasks import cross_entropy
from lmlab.training import optimizer

FAMILY, PAPER = "segmentation", "Ronneberger et al. 2015"
VARIANTS = {
    "demo": "scikit-learn's digits of 8 x 8 on canvases of 16 x 16: a minute",
    "cpu": "MNIST digits on canvases of 48 x 48: what two cores train in 8 minutes",
}
CLASSES = 11


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="40 epochs",
        batch_size=128,
        evaluate_every="10 %",
        model={"features": (64, 128, 256), "blocks": 2, "attention": 4, "patch": 1, "dropout": 0.0},
        data={"name": "mnist", "tfds_dir": "", "canvas": 48, "pieces": 10, "piece": 8},
        optimizer={"learning_rate": 2e-3, "warmup": "5 %", "schedule": "cosine", "clip": 1.0},
    )
    if "cpu" in parts:
        config.update(duration="3 epochs", batch_size=64)
        config.model.update(features=(16, 32, 64), blocks=1, patch=2)
    if "demo" in parts:
        config.update(duration="30 epochs", batch_size=32)
        config.model.update(features=(16, 32), blocks=1, attention=0)
        config.data.update(name="digits", canvas=16, pieces=4, piece=4)
    return config


def build(config, assets):
    part = data.parts(config.data.name, config.data.tfds_dir)
    scene = Scene(config.data.canvas, config.data.pieces, config.data.piece)
    scene.check(data.shape(config.data.name))
    task = Segment(UNet(CLASSES, **config.model))

    def train_data():
        arrays = {name: jnp.asarray(values) for name, values in part("train").items()}
        count = len(arrays["label"])

        def take(arrays, indices, epoch, seed):
            return scene(arrays, indices, jax.random.fold_in(jax.random.key(seed), epoch))

        return Resident(
            data=arrays, num_examples=count, batch_size=config.batch_size, seed=config.seed, take=take
        )

    def fixed(name):
        """Each image of a part once, on a scene that is always the same."""
        arrays = {key: jnp.asarray(values) for key, values in part(name).items()}
        return jax.device_get(scene(arrays, jnp.arange(len(arrays["label"])), jax.random.key(7)))

    def likelihood(name):
        return Likelihood(task, lambda: fixed(name), 250)

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=train_data,
        evaluations={"validation": likelihood("validation"), "test": Overlap(task, likelihood("test"))},
        show=lambda batch: Samples(
            images=batch["image"], texts=[str(label.max() - 1) for label in batch["label"]]
        ),
        dynamic=("optimizer.learning_rate",),
    )


@dataclasses.dataclass(frozen=True)
class Scene:
    """A digit on a canvas over `pieces` squares of `piece` pixels cut from other digits."""

    canvas: int
    pieces: int
    piece: int

    def check(self, shape):
        if self.canvas < max(shape) or not 1 <= self.piece <= min(shape) or self.pieces < 0:
            raise ValueError(
                f"data: canvas {self.canvas}, pieces {self.pieces} of {self.piece}; allowed: a canvas of"
                f" {max(shape)} or more, 0 pieces or more of 1 to {min(shape)}"
            )

    def __call__(self, arrays, indices, root) -> dict[str, Any]:
        """{"image": [B, S, S] in [0, 1], "label": [B, S, S], 0 for what is not of the digit}."""
        images, labels = arrays["image"], arrays["label"]
        high, wide = images.shape[1:]

        def place(canvas, piece, key):
            corner = jax.random.randint(key, (2,), 0, self.canvas + 1 - jnp.array(piece.shape))
            empty = jnp.zeros((self.canvas, self.canvas), piece.dtype)
            return jnp.maximum(canvas, jax.lax.dynamic_update_slice(empty, piece, corner))

        def one(index):
            keys = jax.random.split(jax.random.fold_in(root, index), 2 + self.pieces)
            canvas = jnp.zeros((self.canvas, self.canvas), images.dtype)
            for key in keys[2:]:
                other, corner, spot = jax.random.split(key, 3)
                other = images[jax.random.randint(other, (), 0, len(images))]
                corner = jax.random.randint(corner, (2,), 0, jnp.array([high, wide]) + 1 - self.piece)
                canvas = place(canvas, jax.lax.dynamic_slice(other, corner, (self.piece,) * 2), spot)
            digit = place(jnp.zeros_like(canvas), images[index], keys[0])
            own = digit > 127
            return {"image": jnp.maximum(canvas, digit), "label": jnp.where(own, labels[index] + 1, 0)}

        made = jax.vmap(one)(indices)
        return {"image": made["image"].astype(jnp.float32) / 255, "label": made["label"]}


@dataclasses.dataclass(frozen=True)
class Segment:
    """Cross-entropy in nats of the right class of each pixel, the mean over pixels and images."""

    model: UNet

    def init(self, key, batch):
        return self.model.init(key, batch["image"])["params"], {}

    def loss(self, params, collections, batch, key, train):
        logits = self.model.apply({"params": params}, batch["image"], None, train, rngs={"dropout": key})
        loss = Mean.of(cross_entropy(logits, batch["label"]), batch.get("mask"))
        guess = jnp.argmax(logits, axis=-1)
        right = (guess == batch["label"]).astype(jnp.float32)
        return loss, {"loss": loss, "accuracy": Mean.of(right, batch.get("mask"))}, collections


class Overlap:
    """Intersection over union of the pixels of each class, over all test images; their mean over the digits."""

    held_out = True

    def __init__(self, task, likelihood):
        self.task, self.likelihood, self.data = task, likelihood, likelihood.data

    def __call__(self, variables, key):
        scene = self.data()
        guess = self.guess(variables, scene["image"])
        each = overlap(guess, scene["label"])
        scalars = self.likelihood(variables, key)[0] | {"iou": each[1:].mean(), "iou_background": each[0]}
        shown = {name: values[:6] for name, values in {**scene, "guess": guess}.items()}
        return scalars | {f"iou_{digit}": each[digit + 1] for digit in range(10)}, shown

    def guess(self, variables, image, size=250):
        apply = jax.jit(lambda variables, image: jnp.argmax(self.task.model.apply(variables, image), axis=-1))
        return np.concatenate([apply(variables, image[i : i + size]) for i in range(0, len(image), size)])


def overlap(guess, label):
    """|A and B| / |A or B| for the pixels guessed to be of each class and those that are; 1 if there are none."""
    return np.array(
        [
            np.sum((guess == k) & (label == k)) / max(1, np.sum((guess == k) | (label == k)))
            if np.any((guess == k) | (label == k))
            else 1.0
            for k in range(CLASSES)
        ]
    )


def figures(runs):
    drawn = {"loss": curves.loss(runs, ylabel="nats a pixel")}
    if len(runs) == 1:
        kept = runs[0].arrays("test")
        colors = np.array([(0, 0, 0), *colormaps["tab10"].colors])
        drawn["segments"] = images.rows(
            {"image": kept["image"], "truth": colors[kept["label"]], "U-Net": colors[kept["guess"]]}
        )
    return drawn
