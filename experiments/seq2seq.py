"""Translation by two recurrent networks: through the last state of the encoder alone, and with attention to all.

Sutskever et al. 2014 (LSTMs, the source turned round), Bahdanau et al. 2015 and Luong et al. 2015 (attention). French
to English, Tatoeba's pairs of up to 10 words, 90, 5 and 5 % by connected component of the graph of pairs, so that
neither a sentence nor its translations are in two parts; byte-level BPE of 4,000; greedy BLEU by sacreBLEU, against
all translations of a source. Beside it the answer of the training source with the most words in common.

    lmlab train --config=experiments/seq2seq.py:demo --workdir=runs/written
    lmlab train --config=experiments/seq2seq.py:luong,cpu --workdir=runs/fr-en           # needs the pairs
    lmlab evaluate --workdir=runs/fr-en
    lmlab sample --workdir=runs/fr-en --prompt="il m'a entarté" --beam_size=5
    lmlab sample --workdir=runs/fr-en --input=french.txt --output=english.txt
    lmlab figures --workdir=runs/fr-en        # alignments, influence of the source, an animation, BLEU by length
    lmlab sweep --config=experiments/seq2seq.py --workdir=sweeps/attention               # attention or none, 3 seeds
    lmlab sweep --config=experiments/seq2seq.py:short,cpu --grid=variant=dot,scaled,bilinear,additive --seeds=3 \
                --workdir=sweeps/scores
    lmlab train --config=experiments/seq2seq.py:reversing,cpu --workdir=runs/reversing   # the alignment is known
    lmlab train --config=experiments/seq2seq.py:reversing,embeddings,cpu --workdir=runs/embeddings

Of reversing and sorting it is known which letter each answer is. Attention may look at its neighbour instead, whose
state has read it as well (Koehn and Knowles 2017, section 3.5): alignment/error counts that, within_one does not. With
`embeddings` attention sums up the letters' embeddings, each of which tells its own letter alone.

The scores of print are context (Cho et al. 2014, figure 5; Bahdanau et al. 2015, table 1 and figure 2), where
scores are of other languages and other data: WMT'14 English to French, 26.75 with attention and 17.82 without.

demo: dates and numbers, written out: a minute. cpu, the default: 22 minutes a run on one core (reversing, sorting: 4);
lstm4, the paper's four layers of 1,000, wants an accelerator.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmlab import config as configs
from lmlab.data.pairs import JOINED, LONGEST, Pairs
from lmlab.data.rearranged import KINDS, Rearranged
from lmlab.decoding.translate import Answer, Translator
from lmlab.evaluation import bleu
from lmlab.evaluation.likelihood import Likelihood
from lmlab.evaluation.translation import Alignment, Lengths, Translation, Words
from lmlab.experiment import Experiment, Samples, Target
from lmlab.figures import curves, maps, style
from lmlab.layers.scores import SCORES
from lmlab.models.seq2seq import Seq2Seq, influence
from lmlab.sources import Resident
from lmlab.tasks import Narrowed, NextTargetToken
from lmlab.training import optimizer

FAMILY, PAPER = "sequence to sequence", "Sutskever et al. 2014; Bahdanau et al. 2015; Luong et al. 2015"
VARIANTS = {
    "demo": "French dates and numbers, written out by Babel and num2words: a minute",
    "cpu": "Tatoeba, up to 10 words: the same as no variant",
    "none": "no attention: the last state of the encoder is all there is",
    "luong": "the decoder's state looks, then speaks (the default)",
    "bahdanau": "it looks before it moves; GRUs, the encoder both ways, additive scores",
    "gru": "GRUs in place of LSTMs",
    "lstm4": "four layers of 1,000, the source turned round, no attention (Sutskever et al. 2014)",
    "reverse": "the source turned round",
    "dot": "scores q . k",
    "scaled": "scores q . k / sqrt(d) (the default)",
    "bilinear": "scores (W_1 q) . (W_2 k)",
    "additive": "scores v . tanh(W_1 q + W_2 k)",
    "short": "one epoch, to compare scores: 5 minutes, additive 8",
    "embeddings": "attention sums up embeddings of the source, not states of the encoder",
    "long": "besides, 2 to 5 pairs joined, in training and in a test by length",
    "reversing": "words of letters, from last to first; the alignment is known",
    "sorting": "words of letters, sorted; the alignment is known",
}
TARGETS = {
    f"{kind},{values}cpu": [Target("alignment/error", 0.05, math.nan, "by construction")]
    for kind in KINDS
    for values in ("", "embeddings,")
}
SENTENCES = ("il m'a entarté", "où est la gare ?", "je ne sais pas ce qu'il veut .")
FORCED = ("il m'a entarté", "he hit me with a pie")


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="5 epochs",
        batch_size=128,
        log_every="1 %",
        evaluate_every="10 %",
        checkpoint={"every": "20 %"},
        model={
            "cell": "lstm",
            "num_layers": 1,
            "d_model": 256,
            "d_embed": 256,
            "dropout": 0.2,
            "attention": "luong",
            "score": "scaled",
            "value": "states",
            "bidirectional": False,
            "reverse": False,
        },
        data={
            "path": "translation/fra-eng.txt.gz",
            "columns": (1, 0),
            "max_words": 10,
            "lower": False,
            "join": 0,
            "vocab_size": 4000,
            "shared": False,
            "split_seed": 0,
        },
        optimizer={"learning_rate": 2e-3, "schedule": "cosine", "warmup": "2 %", "final": 0.05, "clip": 1.0},
        widths=(8, 12, 16, 24),  # in tokens, to which batches are cut, which are of pairs of like length
        decoding={"most": 40},  # tokens of an answer
    )
    if "gru" in parts:
        config.model.cell = "gru"
    if "lstm4" in parts:
        config.model.update(num_layers=4, d_model=1000, d_embed=1000, attention="none", reverse=True)
    if "bahdanau" in parts:
        config.model.update(cell="gru", attention="bahdanau", score="additive", bidirectional=True)
    if "embeddings" in parts:
        config.model.value = "embeddings"
    if "none" in parts:
        config.model.attention = "none"
    if "reverse" in parts:
        config.model.reverse = True
    for score in SCORES:
        if score in parts:
            config.model.score = score
    if "long" in parts:
        config.data.update(join=100_000)
        config.widths = (8, 12, 16, 24, 40, 64)
        config.decoding.most = 120
    for kind in KINDS:
        if kind in parts:
            config.data = {"kind": kind, "shortest": 3, "longest": 12, "count": 20_000, "split_seed": 0}
            config.update(duration="10 epochs", widths=())
            config.decoding.most = 14
    if "short" in parts:
        config.duration = "1 epoch"
    if "demo" in parts:
        config.update(duration="12 epochs", batch_size=32, widths=())
        config.model.update(d_model=96, d_embed=64, dropout=0.0, num_layers=min(config.model.num_layers, 2))
        config.optimizer.learning_rate = 5e-3
        if "kind" in config.data:
            config.data.update(longest=8, count=4000)
        else:
            config.data.update(path="", columns=(0, 1), max_words=0, vocab_size=500, join=0)
    return config


def sweep():
    """Attention and none, three seeds each."""
    for attention in ("luong,cpu", "none,cpu"):
        for seed in range(3):
            yield {"variant": attention, "seed": seed}


def opened(config, assets):
    """(translator, pairs) that the config names."""
    if config.decoding.most < 1:
        raise ValueError(f"decoding.most: received {config.decoding.most}; allowed: at least 1")
    options = dict(config.data)
    pairs = Rearranged(**options) if "kind" in options else Pairs(assets=assets, **options)
    of_source, of_target = pairs.tokenizers
    model = Seq2Seq(of_source.vocab_size, of_target.vocab_size, **config.model)
    return Translator(model, of_target, pairs.encode_sources, config.decoding.most), pairs


def build(config, assets):
    translator, pairs = opened(config, assets)
    model, (of_source, of_target) = translator.model, pairs.tokenizers
    task = Narrowed(NextTargetToken(model), ("source", "target"), config.widths)

    evaluations = {
        part: Likelihood(
            task, functools.partial(pairs.arrays, part, by_length=True), 256, held_out=part == "test"
        )
        for part in ("validation", "test")
    }
    if isinstance(pairs, Rearranged):
        if config.model.attention != "none":
            evaluations["alignment"] = Alignment(model, pairs)
        evaluations["words"] = Words(translator, pairs)
    else:
        evaluations["translation"] = Translation(translator, pairs)
        if config.data.join:
            evaluations["lengths"] = Lengths(translator, pairs, edges(config))

    def show(batch):
        lines = []
        for x, y in zip(np.asarray(batch["source"]), np.asarray(batch["target"]), strict=True):
            lines.append(f"{readable(of_source, x)} -> {readable(of_target, y)}")
        return Samples(texts=lines)

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: Resident.of(
            pairs.arrays("train", by_length=True), config.batch_size, config.seed, grouped=True
        ),
        evaluations=evaluations,
        sample=sampler(translator, pairs),
        show=show,
        dynamic=("optimizer.learning_rate", "model.dropout"),
    )


def readable(tokenizer, ids) -> str:
    """A row without its specials."""
    return tokenizer.decode(np.asarray(ids)[np.asarray(ids) >= len(tokenizer.specials)])


def tokens(tokenizer, ids) -> list[str]:
    """Each token of a row that is not padding, as it is read, without spaces but where it is nothing else."""
    texts = [tokenizer.decode(ids[i : i + 1]) for i in np.flatnonzero(ids)]
    return [text.strip() or text for text in texts]


# -- samples -----------------------------------------------------------------------------------------


def sampler(translator, pairs):
    """The `sample` of the experiment."""

    def sample(
        variables,
        key,
        *,
        prompt: str | Sequence[str] = "",
        beam_size: int = 5,
        length_penalty: float = 0.6,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        target: str = "",
        input: str = "",
        output: str = "",
    ) -> Samples:
        """Translations of a sentence, the best first, with their scores; or of a file's lines.

        With attention, the alignment of the best is drawn, and that of the first sentence as it is written.

        prompt: the sentence; repeat the flag for several, or leave it for an example
        beam_size: hypotheses that are kept at each token, and printed; 1 is greedy
        length_penalty: scores are log-probabilities over ((5 + tokens) / 6)^this; 0 prefers short ones
        temperature: above 0, one translation is drawn, in place of the search
        top_k: with a temperature, only the k likeliest tokens; 0: all
        top_p: with a temperature, only the likeliest tokens that make up this probability; 1: all
        min_p: with a temperature, only tokens at least this part as likely as the likeliest; 0: all
        target: a translation to score and to align, in place of searching for one
        input: a file whose lines are to be translated
        output: where their translations go, line by line
        """
        if bool(input) != bool(output):
            raise ValueError(f"input and output go together; received {input!r} and {output!r}")
        options = {"beam_size": beam_size, "length_penalty": length_penalty}
        if input:
            wrong = translator.file(variables, input, output, 4 * translator.most, **options)
            told = [f"{input}: {each}, left empty" for each in wrong]
            return Samples(texts=["\n".join([*told, f"written: {output}"])])
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prompts = [each.strip() or example(pairs) for each in prompts]
        rows = pairs.encode_sources(prompts)
        if target:
            found = [[forced(translator, pairs, variables, row, target)] for row in rows]
        elif temperature > 0:
            chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
            found = [[answer] for answer in translator.draws(variables, rows, key, **chosen)]
        else:
            found = translator.answers(variables, rows, **options)
        texts = ["\n".join(f"{each.score:.3f}  {each.text}" for each in best) for best in found]
        pictures, frames = {}, None
        if translator.model.attention != "none":
            looks = [
                matrix(translator, pairs, variables, row, best[0].ids)
                for row, best in zip(rows, found, strict=True)
            ]
            pictures = {f"alignment-{number}": maps.alignment(*each) for number, each in enumerate(looks, 1)}
            frames = maps.decoding(*looks[0])
        return Samples(texts=texts, figures=pictures, frames=frames)

    return sample


def example(pairs) -> str:
    """A sentence to translate where none is given."""
    if isinstance(pairs, Rearranged):
        return "lmab"
    return SENTENCES[0] if pairs.path else "le lundi 4 mai 1970"


def forced(translator, pairs, variables, row, sentence):
    """A given translation as an Answer, its score its log-probability."""
    ids = np.concatenate([[translator.start], translator.tokenizer.encode(sentence), [translator.end]])
    ids = ids.astype(np.int32)
    logits = translator.model.apply(variables, jnp.asarray(row)[None], jnp.asarray(ids)[None, :-1])
    logs = jax.nn.log_softmax(logits)[0, np.arange(len(ids) - 1), ids[1:]]
    return Answer(sentence, float(logs.sum()), ids)


def matrix(translator, pairs, variables, row, ids):
    """(weights, target tokens, source tokens) of one pair."""
    row = row[row > 0]
    weights = translator.model.weights(variables, jnp.asarray(row)[None], jnp.asarray(ids)[None])[0]
    return np.asarray(weights), tokens(pairs.tokenizers[1], ids[1:]), tokens(pairs.tokenizers[0], row)


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    arms = {name: [run for run in runs if arm(run) == name] for name in dict.fromkeys(map(arm, runs))}
    label = {"label": arm} if len(arms) > 1 else {}
    drawn = {"loss": curves.loss(runs, **label), "influence": influences(arms)}
    if not any("kind" in run.config.data for run in runs):
        drawn["bleu"] = by_length(arms, "translation", (0, 3, 4, 5, 6, 7, 8, 9, 10))
        if all(run.config.data.join for run in runs):
            drawn["lengths"] = by_length(arms, "lengths", edges(runs[0].config))
        if len(arms) > 1:
            drawn["difference"] = difference(arms)
    if len(runs) == 1 and runs[0].config.model.attention != "none":
        drawn |= alignments(runs[0])
    return drawn


def arm(run) -> str:
    model = run.config.model
    if model.attention == "none":
        return "no attention"
    return f"{model.attention}, {model.score}" + ", embeddings" * (model.get("value") == "embeddings")


def some_sources(pairs) -> list[str]:
    """A few sentences to look at: French ones, or those of the data where it has none."""
    if isinstance(pairs, Pairs) and pairs.path:
        return list(SENTENCES)
    return [source for source, _ in pairs.examples("validation")[:3]]


def alignments(run):
    (translator, pairs), variables = opened(run.config, run.assets), run.variables
    drawn, rows = {}, pairs.encode_sources(some_sources(pairs))
    answers = [best[0] for best in translator.answers(variables, rows)]
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True), 1):
        drawn[f"alignment_{number}"] = maps.alignment(*matrix(translator, pairs, variables, row, answer.ids))
    if isinstance(pairs, Pairs) and pairs.path:
        row = pairs.encode_sources(FORCED[:1])[0]
        ids = forced(translator, pairs, variables, row, FORCED[1]).ids
        drawn["alignment_forced"] = maps.alignment(*matrix(translator, pairs, variables, row, ids))
    return drawn


def edges(config):
    """Of the lengths that joined pairs reach."""
    most = JOINED * config.data.max_words or LONGEST
    return tuple(edge for edge in range(0, LONGEST + 1, 10) if edge <= most)


def influences(arms):
    """How much what was read still moves what is said, against how many tokens lie between the two."""
    figure, axes = style.new()
    for color, marker, (name, runs) in zip(style.COLORS, style.MARKERS, arms.items(), strict=False):
        means = []
        for run in runs:
            translator, pairs = opened(run.config, run.assets)
            arrays = {key: jnp.asarray(ids[:64]) for key, ids in pairs.arrays("validation").items()}
            norms = np.asarray(
                jax.jit(functools.partial(influence, translator.model))(run.variables, *arrays.values())
            )
            lengths = (arrays["source"] > 0).sum(1)[:, None, None]
            t, s = np.arange(norms.shape[1])[None, :, None], np.arange(norms.shape[2])[None, None]
            there = (s < lengths) & (arrays["target"][:, 1:, None] > 0)
            apart = np.broadcast_to(lengths - s + t, norms.shape)[there]
            total = np.bincount(apart, norms[there])
            count = np.bincount(apart)
            means.append({d: total[d] / count[d] for d in range(len(count)) if count[d] >= 10})
        shared = sorted(set.intersection(*map(set, means)))
        values = np.array([[mean[d] for d in shared] for mean in means])
        axes.plot(shared, values.mean(0), marker=marker, markersize=2.5, color=color, label=name)
        if len(runs) > 1:
            low, high = values.min(0), values.max(0)
            axes.fill_between(shared, low, high, color=color, alpha=0.2, linewidth=0)
    axes.set(
        xlabel="tokens from the source's to the target's", ylabel="|d log p / d embedding|", yscale="log"
    )
    axes.legend()
    return figure


def by_length(arms, evaluation, edges):
    """BLEU with 95 % of its resamples, sources of all runs of an arm together, by their words."""
    figure, axes = style.new()
    for i, (name, runs) in enumerate(arms.items()):
        arrays = [run.arrays(evaluation) for run in runs]
        counts = np.concatenate([each["statistics"] for each in arrays])
        words = np.concatenate([[len(source.split()) for source in each["sources"]] for each in arrays])
        found = bleu.by_length(counts, words, edges)
        x = (found["above"] + 1 + found["to"]) / 2 + 0.06 * i * (edges[-1] - edges[-2])
        around = (found["bleu"] - found["low"], found["high"] - found["bleu"])
        look = {"marker": style.MARKERS[i], "color": style.COLORS[i], "linestyle": style.LINES[i]}
        axes.errorbar(x, found["bleu"], around, capsize=2, label=name, **look)
    axes.set(xlabel="words of the source", ylabel="BLEU, 95 % of resamples", ylim=(0, None))
    axes.legend()
    return figure


def difference(arms):
    """BLEU above no attention, or above the first arm, of the runs of one seed, by paired bootstrap."""
    figure, axes = style.new()
    first = "no attention" if "no attention" in arms else next(iter(arms))
    base = {run.config.seed: run.arrays("translation")["statistics"] for run in arms[first]}
    for i, (name, runs) in enumerate(arms.items()):
        theirs = {run.config.seed: run.arrays("translation")["statistics"] for run in runs}
        seeds = sorted(base.keys() & theirs.keys())
        if name == first or not seeds:
            continue
        found = [bleu.paired_bootstrap(base[seed], theirs[seed]) for seed in seeds]
        value, low, high = np.array([each[:3] for each in found]).T
        look = {"marker": style.MARKERS[i], "color": style.COLORS[i], "linestyle": "none"}
        x = np.array(seeds) + 0.1 * (i - (len(arms) - 1) / 2)
        axes.errorbar(x, value, (value - low, high - value), capsize=2, label=name, **look)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_xticks(sorted(base))
    axes.set(xlabel="seed", ylabel=f"BLEU above {first}", xlim=(min(base) - 0.5, max(base) + 0.5))
    axes.legend()
    return figure
