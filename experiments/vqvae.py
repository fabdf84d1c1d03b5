"""The vector-quantized autoencoder (van den Oord et al. 2017) on MNIST, with a GPT as the prior over its codes.

An image becomes 7 x 7 numbers of a codebook, which is learnt by running averages (the paper's appendix A.1) or
by the gradient (its eq. 3). The prior is the GPT of the language models, over codes row by row. It learns in
the same run, beside the autoencoder: its loss cannot reach the codes, so that the autoencoder is the paper's; only
the prior sees codes that still change, and the falling learning rate brings both to rest.

    lmlab train --config=experiments/vqvae.py:demo --workdir=runs/vqvae-demo
    lmlab train --config=experiments/vqvae.py:cpu  --workdir=runs/vqvae            # needs MNIST
    lmlab evaluate --workdir=runs/vqvae     # reconstruction, codes in use, nats a code
    lmlab sample --workdir=runs/vqvae --num_samples=64 --seed=1
    lmlab train --config=experiments/vqvae.py:conditional,cpu --workdir=runs/vqvae-by-label
    lmlab sample --workdir=runs/vqvae-by-label --label=7

The paper gives no number for MNIST: reconstruction is the binary cross-entropy a pixel, as in autoencoder.py.
demo: half a minute. cpu: 13 minutes on one core. default: the paper's widths and rate, for a GPU (not run).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from lmlab import config as configs
from lmlab.data import images as data
from lmlab.decoding import sampling
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Samples
from lmlab.figures import curves, images, style
from lmlab.models.gpt import GPT
from lmlab.models.vqvae import VQVAE, VectorQuantized
from lmlab.training import optimizer

FAMILY, PAPER = "latent variables", "van den Oord et al. 2017"
VARIANTS = {
    "demo": "4 x 4 codes of scikit-learn's digits, which ship with it: half a minute",
    "cpu": "32 channels, 128 codes of 16 numbers, a small prior, 5 epochs",
    "gradient": "the codebook is learnt by the gradient, and not by running averages",
    "conditional": "the prior is given the label",
    "fashion": "Fashion-MNIST in place of MNIST",
}


def get_config(variant=""):
    config = configs.base(
        duration="100 epochs",
        batch_size=128,
        log_every="2 %",
        checkpoint={"every": "10 %"},
        beta=0.25,  # of the commitment
        decay=0.99,  # of the codebook's running sums
        conditional=False,
        model={"num_codes": 512, "code_size": 64, "hidden": 256, "halvings": 2, "ema": True},
        prior={"num_layers": 6, "num_heads": 4, "d_model": 256, "dropout": 0.1},
        data={"name": "mnist", "tfds_dir": ""},
        optimizer={"name": "adam", "learning_rate": 2e-4, "schedule": "cosine", "warmup": "1 %"},
    )
    parts = variant.split(",")
    if "gradient" in parts:
        config.model.ema = False
    if "conditional" in parts:
        config.conditional = True
    if "fashion" in parts:
        config.data.name = "fashion_mnist"
    if "cpu" in parts or "demo" in parts:
        config.update(duration="5 epochs", evaluate_every="20 %")
        config.model.update(num_codes=128, code_size=16, hidden=32)
        config.prior.update(num_layers=3, d_model=64)
        config.optimizer.learning_rate = 1e-3
    if "demo" in parts:
        config.update(duration="30 epochs", batch_size=32)
        config.model.update(num_codes=32, code_size=8, hidden=16, halvings=1)
        config.prior.update(num_layers=2, d_model=32)
        config.data.name = "digits"
    return config


def build(config, assets):
    model = VQVAE(image_size=data.shape(config.data.name)[0], **config.model)
    tokens = model.num_codes + (10 if config.conditional else 1)
    task = VectorQuantized(model, GPT(tokens, model.side**2, **config.prior), config.beta, config.decay)
    part = data.parts(config.data.name, config.data.tfds_dir)

    def likelihood(name):
        return Likelihood(task, lambda: data.scaled(part(name)), 500)

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: data.resident(part("train"), config.batch_size, config.seed),
        evaluations={"validation": likelihood("validation"), "test": Codes(task, likelihood("test"))},
        sample=sampler(task),
        show=data.show_images,
        dynamic=("optimizer.learning_rate", "beta", "prior.dropout"),
    )


def autoencoder(task, variables, array, method):
    """The autoencoder's `codes` or `picture`, of any number of examples."""
    variables = {**variables, "params": variables["params"]["autoencoder"]}
    run = jax.jit(task.model.apply, static_argnames="method")
    parts = [
        run(variables, jnp.asarray(array[i : i + 500]), method=method) for i in range(0, len(array), 500)
    ]
    return np.concatenate(parts)


def sampler(task):
    """The `sample` of the experiment, with a flag for the label if the prior takes one."""

    def draw(variables, key, count, label, *options):
        if count < 1:
            raise ValueError(f"num_samples must be at least 1, received {count}")
        length, side, drawn = task.prior.context, task.model.side, []
        for first in range(0, count, 500):  # a cache for all at once would take much memory
            size = min(500, count - first)
            start = task.start(size, None if label is None else jnp.asarray(label[first : first + size]))
            tokens, *_ = sampling.sample(
                Partial(task.step, variables["params"]),
                task.prior.start(size, length),
                start,
                jnp.ones(size, jnp.int32),
                jax.random.fold_in(key, first),
                length,
                *options,
            )
            drawn.append(np.asarray(tokens)[:, 1:].reshape(size, side, side))
        codes = np.concatenate(drawn)
        return Samples(images=autoencoder(task, variables, codes, "picture"), arrays={"codes": codes})

    def sample(
        variables, key, *, num_samples: int = 64, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
    ):
        """Images decoded from codes that are drawn of the prior.

        num_samples: how many images
        temperature: of the codes; 0 takes the likeliest, 1 samples
        top_k: only the k likeliest codes; 0: all
        top_p: only the likeliest codes that make up this probability; 1: all
        """
        return draw(variables, key, num_samples, None, temperature, top_k, top_p)

    def sample_by_label(
        variables,
        key,
        *,
        num_samples: int = 60,
        label: int = -1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ):
        """Images decoded from codes that are drawn of the prior, given a label.

        num_samples: how many images
        label: which class; -1: each in turn
        temperature: of the codes; 0 takes the likeliest, 1 samples
        top_k: only the k likeliest codes; 0: all
        top_p: only the likeliest codes that make up this probability; 1: all
        """
        labels = data.labels_in_turn(label, num_samples)
        return draw(variables, key, num_samples, labels, temperature, top_k, top_p)

    return sample_by_label if task.prior.vocab_size > task.model.num_codes + 1 else sample


class Codes:
    """Losses on the test images, how many codes they use, and exp of the entropy of that use, its perplexity."""

    held_out = True

    def __init__(self, task, likelihood):
        self.task, self.likelihood, self.data = task, likelihood, likelihood.data

    def __call__(self, variables, key):
        image = self.data()["image"]
        codes = autoencoder(self.task, variables, image, "codes")
        counts = np.bincount(codes.ravel(), minlength=self.task.model.num_codes)
        used = counts[counts > 0] / counts.sum()
        scalars = {"codes_used": len(used), "perplexity": np.exp(-(used * np.log(used)).sum())}
        return {**self.likelihood(variables, key)[0], **scalars}, {
            "original": image[:10],
            "reconstruction": autoencoder(self.task, variables, codes[:10], "picture"),
            "counts": counts,
        }


def figures(runs):
    metrics = ("train/reconstruction", "validation/reconstruction")
    drawn = {
        "reconstruction": curves.loss(runs, metrics, ylabel="binary cross-entropy a pixel"),
        "prior": curves.loss(runs, ("train/prior", "validation/prior"), ylabel="nats a code"),
    }
    if len(runs) > 1:
        return drawn
    run, kept = runs[0], runs[0].arrays("test")
    drawn["reconstructions"] = images.rows({name: kept[name] for name in ("original", "reconstruction")})
    drawn["codes"] = code_use(kept["counts"])
    if run.config.conditional:
        drawn["samples"] = images.rows(
            {str(label): run.sample(num_samples=10, label=label).images for label in range(10)}
        )
    else:
        drawn["samples"] = images.grid(run.sample(num_samples=64).images)
    return drawn


def code_use(counts):
    """The part of all places that each code takes on the test images, from the most used to the least."""
    figure, axes = style.new()
    axes.bar(np.arange(1, len(counts) + 1), -np.sort(-counts) / counts.sum(), width=1.0)
    axes.axhline(1 / len(counts), color="0.4", linestyle=":", linewidth=0.8, label="all alike")
    axes.set(xlabel="code, by use", ylabel="part of all places")
    axes.legend()
    return figure
