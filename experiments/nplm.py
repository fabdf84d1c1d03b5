"""The neural language model of Bengio et al. 2003 on names, as in Karpathy's makemore, and on words.

makemore's network (10 features a character, 200 hidden units, 3 characters of context, 11,897 parameters) ends at
2.1701 nats a character on the names of its own "dev" split; with initialization and batch normalization at 2.105, and
with a context of 8 as well at 2.027. That split shuffles all names (seed 42), and 13 % of its dev names are in its
train as well; `apart` parts the names that differ. Training is ours: Adam on large batches.

    lmlab train --config=experiments/nplm.py:demo --workdir=runs/nplm-demo
    lmlab train --config=experiments/nplm.py:cpu --workdir=runs/nplm                # needs names.txt
    lmlab train --config=experiments/nplm.py:batchnorm,cpu --workdir=runs/nplm-bn
    lmlab sample --workdir=runs/nplm --num_samples=20
    lmlab figures --workdir=runs/nplm        # the loss, the characters' vectors, how full the hidden units are

demo: seconds. cpu, the default: two minutes on two cores. words: WikiText-2, for a GPU (not run).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.data.lines import Lines, lines_or_words, rows
from lmlab.data.tokenizers import special
from lmlab.decoding.lines import line_sampler
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Target
from lmlab.figures import curves, style
from lmlab.models.nplm import NPLM
from lmlab.sources import Resident
from lmlab.tasks import LastToken
from lmlab.training import optimizer

FAMILY, PAPER = "neural n-gram", "Bengio et al. 2003"
VARIANTS = {
    "demo": "the words of the Python reference, which every Python carries: seconds",
    "cpu": "names.txt: the same as no variant",
    "batchnorm": "the hidden layer goes through batch normalization",
    "context8": "8 characters of context in place of 3",
    "naive": "all weights begin as N(0, 1)",
    "direct": "a linear map from the context to the logits as well",
    "apart": "the names that differ, so that none is in two parts",
    "words": "words of WikiText-2, 30 features, 5 words of context",
}
MAKEMORE = "makemore, part"
TARGETS = {
    "cpu": [Target("validation/loss", 2.17, 2.1701, f"{MAKEMORE} 2, dev")],
    "batchnorm,cpu": [Target("validation/loss", 2.11, 2.105, f"{MAKEMORE} 3, val")],
    "batchnorm,context8,cpu": [Target("validation/loss", 2.03, 2.027, f"{MAKEMORE} 5, val")],
}


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="30 epochs",
        batch_size=512,
        evaluate_every="10 %",
        model={
            "context": 3,
            "d_embed": 10,
            "hidden": 200,
            "direct": False,
            "normalize": False,
            "naive": False,
        },
        data={"path": "text/names.txt", "words": False, "split": "published"},
        optimizer={"learning_rate": 5e-3, "schedule": "cosine", "warmup": "2 %"},
    )
    config.model.normalize = "batchnorm" in parts
    config.model.naive = "naive" in parts
    config.model.direct = "direct" in parts
    if "context8" in parts:
        config.model.context = 8
        config.optimizer.weight_decay = 0.1  # chosen on the published validation names, where 0 gives 2.039
    if "apart" in parts:
        config.data.split = "apart"
    if "words" in parts:
        config.update(duration="10 epochs", batch_size=1024)
        config.data.update(path="text/wikitext-2", words=True)
        config.model.update(context=5, d_embed=30, hidden=100)
    if "demo" in parts:
        config.update(duration="5 epochs", batch_size=128)
        config.data.path = ""
        config.model.update(hidden=64)
        if "words" in parts:
            config.duration = "1 epoch"
    return config


def build(config, assets):
    corpus = lines_or_words(assets, **config.data)
    tokenizer = corpus.tokenizer
    model = NPLM(tokenizer.vocab_size, **config.model)
    task, end = LastToken(model), special(tokenizer, "<end>")

    @functools.cache
    def of(part):
        return rows(corpus.sequences(part), model.context, end)

    def likelihood(part):
        return Likelihood(task, lambda: {"tokens": of(part)}, 4096, held_out=part == "test", bits=True)

    def following(variables):
        logits = jax.jit(lambda context: model.apply(variables, context[None])[0])
        return lambda history: jax.nn.softmax(logits(jnp.asarray(history[-model.context :])))

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: Resident.of({"tokens": of("train")}, config.batch_size, config.seed),
        evaluations={part: likelihood(part) for part in ("validation", "test")},
        sample=line_sampler(following, model.context, tokenizer),
        dynamic=("optimizer.learning_rate", "optimizer.weight_decay"),
    )


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    drawn = {"loss": curves.loss(runs, ylabel="nats a token")}
    if len(runs) == 1 and not runs[0].config.data.words:
        drawn["vectors"] = vectors(runs[0])
        drawn["hidden"] = hidden(runs[0])
    return drawn


def vectors(run):
    """The vectors of the characters along their two largest directions."""
    table = np.asarray(run.variables["params"]["embed"]["embedding"])
    centred = table - table.mean(0)
    x, y = (centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T).T
    names = ["<end>", *Lines(run.config.data.path, run.assets).tokenizer.characters]
    figure, axes = style.new(width=3.4, height=3.2)
    axes.scatter(x, y, s=90, color=style.COLORS[0], alpha=0.25, linewidths=0, label="characters")
    for name, *place in zip(names, x, y, strict=True):
        axes.annotate(name, place, ha="center", va="center", fontsize=7)
    axes.set(xlabel="first principal axis", ylabel="second principal axis")
    return figure


def hidden(run):
    """How the values of the hidden units are spread over a batch, before and after training."""
    experiment = run.experiment
    batch = experiment.train_data().batch(experiment.train_data().data, 0)
    params, collections = experiment.task.init(jax.random.key(run.config.seed), batch)
    figure, axes = style.new()
    for name, variables in (
        ("before training", {"params": params, **collections}),
        ("after", run.variables),
    ):
        _, kept = experiment.task.model.apply(variables, batch["tokens"][:, :-1], mutable=["intermediates"])
        heights, edges = np.histogram(kept["intermediates"]["hidden"][0], 60, (-1, 1), density=True)
        axes.plot((edges[1:] + edges[:-1]) / 2, heights, label=name)
    axes.set(xlabel="tanh of a hidden unit", ylabel="density")
    axes.legend()
    return figure
