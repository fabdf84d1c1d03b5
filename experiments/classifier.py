"""Classifiers of MNIST and Fashion-MNIST: an MLP, with batch normalization, a CNN, a small residual network.

The discriminative baselines of the generative models, and the features that those are scored with
(lmlab/evaluation/frechet.py). Published: Flax's MNIST example, the CNN's network, 99.17 % after 10 epochs;
Fashion-MNIST's README, 2 convolutions with pooling 91.6 %, an MLP 256-128-100 88.33 %.

    lmlab train --config=experiments/classifier.py:demo --workdir=runs/digits
    lmlab train --config=experiments/classifier.py:cnn,cpu --workdir=runs/classifier        # needs MNIST
    lmlab train --config=experiments/classifier.py:cnn,fashion,cpu --workdir=runs/fashion
    lmlab figures --workdir=runs/classifier             # the loss, confusions, what it gets wrong

Trained on train[:55000], watched on train[55000:], read on the test images by `lmlab evaluate` alone; the
last epoch counts. An ablation of batch normalization, shortcuts and initialization on 20 layers of 100:

    for net in deep deep_batchnorm deep_residual deep_both; do for init in "" ,glorot ,small; do
      for seed in 0 1 2; do
        lmlab train --config=experiments/classifier.py:$net$init,cpu --config.seed=$seed \\
            --workdir=runs/ablation/$net$init/$seed
    done; done; done
    lmlab figures --workdir=runs/ablation

demo: seconds. cpu: half a minute (mlp) to ten minutes (cnn,fashion) on two cores. default: more epochs of the same.
"""

import functools

import numpy as np

from lmlab import config as configs
from lmlab.data import images as data
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Target
from lmlab.figures import curves, images, settings, style
from lmlab.models.classifier import CNN, MLP, Classifier, Classify, ResNet
from lmlab.training import optimizer

FAMILY, PAPER = "classifier", "LeCun et al. 1998; Ioffe and Szegedy 2015; He et al. 2015"
VARIANTS = {
    "demo": "scikit-learn's digits of 8 x 8, which ship with it: seconds",
    "cpu": "as many epochs as two cores do in minutes",
    "fashion": "Fashion-MNIST in place of MNIST",
    "mlp": "hidden layers of 256, 128 and 100",
    "mlp_batchnorm": "the same with batch normalization",
    "cnn": "two convolutions of 32 and 64, a hidden layer of 256: the default",
    "resnet_small": "8 layers, widths 16, 32, 64, batch normalization and shortcuts",
    "resnet_plain": "the same without shortcuts",
    "deep": "20 hidden layers of 100, for the ablation",
    "deep_batchnorm": "the same with batch normalization",
    "deep_residual": "the same with shortcuts",
    "deep_both": "the same with both",
    "glorot": "Glorot's initialization in place of He's",
    "small": "kernels from N(0, 0.01^2) in place of He's initialization",
}
NETWORKS = {"mlp": MLP, "cnn": CNN, "resnet": ResNet}
FLAX = "Flax, MNIST example, 10 epochs"
FASHION = "Fashion-MNIST README"


def accuracy(bar, published=float("nan"), source=""):
    return [Target("test/accuracy", bar, published, source, higher_is_better=True)]


TARGETS = {
    "cnn,cpu": accuracy(0.991, 0.9917, FLAX),
    "cnn,fashion,cpu": accuracy(0.916, 0.916, f"{FASHION}, 2 convolutions and pooling"),
    "mlp,cpu": accuracy(0.980),
    "mlp,fashion,cpu": accuracy(0.883, 0.8833, f"{FASHION}, MLP 256-128-100"),
}


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="30 epochs",
        batch_size=128,
        log_every="2 %",
        evaluate_every="10 %",
        network="cnn",
        model={"features": (32, 64), "hidden": 256, "normalize": False, "initializer": "he", "dropout": 0.4},
        data={"name": "mnist", "tfds_dir": ""},
        optimizer={"learning_rate": 2e-3, "schedule": "cosine", "warmup": "5 %", "weight_decay": 1e-3},
    )
    deep = next((part for part in parts if part.startswith("deep")), "")
    if deep or {"mlp", "mlp_batchnorm"} & set(parts):
        config.network = "mlp"
        del config.model.hidden
        config.model.update(
            features=(256, 128, 100), normalize="mlp_batchnorm" in parts, residual=False, dropout=0.2
        )
    if deep:
        config.model.update(features=(100,) * 20, dropout=0.0)
        config.model.update(normalize=deep in ("deep_batchnorm", "deep_both"))
        config.model.update(residual=deep in ("deep_residual", "deep_both"))
        config.optimizer.weight_decay = 0.0
    if {"resnet_small", "resnet_plain"} & set(parts):
        config.network = "resnet"
        del config.model.hidden
        config.model.update(features=(16, 32, 64), blocks=1, normalize=True, dropout=0.0)
        config.model.residual = "resnet_plain" not in parts
    for name in ("glorot", "small"):
        if name in parts:
            config.model.initializer = name
    if "fashion" in parts:
        config.data.name = "fashion_mnist"
    if "cpu" in parts:
        config.duration = "3 epochs" if deep else "20 epochs" if config.network == "mlp" else "6 epochs"
        if config.network == "cnn" and "fashion" in parts:
            config.duration = "12 epochs"  # after 6 the validation images still gain a point
    if "demo" in parts:
        config.update(duration="30 epochs", batch_size=32)
        config.data.name = "digits"
        small = {"mlp": (64, 32), "cnn": (16, 32), "resnet": (8, 16)}[config.network]
        config.model.features = (32,) * 5 if deep else small
        if config.network == "cnn":
            config.model.update(hidden=64, dropout=0.2)
    return config


def build(config, assets):
    if config.network not in NETWORKS:
        raise ValueError(f"network: received {config.network!r}; allowed: {', '.join(NETWORKS)}")
    shape = data.shape(config.data.name)
    task = Classify(Classifier(NETWORKS[config.network](**config.model), shape))
    part = data.parts(config.data.name, config.data.tfds_dir)

    def likelihood(name, **options):
        return Likelihood(task, lambda: data.scaled(part(name)), 500, **options)

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: data.resident(part("train"), config.batch_size, config.seed),
        evaluations={"validation": likelihood("validation"), "test": Mistakes(task, likelihood("test"))},
        show=data.show_images,
        dynamic=("optimizer.learning_rate", "optimizer.weight_decay", "model.dropout"),
    )


class Mistakes:
    """Loss and accuracy on the test images; how often each class is taken for each, and the surest mistakes."""

    held_out = True

    def __init__(self, task, likelihood):
        self.task, self.likelihood, self.data = task, likelihood, likelihood.data

    def __call__(self, variables, key):
        image, label = self.data()["image"], self.data()["label"]
        _, logits = self.task.outputs(variables, image)
        guess = logits.argmax(-1)
        confusion = np.zeros((self.task.model.num_classes,) * 2, np.int32)
        np.add.at(confusion, (label, guess), 1)
        rows = np.arange(len(label))
        margin = logits[rows, guess] - logits[rows, label]  # 0 where it is right
        worst = np.argsort(-margin)[: min(20, np.count_nonzero(margin))]
        arrays = {"confusion": confusion, "image": image[worst], "label": label[worst], "guess": guess[worst]}
        return self.likelihood(variables, key)[0], arrays


def figures(runs):
    if len(runs) == 1:
        kept = runs[0].arrays("test")
        drawn = {"loss": curves.loss(runs), "confusion": confusion(kept["confusion"])}
        if len(kept["image"]):
            names = [f"{label} as {guess}" for label, guess in zip(kept["label"], kept["guess"], strict=True)]
            drawn["mistakes"] = images.captioned(kept["image"], names)
        return drawn
    options = {"label": lambda run: run.variant or "cnn", "ylabel": "training loss, nats", "wide": True}
    drawn = {"loss": curves.loss(runs, ("train/loss",), **options)}
    if all(run.config.network == "mlp" for run in runs):
        drawn["ablation"] = ablation(runs)
    return drawn


def confusion(counts):
    """How many examples of each class (down) were taken for each (across); the right ones are left out."""
    wrong = np.ma.array(counts, mask=np.eye(len(counts), dtype=bool))
    figure, axes = style.new()
    image = axes.imshow(wrong, vmin=0)
    axes.set(xlabel="taken for", ylabel="class", xticks=range(len(counts)), yticks=range(len(counts)))
    style.colorbar(figure, image, axes, "test examples")
    return figure


def ablation(runs):
    """Validation accuracy after the last epoch, by what is added to the layers and by initialization."""
    names = {
        (False, False): "nothing",
        (True, False): "batch norm",
        (False, True): "shortcuts",
        (True, True): "both",
    }
    added, initializer, accuracy = [], [], []
    for run in runs:
        model = run.config.model
        added.append(names[model.normalize, model.residual])
        initializer.append(model.initializer)
        accuracy.append(100 * run.metrics()["validation/accuracy"].dropna().iloc[-1])
    labels = ("added to the layers", "initialization", "validation accuracy, %")
    return settings.over(added, initializer, accuracy, *labels, best=max)
