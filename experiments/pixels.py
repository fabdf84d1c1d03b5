"""A GPT over pixels: images as sequences of 256 grey levels, row by row.

The tractable density of the decks' taxonomy: p(x) = prod_i p(x_i | x_1 .. x_(i-1)), as van den Oord et al. 2016
(PixelRNN) with the transformer of Chen et al. 2020 (image GPT). The spine's GPT and next-token loss, with one
more token that begins each image; the loss over ln 2 is bits per dimension of the 8-bit images. To be set beside
it is the bound of experiments/vae.py:discretized,cpu, on the same test images of 14 x 14 (the VAE trains on 50,000
images, this on 55,000).

    lmlab train --config=experiments/pixels.py:demo --workdir=runs/pixels-demo
    lmlab train --config=experiments/pixels.py:cpu --workdir=runs/pixels               # needs MNIST
    lmlab sample --workdir=runs/pixels --num_samples=64
    lmlab figures --workdir=runs/pixels              # the loss, samples, the lower halves of images

demo: half a minute on two cores (digits of 8 x 8). cpu: 8 minutes, images of half the height and width, each
pixel the rounded mean of four. default: 28 x 28, for a GPU (not run). Trained on train[:55000], watched on
train[55000:]; the last epoch counts.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from lmlab import config as configs
from lmlab.data import images as data
from lmlab.decoding import sampling
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Samples
from lmlab.figures import curves, images
from lmlab.models.gpt import GPT, flops_per_token
from lmlab.sources import Resident
from lmlab.tasks import NextToken
from lmlab.training import optimizer

FAMILY, PAPER = "transformer", "van den Oord et al. 2016; Chen et al. 2020"
VARIANTS = {
    "demo": "scikit-learn's digits of 8 x 8, which ship with it: half a minute",
    "cpu": "a small network on images of 14 x 14, which two cores train in 8 minutes",
    "fashion": "Fashion-MNIST in place of MNIST",
}
LEVELS, START = 256, 256


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="30 epochs",
        batch_size=64,
        evaluate_every="10 %",
        model={"num_layers": 8, "num_heads": 8, "d_model": 256, "dropout": 0.1, "bias": False},
        data={"name": "mnist", "tfds_dir": "", "halved": False},
        optimizer={
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "warmup": "2 %",
            "final": 0.1,
            "b2": 0.98,
            "weight_decay": 0.1,
            "clip": 1.0,
        },
    )
    if "fashion" in parts:
        config.data.name = "fashion_mnist"
    if "cpu" in parts:
        config.update(duration="1 epoch", batch_size=32, evaluate_every="25 %")
        config.model.update(num_layers=3, num_heads=4, d_model=64, dropout=0.0)
        config.data.halved = True
        config.optimizer.learning_rate = 2e-3
    if "demo" in parts:
        config.update(duration="10 epochs", batch_size=32)
        config.model.update(num_layers=2, num_heads=4, d_model=64, dropout=0.0)
        config.data.update(name="digits", halved=False)
        config.optimizer.learning_rate = 2e-3
    return config


def build(config, assets):
    part = data.parts(config.data.name, config.data.tfds_dir)
    shape = tuple(size // (1 + config.data.halved) for size in data.shape(config.data.name))
    length = shape[0] * shape[1]
    model = GPT(vocab_size=LEVELS + 1, context=length, **config.model)
    task = NextToken(model)

    @functools.cache
    def tokens(name):
        image = (data.halved(part(name)) if config.data.halved else part(name))["image"]
        image = image.reshape(-1, length).astype(np.int32)
        return {"tokens": np.pad(image, ((0, 0), (1, 0)), constant_values=START)}

    def train_data():
        drawn = jax.tree.map(jnp.asarray, tokens("train"))
        count = len(drawn["tokens"])
        return Resident(data=drawn, num_examples=count, batch_size=config.batch_size, seed=config.seed)

    def bits(name, **options):
        return Bits(Likelihood(task, lambda: tokens(name), 50, **options), shape)

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=train_data,
        evaluations={"validation": bits("validation"), "test": bits("test", held_out=True)},
        sample=sampler(model, shape),
        show=lambda batch: Samples(images=batch["tokens"][:, 1:].reshape(-1, *shape).astype(np.uint8)),
        flops=lambda count: length * flops_per_token(count, model.num_layers, model.d_model, length),
        tokens=length,
        dynamic=("optimizer.learning_rate", "optimizer.weight_decay", "model.dropout"),
    )


def draw(model, variables, key, prompt, temperature=1.0):
    """Images as bytes (N, T) that go on from their first, `prompt` (N, t)."""
    prompt = jnp.concatenate([jnp.full((len(prompt), 1), START), jnp.asarray(prompt, jnp.int32)], axis=1)
    missing = model.context + 1 - prompt.shape[1]
    lengths = jnp.full(len(prompt), prompt.shape[1])
    cache = model.start(len(prompt), model.context)
    step = Partial(model.step, variables)
    found, *_ = sampling.sample(step, cache, prompt, lengths, key, missing, temperature)
    # START never is a target: it is all but never drawn, and is taken for white if it is.
    return np.asarray(found)[:, 1:].clip(0, LEVELS - 1).astype(np.uint8)


def sampler(model, shape):
    def sample(variables, key, *, num_samples: int = 64, temperature: float = 1.0) -> Samples:
        """Images, pixel by pixel.

        num_samples: how many
        temperature: 0 takes the likeliest grey, 1 samples, below 1 is more careful
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, received {num_samples}")
        drawn = draw(model, variables, key, np.zeros((num_samples, 0), np.int32), temperature)
        return Samples(images=drawn.reshape(-1, *shape))

    return sample


class Bits:
    """The loss, and in bits per dimension; of the test images ten whose lower half is the model's, three times."""

    def __init__(self, likelihood, shape):
        self.likelihood, self.shape = likelihood, shape
        self.model, self.data, self.held_out = likelihood.task.model, likelihood.data, likelihood.held_out

    def __call__(self, variables, key):
        scores = self.likelihood(variables, key)[0]
        scores["bits_per_dim"] = scores["loss"] / math.log(2)
        return scores, self.completed(variables, key) if self.held_out else {}

    def completed(self, variables, key):
        original = self.data()["tokens"][:10, 1:].astype(np.uint8)
        upper = original[:, : self.shape[0] // 2 * self.shape[1]]
        shown = {"original": original, "given": np.zeros_like(original)}
        shown["given"][:, : upper.shape[1]] = upper
        for number in range(3):
            drawn = draw(self.model, variables, jax.random.fold_in(key, number), upper)
            shown[f"completed {number + 1}"] = drawn
        return {name: values.reshape(-1, *self.shape) for name, values in shown.items()}


def figures(runs):
    drawn = {"loss": curves.loss(runs, ylabel="nats a pixel")}
    if len(runs) == 1:
        drawn["halves"] = images.rows(runs[0].arrays("test"))
        drawn["samples"] = images.grid(runs[0].sample(num_samples=64).images)
    return drawn
