"""N-gram language models by counts, and the bigram as a network of one layer that finds the same counts.

Karpathy's makemore prints 2.4765 nats a character for bigrams of names.txt, which is stale, its cells having run out of
order: counting gives 2.45401, with one added to each count 2.45458. The network, trained by gradient, must come to
the first. Beside add-k stand interpolation (Jelinek and Mercer 1980) and Kneser and Ney 1995.

    lmlab train --config=experiments/ngram.py:demo --workdir=runs/bigram-demo
    lmlab train --config=experiments/ngram.py:cpu  --workdir=runs/bigram            # needs names.txt
    lmlab train --config=experiments/ngram.py:network,cpu --workdir=runs/network
    lmlab sample --workdir=runs/bigram --num_samples=20
    lmlab sweep --config=experiments/ngram.py:wikitext --workdir=sweeps/orders       # orders 1 to 5, three smoothings
    lmlab figures --workdir=sweeps/orders

demo: seconds. cpu, the default: seconds; the network a minute; wikitext a minute an order, 4 GB of memory.
Names are scored on all names, as in makemore; words on each token of the split with its <end> of lines, the text being
one sequence. Nothing is chosen: k, weight and discount are given.
"""

import functools
import math

import jax
import numpy as np

from lmlab import config as configs
from lmlab.data.lines import Lines, lines_or_words, rows
from lmlab.data.tokenizers import special
from lmlab.decoding.lines import line_sampler
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Target
from lmlab.figures import curves, style
from lmlab.models.ngram import Bigram, NGram
from lmlab.sources import Resident
from lmlab.tasks import LastToken
from lmlab.training import optimizer

FAMILY, PAPER = "n-gram", "Jelinek and Mercer 1980; Kneser and Ney 1995"
VARIANTS = {
    "demo": "the words of the Python reference, which every Python carries: seconds",
    "cpu": "bigrams of names.txt: the same as no variant",
    "add_one": "one is added to each count",
    "network": "the bigram as one layer, trained by gradient",
    "interpolated": "orders are mixed by a constant weight",
    "kneser_ney": "absolute discounting, and lower orders by what tokens follow",
    "wikitext": "words of WikiText-2, by Kneser-Ney of order 3",
}
SOURCE = "makemore's data, counted anew; its notebook prints a stale 2.4765"
TARGETS = {
    "cpu": [Target("all/loss", 2.45402, 2.45401, SOURCE)],
    "add_one,cpu": [Target("all/loss", 2.45459, 2.45458, SOURCE)],
    "network,cpu": [Target("all/loss", 2.4541, 2.45401, SOURCE)],
}


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        model={"order": 2, "smoothing": "add", "k": 0.0, "weight": 0.7, "discount": 0.75},
        data={"path": "text/names.txt", "words": False, "split": "all"},
        network=False,
    )
    if "add_one" in parts:
        config.model.k = 1.0
    if "interpolated" in parts or "kneser_ney" in parts:
        config.model.update(smoothing="interpolated" if "interpolated" in parts else "kneser_ney", order=3)
    if "wikitext" in parts:
        config.model.update(smoothing="kneser_ney", order=3)
        config.data.update(path="text/wikitext-2", words=True, split="")
    if "network" in parts:
        config.update(network=True, duration="500 steps", log_every="5 %", evaluate_every="20 %")
        config.model = {"order": 2}
        config.optimizer.update(learning_rate=0.6, schedule="cosine", warmup="2 %")
    if "demo" in parts:
        config.data.path = ""
        if "network" in parts:
            config.duration = "100 steps"
    return config


def sweep():
    for smoothing in ("add", "interpolated", "kneser_ney"):
        for order in range(1, 6):
            k = 1.0 if smoothing == "add" else 0.0  # with 0 added, a pair that training has not is impossible
            yield {"model.smoothing": smoothing, "model.order": order, "model.k": k}


def build(config, assets):
    corpus = lines_or_words(assets, **config.data)
    tokenizer, order = corpus.tokenizer, config.model.order
    if config.network and order != 2:
        raise ValueError(f"order: received {order}; allowed for the network: 2")
    end = special(tokenizer, "<end>")

    @functools.cache
    def of(part):
        """The rows of a part: all its tokens, each after those before it."""
        return rows(corpus.sequences(part), order - 1, end)

    names = ("validation", "test") if config.data.split != "all" else ("all",)
    parts = {name: functools.partial(of, "train" if name == "all" else name) for name in names}
    if not config.network:
        model = NGram(tokenizer.vocab_size, **config.model)
        return Experiment(
            fit=lambda source, key: model.fit(np.asarray(source.data["tokens"])),
            train_data=lambda: every(of("train"), config.seed),
            evaluations={name: Counted(model, part, name == "test") for name, part in parts.items()},
            sample=line_sampler(
                lambda variables: functools.partial(model.distribution, jax.device_get(variables["params"])),
                order - 1,
                tokenizer,
            ),
        )
    task = LastToken(Bigram(tokenizer.vocab_size))

    def following(variables):
        p = shares(variables)
        return lambda ids: p[ids[-1]]

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: every(of("train"), config.seed),
        evaluations={
            name: Likelihood(task, lambda part=part: {"tokens": part()}, 1 << 14, held_out=name == "test")
            for name, part in parts.items()
        },
        sample=line_sampler(following, 1, tokenizer),
    )


def shares(variables):
    """P(next | this) of the network."""
    return np.asarray(jax.nn.softmax(variables["params"]["table"]["embedding"]))


def every(rows, seed):
    """All rows in each batch."""
    return Resident.of({"tokens": rows}, len(rows), seed)


class Counted:
    """The mean of -log P over rows, in nats a token; its exponential, the perplexity."""

    def __init__(self, model, rows, held_out):
        self.model, self.rows, self.held_out = model, rows, held_out

    def __call__(self, variables, key):
        tables = jax.device_get(variables["params"])
        with np.errstate(divide="ignore"):  # what was never seen has probability 0 without smoothing
            loss = -np.log(self.model.probabilities(tables, self.rows())).mean()
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700)),
            "bits_per_token": loss / math.log(2),
        }, {}


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    if len(runs) > 1:
        return {"orders": orders(runs)}
    run = runs[0]
    drawn = (
        {"loss": curves.loss(runs, ("all/loss",), ylabel="nats a character")} if run.config.network else {}
    )
    if run.config.model.order == 2 and not run.config.data.words:
        drawn["bigrams"] = table(run)
    return drawn


def orders(runs):
    """Perplexity of the validation part against the order, by smoothing; where it is infinite no point is drawn."""
    figure, axes = style.new()
    lines = {}
    for run in sorted(runs, key=lambda run: run.config.model.order):
        model = run.config.model
        name = {"add": f"{model.k:g} added", "interpolated": "interpolated", "kneser_ney": "Kneser-Ney"}
        lines.setdefault(name[model.smoothing], []).append((model.order, last(run, "perplexity")))
    for (name, points), marker in zip(lines.items(), style.MARKERS, strict=False):
        points = [point for point in points if point[1] < 1e300]
        axes.plot(*np.transpose(points).reshape(2, -1), marker=marker, label=name)
    axes.set(xlabel="order", ylabel="perplexity", yscale="log")
    axes.set_xticks(sorted({run.config.model.order for run in runs}))
    axes.legend()
    return figure


def last(run, name):
    row = run.metrics().iloc[-1]
    return next(row[key] for key in (f"validation/{name}", f"all/{name}") if key in row)


def table(run):
    """P(next | this) of each pair of characters."""
    tokenizer = Lines(run.config.data.path, run.assets).tokenizer
    params = jax.device_get(run.variables["params"])
    if run.config.network:
        p = shares(run.variables)
    else:
        model = NGram(tokenizer.vocab_size, **run.config.model)
        p = np.stack([model.distribution(params, np.array([i])) for i in range(tokenizer.vocab_size)])
    names = ["<end>", *tokenizer.characters]
    figure, axes = style.new(width=4.6, height=4.2)
    image = axes.imshow(p, vmin=0, cmap="Blues")
    axes.set_xticks(range(len(names)), names, fontsize=5, rotation=90)
    axes.set_yticks(range(len(names)), names, fontsize=5)
    axes.set(xlabel="next character", ylabel="character")
    style.colorbar(figure, image, axes, "probability")
    return figure
