"""What a GRU's state keeps of a sentence: its gates over words, and the number of the subject, read off by a line.

A language model of words (Cho et al. 2014) on WikiText-2, in which the vocabulary is cut to the 12,000 most frequent
words, so its perplexity stands beside no published one. A probe (Alain and Bengio 2017), linear and fitted on sentences
of other nouns, tells from the state whether the subject was singular or plural, at each word up to the verb:
"The leaves , as the weather turned cold in New Haven , fell". A second noun stands between, of the same number or the
other. Beside it the same probe reads an untrained GRU, the mean of the trained vectors of all words so far, and that of
the last word; and the model itself chooses between was and were (Linzen, Dupoux and Goldberg 2016).

    lmlab train --config=experiments/gru_memory.py:demo --workdir=runs/memory-demo
    lmlab train --config=experiments/gru_memory.py:cpu  --workdir=runs/memory      # needs WikiText-2
    lmlab evaluate --workdir=runs/memory         # test perplexity, and the probe on nouns that it has not met
    lmlab figures --workdir=runs/memory          # the loss, the gates over a sentence, accuracy against distance

demo: half a minute; a generated grammar in place of WikiText-2. cpu: a quarter of an hour on one core. default: 650
units and all 33,278 words, for a GPU (not run). Each window begins with an empty state. The strength of the probe is
given.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.data import agreement, text
from lmlab.data.corpus import FILES, Corpus
from lmlab.data.tokenizers import WordTokenizer, special
from lmlab.decoding.text import text_sampler
from lmlab.evaluation import probe
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment
from lmlab.figures import curves, maps, style
from lmlab.models.recurrent_lm import RecurrentLM
from lmlab.tasks import NextToken
from lmlab.training import optimizer

FAMILY, PAPER = "recurrent", "Cho et al. 2014; Linzen et al. 2016; Alain and Bengio 2017"
VARIANTS = {
    "demo": "64 units on sentences of a grammar: half a minute",
    "cpu": "128 units, the 12,000 most frequent words, 2 epochs",
}
SENTENCE = "The leaves , as the weather turned cold in New Haven , fell silently from the trees in November ."
READERS = {
    "state": "state of the GRU",
    "untrained": "state of an untrained GRU",
    "bag": "mean of the word vectors so far",
    "last": "vector of the last word",
}


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="40 epochs",
        batch_size=32,
        evaluate_every="10 %",
        model={"cell": "gru", "num_layers": 1, "d_model": 650, "dropout": 0.5, "tie_embeddings": True},
        data={"path": "text/wikitext-2", "vocab_size": 0, "context": 64},
        probe={"each": 10, "decay": 0.01},
        optimizer={"learning_rate": 2e-3, "schedule": "cosine", "warmup": "100 steps", "clip": 1.0},
    )
    if "cpu" in parts:
        config.update(duration="2 epochs")
        config.data.vocab_size = 12_000  # leaf is the 10,495th
        config.model.update(d_model=128, dropout=0.0)
        config.optimizer.learning_rate = 5e-3
    if "demo" in parts:
        config.update(duration="16 epochs")
        config.data.update(path="", context=32)
        config.model.update(d_model=64, dropout=0.0)
        config.optimizer.learning_rate = 1e-2
        config.probe.each = 2
    return config


def build(config, assets):
    train = functools.partial(
        WordTokenizer.train, vocab_size=config.data.vocab_size, specials=("<unk>", "<end>")
    )
    parts = tuple(zip(FILES, (0.8, 0.1, 0.1), strict=True))
    kind = Corpus if config.data.path else agreement.Grammar
    corpus, context = kind(config.data.path, assets, parts, train, learn="train"), config.data.context
    model = RecurrentLM(vocab_size=corpus.tokenizer.vocab_size, **config.model)
    task = NextToken(model)
    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: text.windows(corpus.ids["train"], context, config.batch_size, config.seed),
        evaluations={
            "validation": Perplexity(task, corpus.windows("validation", context)),
            "test": Perplexity(task, corpus.windows("test", context), held_out=True),
            "probe": SubjectNumber(model, corpus.tokenizer, **config.probe),
        },
        sample=text_sampler(model, corpus.tokenizer),
        show=text.show_text(corpus.tokenizer),
        tokens=context,
        dynamic=("optimizer.learning_rate", "optimizer.weight_decay", "model.dropout"),
    )


class Perplexity(Likelihood):
    """The loss a word, the end of a line being one, and its exponential."""

    def __call__(self, variables, key):
        scalars, arrays = super().__call__(variables, key)
        return scalars | {"perplexity": math.exp(min(scalars["loss"], 700))}, arrays


@dataclasses.dataclass(frozen=True)
class SubjectNumber:
    """How often a probe finds the subject's number, by reader (READERS), on nouns that it was not fitted on.

    Scalars are of the state before the verb: `state`, and `state_other` of those sentences alone whose other noun has
    the other number; `agrees`: how often was or were, the likelier, is right. Arrays, for each sentence: whether it is
    right at each distance from the subject, up to the verb.
    """

    model: nn.Module
    tokenizer: WordTokenizer
    each: int = 10
    decay: float = 0.01
    held_out: bool = True

    def __call__(self, variables, key):
        del key
        params = {"params": variables["params"]}
        known = set(self.tokenizer.words).__contains__
        fitted, scored = (
            agreement.sentences(nouns, self.each, seed) for seed, nouns in enumerate(agreement.parted(known))
        )
        rows = encode(self.tokenizer, fitted.texts + scored.texts)
        read = vectors(self.model, params, rows)
        fresh = jax.jit(self.model.init)(jax.random.key(0), jnp.asarray(rows[:1]))
        read["untrained"] = vectors(self.model, nn.meta.unbox(fresh), rows)["state"]
        count, differs = len(fitted.texts), scored.plural != scored.other_plural
        arrays, scalars = {"differs": differs, "noun": scored.noun}, {}
        for reader in READERS:
            at = read[reader][:, SUBJECT:]  # by distance from the subject
            found = np.stack(
                [probe.fit(x[:count], fitted.plural, self.decay)(x[count:]) > 0 for x in at.swapaxes(0, 1)]
            )
            arrays[reader] = found == scored.plural[None]
        before = read["state"][count:, SUBJECT + agreement.VERB - 1]
        after = jax.jit(lambda p, h: self.model.apply(p, h, method=logits))(params, jnp.asarray(before))
        was, were = self.tokenizer.encode("was were")
        arrays["agrees"] = np.asarray(after[:, were] > after[:, was]) == scored.plural
        for name in (*READERS, "agrees"):
            right = arrays[name][agreement.VERB - 1] if name in READERS else arrays[name]
            scalars |= {name: right.mean(), f"{name}_other": right[differs].mean()}
        return scalars, arrays


SUBJECT = 2  # its place: after <end>, which ends the line before, and The


def encode(tokenizer, texts):
    """Ids of texts with as many words each, after the end of a line."""
    end = special(tokenizer, "<end>")
    return np.stack([np.append(np.int32(end), tokenizer.encode(line)) for line in texts])


def vectors(model, variables, rows):
    """What a probe may read: states, the means of word vectors so far and those vectors, each (N, T, D)."""
    ids = jnp.asarray(rows)
    h = jax.jit(lambda variables, ids: model.apply(variables, ids, method=states))(variables, ids)
    words = variables["params"]["embed"]["embedding"][ids]
    so_far = jnp.cumsum(words, axis=1) / jnp.arange(1, ids.shape[1] + 1)[None, :, None]
    return {name: np.asarray(array) for name, array in (("state", h), ("bag", so_far), ("last", words))}


def states(model, ids):
    """Of the last layer, after each token."""
    return model.recurrent(model.embed(ids))[0]


def logits(model, h):
    """Of the next token, after states."""
    return model.embed.attend(h) if model.tie_embeddings else model.head(h)


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    drawn = {"loss": curves.loss(runs, ylabel="nats a word")}
    if len(runs) == 1:
        model, tokenizer = runs[0].experiment.task.model, runs[0].experiment.evaluations["probe"].tokenizer
        ids = encode(tokenizer, [SENTENCE])
        kept = {name: gate[1:] for name, gate in gates(model, runs[0].variables, ids).items()}
        drawn["gates"] = maps.activations(kept, [tokenizer.decode([i]) for i in ids[0, 1:]])
        drawn["probe"] = distances(runs[0].arrays("probe"))
    return drawn


def gates(model, variables, ids):
    """{name: (T, H)} of the last layer over the one row of `ids`."""
    apply = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))
    _, kept = apply({"params": variables["params"]}, jnp.asarray(ids))
    layer = kept["intermediates"]["recurrent"][f"gates_{model.num_layers - 1}"][0]
    return {name: np.asarray(value[0]) for name, value in layer.items()}


def distances(arrays):
    """Accuracy of each reader against the distance from the subject, with 95 % intervals over nouns."""
    figure, ((same, other),) = style.new(1, 2, width=style.PAGE, height=2.9)
    places = np.arange(agreement.VERB + 1)
    for one, differs in ((same, False), (other, True)):
        chosen = arrays["differs"] == differs
        for color, line, (reader, label) in zip(style.COLORS, style.LINES, READERS.items(), strict=False):
            right = arrays[reader][:, chosen]
            low, high = np.transpose([probe.interval(row, arrays["noun"][chosen]) for row in right])
            one.plot(places, right.mean(1), color=color, linestyle=line, label=label)
            one.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0, label=f"_{label}")
        one.set(xlabel="words after the subject (11: the verb)", ylim=(-0.03, 1.03))
        one.set_title(f"the other noun is of {'the other' if differs else 'the same'} number")
    same.set_ylabel("accuracy of the probe")
    same.legend(loc="lower left")
    return figure
