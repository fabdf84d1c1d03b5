"""Word vectors from pairs of words that stand near each other, and of words that do not.

Mikolov et al. 2013: continuous bag of words (the mean of the words around predicts the one amid them) or skip-gram (a
word predicts each around it), with negative sampling. Scored by Spearman's correlation with what people said of the
pairs of WordSim-353 and by the analogies of 2013a, which `lmlab evaluate` alone reads.

    lmlab train --config=experiments/word_vectors.py:demo --workdir=runs/word_vectors-demo
    lmlab train --config=experiments/word_vectors.py:skipgram,cpu --workdir=runs/word_vectors   # needs WikiText-2
    lmlab evaluate --workdir=runs/word_vectors
    lmlab sample --workdir=runs/word_vectors --word=river
    lmlab sample --workdir=runs/word_vectors --table=5000     # two .tsv that TensorBoard's projector loads
    lmlab figures --workdir=runs/word_vectors   # the loss, words near and not near, a map
    python -m benchmarks word_vectors           # gensim by the same recipe

The recipe of cpu is gensim's own default, but for the learning rate of cbow, which is word2vec's: it belongs to their
update of a mean, in which each vector moves by the whole error (`shared`: by its share). The default is that
of word2vec's demo-word-accuracy.sh on text8 (17 million words; not run), with which no number was published.

demo: seconds. cpu: a minute or two on one core.
"""

import functools

import jax
import numpy as np

from lmlab import config as configs
from lmlab.data import text
from lmlab.data.corpus import Corpus
from lmlab.data.tokenizers import WordTokenizer, special, tokenizer_from_json
from lmlab.evaluation.likelihood import Likelihood
from lmlab.evaluation.words import Analogies, Similarity, nearest, place_of, unit
from lmlab.experiment import Experiment, Samples, Target, read_json
from lmlab.figures import curves, style
from lmlab.models.word2vec import Near, Word2Vec
from lmlab.training import optimizer

FAMILY, PAPER = "word vectors", "Mikolov et al. 2013"
VARIANTS = {
    "demo": "the words of the Python reference, which every Python carries: seconds",
    "cpu": "WikiText-2, 100 features: minutes",
    "cbow": "the mean of the words around predicts the one amid them: the default",
    "skipgram": "a word predicts each of those around it",
    "shared": "of the words around each moves by its share of the error, as the gradient says, and not by the whole",
}
# gensim's mean over three seeds (results/peers/word_vectors.json); the bar is one deviation below it.
TARGETS = {
    f"{variant},cpu": [
        Target("similarity/spearman", mean - deviation, mean, "gensim 4.4.0", higher_is_better=True)
    ]
    for variant, mean, deviation in (("skipgram", 0.3298, 0.0032), ("cbow", 0.3278, 0.0307))
}
SPECIALS = ("<unk>", "<end>")


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="15 epochs",
        batch_size=16,  # more rows at a time move the same vectors too far
        evaluate_every="20 %",
        model={
            "architecture": "skipgram" if "skipgram" in parts else "cbow",
            "d_model": 200,
            "window": 8,
            "negatives": 25,
            "drawn": 32,
            "sample": 1e-4,
            "whole": "shared" not in parts,
        },
        data={
            "path": "text/text8",
            "min_count": 5,
            "context": 64,
            "similarity": "words/wordsim353.txt",
            "analogies": "words/questions-words.txt.gz",
        },
        show=("king", "river", "army", "song", "film", "north", "school"),
        # As in word2vec: of a pair, not of the mean over a batch; to 1e-4 in the end.
        optimizer={
            "name": "sgd",
            "b1": 0.0,
            "learning_rate": 0.025 if "skipgram" in parts else 0.05,
            "schedule": "linear",
        },
    )
    if "cpu" in parts:
        config.duration = "5 epochs"
        config.data.path = "text/wikitext-2"
        config.model.update(d_model=100, window=5, negatives=5, sample=1e-3)
    if "demo" in parts:
        config.update(duration="20 epochs")
        config.data.update(path="", similarity="", analogies="")
        config.model.update(d_model=50, window=5, negatives=5, sample=1e-3)
        config.show = ("class", "list", "integer", "import", "exception", "string", "method")
    config.optimizer.final = 1e-4 / config.optimizer.learning_rate
    return config


def build(config, assets):
    data, model = config.data, dict(config.model)
    train = functools.partial(WordTokenizer.train, specials=SPECIALS, min_count=data.min_count)
    corpus = Corpus(data.path, assets, train_tokenizer=train, learn="train")
    tokenizer = corpus.tokenizer
    unknown, end = special(tokenizer, "<unk>"), special(tokenizer, "<end>")

    def known(part):
        """The ids of a part, as if other words were not there."""
        return corpus.ids[part][corpus.ids[part] != unknown]

    def count():
        counts = np.bincount(known("train"), minlength=tokenizer.vocab_size)
        counts[end] = 0
        return counts.tolist()

    vectors = Word2Vec(tokenizer.vocab_size, model.pop("d_model"))
    task = Near(vectors, np.array(assets.get("counts.json", count)), end, **model)
    positions = config.batch_size * data.context
    sgd = config.optimizer
    plain = sgd.name == "sgd" and not (sgd.b1 or sgd.clip or sgd.weight_decay)
    plain = plain and config.accumulate == 1 and config.parallel.mode == "jit"
    evaluations = {
        "validation": Likelihood(task, lambda: text.evaluation_windows(known("validation"), data.context))
    }
    if data.similarity:
        evaluations["similarity"] = Similarity(data.similarity, tokenizer.words, vectors_of)
    if data.analogies:
        evaluations["analogies"] = Analogies(data.analogies, tokenizer.words, vectors_of)
    return Experiment(
        task=task,
        step=task.step if plain else None,
        optimizer=functools.partial(
            optimizer.build,
            **{**config.optimizer, "learning_rate": config.optimizer.learning_rate * positions},
        ),
        train_data=lambda: text.windows(known("train"), data.context, config.batch_size, config.seed),
        evaluations=evaluations,
        sample=neighbours(tokenizer.words),
        show=text.show_text(tokenizer),
        tokens=data.context,
        dynamic=("optimizer.learning_rate",),
    )


def vectors_of(variables):
    """The vectors of the words, without those of the specials."""
    return np.asarray(variables["params"]["input"]["embedding"])[len(SPECIALS) :]


def neighbours(words):
    """The `sample` of the experiment."""

    def sample(variables, key, *, word: str = "", num_neighbours: int = 10, table: int = 0) -> Samples:
        """The words nearest to one, with their cosines.

        word: which; one at random if not given
        num_neighbours: how many
        table: of how many of the most frequent words the vectors are written too, as TensorBoard's projector loads them
        """
        for name, value, least in (("num_neighbours", num_neighbours, 1), ("table", table, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, received {value}")
        place = place_of(word, words) if word else int(jax.random.randint(key, (), 0, len(words)))
        if place is None:
            raise ValueError(
                f"word: received {word!r}, which is not in the vocabulary of {len(words):,} words"
            )
        vectors = vectors_of(variables)
        order, cosines = nearest(vectors, place, num_neighbours)
        near = [f"{words[i]:20} {cosine:.3f}" for i, cosine in zip(order, cosines, strict=True)]
        rows = {"embeddings": vectors[:table].tolist(), "metadata": [[word] for word in words[:table]]}
        return Samples(
            texts=["\n".join([words[place], *near])],
            arrays={"word": np.array([words[i] for i in order]), "cosine": cosines},
            tables=rows if table else {},
        )

    return sample


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    drawn = {"loss": curves.loss(runs, ylabel="nats a pair")}
    if len(runs) == 1:
        words = tokenizer_from_json(read_json(runs[0].folder / "assets" / "tokenizer.json")).words
        plain = [i for i, word in enumerate(words) if word.isalpha() and word.isascii()]
        vectors, words = vectors_of(runs[0].variables)[plain], [words[i] for i in plain]
        shown = [place_of(word, words) for word in runs[0].config.show]
        shown = [place for place in shown if place is not None]
        if shown:
            drawn |= {"near": near(vectors, words, shown), "map": plane(vectors, words, shown)}
    return drawn


def near(vectors, words, shown, count=5):
    """The words nearest to some, and those that point away from them, with their cosines."""
    rows = [np.hstack([nearest(vectors, word, count, away) for away in (False, True)]) for word in shown]
    places, cosines = np.stack(rows, 1)
    figure, axes = style.new(width=style.PAGE, height=0.6 + 0.3 * len(shown))
    image = axes.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto", label="cosine")
    for (row, column), place in np.ndenumerate(places.astype(int)):
        colour = "white" if abs(cosines[row, column]) > 0.7 else "black"
        axes.text(column, row, words[place][:12], ha="center", va="center", fontsize=6, color=colour)
    axes.set_yticks(range(len(shown)), [words[word] for word in shown])
    axes.set_xticks([(count - 1) / 2, count + (count - 1) / 2], ["nearest", "farthest"])
    axes.axvline(count - 0.5, color="black", linewidth=0.6, label="_between")
    style.colorbar(figure, image, axes, "cosine")
    return figure


def plane(vectors, words, shown, count=6):
    """The same words (bold) and those nearest to them in a plane, by t-SNE (van der Maaten and Hinton 2008)."""
    from sklearn.manifold import TSNE

    group = dict.fromkeys(shown)
    for number, place in enumerate(shown):
        for word in (place, *nearest(vectors, place, count)[0]):
            if group.get(int(word)) is None:
                group[int(word)] = number
    chosen = list(group)
    perplexity = min(8, (len(chosen) - 1) / 3)
    xy = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(unit(vectors)[chosen])
    size = np.array([style.PAGE, 5.2])
    figure, axes = style.new(width=size[0], height=size[1])
    points = 72 * 0.8 * size * (xy - xy.min(0)) / np.maximum(np.ptp(xy, axis=0), 1e-6)
    texts = [words[word] for word in chosen]
    for text_of, word, at, where in zip(texts, chosen, xy, room(points, texts), strict=True):
        color = style.COLORS[group[word] % len(style.COLORS)]
        axes.scatter(*at, s=6, color=color, linewidths=0, label=text_of)
        if where:
            (dx, dy), side = where
            weight = "bold" if word in shown else "normal"
            options = {"textcoords": "offset points", "ha": side, "fontsize": 6, "color": color}
            axes.annotate(text_of, at, (dx, dy), weight=weight, **options)
    axes.margins(0.12, 0.06)
    axes.set(xlabel="t-SNE, first axis", ylabel="second axis", xticks=[], yticks=[])
    return figure


def room(points, texts):
    """(offset, alignment) of each text beside its point, none over another or over a point; None: there is no room."""
    boxes, places = [(*(point - 1.5), *(point + 1.5)) for point in points], []
    for own, ((x, y), string) in enumerate(zip(points, texts, strict=True)):
        width, found = 4.2 * len(string), None
        for dx, dy, side in ((3, 1, "left"), (-3, 1, "right"), (3, -7, "left"), (-3, -7, "right")):
            left = x + dx - (width if side == "right" else 0)
            box = (left, y + dy - 1, left + width, y + dy + 6)
            others = boxes[:own] + boxes[own + 1 :]
            if not any(b[0] < box[2] and box[0] < b[2] and b[1] < box[3] and box[1] < b[3] for b in others):
                boxes.append(box)
                found = (dx, dy), side
                break
        places.append(found)
    return places
