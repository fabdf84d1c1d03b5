"""A plain RNN, the GRU in both its forms and the LSTM with as many parameters, on characters (Chung et al. 2014).

Each is one layer of as many units as make 110,000 parameters (128 of the LSTM, 276 of the plain RNN), with the same
text, batches and four learning rates; the rate with the lowest mean validation loss is taken, and the held-out last
twentieth of the text is read with that one alone. Chung et al. compare on polyphonic music (negative log-likelihood
on JSB Chorales: GRU 8.54, LSTM 8.67, tanh above 9) and find gated units ahead of plain ones, and no winner among them.
Bar: in every seed each gated cell is ahead of the plain one; the rest is reported.

    lmlab train --config=experiments/cells.py:lstm,demo --workdir=runs/cells-demo
    lmlab sweep --config=experiments/cells.py --workdir=sweeps/cells      # 4 cells, 4 rates, 3 seeds: needs the text
    lmlab figures --workdir=sweeps/cells
    lmlab sweep --config=experiments/cells.py --workdir=sweeps/cells --launcher=vmap     # the same, a cell a program

demo: half a minute a run on the Python reference. cpu, the default: half a minute a run on one core, on tiny
shakespeare; the sweep some 20 minutes.
"""

import functools
import math

from lmlab import config as configs
from lmlab.data import text
from lmlab.data.corpus import Corpus
from lmlab.decoding.text import text_sampler
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment
from lmlab.figures import curves, style
from lmlab.layers.recurrent import CELLS, check_cell
from lmlab.models.recurrent_lm import RecurrentLM
from lmlab.tasks import NextToken
from lmlab.training import optimizer

FAMILY, PAPER = "recurrent", "Chung et al. 2014"
VARIANTS = {
    "demo": "the Python reference, which every Python carries, 300 steps: half a minute",
    "cpu": "tiny shakespeare, 1,000 steps: the same as no variant",
    "rnn": "plain recurrent cells",
    "gru": "gated recurrent units, reset gate outside the linear map",
    "gru_inside": "gated recurrent units, reset gate inside the linear map",
    "lstm": "long short-term memory (the default)",
    "lr3e-3": "learning rate 0.003 (the default)",
    "lr1e-2": "learning rate 0.01",
    "lr3e-2": "learning rate 0.03",
    "lr1e-1": "learning rate 0.1",
}
NAMES = {"rnn": "RNN", "gru": "GRU", "gru_inside": "GRU, reset inside", "lstm": "LSTM"}


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="1000 steps",
        evaluate_every="10 %",
        checkpoint={"every": "50 %"},
        model={
            "cell": next((cell for cell in NAMES if cell in parts), "lstm"),
            "parameters": 110_000,
            "d_embed": 64,
        },
        data={"path": "text/tinyshakespeare.txt", "context": 64},
        optimizer={
            "learning_rate": next((float(part[2:]) for part in parts if part.startswith("lr")), 3e-3),
            "schedule": "cosine",
            "warmup": "5 %",
            "final": 0.1,
            "clip": 1.0,
        },
    )
    if "demo" in parts:
        config.duration = "300 steps"
        config.data.path = ""
    return config


def units(cell, parameters, vocab_size, d_embed):
    """The units H of one layer for so many parameters, to the nearest: a root of a square equation.

    V D of the embeddings, g (D H + H^2 + H) of a cell with g maps, H more of GRU form A, (H + 1) V of the logits.
    """
    check_cell(cell)
    maps = sum(CELLS[cell][1])
    linear = maps * (d_embed + 1) + (cell == "gru") + vocab_size
    rest = parameters - vocab_size * (d_embed + 1)
    found = round((math.sqrt(linear**2 + 4 * maps * max(rest, 0)) - linear) / (2 * maps))
    if found < 1:
        least = vocab_size * (d_embed + 1) + linear + maps
        raise ValueError(f"model.parameters: received {parameters:,}; allowed: {least:,} or more, one unit's")
    return found


def build(config, assets):
    corpus = Corpus(config.data.path, assets, (("train", 0.9), ("validation", 0.05), ("test", 0.05)))
    vocab_size, context, sizes = corpus.tokenizer.vocab_size, config.data.context, config.model
    features = units(sizes.cell, sizes.parameters, vocab_size, sizes.d_embed)
    model = RecurrentLM(vocab_size, sizes.cell, d_model=features, d_embed=sizes.d_embed)
    task = NextToken(model)
    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: text.windows(corpus.ids["train"], context, config.batch_size, config.seed),
        evaluations={
            "validation": Likelihood(task, corpus.windows("validation", context)),
            "test": Likelihood(task, corpus.windows("test", context), held_out=True),
        },
        sample=text_sampler(model, corpus.tokenizer),
        show=text.show_text(corpus.tokenizer),
        tokens=context,
        dynamic=("optimizer.learning_rate", "optimizer.weight_decay"),
    )


def sweep():
    for cell in NAMES:
        for rate in ("lr3e-3", "lr1e-2", "lr3e-2", "lr1e-1"):
            for seed in range(3):
                yield {"variant": f"{cell},{rate}", "seed": seed}


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    """Of one run its loss; of several each cell at its best rate, and each seed's loss at every rate."""
    if len(runs) == 1:
        return {"loss": curves.loss(runs, ylabel="nats a character")}
    of = {cell: [run for run in runs if run.config.model.cell == cell] for cell in NAMES}
    best = {cell: curves.best_rate(of[cell]) for cell in NAMES if of[cell]}

    def label(run):
        return f"{NAMES[run.config.model.cell]}, rate {run.config.optimizer.learning_rate:g}"

    chosen = [run for cell in best for run in best[cell]]
    options = {"metrics": ("validation/loss",), "label": label, "ylabel": "validation, nats a character"}
    return {
        "tokens": curves.loss(chosen, x="tokens", **options),
        "rates": rates(of),
        "seeds": seeds(best),
    }


def rates(of):
    """The last validation loss against the learning rate: a point a run, a line through the means of a cell."""
    figure, axes = style.new()
    for (cell, runs), color, marker in zip(of.items(), style.COLORS, style.MARKERS, strict=False):
        points = {}
        for run in runs:
            points.setdefault(run.config.optimizer.learning_rate, []).append(
                curves.last(run, "validation/loss")
            )
        if points:
            x = sorted(points)
            means = [sum(points[rate]) / len(points[rate]) for rate in x]
            axes.plot(x, means, color=color, label=NAMES[cell])
            pairs = [(rate, value) for rate in x for value in points[rate]]
            axes.scatter(
                *zip(*pairs, strict=True), s=10, color=color, marker=marker, label=f"_{NAMES[cell]}, runs"
            )
    axes.set(xlabel="learning rate", ylabel="validation, nats a character", xscale="log")
    axes.legend()
    return figure


def seeds(best):
    """Each cell at its best rate: a line a seed, so that an order that every seed agrees on is seen."""
    figure, axes = style.new()
    losses = {}
    for place, runs in enumerate(best.values()):
        for run in runs:
            losses.setdefault(run.config.seed, []).append((place, curves.last(run, "validation/loss")))
    for seed, pairs in sorted(losses.items()):
        axes.plot(*zip(*pairs, strict=True), marker="o", label=f"seed {seed}")
    axes.set_xticks(range(len(best)), [NAMES[cell].replace(", ", "\n") for cell in best])
    axes.set(ylabel="validation, nats a character")
    axes.legend()
    return figure
