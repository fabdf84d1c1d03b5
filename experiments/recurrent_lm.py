"""Recurrent language models of characters and of words: a plain RNN, the GRU in both its forms, the LSTM.

Mikolov et al. 2010 (RNN), Hochreiter and Schmidhuber 1997 (LSTM), Cho et al. 2014 (GRU). The GRU's reset
gate stands outside the linear map, as in cuDNN (`gru`), or inside it, as in the paper (`gru_inside`).

    lmlab train --config=experiments/recurrent_lm.py:gru,demo --workdir=runs/gru-demo
    lmlab train --config=experiments/recurrent_lm.py:lstm,cpu --workdir=runs/lstm   # needs tiny shakespeare
    lmlab figures --workdir=runs/gru-demo        # the loss, and the gates over a sentence

demo: a minute on two cores. cpu: two minutes. default: 3 layers of 512 units, for a GPU (not run).
Each window begins with an empty state; an epoch is a permutation of windows, as in gpt_char.py.

Words of WikiText-2 (Merity et al. 2017) as in PyTorch's example word_language_model: two layers, tied embeddings, the
text as 20 streams side by side, the state carried from window to window and empty at the start of an epoch. Adam
stands in place of its SGD at a rate of 20.

    lmlab train --config=experiments/recurrent_lm.py:wikitext,lstm,cpu --workdir=runs/wikitext
    lmlab evaluate --workdir=runs/wikitext                # the validation and test texts, each as one sequence
    python -m benchmarks.wikitext_lstm                    # the same LSTM in PyTorch, by the same recipe

wikitext,cpu: 200 units, one epoch, 26 minutes on one core. wikitext: 650 units, dropout 0.5, 40 epochs, for a GPU (not
run). Bar: test perplexity within 1 % of PyTorch's. What is printed elsewhere as WikiText-2 for that example (110.44,
87.17) is of Penn Treebank.
"""

import functools

import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.data import text
from lmlab.data.corpus import Corpus
from lmlab.data.lines import lines_or_words
from lmlab.decoding.text import text_sampler
from lmlab.evaluation.likelihood import Likelihood, TextLikelihood
from lmlab.experiment import Experiment, Target
from lmlab.figures import curves, maps
from lmlab.models.recurrent_lm import Carried, RecurrentLM
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
    "wikitext": "words of WikiText-2, tied embeddings, the state carried: 2 layers of 650 units",
    "variational": "dropout by masks that hold for all times (Gal and Ghahramani 2016), rate 0.3 at least",
}
PYTORCH = 276.65  # python -m benchmarks.wikitext_lstm, seed 0: results/peers/wikitext_lstm.json
TARGETS = {
    "wikitext,lstm,cpu": [Target("test/perplexity", 1.01 * PYTORCH, PYTORCH, "PyTorch, by the same recipe")]
}
SENTENCE = "The leaves, as the weather turned cold, fell silently from the trees."
WORDS = "The river , which had risen in the spring , carried the old bridge into the sea ."


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="20 epochs",
        batch_size=64,
        evaluate_every="5 %",
        checkpoint={"every": "5 %", "best": "validation/loss"},
        model={
            "cell": "gru",
            "num_layers": 3,
            "d_model": 512,
            "dropout": 0.3,
            "variational": "variational" in parts,
            "tie_embeddings": False,
        },
        data={"path": "text/tinyshakespeare.txt", "context": 128, "words": False, "carry": False},
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
    if "wikitext" in parts:
        config.update(duration="40 epochs", batch_size=20)
        config.data.update(path="text/wikitext-2", context=35, words=True, carry=True)
        config.model.update(num_layers=2, d_model=650, dropout=0.5, tie_embeddings=True)
        config.optimizer.update(clip=0.25, warmup="2 %")
        if "cpu" in parts:
            config.update(duration="1 epoch", evaluate_every="50 %")
            config.model.update(d_model=200, dropout=0.2)
    if "demo" in parts:
        config.update(duration="1000 steps")
        config.data.path = ""
        config.model.update(num_layers=1, d_model=128)
        if "wikitext" in parts:
            config.duration = "300 steps"
            config.model.update(num_layers=2, d_model=64, dropout=0.2)
    if "variational" in parts:
        config.model.dropout = max(config.model.dropout, 0.3)
    return config


def build(config, assets):
    corpus = opened(config, assets)
    model = RecurrentLM(vocab_size=corpus.tokenizer.vocab_size, **config.model)
    task = Carried(model) if config.data.carry else NextToken(model)
    context = config.data.context
    cut = text.streams if config.data.carry else text.windows

    def likelihood(part):
        windows, held_out = corpus.windows(part, context), part == "test"
        if not config.data.carry:
            return Likelihood(task, windows, held_out=held_out, bits=True)
        num_bytes = functools.partial(corpus.num_bytes, part)
        return TextLikelihood(task, windows, held_out=held_out, start=task.start, num_bytes=num_bytes)

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: cut(corpus.ids["train"], context, config.batch_size, config.seed),
        evaluations={part: likelihood(part) for part, _ in corpus.parts if part != "train"},
        sample=text_sampler(model, corpus.tokenizer, space=" " if config.data.words else ""),
        show=text.show_text(corpus.tokenizer),
        tokens=context,
        dynamic=("optimizer.learning_rate", "optimizer.weight_decay", "model.dropout"),
    )


def opened(config, assets):
    """The text of a run: by characters in two parts, or by words in three."""
    if not config.data.words:
        return Corpus(config.data.path, assets)
    return lines_or_words(assets, path=config.data.path, words=True, split="")


def figures(runs):
    unit = "word" if runs[0].config.data.words else "character"
    drawn = {"loss": curves.loss(runs, ylabel=f"nats a {unit}")}
    if len(runs) == 1 and runs[0].config.model.cell.startswith(("gru", "lstm")):
        drawn["gates"] = gates(runs[0])
    return drawn


def gates(run):
    """The gates of the last layer over a sentence: a row a unit, a column a character or a word."""
    model, tokenizer = run.experiment.task.model, opened(run.config, run.assets).tokenizer
    if run.config.data.words:
        known = WORDS.split()
        ids = tokenizer.encode(WORDS)
    else:
        known = [character for character in SENTENCE if character in tokenizer.characters]
        ids = tokenizer.encode("".join(known))
    _, kept = model.apply(
        {"params": run.variables["params"]}, jnp.asarray(ids)[None], mutable=["intermediates"]
    )
    layer = kept["intermediates"]["recurrent"][f"gates_{model.num_layers - 1}"][0]
    return maps.activations({name: np.asarray(value[0]) for name, value in layer.items()}, known)
