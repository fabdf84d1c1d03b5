"""Denoising diffusion: points of one and two dimensions, MNIST and Fashion-MNIST by class.

Ho et al. 2020 with the parts that came after: eps, x0 or v is predicted, noise is added by a linear or the
cosine schedule, samples are drawn as in DDPM or DDIM, with guidance by a class and no classifier.

    lmlab train --config=experiments/diffusion.py:points1d,demo --workdir=runs/points
    lmlab train --config=experiments/diffusion.py:mnist,cpu --workdir=runs/ddpm          # needs MNIST
    lmlab sample --workdir=runs/ddpm --label=7 --sampler=ddim --num_steps=50 --guidance=2.0
    lmlab sample --workdir=runs/ddpm --frames=40          # a GIF as well: how the samples come about
    lmlab figures --workdir=runs/ddpm

Points are scored while training by the energy distance of 2,000 samples from the true density, beside that
of two true samples. Images are scored by lmlab/evaluation/frechet.py, and `lmlab evaluate` gives the variational
bound of the test images in bits per dimension, which the loss, unweighted, does not aim at. MNIST: train[:55000],
the validation loss on train[55000:].

demo: half a minute on two cores (digits of 8 x 8; with points1d or points2d seconds). cpu: 2 minutes for points,
12 for images, on one core. default: a wider network and 100 epochs, for a GPU (not run).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.data import images as data
from lmlab.data import points
from lmlab.evaluation import energy
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Samples, Target
from lmlab.figures import curves, images, style
from lmlab.models.diffusion import SAMPLERS, Denoiser, Diffusion, PointNetwork, Process, VariationalBound
from lmlab.models.unet import UNet
from lmlab.sources import Resident
from lmlab.training import optimizer

FAMILY, PAPER = "diffusion", "Ho et al. 2020; Song et al. 2021; Ho and Salimans 2022"
VARIANTS = {
    "demo": "scikit-learn's digits of 8 x 8, or fewer points: a minute",
    "cpu": "what two cores train in 10 minutes",
    "points1d": "three Gaussians on a line",
    "points2d": "a spiral",
    "ring": "eight Gaussians on a circle",
    "moons": "two half circles",
    "mnist": "MNIST by class: the default",
    "fashion": "Fashion-MNIST by class",
    "x0": "the network predicts the data in place of the noise",
    "v": "the network predicts v in place of the noise",
    "cosine": "the cosine schedule in place of the linear one",
    "unconditional": "without classes",
}
TARGETS = {  # below 19 in 20 distances of two true samples of that size
    "points1d,cpu": [Target("samples/energy", 0.0052)],
    "points2d,cpu": [Target("samples/energy", 0.0046)],
}
CLASSES = 10


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="100 epochs",
        batch_size=128,
        ema=0.9995,
        evaluate_every="10 %",
        model={
            "width": 256,
            "features": (64, 128, 128),
            "blocks": 2,
            "attention": 4,
            "patch": 1,
            "dropout": 0.1,
        },
        process={"num_steps": 1000, "schedule": "linear", "first": 1e-4, "last": 0.02},
        predict="eps",
        classes=True,
        data={"name": "mnist", "tfds_dir": ""},
        optimizer={"learning_rate": 1e-3, "warmup": "2 %", "schedule": "cosine", "clip": 1.0},
    )
    if "fashion" in parts:
        config.data.name = "fashion_mnist"
    if "cpu" in parts:
        config.update(duration="3 epochs", batch_size=32, ema=0.998)
        config.model.update(width=128, features=(32, 64), blocks=1, patch=2, dropout=0.0)
    if "demo" in parts:
        config.update(duration="30 epochs", batch_size=64, ema=0.99, evaluate_every="20 %")
        config.model.update(width=64, features=(16, 32), blocks=1, attention=0, patch=1, dropout=0.0)
        config.data.name = "digits"
    if {"points1d", "points2d", "ring", "moons"} & set(parts):
        config.update(duration="10000 steps", batch_size=256, ema=0.999, classes=False)
        config.model = {"width": 64, "hidden": 128, "num_layers": 3}
        config.process.update(num_steps=200, first=5e-4, last=0.1)
        config.data.name = "three" if "points1d" in parts else "spiral"
        for name in ("ring", "moons"):
            if name in parts:
                config.data.name = name
        if "demo" in parts:
            config.update(duration="2000 steps", ema=0.99)
    for name in ("x0", "v"):
        if name in parts:
            config.predict = name
    if "cosine" in parts:
        config.process.schedule = "cosine"
    if "unconditional" in parts:
        config.classes = False
    return config


def build(config, assets):
    process = Process(**config.process)
    model = dict(config.model)
    width = model.pop("width")
    of_points = config.data.name in points.NAMES
    if of_points:
        density = points.mixture(config.data.name)
        network = PointNetwork(density.dimensions, **model)
        shape, bound = (density.dimensions,), density.reach
    else:
        shape, bound = data.shape(config.data.name), 1.0
        network = UNet(1, last_init=jax.nn.initializers.zeros, **model)
    classes = CLASSES if config.classes else 0
    if of_points and classes:
        raise ValueError("classes: received True; allowed: False, for points have none")
    task = Diffusion(Denoiser(network, process.num_steps, classes, width), process, config.predict)
    make = point_data if of_points else image_data
    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        sample=sampler(task, shape, bound),
        dynamic=("optimizer.learning_rate",),
        **make(config, task),
    )


def image_data(config, task):
    part = data.parts(config.data.name, config.data.tfds_dir)

    def likelihood(task, name, **options):
        return Likelihood(task, lambda: data.scaled(part(name)), 500, **options)

    return {
        "train_data": lambda: data.resident(part("train"), config.batch_size, config.seed),
        "evaluations": {
            "validation": likelihood(task, "validation"),
            "test": likelihood(VariationalBound(task), "test", held_out=True),
        },
        "show": data.show_images,
    }


def point_data(config, task):
    density = points.mixture(config.data.name)

    def source():
        drawn = {"x": density.draw(jax.random.key(0), 50_000)}
        return Resident(data=drawn, num_examples=50_000, batch_size=config.batch_size, seed=config.seed)

    def unseen():
        return {"x": np.asarray(density.draw(jax.random.key(1), 10_000))}

    return {
        "train_data": source,
        "evaluations": {"validation": Likelihood(task, unseen, 5000), "samples": TwoSamples(task, density)},
        "show": lambda batch: Samples(texts=[np.array2string(x, precision=3) for x in batch["x"]]),
    }


def sampler(task, shape, bound):
    """The sampler of an experiment; x_0 is foreseen within +-`bound`."""

    def sample(
        variables,
        key,
        *,
        num_samples: int = 64,
        sampler: str = "ddim",
        num_steps: int = 50,
        guidance: float = 1.0,
        label: int = -1,
        frames: int = 0,
    ) -> Samples:
        """Samples from noise.

        num_samples: how many
        sampler: ddim, without noise on the way, or ddpm, with the posterior's
        num_steps: how many steps of the process to stop at
        guidance: above 1 leans on the class, 1 takes it as trained, 0 ignores it
        label: the class of all samples; -1 for each in turn
        frames: so many moments of the way, as a GIF
        """
        classes = task.model.num_classes
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler: received {sampler!r}; allowed: {', '.join(SAMPLERS)}")
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, received {num_samples}")
        if not classes and (label != -1 or guidance != 1):
            raise ValueError(
                f"the model knows no classes: received label {label}, guidance {guidance:g}; allowed: -1, 1"
            )
        if not 0 <= guidance < math.inf:
            raise ValueError(f"guidance: received {guidance}; allowed: 0 or more")
        if not 0 <= frames <= num_steps:
            raise ValueError(f"frames: received {frames}; allowed: 0 to {num_steps}, the steps")
        labels = jnp.asarray(data.labels_in_turn(label, num_samples, classes)) if classes else None
        drawn = task.draw(
            variables,
            key,
            (num_samples, *shape),
            num_steps,
            SAMPLERS[sampler],
            labels,
            None if guidance == 1 else guidance,
            bound,
            trace=frames > 0,
        )
        x, path = (drawn[0], moments(*drawn, frames)) if frames else (drawn, None)
        if len(shape) == 1:
            if path is not None and shape == (2,):
                path = np.stack([images.raster(x, bound) for x in path])[:, None]
            return Samples(arrays={"x": np.asarray(x)}, frames=path)
        arrays = {} if labels is None else {"label": np.asarray(labels)}
        return Samples(images=unit(x), arrays=arrays, frames=None if path is None else unit(path))

    return sample


def unit(x):
    """What a model draws, in [0, 1]."""
    return np.clip((np.asarray(x) + 1) / 2, 0, 1)


def moments(x, path, count):
    """`count` of the x_t on the way to x, evenly, x the last."""
    every = np.concatenate([np.asarray(path[0]), np.asarray(x)[None]])
    return every[np.linspace(0, len(every) - 1, count).round().astype(int)]


class TwoSamples:
    """The energy distance of samples from true ones, beside that of true samples from true ones."""

    held_out = False
    size, pairs = 2000, 50

    def __init__(self, task, density):
        self.task, self.density = task, density

    def __call__(self, variables, key):
        first, second = jax.random.split(key)
        shape = (self.size, self.density.dimensions)
        steps, eta = self.task.process.num_steps, SAMPLERS["ddpm"]
        drawn = self.task.draw(variables, first, shape, steps, eta, bound=self.density.reach)
        floor = self.floor
        scalars = {
            "energy": energy.distance(drawn, self.density.draw(second, self.size)),
            "true_energy": floor.mean(),
            "true_energy_95": np.quantile(floor, 0.95),
        }
        return scalars, {"x": drawn}

    @functools.cached_property
    def floor(self):
        """The distances of pairs of true samples."""
        keys = jax.random.split(jax.random.key(2), 2 * self.pairs).reshape(self.pairs, 2)
        draw = functools.partial(self.density.draw, count=self.size)
        return np.array([energy.distance(draw(first), draw(second)) for first, second in keys])


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    drawn = {"loss": curves.loss(runs, ylabel="squared error")}
    if len(runs) > 1:
        return drawn
    run = runs[0]
    if run.config.data.name not in points.NAMES:
        return drawn | image_figures(run)
    density = points.mixture(run.config.data.name)
    return drawn | (line_figures(run, density) if density.dimensions == 1 else plane_figures(run, density))


def image_figures(run):
    """The noise that is added and taken away again; samples by class and by guidance."""
    task, part = run.experiment.task, data.parts(run.config.data.name, run.config.data.tfds_dir)
    total, classes = task.process.num_steps, task.model.num_classes
    real = jnp.asarray(data.scaled({"image": part("validation")["image"][:10]})["image"])
    noise = jax.random.normal(jax.random.key(1), real.shape)
    forward = {}
    for t in (np.array([0, 0.05, 0.1, 0.2, 0.4, 0.7, 1]) * total).astype(int):
        forward[f"t = {t}"] = unit(task.process.noised(2 * real - 1, jnp.full(10, t), noise))
    labels = jnp.arange(10) % classes if classes else None
    steps = min(250, total)
    x, path = task.draw(
        run.variables, jax.random.key(0), real.shape, steps, 1.0, labels, bound=1.0, trace=True
    )
    reverse = {}
    for along in (0, 0.3, 0.5, 0.7, 0.85, 0.95):
        place = int(along * steps)
        t = total - total * place // steps
        reverse[f"t = {t}"] = unit(path[0][place])
        reverse[f"seen at {t}"] = unit(path[1][place])
    drawn = {"forward": images.rows(forward), "reverse": images.rows(reverse | {"t = 0": unit(x)})}
    if not classes:
        return drawn | {"samples": images.grid(run.sample(num_samples=100).images)}
    by_class = run.sample(num_samples=100, guidance=2.0).images
    drawn["classes"] = images.rows({str(label): by_class[label::classes] for label in range(classes)})
    weights = {}
    for weight in (0.0, 1.0, 2.0, 4.0, 8.0):  # of the same noise
        x = task.draw(run.variables, jax.random.key(0), real.shape, 50, 0.0, labels, weight, 1.0)
        weights[f"guidance {weight:g}"] = unit(x)
    return drawn | {"guidance": images.rows(weights)}


def line_figures(run, density):
    """The samples beside the true density; twelve ways from noise over the density of each step."""
    task, bound = run.experiment.task, density.reach
    total = task.process.num_steps
    x = task.draw(run.variables, jax.random.key(0), (20_000, 1), total, 1.0, bound=bound)
    ways = moments(
        *task.draw(run.variables, jax.random.key(1), (12, 1), total, 1.0, bound=bound, trace=True), total + 1
    )
    places = jnp.linspace(-bound, bound, 241)
    heights, edges = np.histogram(np.asarray(x), 80, (-bound, bound), density=True)
    samples, axes = style.new()
    axes.bar((edges[1:] + edges[:-1]) / 2, heights, edges[1] - edges[0], color="0.75", label="20,000 samples")
    axes.plot(places, density.density(places[:, None]), label="true density")
    axes.set(xlabel="x", ylabel="density")
    axes.legend()

    reverse, axes = style.new(width=5.0, height=2.6)
    signal = task.process.signal[::-1]
    truth = np.stack([density.noised(float(a)).density(places[:, None]) for a in signal], axis=1)
    axes.imshow(
        truth / truth.max(0), extent=(total, 0, -bound, bound), origin="lower", aspect="auto", cmap="Greys"
    )
    for number, way in enumerate(ways[..., 0].T):
        axes.plot(np.arange(total, -1, -1), way, linewidth=0.7, linestyle="-", label=f"_sample {number}")
    axes.set(xlabel="step t, from noise to data", ylabel="x")
    return {"samples": samples, "reverse": reverse}


def plane_figures(run, density):
    """Points on their way to noise (above) and back (below)."""
    task, bound, count = run.experiment.task, density.reach, 800
    total = task.process.num_steps
    x, path = task.draw(run.variables, jax.random.key(0), (count, 2), total, 1.0, bound=bound, trace=True)
    every = moments(x, path, total + 1)
    true, noise = density.draw(jax.random.key(1), count), jax.random.normal(jax.random.key(2), (count, 2))
    times = (np.array([0, 0.1, 0.25, 0.5, 1]) * total).astype(int)
    figure, axes = style.new(2, len(times), width=style.PAGE, height=3.1)
    for column, t in enumerate(times):
        forward = task.process.noised(true, jnp.full(count, t), noise)
        for row, cloud in enumerate((forward, every[total - t])):
            one = axes[row, column]
            one.scatter(*np.asarray(cloud).T, s=1, linewidths=0, color=style.COLORS[row])
            one.set(xlim=(-bound, bound), ylim=(-bound, bound), aspect="equal", xticks=[], yticks=[])
            one.set_label(f"{('true', 'drawn')[row]} t {t}")
        axes[0, column].set_title(f"t = {t}")
    axes[0, 0].set_ylabel("data, noised")
    axes[1, 0].set_ylabel("samples, denoised")
    return {"process": figure}
