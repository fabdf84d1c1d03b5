"""Do autoencoders memorize, and does denoising mitigate it? Test minus training loss against how many images.

A lecture's summary claims that autoencoders "will overfit and memorize the data", and that this is "mitigated
by denoising autoencoders" (Vincent et al. 2008). Here the network 784-128-32-128-784 is trained on 100 to
60,000 images, once on clean images and once on images with noise of 0.4 N(0, 1) drawn anew each time: twelve
networks of one capacity in one run, from the same initial parameters, with the same number of updates, each
image of a subset seen as often as any other. What is compared is the binary cross-entropy of clean images
from clean images: on the test images, minus on the n images of training.

    lmlab train --config=experiments/memorization.py:demo --workdir=runs/memorization-demo
    for seed in 0 1 2 3 4; do
      lmlab train --config=experiments/memorization.py:cpu --workdir=runs/memorization/$seed --config.seed=$seed
    done
    lmlab evaluate --workdir=runs/memorization          # test/gap_plain_1000, test/gap_denoising_1000, ...
    lmlab figures --workdir=runs/memorization           # bands over seeds

A seed draws the initial parameters, the order, the noise and which images are the n.
demo: half a minute. cpu, the default: a few minutes on two cores.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.data import images as data
from lmlab.evaluation.likelihood import Likelihood, batched
from lmlab.experiment import Experiment, Mean, Target
from lmlab.figures import curves, style
from lmlab.models.autoencoder import Autoencoder, Regularized
from lmlab.sources import Resident
from lmlab.tasks import Reconstruct
from lmlab.training import optimizer

FAMILY, PAPER = "autoencoder", "Vincent et al. 2008"
VARIANTS = {
    "demo": "50, 200 and 1,437 of scikit-learn's digits: half a minute",
    "cpu": "100 to 60,000 images of MNIST: the same as no variant",
}
SIZES = (100, 300, 1000, 3000, 10000, 60000)
CLAIM = "a lecture's claim: denoising mitigates"
TARGETS = {
    "cpu": [Target(f"test/mitigation_{n}", 0.0, math.nan, CLAIM, higher_is_better=True) for n in SIZES]
}


def get_config(variant=""):
    config = configs.base(
        duration="10 epochs",  # of 60,000 images; of 100 they are 6,000
        batch_size=128,
        log_every="2 %",
        checkpoint={"every": "10 %"},
        sizes=SIZES,
        noise=0.4,
        model={"features": (128,), "code": 32},
        data={"name": "mnist", "tfds_dir": ""},
        optimizer={"name": "adam", "learning_rate": 1e-3, "eps": 1e-7},
    )
    if "demo" in variant.split(","):
        config.update(duration="100 epochs", batch_size=32, sizes=(50, 200, 1437))
        config.data.name = "digits"
        config.model.update(features=(64,), code=16)
    return config


def build(config, assets):
    name, sizes = config.data.name, config.sizes
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise ValueError(f"sizes must be one or more, different, each at least 1; received {sizes}")
    model = Autoencoder(input_size=math.prod(data.shape(name)), **config.model)
    tasks = {"plain": Reconstruct(model), "denoising": Regularized(model, config.noise)}

    @functools.cache
    def read(split):
        images = data.digits(split) if name == "digits" else data.load(name, split, config.data.tfds_dir)
        return images["image"]

    @functools.cache
    def train():
        """The training images in an order of the seed's; the first n are the subset of n."""
        count = len(read("train"))
        if max(sizes) > count:
            raise ValueError(f"sizes: received {sizes}; there are {count:,} training images")
        return read("train")[np.random.default_rng(config.seed).permutation(count)]

    def take(images, indices, epoch, seed):
        """For each n the places of the epoch's order, modulo n: each of its images as often as any other."""
        return {str(n): images[indices % n].astype(jnp.float32) / 255 for n in sizes}

    return Experiment(
        task=Arms(tasks, sizes),
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: Resident(
            data=jnp.asarray(train()),
            num_examples=len(train()),
            batch_size=config.batch_size,
            seed=config.seed,
            take=take,
        ),
        evaluations={"test": Gaps(tasks, sizes, train, lambda: read("test"))},
        dynamic=("optimizer.learning_rate",),
    )


class Arms:
    """One network a task and size, `plain_100` and so on: the sum of losses, whose gradient is each one's own."""

    def __init__(self, tasks, sizes):
        self.arms = {f"{name}_{n}": (task, str(n)) for name, task in tasks.items() for n in sizes}

    def init(self, key, batch):
        return {arm: task.init(key, {"image": batch[size]})[0] for arm, (task, size) in self.arms.items()}, {}

    def loss(self, params, collections, batch, key, train):
        means = [
            task.loss(params[arm], {}, {"image": batch[size]}, jax.random.fold_in(key, number), train)[0]
            for number, (arm, (task, size)) in enumerate(self.arms.items())
        ]
        total = sum(mean.total for mean in means)
        return Mean(total, means[0].count), {"loss": Mean(total, sum(m.count for m in means))}, collections


class Gaps:
    """The loss of clean images from clean images, on the test images and on the n of training, of each arm.

    `gap_plain_100` is test minus training; `mitigation_100` how much smaller denoising makes it.
    """

    held_out = True

    def __init__(self, tasks, sizes, train, test):
        self.names, self.sizes, self.train, self.test = tuple(tasks), sizes, train, test
        self.likelihood = Likelihood(tasks["plain"], test)

    def __call__(self, variables, key):
        def loss(arm, image):
            batches = batched(data.scaled({"image": image}), 1000)
            return self.likelihood.score({"params": variables["params"][arm]}, key, batches)["loss"]

        arms = [[f"{name}_{n}" for n in self.sizes] for name in self.names]
        train = [
            [loss(arm, self.train()[:n]) for arm, n in zip(row, self.sizes, strict=True)] for row in arms
        ]
        test = [[loss(arm, self.test()) for arm in row] for row in arms]
        scalars = {}
        for arm, on_train, on_test in zip(np.ravel(arms), np.ravel(train), np.ravel(test), strict=True):
            scalars |= {f"train_{arm}": on_train, f"test_{arm}": on_test, f"gap_{arm}": on_test - on_train}
        for n in self.sizes:
            scalars[f"mitigation_{n}"] = scalars[f"gap_plain_{n}"] - scalars[f"gap_denoising_{n}"]
        return scalars, {"sizes": np.array(self.sizes), "train": np.array(train), "test": np.array(test)}


def figures(runs):
    return {"loss": curves.loss(runs, ylabel="mean over networks"), "gap": gap(runs)}


def gap(runs):
    """Losses of both kinds of training, and their gaps, against the number of images; a band is a deviation."""
    kept = [run.arrays("test") for run in runs]
    sizes = kept[0]["sizes"]
    train, test = (
        np.stack([each[name] for each in kept]) for name in ("train", "test")
    )  # (runs, kind, size)
    figure, axes = style.new(1, 2)
    left, right = axes[0]
    for kind, name in enumerate(("clean", "denoising")):
        curve(left, sizes, test[:, kind], f"{name}, test", style.COLORS[kind], "-")
        curve(left, sizes, train[:, kind], f"{name}, training", style.COLORS[kind], ":")
        curve(right, sizes, (test - train)[:, kind], name, style.COLORS[kind], "-")
    right.axhline(0, color="0.6", linewidth=0.6)
    for one in (left, right):
        one.set_xscale("log")
        one.set_xlabel("training images")
        one.legend()
    left.set_ylabel("binary cross-entropy a pixel")
    right.set_ylabel("test minus training")
    return figure


def curve(axes, x, values, label, color, linestyle):
    mean = values.mean(0)
    axes.plot(x, mean, marker="o", color=color, linestyle=linestyle, label=label)
    if len(values) > 1:
        deviation = values.std(0, ddof=1)
        axes.fill_between(
            x, mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0, label=f"_{label}"
        )
