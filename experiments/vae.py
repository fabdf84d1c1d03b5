"""The variational autoencoder of Kingma and Welling 2013 on binarized MNIST, 784-500-20-500-784.

Each pixel is drawn once as Bernoulli(grey / 255), by a seed that is in the configuration, as in the binarized
MNIST of Salakhutdinov and Murray 2008; 50,000 images are for training, 10,000 for validation. Flax's example,
of the same network and optimizer, prints a test loss of about 104 nats after 10 epochs. Other ways to make bits of
greys (`dynamic`, `thresholded`) make other data: their bounds are not to be set beside these.

    lmlab train --config=experiments/vae.py:demo --workdir=runs/vae-demo
    lmlab train --config=experiments/vae.py:cpu  --workdir=runs/vae             # needs MNIST
    lmlab evaluate --workdir=runs/vae       # the bound, and importance-weighted ones of 1, 5, 50 and 500 draws
    lmlab sample --workdir=runs/vae --num_samples=64 --seed=1
    lmlab train --config=experiments/vae.py:conditional,cpu --workdir=runs/vae-by-label
    lmlab sample --workdir=runs/vae-by-label --label=7

demo: seconds. cpu: half a minute on two cores. default: 30 epochs of the same, as in Flax's configuration.
"""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.data import images as data
from lmlab.evaluation.likelihood import ImportanceWeighted, Likelihood
from lmlab.experiment import Experiment, Samples, Target
from lmlab.figures import curves, images, style
from lmlab.models.vae import VAE, VariationalBound
from lmlab.training import optimizer

FAMILY, PAPER = "latent variables", "Kingma and Welling 2013"
VARIANTS = {
    "demo": "scikit-learn's digits of 8 x 8, which ship with it: seconds",
    "cpu": "10 epochs in place of 30",
    "beta": "the divergence weighs four times as much (Higgins et al. 2017)",
    "conditional": "encoder and decoder are given the label as well",
    "latent2d": "a latent space of two dimensions, to be looked at",
    "dynamic": "bits drawn anew each time an image is used in training",
    "thresholded": "bits are greys of 128 and more",
    "discretized": "no bits: 256 levels by a discretized logistic, for bits per dimension; cpu: at half the size",
}
TARGETS = {"cpu": [Target("test/loss", 104.5, 104.0, "Flax, VAE example, about, after 10 epochs")]}
SPLITS = {"train": "train[:50000]", "validation": "train[50000:]", "test": "test"}
PIXELS = ("once", "dynamic", "thresholded", "bytes")


def get_config(variant=""):
    config = configs.base(
        duration="30 epochs",
        batch_size=128,
        log_every="2 %",
        checkpoint={"every": "20 %"},
        beta=1.0,
        conditional=False,
        importance=(1, 5, 50, 500),  # draws of the bounds that `lmlab evaluate` tells
        model={"latent": 20, "hidden": (500,)},
        data={"name": "mnist", "tfds_dir": "", "pixels": "once", "pixels_seed": 0, "halved": False},
        optimizer={"name": "adam", "learning_rate": 1e-3},
    )
    parts = variant.split(",")
    if "beta" in parts:
        config.beta = 4.0
    if "conditional" in parts:
        config.conditional = True
    if "latent2d" in parts:
        config.model.latent = 2
    for name in ("dynamic", "thresholded"):
        if name in parts:
            config.data.pixels = name
    if "discretized" in parts:
        config.data.update(pixels="bytes", halved="cpu" in parts)
    if "cpu" in parts:
        config.duration = "10 epochs"
    if "demo" in parts:
        config.update(duration="100 epochs", batch_size=32)
        config.data.name = "digits"
        config.model.update(latent=min(config.model.latent, 8), hidden=(128,))
    return config


def build(config, assets):
    name, pixels = config.data.name, config.data.pixels
    if pixels not in PIXELS:
        raise ValueError(f"data.pixels: received {pixels!r}; allowed: {', '.join(PIXELS)}")
    model = VAE(
        image_shape=tuple(side // (2 if config.data.halved else 1) for side in data.shape(name)),
        num_classes=10 if config.conditional else 0,
        discretized=pixels == "bytes",
        **config.model,
    )
    task = VariationalBound(model, config.beta, dynamic=pixels == "dynamic")

    @functools.cache
    def split(part):
        found = data.digits(part) if name == "digits" else data.load(name, SPLITS[part], config.data.tfds_dir)
        found = data.halved(found) if config.data.halved else found
        if pixels == "once" or (pixels == "dynamic" and part != "train"):
            return data.binarized(found, config.data.pixels_seed, list(SPLITS).index(part))
        if pixels == "thresholded":
            return {**found, "image": np.where(found["image"] < 128, 0, 255).astype(np.uint8)}
        return found

    def likelihood(part):
        return Likelihood(task, lambda: data.scaled(split(part)), 1000)

    test = likelihood("test")
    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: data.resident(split("train"), config.batch_size, config.seed),
        evaluations={
            "validation": likelihood("validation"),
            "test": Pictures(task, test),
            "importance": ImportanceWeighted(task.log_weight, test.data, config.importance),
        },
        sample=sampler(model),
        show=data.show_images,
        dynamic=("optimizer.learning_rate", "beta"),
    )


def picture(model, variables, z, label):
    label = None if label is None else jnp.asarray(label)
    return np.asarray(model.apply({"params": variables["params"]}, z, label, method="picture"))


def sampler(model):
    """The `sample` of the experiment, with a flag for the label if the model takes one."""

    def draw(variables, key, count, label):
        if count < 1:
            raise ValueError(f"num_samples must be at least 1, received {count}")
        z = jax.random.normal(key, (count, model.latent))
        return Samples(images=picture(model, variables, z, label), arrays={"latent": z})

    def sample(variables, key, *, num_samples: int = 64):
        """Images decoded from draws of the prior: the probability of each pixel.

        num_samples: how many images
        """
        return draw(variables, key, num_samples, None)

    def sample_by_label(variables, key, *, num_samples: int = 60, label: int = -1):
        """Images decoded from draws of the prior and a label: the probability of each pixel.

        num_samples: how many images
        label: which digit; -1: each in turn
        """
        return draw(variables, key, num_samples, data.labels_in_turn(label, num_samples))

    return sample_by_label if model.num_classes else sample


class Pictures:
    """The bound on the test images. For figures: some of them reconstructed, ways between pairs, latent means."""

    held_out = True

    def __init__(self, task, likelihood):
        self.model, self.likelihood, self.data = task.model, likelihood, likelihood.data

    def __call__(self, variables, key):
        test = {name: jnp.asarray(array[:2000]) for name, array in self.data().items()}
        label = test["label"] if self.model.num_classes else None
        latent, _ = self.model.apply({"params": variables["params"]}, test["image"], label, method="encode")
        way = jnp.linspace(0, 1, 10)[None, :, None]
        between = ((1 - way) * latent[0:12:2, None] + way * latent[1:12:2, None]).reshape(60, -1)
        kinds = None if label is None else jnp.repeat(label[0:12:2], 10)
        first = None if label is None else label[:10]
        return self.likelihood(variables, key)[0], {
            "original": test["image"][:10],
            "reconstruction": picture(self.model, variables, latent[:10], first),
            "between": picture(self.model, variables, between, kinds),
            "latent": latent,
            "label": test["label"],
        }


def figures(runs):
    drawn = {"loss": curves.loss(runs, ylabel="nats an image")}
    if len(runs) > 1:
        return drawn
    run, kept = runs[0], runs[0].arrays("test")
    drawn["reconstructions"] = images.rows({name: kept[name] for name in ("original", "reconstruction")})
    drawn["interpolation"] = images.grid(kept["between"], columns=10)
    drawn["latent"] = scatter(kept["latent"], kept["label"])
    if run.config.conditional:
        drawn["samples"] = images.rows(by_label(run))
    else:
        drawn["samples"] = images.grid(run.sample(num_samples=64).images)
    if run.config.model.latent == 2 and not run.config.conditional:
        drawn["manifold"] = manifold(run)
    return drawn


def by_label(run):
    """Ten samples of each label; a column has one latent vector."""
    return {str(label): run.sample(num_samples=10, label=label).images for label in range(10)}


def manifold(run, side=15):
    """Images of the points at equal steps of probability of the prior, as in Kingma and Welling 2013, figure 4."""
    steps = [statistics.NormalDist().inv_cdf((i + 0.5) / side) for i in range(side)]
    z = jnp.array([(x, y) for y in reversed(steps) for x in steps])
    return images.grid(picture(run.experiment.task.model, run.variables, z, None), columns=side)


def scatter(latent, label):
    """Means of q(z | x) of test images by class; of more than two dimensions, the first two principal axes."""
    import matplotlib

    axes_names = ("first latent", "second latent")
    if latent.shape[1] > 2:
        centred = latent - latent.mean(0)
        latent = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
        axes_names = ("first principal axis", "second principal axis")
    figure, axes = style.new(width=4.6, height=3.6)
    for number, color in enumerate(matplotlib.colormaps["tab10"].colors[: label.max() + 1]):
        x, y = latent[label == number].T
        axes.scatter(x, y, s=6, color=color, label=str(number), linewidths=0)
        box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.8, "linewidth": 0}
        axes.text(np.median(x), np.median(y), str(number), weight="bold", ha="center", va="center", bbox=box)
    axes.set(xlabel=axes_names[0], ylabel=axes_names[1])
    axes.legend(title="label", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    return figure
