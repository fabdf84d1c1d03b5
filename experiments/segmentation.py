"""The U-Net as such: the pixels of a digit among the strokes of others, each told by its class.

Ronneberger et al. 2015, on images in the manner of the cluttered MNIST of Mnih et al. 2014: a digit anywhere
on a larger canvas, over pieces of 8 x 8 cut from other digits. A pixel is labelled by construction: 0 the
background and all pieces, 1 to 10 the digit's own pixels. Images are made anew each epoch.

    lmlab train --config=experiments/segmentation.py:demo --workdir=runs/seg-demo
    lmlab train --config=experiments/segmentation.py:cpu --workdir=runs/segmentation     # needs MNIST
    lmlab evaluate --workdir=runs/segmentation          # intersection over union, by class
    lmlab figures --workdir=runs/segmentation

demo: half a minute on two cores (digits of 8 x 8). cpu: 9 minutes. default: a wider network, for a GPU (not run).
Trained on scenes of train[:55000], watched on those of train[55000:]; test scenes are made of test digits alone.
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
from lmlab.experiment import Experiment, Mean, Samples, Target
from lmlab.figures import curves, images, style
from lmlab.models.unet import UNet
from lmlab.sources import Resident
from lmlab.tasks import cross_entropy
from lmlab.training import optimizer

FAMILY, PAPER = "segmentation", "Ronneberger et al. 2015"
VARIANTS = {
    "demo": "scikit-learn's digits of 8 x 8 on canvases of 16 x 16: half a minute",
    "cpu": "a smaller network, which two cores train in 9 minutes",
    "fashion": "Fashion-MNIST in place of MNIST",
}
TARGETS = {"cpu": [Target("test/iou", 0.75, higher_is_better=True)]}
CLASSES = 11
COLORS = colormaps["tab10"].colors


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
        config.update(duration="2 epochs", batch_size=64)
        config.model.update(features=(16, 32, 64), blocks=1, patch=2)
    if "fashion" in parts:
        config.data.name = "fashion_mnist"
    if "demo" in parts:
        config.update(duration="20 epochs", batch_size=32)
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

    def overlap(name, **options):
        return Overlap(Likelihood(task, lambda: fixed(name), 250, **options))

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=train_data,
        evaluations={"validation": overlap("validation"), "test": overlap("test", held_out=True)},
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
    """Cross-entropy in nats of the right class of each pixel, the mean over pixels and images.

    In evaluation `iou_k` beside, the intersection over union of the pixels guessed to be of class k and those
    that are: a mean whose total and count are added up over all images.
    """

    model: UNet

    def init(self, key, batch):
        return self.model.init(key, batch["image"])["params"], {}

    def loss(self, params, collections, batch, key, train):
        logits = self.model.apply({"params": params}, batch["image"], None, train, rngs={"dropout": key})
        label, guess, mask = batch["label"], jnp.argmax(logits, axis=-1), batch.get("mask")
        loss = Mean.of(cross_entropy(logits, label), mask)
        metrics = {"loss": loss, "accuracy": Mean.of((guess == label).astype(jnp.float32), mask)}
        if not train:
            weight = jnp.ones(len(label)) if mask is None else mask
            for k in range(CLASSES):
                both, either = (guess == k) & (label == k), (guess == k) | (label == k)
                metrics[f"iou_{k}"] = Mean(*(jnp.sum(each.sum((1, 2)) * weight) for each in (both, either)))
        return loss, metrics, collections


class Overlap:
    """The loss and the mean of the digits' intersections over unions; of the test scenes that of each class.

    For figures: six test scenes and what the model makes of them.
    """

    def __init__(self, likelihood):
        self.likelihood, self.data, self.held_out = likelihood, likelihood.data, likelihood.held_out

    def __call__(self, variables, key):
        scores = self.likelihood(variables, key)[0]
        each = np.array([scores.pop(f"iou_{k}") for k in range(CLASSES)])
        scores["iou"] = float(each[1:].mean())
        if not self.held_out:
            return scores, {}
        scores |= {"iou_background": each[0]} | {f"iou_{digit}": each[digit + 1] for digit in range(10)}
        shown = {name: values[:6] for name, values in self.data().items()}
        logits = self.likelihood.task.model.apply(variables, jnp.asarray(shown["image"]))
        return scores, {**shown, "guess": logits.argmax(-1), "iou": each[1:]}


def figures(runs):
    drawn = {"loss": curves.loss(runs, ylabel="nats a pixel"), "overlap": overlap(runs)}
    if len(runs) == 1:
        kept = runs[0].arrays("test")
        colors = np.array([(0, 0, 0), *COLORS])
        drawn["segments"] = images.rows(
            {"image": kept["image"], "truth": colors[kept["label"]], "U-Net": colors[kept["guess"]]}
        )
    return drawn


def overlap(runs):
    """Intersection over union by class, in the colours of the segments; of several runs mean and deviation."""
    values = np.stack([run.arrays("test")["iou"] for run in runs])
    figure, axes = style.new()
    spread = values.std(0, ddof=1) if len(runs) > 1 else None
    axes.bar(range(len(COLORS)), values.mean(0), yerr=spread, color=COLORS, label="intersection over union")
    axes.set(xlabel="class", ylabel="intersection over union", xticks=range(len(COLORS)), ylim=(0, 1))
    return figure
