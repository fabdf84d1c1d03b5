"""A generative and a discriminative classifier as examples grow: naive Bayes against logistic regression.

Ng and Jordan 2001: naive Bayes nears its own, higher error with few examples, logistic regression its lower one
with many, so that the curves cross. Here on pixels of MNIST cut at half of white: the Bernoulli naive Bayes
(Laplace's rule) and multinomial logistic regression, ours, both fitted in closed form or to the optimum; beside
them scikit-learn's support vectors and nearest neighbours. Each size is drawn 20 times, as many of each class.

    lmlab train --config=experiments/generative_vs_discriminative.py:demo --workdir=runs/nb-demo
    lmlab train --config=experiments/generative_vs_discriminative.py:cpu --workdir=runs/nb     # needs MNIST
    lmlab evaluate --workdir=runs/nb            # test errors of every draw
    lmlab figures --workdir=runs/nb             # errors, and by how much logistic regression's is the higher

`test/lead_n` is by how much naive Bayes leads with n examples: the mean over draws of logistic regression's error
less its own, on the same examples. demo: half a minute on two cores (digits of 8 x 8). cpu, the default: 10
minutes, most of them for scikit-learn's. Nothing is chosen: the penalty of logistic regression is
scikit-learn's default.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmlab import config as configs
from lmlab.data import images as data
from lmlab.experiment import Experiment, Target
from lmlab.figures import style

FAMILY, PAPER = "classifier", "Ng and Jordan 2001"
VARIANTS = {
    "demo": "scikit-learn's digits of 8 x 8, 5 draws: half a minute",
    "cpu": "MNIST, 20 draws: the same as no variant",
    "fashion": "Fashion-MNIST in place of MNIST",
}
CLASSES = 10
CLAIM = "Ng and Jordan 2001: naive Bayes leads with few examples, logistic regression with many"
TARGETS = {
    "cpu": [
        Target("test/lead_10", 0.0, math.nan, CLAIM, higher_is_better=True),
        Target("test/lead_10000", 0.0, math.nan, CLAIM),
    ]
}
OURS = {"naive_bayes": "naive Bayes", "logistic": "logistic regression"}
BESIDE = {"support_vectors": "support vectors", "neighbours": "nearest neighbours"}


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        data={"name": "fashion_mnist" if "fashion" in parts else "mnist", "tfds_dir": ""},
        sizes=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),  # examples of each class
        draws=20,
        penalty=1.0,  # half the squared weights, beside the sum of the losses
        beside=200,  # the largest of the sizes for scikit-learn's
    )
    if "demo" in parts:
        config.update(sizes=(1, 2, 5, 10, 20, 50, 100), draws=5, beside=100)
        config.data.name = "digits"
    return config


def build(config, assets):
    part = data.parts(config.data.name, config.data.tfds_dir)
    sizes = tuple(config.sizes)
    if not sizes or any(b <= a for a, b in zip((0, *sizes), sizes, strict=False)):
        raise ValueError(f"sizes must increase from 1 on, received {sizes}")
    for name in ("draws", "penalty"):
        if not config[name] > 0:
            raise ValueError(f"{name} must be above 0, received {config[name]}")

    def source():
        bits = binary(part("train"))
        fewest = int(np.bincount(bits["label"], minlength=CLASSES).min())
        if sizes[-1] > fewest:
            raise ValueError(
                f"sizes: received {sizes[-1]}; allowed: up to {fewest}, those of the rarest class"
            )
        return data.resident({name: np.asarray(values) for name, values in bits.items()}, 1, config.seed)

    def fit(source, key):
        image, label = (np.asarray(source.data[name]) for name in ("image", "label"))
        params = {name: {} for name in OURS}
        for size in sizes:
            x, y = draws(image, label, size, config.draws, config.seed)
            params["naive_bayes"][str(size)] = jax.lax.map(lambda one: naive_bayes(*one), (x, y))
            params["logistic"][str(size)] = jax.lax.map(lambda one: logistic(*one, config.penalty), (x, y))
        return params

    return Experiment(
        fit=fit,
        train_data=source,
        evaluations={
            "validation": Errors(lambda: binary(part("validation")), sizes),
            "test": Errors(
                lambda: binary(part("test")), sizes, beside=(lambda: binary(part("train")), config)
            ),
        },
        show=data.show_images,
    )


def binary(images):
    """Pixels of 0 and 255, cut at half of white."""
    return {"image": np.where(images["image"] >= 128, np.uint8(255), np.uint8(0)), "label": images["label"]}


def draws(image, label, size, count, seed):
    """(bits [count, n, D], labels [count, n]) of `count` draws of `size` examples of each class."""
    chosen = np.empty((count, CLASSES, size), int)
    for number in range(count):
        rng = np.random.default_rng((seed, size, number))
        for k in range(CLASSES):
            chosen[number, k] = rng.choice(np.flatnonzero(label == k), size, replace=False)
    chosen = chosen.reshape(count, -1)
    return image.reshape(len(image), -1)[chosen] // 255, label[chosen]


def naive_bayes(bits, label):
    """log P(k) + sum_d log P(x_d | k) as weights of the bits: P by counts, one added to each (Laplace's rule)."""
    x, of_class = bits.astype(jnp.float32), jax.nn.one_hot(label, CLASSES)
    count = of_class.sum(0)
    on = (x.T @ of_class + 1) / (count[None] + 2)
    return {
        "kernel": jnp.log(on) - jnp.log(1 - on),
        "bias": jnp.log(count / count.sum()) + jnp.log(1 - on).sum(0),
    }


def logistic(bits, label, penalty, steps=200):
    """The weights with the least sum of cross-entropies and penalty / 2 |W|^2, the bias free; by L-BFGS."""
    x, of_class = bits.astype(jnp.float32), jax.nn.one_hot(label, CLASSES)

    def loss(params):
        logits = x @ params["kernel"] + params["bias"][None]
        fit = -jnp.sum(of_class * jax.nn.log_softmax(logits))
        return (fit + penalty / 2 * jnp.sum(params["kernel"] ** 2)) / len(x)

    search = optax.lbfgs()
    params = {"kernel": jnp.zeros((x.shape[1], CLASSES)), "bias": jnp.zeros(CLASSES)}
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        params, state = carry
        value, slope = value_and_grad(params, state=state)
        change, state = search.update(slope, state, params, value=value, grad=slope, value_fn=loss)
        return (optax.apply_updates(params, change), state), None

    return jax.lax.scan(step, (params, search.init(params)), length=steps)[0][0]


class Errors:
    """Share of wrong answers of every draw: both of ours are linear in the bits.

    loss: the cross-entropy of logistic regression with the most examples, in nats. beside: (training images,
    config), for scikit-learn's, on the first 2,000 images.
    """

    def __init__(self, data, sizes, beside=None):
        self.data, self.sizes, self.beside, self.held_out = data, sizes, beside, beside is not None

    def __call__(self, variables, key):
        image, label = self.data()["image"], self.data()["label"]
        bits = jnp.asarray(image.reshape(len(image), -1) // 255, jnp.float32)
        errors = {
            name: np.array([self.wrong(variables["params"][name][str(n)], bits, label) for n in self.sizes])
            for name in OURS
        }
        best = jax.tree.map(lambda leaf: leaf[0], variables["params"]["logistic"][str(self.sizes[-1])])
        chances = jax.nn.log_softmax(bits @ best["kernel"] + best["bias"][None])
        loss = -float(jnp.take_along_axis(chances, jnp.asarray(label)[:, None], 1).mean())
        if self.beside:
            errors |= self.scikit_learns(bits[:2000], label[:2000])
        means = {
            f"{name}_{CLASSES * size}": values[place].mean()
            for name, values in errors.items()
            for place, size in enumerate(self.sizes[: len(values)])
        }
        lead = (errors["logistic"] - errors["naive_bayes"]).mean(1)
        means |= {f"lead_{CLASSES * size}": value for size, value in zip(self.sizes, lead, strict=True)}
        return {"loss": loss, **means}, {**errors, "examples": CLASSES * np.array(self.sizes)}

    def wrong(self, params, bits, label):
        """The errors of each draw."""
        guess = jax.lax.map(lambda one: jnp.argmax(bits @ one["kernel"] + one["bias"][None], -1), params)
        return np.mean(np.asarray(guess) != label[None], axis=1)

    def scikit_learns(self, bits, label):
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.svm import SVC

        train, config = self.beside[0](), self.beside[1]
        kinds = {"support_vectors": SVC, "neighbours": functools.partial(KNeighborsClassifier, 1)}
        errors = {name: [] for name in kinds}
        for size in self.sizes:
            if size > config.beside:
                break
            x, y = draws(train["image"], train["label"], size, config.draws, config.seed)
            for name, kind in kinds.items():
                fitted = (kind().fit(*pair) for pair in zip(x, y, strict=True))
                errors[name].append([np.mean(each.predict(np.asarray(bits)) != label) for each in fitted])
        return {name: np.array(values) for name, values in errors.items()}


def figures(runs):
    """Errors of each classifier, and the difference of ours; a band is a deviation over the draws of all runs."""
    kept = [run.arrays("test") for run in runs]
    figure, axes = style.new(1, 2)
    left, right = axes[0]
    for number, (name, title) in enumerate({**OURS, **BESIDE}.items()):
        percent = 100 * np.concatenate([each[name] for each in kept], axis=1)
        curve(left, kept[0]["examples"], percent, title, number)
    differences = [100 * (each["logistic"] - each["naive_bayes"]) for each in kept]
    curve(right, kept[0]["examples"], np.concatenate(differences, axis=1), "by draw", 0)
    right.axhline(0, color="0.6", linewidth=0.6)
    left.set(xscale="log", xlabel="training examples", ylabel="test error, %")
    right.set(xscale="log", xlabel="training examples", ylabel="lead of naive Bayes, %")
    left.legend()
    return {"errors": figure}


def curve(axes, examples, values, label, number):
    """The mean over draws, values (sizes, draws), of which there may be fewer sizes than `examples`."""
    x, mean, spread = examples[: len(values)], values.mean(1), values.std(1, ddof=min(1, values.shape[1] - 1))
    color = style.COLORS[number]
    axes.plot(x, mean, color=color, linestyle=style.LINES[number], label=label)
    axes.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0, label=f"_{label}")
