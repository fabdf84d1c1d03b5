"""Mathematics as sequence to sequence, letter by letter: an LSTM, one with attention, and a decoder-only transformer.

Saxton et al. 2019 ask it of 56 modules, two million questions each; here a generator makes the seven kinds that the
lecture names: composition of functions, linear systems, arithmetic, evaluation of composed functions, factors,
derivatives, probability. Answers count when every letter is right. interpolate has questions of training's ranges that
are not in it, in no letters; extrapolate has larger numbers and more functions than training ever has.

    lmlab sweep --config=experiments/arithmetic_reasoning.py --workdir=sweeps/reasoning      # three networks and seeds
    lmlab evaluate --workdir=sweeps/reasoning
    lmlab figures --workdir=sweeps/reasoning
    lmlab train --config=experiments/arithmetic_reasoning.py:gpt,brief --workdir=runs/reasoning    # on a GPU
    lmlab sample --workdir=runs/reasoning --question="Calculate -84 + 4111."
    lmlab train --config=experiments/arithmetic_reasoning.py:gpt,deepmind,cpu --workdir=runs/saxton     # their files
    lmlab train --config=experiments/arithmetic_reasoning.py:demo --workdir=runs/reasoning-demo

Saxton et al., table 1, mean over their modules, context: LSTM 0.57 interpolated and 0.41 extrapolated, with attention
0.58 and 0.42, transformer 0.76 and 0.50, of 18, 26 and 30 million parameters after 500,000 updates of 1,024.

demo: a minute. cpu: small questions (fewer functions, smaller numbers, see lmlab/data/reasoning.py) and networks of 128
units; of the LSTMs 6 minutes a run on one core, of the transformer 16. brief: 2,000 updates of 1,024 usual questions,
minutes on a GPU, after which hardly more answers are right than the commonest. default: 200,000 questions a family, 20
epochs, for a GPU (not run).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from lmlab import config as configs
from lmlab.data import reasoning
from lmlab.data.problems import Problems
from lmlab.data.tokenizers import padded
from lmlab.decoding import sampling
from lmlab.decoding.translate import Translator
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Samples
from lmlab.figures import curves, style
from lmlab.models.gpt import GPT
from lmlab.models.seq2seq import Seq2Seq
from lmlab.sources import Resident
from lmlab.tasks import Narrowed, NextTargetToken, NextToken
from lmlab.training import optimizer

FAMILY, PAPER = "sequence to sequence", "Saxton et al. 2019"
VARIANTS = {
    "demo": "few questions and small models: a minute",
    "cpu": "small numbers, 40,000 questions a family, small models: minutes on one core",
    "brief": "100,000 questions a family, 2,000 updates: minutes on a GPU",
    "lstm": "encoder and decoder, no attention",
    "attention": "the same with attention (the default)",
    "gpt": "question and answer as one text",
    "deepmind": "the modules that lie in a folder of mathematics_dataset's files",
}
NETWORKS = ("lstm", "attention", "gpt")
PARTS = ("test", "extrapolate")


def get_config(variant=""):
    parts = variant.split(",")
    network = next((part for part in NETWORKS if part in parts), "attention")
    config = configs.base(
        duration="20 epochs",
        batch_size=1024,
        precision="bf16",
        log_every="1 %",
        evaluate_every="10 %",
        checkpoint={"every": "20 %"},
        network=network,
        widths=(32, 64, 96, 128),  # in characters, to which batches of questions of like length are cut
        model={
            "cell": "lstm",
            "num_layers": 1,
            "d_model": 512,
            "d_embed": 64,
            "dropout": 0.0,
            "attention": "none" if network == "lstm" else "luong",
            "score": "scaled",
            "bidirectional": False,
            "reverse": False,
        },
        data={"path": "", "count": 200_000, "held_out": 500, "split_seed": 0, "small": False},
        optimizer={"learning_rate": 2e-3, "schedule": "cosine", "warmup": "2 %", "final": 0.05, "clip": 1.0},
    )
    if network == "gpt":
        config.model = {"num_layers": 6, "num_heads": 8, "d_model": 256, "dropout": 0.0}
        config.optimizer.learning_rate = 1e-3
    if "deepmind" in parts:
        config.data.path = "mathematics"
    if "brief" in parts:
        config.update(duration="2000 steps", evaluate_every="50 %", checkpoint={"every": "50 %"})
        config.data.count = 100_000
        if network == "gpt":
            config.widths = ()  # one program a width: a GPU's compiler takes longer than the steps it would save
    if "cpu" in parts or "demo" in parts:
        config.update(duration="1 epoch", batch_size=64, precision="float32")
        config.data.update(count=40_000, small=True)
        config.widths = (24, 48, 56, 64, 80, 96)
        config.optimizer.learning_rate = 1e-3 if network == "gpt" else 1e-2
        config.model.d_model = 128
        if network == "gpt":
            config.model.update(num_layers=2, num_heads=4)
    if "demo" in parts:
        config.update(duration="60 steps", batch_size=16, widths=())
        config.data.update(path="", count=500, held_out=10)
        config.model.update({"num_layers": 1, "d_model": 32})
    return config


def sweep():
    for network in NETWORKS:
        for seed in range(3):
            yield {"variant": f"{network},cpu", "seed": seed}


def build(config, assets):
    if config.network not in NETWORKS:
        raise ValueError(f"network: received {config.network!r}; allowed: {', '.join(NETWORKS)}")
    problems = Problems(**config.data)
    size = problems.tokenizer.vocab_size
    if config.network == "gpt":
        length = reasoning.QUESTION + reasoning.ANSWER + 1
        model = GPT(vocab_size=size, context=length, **config.model)
        task, arrays = Narrowed(Answers(model, problems.start), ("tokens",), config.widths), problems.joined
        answer = functools.partial(continued, model, problems)
    else:
        model = Seq2Seq(size, size, **config.model)
        task = Narrowed(NextTargetToken(model), ("source", "target"), config.widths)
        arrays = problems.arrays
        translator = Translator(model, problems.tokenizer, problems.sources, reasoning.ANSWER + 1)
        answer = lambda variables, questions: translator.texts(  # noqa: E731
            variables, problems.sources(questions), batch_size=256
        )

    def sample(variables, key, *, question: str = "Calculate 12 + 30.") -> Samples:
        """The answer to a question, letter by letter, the likeliest each.

        question: as the training has it; lmlab data shows some
        """
        return Samples(texts=answer(variables, [question]))

    def show(batch):
        rows = (
            batch["tokens"]
            if "tokens" in batch
            else np.concatenate([batch["source"], batch["target"]], axis=1)
        )
        return Samples([problems.tokenizer.decode(row[row > 0]) for row in np.asarray(rows)])

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: Resident.of(arrays("train"), config.batch_size, config.seed, grouped=True),
        evaluations={
            "validation": Likelihood(task, lambda: arrays("validation"), 250),
            **{part: ByFamily(answer, functools.partial(problems.part, part)) for part in PARTS},
        },
        sample=sample,
        show=show,
        dynamic=("optimizer.learning_rate", "model.dropout"),
    )


@dataclasses.dataclass(frozen=True)
class Answers(NextToken):
    """`NextToken` of what stands behind `start` alone: the answer. A batch is {"tokens": (B, T + 1)}, 0 behind each."""

    start: int

    def loss(self, params, collections, batch, key, train):
        tokens = batch["tokens"]
        counted = (jnp.cumsum(tokens == self.start, axis=1)[:, :-1] > 0) & (tokens[:, 1:] > 0)
        counted = counted * batch.get("mask", jnp.ones(len(tokens)))[:, None]
        return super().loss(params, collections, {"tokens": tokens, "mask": counted}, key, train)


def continued(model, problems, variables, questions) -> list[str]:
    """A language model's answers: it goes on behind <start>, greedily, until <end>."""
    answers = []
    for begin in range(0, len(questions), 250):
        some = questions[begin : begin + 250]
        rows = [[*problems.tokenizer.encode(question), problems.start] for question in some]
        lengths = np.array([len(row) for row in rows], np.int32)
        prompts = padded(rows, reasoning.QUESTION + 1)
        cache = model.start(len(rows), reasoning.QUESTION + reasoning.ANSWER + 1)
        step, key = Partial(model.step, variables), jax.random.key(0)
        drawn = sampling.sample(
            step,
            cache,
            jnp.asarray(prompts),
            jnp.asarray(lengths),
            key,
            reasoning.ANSWER,
            0.0,
            end=problems.end,
        )
        for row, first, last in zip(
            np.asarray(drawn.tokens), lengths, np.asarray(drawn.lengths), strict=True
        ):
            ids = row[first:last]
            answers.append(problems.tokenizer.decode(ids[ids != problems.end]))
    return answers


@dataclasses.dataclass
class ByFamily:
    """The share of answers that are right to the letter: of each family, and the mean of families.

    majority: that of the one answer that is commonest in the family.
    """

    answer: Callable[[Any, list[str]], list[str]]
    families: Callable[[], dict[str, list[tuple[str, str]]]]
    held_out: bool = True

    def __call__(self, variables, key):
        scalars, right, count, common = {}, [], [], []
        families = self.families()
        for family, pairs in families.items():
            answers = self.answer(variables, [question for question, _ in pairs])
            right.append(sum(said == known for said, (_, known) in zip(answers, pairs, strict=True)))
            count.append(len(pairs))
            common.append(reasoning.majority(pairs)[1])
            scalars[family] = right[-1] / count[-1]
        scalars["exact"] = float(np.mean(np.array(right) / count))
        scalars["majority"] = float(np.mean(common))
        arrays = {"right": right, "count": count, "majority": common, "families": list(families)}
        return scalars, {name: np.array(value) for name, value in arrays.items()}


def wilson(right, count, z: float = 1.96):
    """(low, high) of a share at 95 % (Wilson 1927)."""
    right, count = np.asarray(right, float), np.asarray(count, float)
    share, square = right / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * np.sqrt(share * (1 - share) / count + square / (4 * count))
    return middle - half, middle + half


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    networks = {name: [run for run in runs if run.config.network == name] for name in NETWORKS}
    networks = {name: members for name, members in networks.items() if members}
    label = {"label": lambda run: run.config.network} if len(networks) > 1 else {}
    drawn = {"loss": curves.loss(runs, **label)}
    return drawn | {part: shares(networks, part) for part in PARTS}


def shares(networks, part):
    """By family, the share of right answers of all seeds, with Wilson's intervals, and the commonest answer's."""
    figure, axes = style.new(width=style.PAGE, height=3.2)
    for i, (name, runs) in enumerate(networks.items()):
        arrays = [run.arrays(part) for run in runs]
        right, count = (sum(each[key] for each in arrays) for key in ("right", "count"))
        families, share = [str(family) for family in arrays[0]["families"]], right / count
        low, high = wilson(right, count)
        x = np.arange(len(families)) + 0.2 * (i - (len(networks) - 1) / 2)
        around = np.maximum((share - low, high - share), 0)
        axes.errorbar(
            x,
            share,
            around,
            marker=style.MARKERS[i],
            color=style.COLORS[i],
            linestyle="none",
            capsize=2,
            label=name,
        )
    axes.plot(
        range(len(families)), arrays[0]["majority"], "_", color="0.4", markersize=16, label="commonest answer"
    )
    axes.set_xticks(
        range(len(families)), [family.replace("_", " ") for family in families], rotation=20, ha="right"
    )
    axes.set(ylabel=f"right answers, {part}", ylim=(-0.03, 1.03))
    axes.legend(loc="upper right", ncols=2)
    return figure
