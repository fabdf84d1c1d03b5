"""Autoencoders of MNIST digits and Fashion-MNIST: shallow, deep, sparse, convolutional, denoising.

The networks of the Keras notebook "Applied Deep Learning with Keras, part 3: autoencoders" (A. Dertat),
after Hinton and Salakhutdinov 2006: ReLU, sigmoid output, binary cross-entropy, Adam, batches of 32. Of the
deep one, 784-128-32-128-784, it prints a training loss of 0.1416, 0.0997 and 0.0935 for three epochs; of the
shallow one, 784-32-784, a test loss of 0.0920 after 20; of the shallow one with an L1 penalty 0.1019, and a mean
code of 0.777 where it was 6.600; of the deep one that sees noise 0.1151 in its tenth epoch.

    lmlab train --config=experiments/autoencoder.py:demo --workdir=runs/ae-demo
    lmlab train --config=experiments/autoencoder.py      --workdir=runs/ae      # needs MNIST prepared for TFDS
    lmlab train --config=experiments/autoencoder.py:denoising,fashion,cpu --workdir=runs/denoising
    lmlab figures --workdir=runs/ae
    lmlab sample --workdir=runs/ae      # decodes draws of a Gaussian fitted to the codes

demo: seconds. cpu, which is the published setting and the default: half a minute to three on two cores.
As in the notebook all 60,000 training images are used and the last epoch is what counts: nothing is
chosen, and the test images are read by `lmlab evaluate` alone. The convolutional one is of our own design, with
a code of the same size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.data import images as data
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Samples, Target
from lmlab.figures import curves, images, style
from lmlab.models.autoencoder import Autoencoder, ConvolutionalAutoencoder, Regularized, add_noise
from lmlab.tasks import Reconstruct
from lmlab.training import optimizer

FAMILY, PAPER = "autoencoder", "Hinton and Salakhutdinov 2006"
VARIANTS = {
    "demo": "scikit-learn's digits of 8 x 8, which ship with it: seconds",
    "cpu": "MNIST, 5 epochs: the published setting, the same as no variant",
    "fashion": "Fashion-MNIST in place of MNIST",
    "deep": "784-128-32-128-784, 5 epochs: the default",
    "shallow": "784-32-784, 20 epochs",
    "sparse": "the shallow one with the L1 norm of the code as a penalty, 20 epochs",
    "convolutional": "two convolutions, a code of 32, 10 epochs",
    "denoising": "the deep one, from images with noise that was added once, 10 epochs",
}
KERAS = "Dertat, notebook part 3"
TARGETS = {
    "cpu": [
        Target("test/loss", 0.0885, float("nan"), "Keras, deep autoencoder after 5 epochs: not printed"),
        Target("train/loss@3 epochs", 0.0940, 0.0935, "Dertat, notebook part 3, third epoch"),
    ],
    "shallow,cpu": [Target("test/loss", 0.0925, 0.0920, f"{KERAS}, 20 epochs")],
    "sparse,cpu": [
        Target("test/activation", 6.600 / 5, 0.777, f"{KERAS}; a fifth of 6.600, that of its shallow one")
    ],
    "denoising,cpu": [Target("train/loss@10 epochs", 0.1160, 0.1151, f"{KERAS}, tenth epoch")],
}


def get_config(variant=""):
    config = configs.base(
        duration="5 epochs",
        batch_size=32,
        log_every="1 epoch",  # the mean over an epoch, which is what Keras prints
        evaluate_every="1 epoch",
        checkpoint={"every": "1 epoch"},
        convolutional=False,
        model={"features": (128,), "code": 32},
        noise=0.0,  # deviation; 0.4 in the notebook
        noise_seed=0,
        sparsity=0.0,
        data={"name": "mnist", "tfds_dir": ""},
        optimizer={"name": "adam", "learning_rate": 1e-3, "eps": 1e-7},
    )
    parts = variant.split(",")
    if "shallow" in parts or "sparse" in parts:
        config.update(duration="20 epochs")
        config.model.features = ()
    if "sparse" in parts:
        config.sparsity = 32e-5  # 1e-5 in the notebook, whose Keras adds it up over a batch of 32
    if "convolutional" in parts:
        config.update(duration="10 epochs", convolutional=True)
        config.model.features = (16, 32)
    if "denoising" in parts:
        config.update(duration="10 epochs", noise=0.4)
    if "fashion" in parts:
        config.data.name = "fashion_mnist"
    if "demo" in parts:
        config.update(duration="50 epochs", log_every="2 %", evaluate_every="10 %")
        config.checkpoint.every = "20 %"
        config.data.name = "digits"
        config.model.update(features=tuple(width // 2 for width in config.model.features), code=16)
    return config


def build(config, assets):
    side = data.shape(config.data.name)[0]
    if config.convolutional:
        model = ConvolutionalAutoencoder(image_size=side, **config.model)
    else:
        model = Autoencoder(input_size=side**2, **config.model)
    regularized = config.noise or config.sparsity
    task = Regularized(model, config.noise, config.sparsity) if regularized else Reconstruct(model)

    @functools.cache
    def split(name):
        if config.data.name == "digits":
            return data.digits(name)
        return data.load(config.data.name, name, config.data.tfds_dir)

    def train_data():
        train = split("train")
        train = data.with_noise(train, config.noise, config.noise_seed) if config.noise else train
        return data.resident(train, config.batch_size, config.seed)

    def likelihood(name, **options):
        return Likelihood(task, lambda: data.scaled({"image": split(name)["image"]}), 1000, **options)

    def sample(variables, key, *, num_samples: int = 64):
        """Images decoded from a Gaussian fitted to the codes of the training images (below 0: 0, like codes).

        num_samples: how many images
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, received {num_samples}")
        codes = np.asarray(encode(model, variables, data.scaled(split("train"))["image"]))
        mean, covariance = jnp.asarray(codes.mean(0)), jnp.asarray(np.cov(codes, rowvar=False))
        drawn = jax.random.multivariate_normal(key, mean, covariance, (num_samples,), method="svd")
        logits = model.apply({"params": variables["params"]}, jax.nn.relu(drawn), method="decode")
        return Samples(images=np.asarray(jax.nn.sigmoid(logits)).reshape(-1, side, side))

    evaluations = {"test": Reconstructions(task, config.noise, likelihood("test"))}
    if config.data.name == "digits":
        evaluations["validation"] = likelihood("validation")
    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=train_data,
        evaluations=evaluations,
        sample=sample,
        show=data.show_images,
        dynamic=("optimizer.learning_rate", "optimizer.weight_decay"),
    )


def encode(model, variables, image):
    return jax.jit(model.apply, static_argnames="method")(
        {"params": variables["params"]}, jnp.asarray(image), method="encode"
    )


class Reconstructions:
    """The loss on the test images, with noise drawn anew if there is any, and the mean of their code.

    For figures: ten of them and what the model makes of them, and the codes of a thousand.
    """

    held_out = True

    def __init__(self, task, noise, likelihood):
        self.task, self.noise, self.likelihood, self.data = task, noise, likelihood, likelihood.data

    def __call__(self, variables, key):
        image = jnp.asarray(self.data()["image"])
        code = encode(self.task.model, variables, image)
        arrays = {"original": image[:10]}
        if self.noise:
            arrays["noisy"] = add_noise(key, image[:10], self.noise)
        seen = arrays.get("noisy", image[:10])
        logits = self.task.model.apply({"params": variables["params"]}, seen)
        arrays |= {"output": jax.nn.sigmoid(logits), "code": code[:1000]}
        return {**self.likelihood(variables, key)[0], "activation": code.mean()}, arrays


def figures(runs):
    drawn = {"loss": curves.loss(runs, ylabel="binary cross-entropy a pixel")}
    if len(runs) > 1:
        return drawn | {"activations": activations(runs)}
    kept = runs[0].arrays("test")
    code = kept.pop("code")
    return drawn | {"reconstructions": images.rows(kept), "filters": filters(runs[0]), "codes": codes(code)}


def filters(run):
    """The weights from the image to each of up to 64 units of the first layer; grey is 0."""
    kernel = np.asarray(run.variables["params"]["encoder_0"]["kernel"])
    side = kernel.shape[0] if kernel.ndim == 4 else round(kernel.shape[0] ** 0.5)
    weights = kernel.reshape(side, side, -1).transpose(2, 0, 1)[:64]
    scaled = 0.5 + 0.5 * weights / np.abs(weights).max((1, 2), keepdims=True)
    return images.grid(scaled, columns=8 if len(weights) >= 32 else None)


def codes(code):
    """Each unit of the code (across) for fifty test images (down)."""
    figure, axes = style.new()
    image = axes.imshow(code[:50], aspect="auto", vmin=0)
    axes.set(xlabel="unit of the code", ylabel="test image")
    style.colorbar(figure, image, axes, "activation")
    return figure


def activations(runs):
    """The activations of the codes in order, by what the runs differ in; seeds are put together."""
    label, groups = curves.differences(runs), {}
    for run in runs:
        groups.setdefault(label(run), []).append(run.arrays("test")["code"].ravel())
    figure, axes = style.new()
    for name, values in groups.items():
        parts = np.linspace(0, 1, 101)
        axes.plot(parts, np.quantile(np.concatenate(values), parts), label=name)
    axes.set(xlabel="part of all activations", ylabel="activation at most")
    axes.legend()
    return figure
