"""A GRU that reads sentences of film reviews and says whether they praise, from scratch or from word vectors.

The data are the 10,662 sentences of Pang and Lee 2005 (MR), split once, 80, 10 and 10 %, by a seed of its own. Kim 2014
printed 76.1 % (random vectors) and 81.0 % (vectors of 100 billion words of news, kept) of a convolutional network
in ten-fold cross validation: another protocol, and so context.

    lmlab train --config=experiments/sentiment.py:demo --workdir=runs/sentiment-demo
    lmlab train --config=experiments/sentiment.py:cpu --workdir=runs/sentiment/scratch      # needs the sentences
    lmlab train --config=experiments/word_vectors.py:skipgram,cpu --workdir=runs/word_vectors
    lmlab train --config=experiments/sentiment.py:pretrained,cpu --workdir=runs/sentiment/pretrained
    lmlab evaluate --workdir=runs/sentiment/pretrained
    lmlab sample --workdir=runs/sentiment/pretrained --sentence="a moving and clever film ."
    lmlab figures --workdir=runs/sentiment

`pretrained` begins from the vectors of the run that data.vectors names (runs/word_vectors); words that are not in it
begin at random, with the same deviation. How many are is kept in assets/vectors.json.

demo: seconds, on sentences of a small grammar. cpu, the default: a minute on one core.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.data.reviews import KINDS, Reviews
from lmlab.data.tokenizers import tokenizer_from_json
from lmlab.evaluation.likelihood import Likelihood
from lmlab.evaluation.words import fold
from lmlab.experiment import Experiment, Samples, read_json
from lmlab.figures import curves
from lmlab.models.classifier import Classify
from lmlab.models.sentence_classifier import SentenceClassifier
from lmlab.sources import Resident
from lmlab.training import optimizer

FAMILY, PAPER = "classifier", "Pang and Lee 2005; Cho et al. 2014; Kim 2014"
VARIANTS = {
    "demo": "sentences of a small grammar: seconds",
    "cpu": "the sentences of Pang and Lee: the same as no variant",
    "pretrained": "begins from the word vectors of runs/word_vectors; with demo, of none",
}


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="8 epochs",
        batch_size=64,
        evaluate_every="12.5 %",
        model={"cell": "gru", "num_layers": 1, "d_embed": 100, "d_model": 100, "dropout": 0.5},
        data={"path": "sentiment", "split_seed": 0, "min_count": 1, "length": 60, "vectors": ""},
        optimizer={"learning_rate": 1e-3, "clip": 1.0},
    )
    if "pretrained" in parts:
        config.data.vectors = "runs/word_vectors"
    if "demo" in parts:
        config.optimizer.learning_rate = 5e-3
        config.data.update(path="", vectors="")
        config.model.update(d_embed=20, d_model=20, dropout=0.0)
    return config


def build(config, assets):
    data = dict(config.data)
    vectors = data.pop("vectors")
    reviews = Reviews(assets=assets, **data)
    model = SentenceClassifier(reviews.tokenizer.vocab_size, **config.model)
    task = Classify(model, "tokens")
    start = None
    if vectors:
        found = functools.cache(lambda: known_vectors(vectors, reviews.tokenizer, config.model.d_embed))
        assets.get("vectors.json", lambda: coverage(vectors, found(), reviews))
        start = functools.partial(begin_from, found)

    def show(batch):
        lines = zip(batch["label"], batch["tokens"], strict=True)
        return Samples([f"{KINDS[label]}: {reviews.tokenizer.decode(row[row > 0])}" for label, row in lines])

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: Resident.of(reviews.arrays("train"), config.batch_size, config.seed),
        evaluations={
            part: Likelihood(task, functools.partial(reviews.arrays, part), 256, held_out=part == "test")
            for part in ("validation", "test")
        },
        init_from=start,
        sample=judge(model, reviews.tokenizer),
        show=show,
        dynamic=("optimizer.learning_rate", "model.dropout"),
    )


def known_vectors(folder, tokenizer, d_embed):
    """{id of a word: its vector} of those that a run of word_vectors.py knows, whatever their case."""
    from lmlab.run import Run

    run = Run(folder)
    table = run.variables["params"].get("input", {}).get("embedding")
    if table is None:
        raise ValueError(f"data.vectors: {folder!r} is a run of {run.spec}, which has no word vectors")
    if table.shape[1] != d_embed:
        raise ValueError(
            f"data.vectors: those of {folder!r} have {table.shape[1]} features; model.d_embed is {d_embed}"
        )
    there = tokenizer_from_json(read_json(run.folder / "assets" / "tokenizer.json"))
    table, places = np.asarray(table)[len(there.specials) :], fold(there.words)
    ids = enumerate(tokenizer.words, len(tokenizer.specials))
    found = {i: table[places[word.upper()]] for i, word in ids if word.upper() in places}
    if not found:
        raise ValueError(f"data.vectors: {folder!r} knows none of the {len(tokenizer.words):,} words")
    return found


def coverage(folder, found, reviews):
    """What a run keeps of where its vectors came from."""
    from lmlab.evaluation.frechet import hash_of

    tokens = reviews.arrays("train")["tokens"]
    counts = np.bincount(tokens[tokens > 0], minlength=reviews.tokenizer.vocab_size)
    return {
        "run": str(folder),
        "sha256": hash_of([found[i] for i in sorted(found)]),
        "words": len(reviews.tokenizer.words),
        "known": len(found),
        "known_of_training_text": round(float(counts[sorted(found)].sum() / counts.sum()), 4),
    }


def begin_from(found, params):
    """The parameters with the rows of known words from elsewhere, and the others scaled to the same deviation."""
    table = np.array(params["embed"]["embedding"])
    ids, rows = list(found()), np.stack(list(found().values()))
    table *= rows.std() / table.std()
    table[ids] = rows
    return {**params, "embed": {"embedding": jnp.asarray(table)}}


def judge(model, tokenizer):
    """The `sample` of the experiment."""

    def sample(variables, key, *, sentence: str = "a film .") -> Samples:
        """How likely a sentence is to praise.

        sentence: its words, apart by spaces, as the reviews have them: lower case, punctuation by itself
        """
        tokens = tokenizer.encode(sentence)
        if not len(tokens):
            raise ValueError("sentence: received none; at least one word is needed")
        p = jax.nn.softmax(model.apply(variables, jnp.asarray(tokens)[None])[0])
        return Samples(texts=[f"{p[1]:.3f} {sentence}"], arrays={"probability": np.asarray(p)})

    return sample


def figures(runs):
    def label(run):
        return "from word vectors" if run.config.data.vectors else "from scratch"

    options = {"label": label} if len(runs) > 1 else {}
    accuracy = ("validation/accuracy",)
    return {
        "loss": curves.loss(runs, **options),
        "accuracy": curves.loss(runs, accuracy, ylabel="accuracy, validation", **options),
    }
