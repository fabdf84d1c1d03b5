"""A GPT against a GRU and an LSTM with as many parameters, the same text, tokens and learning rates.

nanoGPT's CPU setting (0.80 million parameters) beside two layers of 253 GRU units and of 220 LSTM units:
the loss against tokens and against seconds. Each arm has three learning rates; the one with the lowest
mean validation loss is taken, and the held-out last twentieth of the text is read with that one alone.

    for arm in gpt gru lstm; do for rate in 1e-3 3e-3 1e-2; do for seed in 0 1 2; do
      lmlab train --config=experiments/gpt_or_rnn.py:$arm,lr$rate --config.seed=$seed \\
          --workdir=runs/gpt_or_rnn/$arm-$rate/$seed
    done; done; done
    lmlab figures --workdir=runs/gpt_or_rnn
    lmlab evaluate --workdir=runs/gpt_or_rnn/gru-1e-2     # the rate that was best on the validation text

demo: a minute a run on the Python reference. cpu, the default: two minutes a run on tiny shakespeare.
"""

import functools

from lmlab import config as configs
from lmlab.data import text
from lmlab.data.corpus import Corpus
from lmlab.decoding.text import text_sampler
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment
from lmlab.figures import curves
from lmlab.models.gpt import GPT
from lmlab.models.recurrent_lm import RecurrentLM
from lmlab.tasks import NextToken
from lmlab.training import optimizer

FAMILY, PAPER = "transformer", "a comparison of our own"
VARIANTS = {
    "demo": "the Python reference, which every Python carries, 500 steps: half a minute",
    "cpu": "tiny shakespeare, 2,000 steps: the same as no variant",
    "gpt": "4 layers, 4 heads, width 128 (the default)",
    "gru": "2 layers of 253 gated recurrent units",
    "lstm": "2 layers of 220 LSTM units",
    "lr1e-3": "learning rate 0.001 (the default)",
    "lr3e-3": "learning rate 0.003",
    "lr1e-2": "learning rate 0.01",
}
NAMES = {"gpt": "GPT", "gru": "GRU", "lstm": "LSTM"}


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="2000 steps",
        batch_size=12,
        evaluate_every="5 %",
        checkpoint={"every": "20 %"},
        arm=next((arm for arm in NAMES if arm in parts), "gpt"),
        data={"path": "text/tinyshakespeare.txt", "context": 64},
        optimizer={
            "learning_rate": next((float(part[2:]) for part in parts if part.startswith("lr")), 1e-3),
            "schedule": "cosine",
            "warmup": "100 steps",
            "final": 0.1,
            "b2": 0.99,
            "weight_decay": 0.1,
            "clip": 1.0,
        },
    )
    if "demo" in parts:
        config.duration = "500 steps"
        config.data.path = ""
    return config


def build(config, assets):
    if config.arm not in NAMES:
        raise ValueError(f"arm: received {config.arm!r}; allowed: {', '.join(NAMES)}")
    corpus = Corpus(config.data.path, assets, (("train", 0.9), ("validation", 0.05), ("test", 0.05)))
    vocab_size, context = corpus.tokenizer.vocab_size, config.data.context
    if config.arm == "gpt":
        model = GPT(vocab_size, context, num_layers=4, num_heads=4, d_model=128, bias=False)
    else:
        units = {"gru": 253, "lstm": 220}[config.arm]
        model = RecurrentLM(vocab_size, config.arm, num_layers=2, d_model=units)
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
    for arm in NAMES:
        for rate in ("lr1e-3", "lr3e-3", "lr1e-2"):
            for seed in range(3):
                yield {"variant": f"{arm},{rate}", "seed": seed}


def figures(runs):
    """Validation loss of each arm at its best learning rate, against tokens and against seconds."""
    best = [run for arm in NAMES for run in curves.best_rate([r for r in runs if r.config.arm == arm])]

    def label(run):
        return f"{NAMES[run.config.arm]}, rate {run.config.optimizer.learning_rate:g}"

    metrics = ("validation/loss",)
    return {
        "tokens": curves.loss(best, metrics, x="tokens", label=label, ylabel="validation, nats a character"),
        "seconds": curves.loss(
            best, metrics, x="seconds", label=label, ylabel="validation, nats a character"
        ),
    }
