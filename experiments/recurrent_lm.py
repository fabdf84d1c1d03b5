"""Character-level recurrent language models: a plain RNN, the GRU in both its forms, the LSTM.

Mikolov et al. 2010 (RNN), Hochreiter and Schmidhuber 1997 (LSTM), Cho et al. 2014 (GRU). The GRU's reset
gate stands outside the linear map, as in cuDNN (`gru`), or inside it, as in the paper (`gru_inside`).

    lmlab train --config=experiments/recurrent_lm.py:gru,demo --workdir=runs/gru-demo
    lmlab train --config=experiments/recurrent_lm.py:lstm,cpu --workdir=runs/lstm   # needs tiny shakespeare
    lmlab figures --workdir=runs/gru-demo        # the loss, and the gates over a sentence

demo: a minute on two cores. cpu: two minutes. default: 3 layers of 512 units, for a GPU (not run).
Each window begins with an empty state; an epoch is a permutation of windows, as in gpt_char.py.
"""

import functools

import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.data import text
from lmlab.data.corpus import Corpus
from lmlab.decoding.text import text_sampler
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment
from lmlab.figures import curves, maps
from lmlab.models.recurrent_lm import RecurrentLM
from lmlab.tasks import NextToken
from lmlab.training import optimizer

FAMILY, PAPER = "recurrent", "Mikolov et al. 2010; Cho et al. 2014; Hochreiter and Schmidhuber 1997"
VARIANTS = {
    "demo": "one layer of 128 units on the Python reference, which every Python carries: a minute",
    "cpu": "two layers of 256 units on tiny shakespeare, 2,000 steps",
    "rnn": "plain recurrent cells",
    "gru": "gated recurrent units, reset gate outside the linear map (the default)",
    "gru_inside": "gated recurrent units, reset gate inside the linear map",
    "lstm": "long short-term memory",
}
SENTENCE = "The leaves, as the weather turned cold, fell silently from the trees."


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="20 epochs",
        batch_size=64,
        evaluate_every="5 %",
        checkpoint={"every": "5 %", "best": "validation/loss"},
        model={"cell": "gru", "num_layers": 3, "d_model": 512, "dropout": 0.3},
        data={"path": "text/tinyshakespeare.txt", "context": 128},
        optimizer={
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "warmup": "100 steps",
            "final": 0.1,
            "clip": 1.0,
        },
    )
    for cell in ("rnn", "gru", "gru_inside", "lstm"):
        if cell in parts:
            config.model.cell = cell
    if "cpu" in parts or "demo" in parts:
        config.update(duration="2000 steps", batch_size=32, evaluate_every="10 %")
        config.data.context = 64
        config.model.update(num_layers=2, d_model=256, dropout=0.0)
    if "demo" in parts:
        config.update(duration="1000 steps")
        config.data.path = ""
        config.model.update(num_layers=1, d_model=128)
    return config


def build(config, assets):
    corpus = Corpus(config.data.path, assets)
    model = RecurrentLM(vocab_size=corpus.tokenizer.vocab_size, **config.model)
    task = NextToken(model)
    context = config.data.context
    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: text.windows(corpus.ids["train"], context, config.batch_size, config.seed),
        evaluations={"validation": Likelihood(task, corpus.windows("validation", context), bits=True)},
        sample=text_sampler(model, corpus.tokenizer),
        show=text.show_text(corpus.tokenizer),
        tokens=context,
        dynamic=("optimizer.learning_rate", "optimizer.weight_decay", "model.dropout"),
    )


def figures(runs):
    drawn = {"loss": curves.loss(runs, ylabel="nats a character")}
    if len(runs) == 1 and runs[0].config.model.cell.startswith(("gru", "lstm")):
        drawn["gates"] = gates(runs[0], SENTENCE)
    return drawn


def gates(run, sentence):
    """The gates of the last layer over a sentence: a row a unit, a column a character."""
    model, tokenizer = run.experiment.task.model, Corpus(run.config.data.path, run.assets).tokenizer
    known = "".join(character for character in sentence if character in tokenizer.characters)
    _, kept = model.apply(
        run.variables, jnp.asarray(tokenizer.encode(known))[None], mutable=["intermediates"]
    )
    layer = kept["intermediates"]["recurrent"][f"gates_{model.num_layers - 1}"][0]
    return maps.activations({name: np.asarray(value[0]) for name, value in layer.items()}, list(known))
