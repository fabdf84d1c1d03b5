"""Generative adversarial networks: fully connected, DCGAN, and two tests of the modes that they leave out.

Goodfellow et al. 2014 and Radford et al. 2016 on MNIST and Fashion-MNIST; eight Gaussians on a circle
(Metz et al. 2017); MNIST digits stacked to three colours, a thousand modes (Metz et al. 2017; Srivastava
et al. 2017). Published for the first on MNIST: a Parzen window log-likelihood of 225 +- 2 nats.

    lmlab train --config=experiments/gan.py:ring,demo --workdir=runs/ring
    lmlab train --config=experiments/gan.py:dcgan,cpu --workdir=runs/dcgan                # needs MNIST
    lmlab train --config=experiments/gan.py:stacked,cpu --workdir=runs/stacked
    lmlab evaluate --workdir=runs/stacked           # wants runs/classifier, see experiments/classifier.py
    lmlab sample --workdir=runs/dcgan --num_samples=100
    lmlab figures --workdir=runs/dcgan

The loss that is logged is the discriminator's: 1.386 where it cannot tell real from drawn. Trained on
train[:55000], the last update counts. The width of the Parzen window is chosen on train[55000:].

demo: half a minute on two cores (digits of 8 x 8; with ring seconds). cpu: 2 to 10 minutes. default: the
widths of the papers, for a GPU (not run).
"""

import jax
import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.data import images as data
from lmlab.data import points
from lmlab.evaluation import parzen
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Samples, Target
from lmlab.figures import curves, images, style
from lmlab.models.gan import Adversaries, ConvDiscriminator, ConvGenerator, Discriminator, Generator
from lmlab.sources import Resident, shuffled
from lmlab.training import optimizer

FAMILY, PAPER = "gan", "Goodfellow et al. 2014; Radford et al. 2016"
VARIANTS = {
    "demo": "scikit-learn's digits of 8 x 8, or fewer updates: half a minute",
    "cpu": "narrower networks and fewer epochs: what two cores train in 10 minutes",
    "mlp": "fully connected networks: the default",
    "dcgan": "convolutional networks",
    "stacked": "convolutional networks on three digits in three colours: 1,000 modes",
    "ring": "eight Gaussians on a circle",
    "fashion": "Fashion-MNIST in place of MNIST",
}
TARGETS = {
    "mlp,cpu": [Target("test/parzen", 225, 225, "Goodfellow et al. 2014, table 1", higher_is_better=True)]
}
MODES = 8
SCALES = (0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5)


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="100 epochs",
        batch_size=128,
        evaluate_every="10 %",
        network="mlp",
        model={"latent": 100, "generator": (1200, 1200), "discriminator": (1200, 1200), "dropout": 0.5},
        data={
            "name": "mnist",
            "tfds_dir": "",
            "stacked": "stacked" in parts,
            "classifier": "runs/classifier",  # the run that tells the modes of stacked digits
        },
        optimizer={"name": "adam", "learning_rate": 2e-4, "b1": 0.5},
    )
    if "fashion" in parts:
        config.data.name = "fashion_mnist"
    if "dcgan" in parts or "stacked" in parts:
        config.network = "dcgan"
        config.model.update(generator=(128, 64), discriminator=(64, 128), dropout=0.0)
    if "cpu" in parts:
        if config.network == "mlp":
            config.duration = "25 epochs"
            config.model.update(latent=64, generator=(256, 512), discriminator=(512, 256), dropout=0.3)
        else:
            config.update(duration="5 epochs", batch_size=64)
            config.model.update(latent=64, generator=(64, 32), discriminator=(32, 64))
    if "demo" in parts:
        config.update(duration="150 epochs" if config.network == "mlp" else "50 epochs", batch_size=64)
        config.data.name = "digits"
        config.model.latent = 16
        config.optimizer.learning_rate = 1e-3
        small = (64, 128) if config.network == "mlp" else (32, 16)
        config.model.update(generator=small, discriminator=small[::-1])
    if "ring" in parts:
        config.update(network="mlp", duration="20000 steps", batch_size=256)
        config.model.update(latent=8, generator=(128, 128), discriminator=(128, 128), dropout=0.0)
        config.data.name = "ring"
        config.optimizer.learning_rate = 1e-3
        if "demo" in parts:
            config.duration = "5000 steps"
    return config


def build(config, assets):
    if config.network not in ("mlp", "dcgan"):
        raise ValueError(f"network: received {config.network!r}; allowed: mlp, dcgan")
    model = config.model
    on_ring = config.data.name == "ring"
    shape = (2,) if on_ring else data.shape(config.data.name) + (3,) * config.data.stacked
    if config.network == "mlp":
        generator = Generator(model.generator, shape, bounded=not on_ring)
        discriminator = Discriminator(model.discriminator, model.dropout)
    else:
        generator = ConvGenerator(model.generator, shape)
        discriminator = ConvDiscriminator(model.discriminator, model.dropout)
    task = Adversaries(generator, discriminator, model.latent)

    def optimizers(clock):
        return {part: optimizer.build(clock, **config.optimizer) for part in ("generator", "discriminator")}

    make = ring_data if on_ring else image_data
    return Experiment(
        task=task,
        step=task.step,
        optimizer=optimizers,
        sample=sampler(task, on_ring),
        dynamic=("optimizer.learning_rate",),
        **make(config, task),
    )


def sampler(task, on_ring):
    def sample(variables, key, *, num_samples: int = 64) -> Samples:
        """What the generator makes of noise.

        num_samples: how many
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, received {num_samples}")
        drawn = np.asarray(task.sample(variables, key, num_samples))
        return Samples(arrays={"x": drawn}) if on_ring else Samples(images=drawn)

    return sample


# -- eight Gaussians ---------------------------------------------------------------------------------


def ring_data(config, task):
    density = points.ring(MODES)

    def source():
        drawn = {"x": density.draw(jax.random.key(0), 50_000)}
        return Resident(data=drawn, num_examples=50_000, batch_size=config.batch_size, seed=config.seed)

    return {
        "train_data": source,
        "evaluations": {"samples": Coverage(task, density)},
        "show": lambda batch: Samples(texts=[np.array2string(x, precision=3) for x in batch["x"]]),
    }


class Coverage:
    """Of 2,500 samples: the share within three deviations of a mode, and the modes that have one in a hundred."""

    held_out = False
    size = 2500

    def __init__(self, task, density):
        self.task, self.density = task, density

    def __call__(self, variables, key):
        drawn = np.asarray(self.task.sample(variables, key, self.size))
        mode, apart = self.density.nearest(drawn)
        counts = np.bincount(mode[apart <= 3], minlength=MODES)
        covered = np.count_nonzero(counts >= self.size / 100)
        return {"modes": covered, "on_modes": counts.sum() / self.size}, {"x": drawn[:1000]}


# -- images ------------------------------------------------------------------------------------------


def image_data(config, task):
    part = data.parts(config.data.name, config.data.tfds_dir)
    stacked = config.data.stacked

    def source():
        plain = data.resident(part("train"), config.batch_size, config.seed)
        return stack(plain) if stacked else plain

    def unseen(name):
        return stacked_images(part(name)) if stacked else data.scaled({"image": part(name)["image"]})

    evaluations = {
        "validation": Likelihood(task, lambda: unseen("validation"), 500),
        "samples": Spread(task, lambda: unseen("validation")["image"]),
    }
    if stacked:
        evaluations["test"] = Modes(task, config.data.classifier)
    else:
        evaluations["test"] = Parzen(task, lambda name: unseen(name)["image"])
    return {"train_data": source, "evaluations": evaluations, "show": data.show_images}


def stack(source):
    """The source with two more images of the set, drawn anew each epoch, as the other colours of each."""

    def take(arrays, indices, epoch, seed):
        others = (shuffled(indices, source.num_examples, seed + n, epoch) for n in (1, 2))
        image = [arrays["image"][each] for each in (indices, *others)]
        return data.scaled({"image": jnp.stack(image, axis=-1)})

    return Resident(
        data={"image": source.data["image"]},
        num_examples=source.num_examples,
        batch_size=source.batch_size,
        seed=source.seed,
        take=take,
    )


def stacked_images(images):
    image = images["image"]
    third = len(image) // 3
    return data.scaled({"image": np.stack([np.roll(image, n * third, axis=0) for n in range(3)], axis=-1)})


class Spread:
    """64 samples of the same noise at each evaluation; their deviation as a part of the data's: 0, all alike."""

    held_out = False

    def __init__(self, task, real):
        self.task, self.real = task, real

    def __call__(self, variables, key):
        drawn = np.asarray(self.task.sample(variables, jax.random.key(0), 1000))
        spread = drawn.std(0).mean() / np.asarray(self.real()).std(0).mean()
        return {"spread": spread}, {"image": drawn[:64]}


class Parzen:
    """The log-likelihood in nats of the test images under Gaussians round 10,000 samples."""

    held_out = True
    size = 10_000

    def __init__(self, task, read):
        self.task, self.read = task, read

    def __call__(self, variables, key):
        drawn = flat(self.task.sample(variables, key, self.size))
        scale = parzen.width(flat(self.read("validation"))[:1000], drawn, SCALES)
        nats = parzen.log_likelihood(flat(self.read("test")), drawn, scale)
        return {"parzen": nats.mean(), "parzen_error": nats.std() / len(nats) ** 0.5, "width": scale}, {}


def flat(images):
    images = np.asarray(images)
    return images.reshape(len(images), -1)


class Modes:
    """Of 26,000 stacked samples: how many of the 1,000 triples of digits a classifier sees in them.

    kl: the Kullback-Leibler divergence of the samples' triples from even ones, in nats.
    """

    held_out = True
    size = 26_000

    def __init__(self, task, classifier):
        self.task, self.classifier = task, classifier

    def __call__(self, variables, key):
        from lmlab.run import Run

        try:
            run = Run(self.classifier)
        except OSError:
            raise FileNotFoundError(
                f"data.classifier: no run at {self.classifier!r}; lmlab train"
                f" --config=experiments/classifier.py:cnn,cpu --workdir={self.classifier}"
            ) from None
        triples = np.zeros(self.size, np.int32)
        for first in range(0, self.size, 2000):
            drawn = np.asarray(self.task.sample(variables, jax.random.fold_in(key, first), 2000))
            for colour in range(3):
                _, logits = run.experiment.task.outputs(run.variables, drawn[..., colour])
                triples[first : first + 2000] += logits.argmax(-1) * 10**colour
        shares = np.bincount(triples, minlength=1000) / self.size
        seen = shares[shares > 0]
        return {"modes": len(seen), "kl": np.sum(seen * np.log(1000 * seen))}, {"shares": shares}


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    drawn = {"loss": curves.loss(runs, ("train/loss", "train/generator_loss"))}
    if len(runs) > 1:
        return drawn
    kept = [
        (int(path.parent.name), np.load(path))
        for path in (runs[0].folder / "evaluations").glob("*/samples.npz")
    ]
    kept.sort(key=lambda pair: pair[0])
    if runs[0].config.data.name == "ring":
        return drawn | {"samples": clouds(kept)}
    chosen = kept[:: max(1, len(kept) // 5)]
    chosen += [kept[-1]] * (chosen[-1][0] != kept[-1][0])
    moments = {f"{step:,} updates": arrays["image"][:10] for step, arrays in chosen}
    return drawn | {"training": images.rows(moments), "samples": images.grid(kept[-1][1]["image"])}


def clouds(kept):
    """Samples over training, the modes marked."""
    places = np.unique(np.linspace(0, len(kept) - 1, 5).round().astype(int))
    figure, axes = style.new(1, len(places), width=style.PAGE, height=1.8)
    means = points.ring(MODES).means
    for one, (step, arrays) in zip(np.ravel(axes), (kept[place] for place in places), strict=True):
        one.scatter(
            *means.T, s=30, facecolors="none", edgecolors=style.COLORS[1], linewidths=0.7, label="modes"
        )
        one.scatter(*arrays["x"].T, s=1, linewidths=0, color=style.COLORS[0], label="samples")
        one.set(xlim=(-2.9, 2.9), ylim=(-2.9, 2.9), aspect="equal", xticks=[], yticks=[])
        one.set_title(f"{step:,} updates")
    return figure
