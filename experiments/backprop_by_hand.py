"""Backpropagation by hand: the gradients of a neural n-gram and Adam as equations, beside autodiff and Optax.

Karpathy's exercise ("backprop ninja"): embedding, linear, batch normalization, tanh, linear, cross-entropy (Bengio et
al. 2003; Ioffe and Szegedy 2015), differentiated with pen and paper in lmlab/models/by_hand.py, and Adam (Kingma and Ba
2015, algorithm 1). Two networks begin alike and see the same batches: one is moved by the equations, one by JAX's
autodiff and Optax.

    lmlab train --config=experiments/backprop_by_hand.py:demo --workdir=runs/by-hand-demo
    lmlab train --config=experiments/backprop_by_hand.py:cpu --workdir=runs/by-hand      # needs names.txt
    lmlab figures --workdir=runs/by-hand         # both losses, and how far the gradients are apart by layer
    lmlab sample --workdir=runs/by-hand

train/apart_LAYER is the largest difference of both gradients of the network moved by hand, over the largest
component of autodiff's: the mean over the steps of a row. train/networks_apart is that of the two networks, which
part as rounding grows from step to step. gradients/apart is the largest over layers, on validation rows.

demo: seconds. cpu, the default: a minute on one core.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from lmlab import config as configs
from lmlab.data.lines import Lines, rows
from lmlab.data.tokenizers import special
from lmlab.decoding.lines import line_sampler
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Mean, Target
from lmlab.figures import curves, style
from lmlab.models import by_hand
from lmlab.models.nplm import NPLM
from lmlab.sources import Resident
from lmlab.tasks import LastToken
from lmlab.training import optimizer

FAMILY, PAPER = "neural n-gram", "Rumelhart, Hinton and Williams 1986; Kingma and Ba 2015"
VARIANTS = {
    "demo": "the words of the Python reference, which every Python carries: seconds",
    "cpu": "names.txt: the same as no variant",
}
TARGETS = {"cpu": [Target("gradients/apart", 1e-5, math.nan, "float32 rounds at 6e-8 of a number")]}
LAYERS = {
    "embed/embedding": "C",
    "inward/kernel": "W",
    "BatchNorm_0/scale": "gain",
    "BatchNorm_0/bias": "shift",
    "outward/kernel": "U",
    "outward/bias": "b",
}


def get_config(variant=""):
    config = configs.base(
        duration="3 epochs",
        batch_size=512,
        evaluate_every="10 %",
        model={"context": 3, "d_embed": 10, "hidden": 200},
        data={"path": "text/names.txt", "split": "published"},
        optimizer={"name": "adam", "learning_rate": 3e-3},
    )
    if "demo" in variant.split(","):
        config.update(duration="1 epoch", batch_size=128)
        config.data.path = ""
        config.model.hidden = 64
    return config


def build(config, assets):
    check(config)
    corpus = Lines(config.data.path, assets, config.data.split)
    tokenizer = corpus.tokenizer
    model = NPLM(tokenizer.vocab_size, normalize=True, **config.model)
    task, end = LastToken(model), special(tokenizer, "<end>")
    options = {name: config.optimizer[name] for name in ("learning_rate", "b1", "b2", "eps")}

    @functools.cache
    def of(part):
        return rows(corpus.sequences(part), model.context, end)

    def likelihood(network, part):
        return Likelihood(
            Network(task, network), lambda: {"tokens": of(part)}, 4096, held_out=part == "test", bits=True
        )

    def following(variables):
        moved = {"params": variables["params"]["by_hand"], "batch_stats": variables["batch_stats"]["by_hand"]}
        logits = jax.jit(lambda context: model.apply(moved, context[None])[0])
        return lambda history: jax.nn.softmax(logits(jnp.asarray(history[-model.context :])))

    return Experiment(
        task=Network(task, "autodiff"),
        optimizer=lambda clock: {
            "autodiff": optimizer.build(clock, **config.optimizer),
            "by_hand": by_hand.Adam(**options),
        },
        step=functools.partial(
            both, Network(task, "autodiff"), Network(task, "by_hand"), by_hand.Adam(**options)
        ),
        train_data=lambda: Resident.of({"tokens": of("train")}, config.batch_size, config.seed),
        evaluations={
            "validation": likelihood("by_hand", "validation"),
            "autodiff": likelihood("autodiff", "validation"),
            "test": likelihood("by_hand", "test"),
            "gradients": Gradients(Network(task, "by_hand"), lambda: of("validation")[:4096]),
        },
        sample=line_sampler(following, model.context, tokenizer),
    )


def check(config):
    """The equations are those of one update on one batch, by plain Adam."""
    plain = configs.base().optimizer
    allowed = {name: plain[name] for name in ("schedule", "warmup", "weight_decay", "clip")}
    for name, value in {**allowed, "name": "adam"}.items():
        if config.optimizer[name] != value:
            raise ValueError(
                f"optimizer.{name}: received {config.optimizer[name]!r}; allowed by hand: {value!r}"
            )
    if config.accumulate != 1 or config.parallel.mode != "jit":
        raise ValueError(
            f"accumulate and parallel.mode: received {config.accumulate} and {config.parallel.mode!r};"
            " allowed by hand: 1 and 'jit'"
        )


@dataclasses.dataclass(frozen=True)
class Network:
    """The task of one of two networks, `name`, which begin alike."""

    task: LastToken
    name: str

    def init(self, key, batch):
        params, collections = self.task.init(key, batch)
        twice = lambda tree: {name: jax.tree.map(jnp.copy, tree) for name in ("autodiff", "by_hand")}  # noqa: E731
        return twice(params), {"batch_stats": twice(collections["batch_stats"])}

    def loss(self, params, collections, batch, key, train):
        stats = collections["batch_stats"]
        own = {"batch_stats": stats[self.name]}
        loss, metrics, new = self.task.loss(params[self.name], own, batch, key, train)
        return loss, metrics, {"batch_stats": {**stats, self.name: new["batch_stats"]}}

    def autodiff(self, params, collections, batch):
        """The gradient by JAX, by the params of this network."""

        def value(own):
            return self.loss({**params, self.name: own}, collections, batch, jax.random.key(0), True)[0].value

        return jax.grad(value)(params[self.name])


def both(autodiff, hand, adam, state, batch, key, update):
    """One update of each network: by autodiff and Optax, and by the equations."""
    params, averages, tokens = state.params["by_hand"], state.collections["batch_stats"], batch["tokens"]
    seen = by_hand.forward(params, tokens)
    grads = by_hand.backward(params, tokens, seen)
    told = apart(grads, hand.autodiff(state.params, state.collections, batch))

    state, metrics = update(autodiff.loss, "autodiff", state, batch, key)
    changes, moments = adam.update(grads, state.opt_state["by_hand"])
    params = jax.tree.map(jnp.add, params, changes)
    between = apart(params, state.params["autodiff"])
    averages = {**state.collections["batch_stats"], "by_hand": by_hand.running(averages["by_hand"], seen)}

    told = {f"apart_{LAYERS[name]}": value for name, value in told.items()}
    told |= {"loss_by_hand": seen.loss, "networks_apart": functools.reduce(jnp.maximum, between.values())}
    metrics |= {name: Mean(value, jnp.ones(())) for name, value in told.items()}
    return state.replace(
        params={**state.params, "by_hand": params},
        opt_state={**state.opt_state, "by_hand": moments},
        collections={**state.collections, "batch_stats": averages},
    ), metrics


def apart(found, expected):
    """{layer: the largest difference over the largest component of what is expected}."""
    differences = jax.tree.map(
        lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.maximum(jnp.max(jnp.abs(b)), 1e-30), found, expected
    )
    leaves = jax.tree_util.tree_leaves_with_path(differences)
    return {"/".join(entry.key for entry in path): value for path, value in leaves}


@dataclasses.dataclass
class Gradients:
    """How far both gradients are apart on one batch, by layer and at most."""

    network: Network
    rows: functools.partial
    held_out: bool = False

    def __call__(self, variables, key):
        tokens = jnp.asarray(self.rows())
        collections = {"batch_stats": variables["batch_stats"]}
        expected = self.network.autodiff(variables["params"], collections, {"tokens": tokens})
        params = variables["params"][self.network.name]
        found = by_hand.backward(params, tokens, by_hand.forward(params, tokens))
        layers = {LAYERS[name]: value for name, value in apart(found, expected).items()}
        return {"apart": max(layers.values()), **layers}, {}


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    """Both losses; of one run also how far gradients and networks are apart."""
    losses = ("train/loss", "train/loss_by_hand", "validation/loss", "autodiff/loss")
    drawn = {"loss": curves.loss(runs, losses, ylabel="nats a character")}
    if len(runs) == 1:
        drawn["apart"] = differences(runs[0].metrics())
    return drawn


def differences(table):
    """The relative difference of the gradients of each layer, and of the networks themselves."""
    figure, axes = style.new(1, 2)
    gradients, networks = axes[0]
    for number, name in enumerate(LAYERS.values()):
        rows = table[["step", f"train/apart_{name}"]].dropna()
        line = style.LINES[number]
        gradients.plot(*rows.to_numpy().T, color=style.COLORS[number], linestyle=line, label=name)
    rows = table[["step", "train/networks_apart"]].dropna()
    networks.plot(*rows.to_numpy().T, label="parameters")
    gradients.axhline(2.0**-24, color="0.6", linewidth=0.6, label="rounding of float32")
    gradients.set(xlabel="updates", ylabel="gradients apart, of the largest", yscale="log", ylim=(1e-9, 1e-5))
    networks.set(xlabel="updates", ylabel="networks apart, of the largest", yscale="log")
    gradients.legend(ncols=2, loc="lower center")
    return figure
