"""A character-level GPT, with the settings of nanoGPT.

nanoGPT (github.com/karpathy/nanoGPT, README, "quick start") trains it on tiny shakespeare and prints a
validation loss of 1.88 for its CPU setting (an estimate from 20 batches) and 1.4697 as the best of
its GPU setting.

    lmlab train --config=experiments/gpt_char.py:demo --workdir=runs/demo
    lmlab train --config=experiments/gpt_char.py:cpu  --workdir=runs/gpt      # needs tiny shakespeare
    lmlab sample --workdir=runs/gpt --prompt="ROMEO:" --temperature=0.8 --top_k=40

demo: a minute on two cores. cpu: two minutes. default: minutes on a GPU, hours on two cores.
An epoch is a permutation of the windows of the context that lie side by side from a shift of its own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.data import text
from lmlab.data.corpus import Corpus
from lmlab.decoding.text import text_sampler
from lmlab.evaluation.likelihood import Likelihood, batched
from lmlab.experiment import Experiment, Target
from lmlab.figures import curves, maps
from lmlab.models.gpt import GPT, flops_per_token
from lmlab.tasks import NextToken
from lmlab.training import optimizer

FAMILY, PAPER = "transformer", "Radford et al. 2019; nanoGPT"
VARIANTS = {
    "demo": "the CPU setting on the Python reference, which every Python carries: a minute",
    "cpu": "nanoGPT's CPU setting on tiny shakespeare: 4 layers, width 128, context 64, 2,000 steps",
    "stream": "batches cut by Grain from a memory-mapped file: for text larger than memory",
}
TARGETS = {
    "cpu": [
        Target("validation/loss", 1.92),
        Target("validation_20_batches/loss", 1.92, 1.88, "nanoGPT README, an estimate from 20 batches"),
    ],
    "": [Target("validation/loss@best", 1.50, 1.4697, "nanoGPT README, the best of its evaluations")],
}
SENTENCE = "The king is dead, and the queen is asleep."


def get_config(variant=""):
    config = configs.base(
        duration="5000 steps",
        batch_size=64,
        precision="bf16",
        log_every="1 %",
        evaluate_every="5 %",
        checkpoint={"every": "5 %", "best": "validation/loss"},
        model={
            "num_layers": 6,
            "num_heads": 6,
            "d_model": 384,
            "context": 256,
            "dropout": 0.2,
            "bias": False,
            "remat": False,  # True: activations are computed twice and not kept
        },
        data={"path": "text/tinyshakespeare.txt"},
        optimizer={
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "warmup": "100 steps",
            "final": 0.1,
            "b2": 0.99,  # few tokens a step: a longer memory than usual
            "weight_decay": 0.1,
            "clip": 1.0,
        },
    )
    parts = variant.split(",")
    if "cpu" in parts or "demo" in parts:
        config.update(duration="2000 steps", batch_size=12, evaluate_every="10 %", precision="float32")
        config.model.update(num_layers=4, num_heads=4, d_model=128, context=64, dropout=0.0)
    if "demo" in parts:
        config.update(duration="1000 steps")
        config.data.path = ""
    config.data.stream = "stream" in parts
    return config


def build(config, assets):
    corpus = Corpus(config.data.path, assets)
    model = GPT(vocab_size=corpus.tokenizer.vocab_size, **config.model)
    task = NextToken(model)
    context = model.context

    def train_data():
        cut = text.stream_windows if config.data.stream else text.windows
        source = cut(corpus.ids["train"], context, config.batch_size, config.seed)
        if len(corpus.ids["validation"]) <= context:
            raise ValueError(
                f"the validation part has {len(corpus.ids['validation'])} characters, fewer than the context of"
                f" {context} and one more; a longer text is needed"
            )
        return source

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=train_data,
        evaluations={
            "validation": Likelihood(task, corpus.windows("validation", context), bits=True),
            "validation_20_batches": RandomBatches(task, lambda: corpus.ids["validation"], config.batch_size),
        },
        sample=text_sampler(model, corpus.tokenizer),
        show=text.show_text(corpus.tokenizer),
        flops=lambda count: context * flops_per_token(count, model.num_layers, model.d_model, context),
        tokens=context,
        dynamic=("optimizer.learning_rate", "optimizer.weight_decay", "model.dropout"),
    )


class RandomBatches(Likelihood):
    """nanoGPT's estimate: the mean loss of 20 batches of windows drawn anywhere in the split."""

    def __call__(self, variables, key):
        ids, context = self.data(), self.task.model.context
        starts = np.asarray(jax.random.randint(key, (20 * self.batch_size, 1), 0, len(ids) - context))
        batches = batched({"tokens": ids[starts + np.arange(context + 1)]}, self.batch_size)
        return {"loss": self.score(variables, key, batches)["loss"]}, {}


def figures(runs):
    drawn = {"loss": curves.loss(runs, ylabel="nats a character")}
    if len(runs) == 1:
        drawn["attention"] = attention_maps(runs[0], SENTENCE)
    return drawn


def attention_maps(run, sentence):
    """The weights of every head on a text: rows are the positions that attend."""
    model, tokenizer = run.experiment.task.model, Corpus(run.config.data.path, run.assets).tokenizer
    text = "".join(character for character in sentence if character in tokenizer.characters)[: model.context]
    tokens = jnp.asarray(tokenizer.encode(text))[None]
    _, kept = model.apply(run.variables, tokens, mutable=["intermediates"])
    layers = kept["intermediates"]["transformer"]
    weights = [layers[f"blocks_{i}"]["attention"]["weights"][0][0] for i in range(model.num_layers)]
    return maps.attention(np.stack(weights), list(text), list(text))
