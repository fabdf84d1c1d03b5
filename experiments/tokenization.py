"""One recurrent language model over characters, bytes and pairs of bytes, on the same text, in bits per byte.

Sennrich et al. 2016 (byte pair encoding), Xue et al. 2022 (bytes). A layer of 128 GRU units reads WikiText-2 as
characters, as bytes, and as tokens of vocabularies of 512, 2,048 and 8,192. WikiText-2 and not tiny shakespeare,
which is too short for most of 8,192 tokens to be seen more than a few times, and has no character of two bytes.

    for seed in 0 1 2; do for arm in characters bytes bpe512 bpe2048 bpe8192; do
      lmlab train --config=experiments/tokenization.py:$arm,lr1e-2,cpu --config.seed=$seed \\
          --workdir=runs/tokenization/$arm/$seed
    done; done
    lmlab figures --workdir=runs/tokenization
    lmlab evaluate --workdir=runs/tokenization/bpe2048
    lmlab train --config=experiments/tokenization.py:demo --workdir=runs/tokenization-demo
    lmlab data --config=experiments/tokenization.py:bpe512,demo         # the text, cut

What is the same: bytes seen, in all and in each update (a window is as many tokens as make 128 bytes of the
training text on average), updates, schedule, the parameters between embedding and logits. What is not: the
embedding and the logits grow with the vocabulary, and so does the time of a token, of which there are fewer.
Evaluation is over windows of 1,024 bytes: each begins with an empty state and one token, which is longer where
tokens are. Pairs are learned from the training part, the alphabet of characters from all parts. A text can be cut in
other ways than the tokenizer's, whose share is not added: bits per byte of pairs are an upper bound.

demo: half a minute on the Python reference. cpu, the default: 4 MB of text, a minute or two
a run on one core, four minutes with bpe8192.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from lmlab import config as configs
from lmlab.data import text
from lmlab.data.corpus import Corpus
from lmlab.data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer
from lmlab.decoding.text import text_sampler
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Samples
from lmlab.figures import curves, settings, style
from lmlab.models.recurrent_lm import RecurrentLM
from lmlab.tasks import NextToken
from lmlab.training import optimizer

FAMILY, PAPER = "recurrent", "Sennrich et al. 2016; Xue et al. 2022"
VARIANTS = {
    "demo": "the Python reference, which every Python carries: half a minute",
    "cpu": "WikiText-2: the same as no variant",
    "characters": "an id a character (the default)",
    "bytes": "an id a byte of UTF-8",
    "bpe512": "byte pair encoding, a vocabulary of 512",
    "bpe2048": "a vocabulary of 2,048",
    "bpe8192": "a vocabulary of 8,192",
    "lr3e-3": "learning rate 0.003",
    "lr1e-2": "learning rate 0.01 (the default)",
    "lr2e-2": "learning rate 0.02",
}
KINDS = ("characters", "bytes", "bpe")
SENTENCE = "The leaves, as the weather turned cold, fell silently from the trees."


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="1000 steps",
        batch_size=32,
        evaluate_every="20 %",
        checkpoint={"every": "50 %"},
        model={"cell": "gru", "num_layers": 1, "d_model": 128, "dropout": 0.0},
        data={
            "path": "text/wikitext-2",
            "tokenizer": "characters",
            "vocab_size": 0,  # of pairs of bytes
            "window": 128,  # bytes, on average
            "evaluation_window": 1024,
        },
        optimizer={
            "learning_rate": next((float(part[2:]) for part in parts if part.startswith("lr")), 1e-2),
            "schedule": "cosine",
            "warmup": "50 steps",
            "final": 0.1,
            "clip": 1.0,
        },
    )
    for part in parts:
        if part == "bytes":
            config.data.tokenizer = part
        if part.startswith("bpe"):
            config.data.update(tokenizer="bpe", vocab_size=int(part.removeprefix("bpe")))
    if "demo" in parts:
        config.update(duration="300 steps")
        config.data.path = ""
    return config


def build(config, assets):
    corpus = opened(config, assets)
    rate = assets.get("bytes_per_token.json", lambda: bytes_per_token(corpus, "train"))
    context, evaluated = (max(1, round(config.data[name] / rate)) for name in ("window", "evaluation_window"))
    model = RecurrentLM(vocab_size=corpus.tokenizer.vocab_size, **config.model)
    task = NextToken(model)

    def likelihood(part):
        return PerByte(
            task,
            corpus.windows(part, evaluated),
            64,
            held_out=part == "test",
            bits=True,
            bytes_per_token=lambda: bytes_per_token(corpus, part),
        )

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: text.windows(corpus.ids["train"], context, config.batch_size, config.seed),
        evaluations={part: likelihood(part) for part in ("validation", "test")},
        sample=text_sampler(model, corpus.tokenizer),
        show=lambda batch: Samples(
            texts=["|".join(cut(corpus.tokenizer, ids)) for ids in np.asarray(batch["tokens"])]
        ),
        tokens=context,
        dynamic=("optimizer.learning_rate", "optimizer.weight_decay", "model.dropout"),
    )


def opened(config, assets) -> Corpus:
    """The text under the tokenizer that the config names."""
    kind, size = config.data.tokenizer, config.data.vocab_size
    if kind not in KINDS:
        raise ValueError(f"data.tokenizer: received {kind!r}; allowed: {', '.join(KINDS)}")
    parts = (("train", 0.9), ("validation", 0.05), ("test", 0.05))
    train = {
        "characters": CharTokenizer.train,
        "bytes": lambda text: ByteTokenizer(),
        "bpe": functools.partial(BPETokenizer.train, vocab_size=size),
    }
    return Corpus(config.data.path, assets, parts, train[kind], learn="train" if kind == "bpe" else "")


def bytes_per_token(corpus: Corpus, part: str) -> float:
    """Of the tokens that are predicted: all but the first."""
    ids, size = corpus.ids[part], len(corpus.pieces[part].encode("utf-8"))
    if len(ids) < 2:
        return 1.0  # of which there is no window
    return (size - len(corpus.tokenizer.decode(ids[:1]).encode("utf-8"))) / (len(ids) - 1)


@dataclasses.dataclass
class PerByte(Likelihood):
    """Adds bits_per_byte = loss / (ln 2 · bytes_per_token()): vocabularies can be told apart by nothing else."""

    bytes_per_token: Callable[[], float] = lambda: 1.0

    def __call__(self, variables, key):
        scalars, arrays = super().__call__(variables, key)
        rate = self.bytes_per_token()
        return scalars | {
            "bits_per_byte": scalars["loss"] / math.log(2) / rate,
            "bytes_per_token": rate,
        }, arrays


def cut(tokenizer, ids) -> list[str]:
    """Each token as it can be read."""
    return [style.visible(tokenizer.decode([i])) for i in ids]


def name(config) -> str:
    """Of an arm."""
    kind, size = config.data.tokenizer, config.data.vocab_size
    return f"{size:,} pairs of bytes" if kind == "bpe" else kind


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    """Bits per byte against the vocabulary and against seconds, and a sentence as each tokenizer cuts it."""
    runs = sorted(runs, key=lambda run: (run.config.data.vocab_size, KINDS.index(run.config.data.tokenizer)))
    metric = ("validation/bits_per_byte",)
    label, ylabel = (lambda run: name(run.config)), "validation, bits per byte"
    drawn = {
        "seconds": curves.loss(runs, metric, x="seconds", label=label, ylabel=ylabel),
        "sentence": sentence({name(run.config): opened(run.config, run.assets).tokenizer for run in runs}),
    }
    if len({run.config.data.tokenizer for run in runs}) > 1:
        sizes = [opened(run.config, run.assets).tokenizer.vocab_size for run in runs]
        last = [run.metrics()[metric[0]].dropna().iloc[-1] for run in runs]
        drawn["vocabulary"] = settings.along(sizes, last, "vocabulary", ylabel)
    return drawn


def sentence(tokenizers):
    """SENTENCE as a row of boxes, one a token, by each tokenizer; a box is as wide as what it holds."""
    figure, axes = style.new(width=style.PAGE, height=0.5 + 0.32 * len(tokenizers))
    for row, tokenizer in enumerate(tokenizers.values()):
        known = "".join(c for c in SENTENCE if c in getattr(tokenizer, "characters", SENTENCE))
        ids, at = tokenizer.encode(known), 0
        for number, token in enumerate(cut(tokenizer, ids)):
            wide = len(tokenizer.decode([ids[number]]))
            axes.barh(row, wide, 0.8, at, color=style.COLORS[number % 2], alpha=0.25, linewidth=0)
            axes.text(at + wide / 2, row, token, ha="center", va="center", fontsize=6, parse_math=False)
            at += wide
        axes.text(at + 0.6, row, str(len(ids)), ha="left", va="center", fontsize=7)
    axes.set_yticks(range(len(tokenizers)), list(tokenizers))
    axes.set(xlabel="characters of a sentence; behind it, the number of tokens", xlim=(0, len(SENTENCE) + 4))
    axes.invert_yaxis()
    return figure


def sweep():
    for arm in ("characters", "bytes", "bpe512", "bpe2048", "bpe8192"):
        for rate in ("lr3e-3", "lr1e-2", "lr2e-2"):
            yield {"variant": f"{arm},{rate},cpu"}
