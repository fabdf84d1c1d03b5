"""A deep autoencoder of MNIST digits, 784-128-32-128-784.

The network of the Keras notebook "Applied Deep Learning with Keras, part 3: autoencoders" (A. Dertat),
after Hinton and Salakhutdinov 2006: ReLU, sigmoid output, binary cross-entropy, Adam, batches of 32. The
notebook prints a training loss of 0.1416, 0.0997 and 0.0935 for its first three epochs.

    lmlab train --config=experiments/autoencoder.py:demo --workdir=runs/ae-demo
    lmlab train --config=experiments/autoencoder.py      --workdir=runs/ae      # needs MNIST prepared for TFDS
    lmlab figures --workdir=runs/ae

demo: seconds. cpu, which is the published setting and the default: half a minute on two cores.
As in the notebook all 60,000 training images are used and the last epoch is what counts: nothing is
chosen, and the test images are read by `lmlab evaluate` alone.
"""

import functools

import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.data import images as data
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Target
from lmlab.figures import curves, images
from lmlab.models.autoencoder import Autoencoder
from lmlab.tasks import Reconstruct
from lmlab.training import optimizer

FAMILY, PAPER = "autoencoder", "Hinton and Salakhutdinov 2006"
VARIANTS = {
    "demo": "scikit-learn's digits of 8 x 8, which ship with it: seconds",
    "cpu": "MNIST, 5 epochs: the published setting, the same as no variant",
}
TARGETS = {
    "cpu": [
        Target("test/loss", 0.0885, float("nan"), "Keras, deep autoencoder after 5 epochs: not printed"),
        Target("train/loss@3 epochs", 0.0940, 0.0935, "Dertat, notebook part 3, third epoch"),
    ]
}


def get_config(variant=""):
    config = configs.base(
        duration="5 epochs",
        batch_size=32,
        log_every="1 epoch",  # the mean over an epoch, which is what Keras prints
        evaluate_every="1 epoch",
        checkpoint={"every": "1 epoch"},
        model={"features": (128,), "code": 32},
        data={"name": "mnist", "tfds_dir": ""},
        optimizer={"name": "adam", "learning_rate": 1e-3, "eps": 1e-7},
    )
    if "demo" in variant.split(","):
        config.update(duration="50 epochs", log_every="2 %", evaluate_every="10 %")
        config.checkpoint.every = "20 %"
        config.data.name = "digits"
        config.model.update(features=(64,), code=16)
    return config


def build(config, assets):
    size = 64 if config.data.name == "digits" else 784
    task = Reconstruct(Autoencoder(input_size=size, **config.model))

    @functools.cache
    def split(name):
        if config.data.name == "digits":
            return data.digits(name)
        return data.load(config.data.name, name, config.data.tfds_dir)

    def likelihood(name, **options):
        return Likelihood(task, lambda: data.scaled({"image": split(name)["image"]}), 1000, **options)

    evaluations = {"test": Reconstructions(task, likelihood("test"))}
    if config.data.name == "digits":
        evaluations["validation"] = likelihood("validation")
    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: data.resident(split("train"), config.batch_size, config.seed),
        evaluations=evaluations,
        show=data.show_images,
        dynamic=("optimizer.learning_rate",),
    )


class Reconstructions:
    """The loss on the test images; ten of them and what the model makes of them, for the figure."""

    held_out = True

    def __init__(self, task, likelihood):
        self.task, self.likelihood, self.data = task, likelihood, likelihood.data

    def __call__(self, variables, key):
        originals = jnp.asarray(self.data()["image"][:10])
        logits = self.task.model.apply({"params": variables["params"]}, originals)
        arrays = {"original": originals, "reconstruction": 1 / (1 + np.exp(-np.asarray(logits)))}
        return self.likelihood(variables, key)[0], arrays


def figures(runs):
    drawn = {"loss": curves.loss(runs, ylabel="binary cross-entropy a pixel")}
    if len(runs) == 1:
        drawn["reconstructions"] = images.rows(runs[0].arrays("test"))
    return drawn
