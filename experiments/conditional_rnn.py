"""A recurrent model of characters conditioned on a topic, which is its first state: what is it worth to be told?

The topics are eight modules of DeepMind's mathematics (Saxton et al. 2019), each example a question and its answer; the
test part is the generator's own `interpolate`. Mikolov and Zweig 2012 condition on topics at every word; here a GRU
begins at tanh(W topic). Bits a character are told with the topic, without it (zeros) and with another one, each of
the others in turn. Zeros are nothing that the model has met in training: what a topic is worth is the difference from
`unconditional`, which was trained the same and was never told one.

    lmlab train --config=experiments/conditional_rnn.py:demo --workdir=runs/topics-demo
    lmlab train --config=experiments/conditional_rnn.py:cpu  --workdir=runs/topics          # needs the mathematics
    lmlab train --config=experiments/conditional_rnn.py:unconditional,cpu --workdir=runs/no-topic
    lmlab sample --workdir=runs/topics --topic=numbers__gcd        # of every topic, without --topic
    lmlab figures --workdir=runs/topics          # bits over training and by topic, with samples
    lmlab sweep --config=experiments/conditional_rnn.py --workdir=sweeps/topics             # both, three seeds

demo: half a minute, on generated equations in LaTeX of five kinds. cpu: three minutes on one core. default: two layers
of 512 units, for a GPU (not run).
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from lmlab import config as configs
from lmlab.data.tokenizers import special
from lmlab.data.topics import Topics
from lmlab.decoding import sampling
from lmlab.evaluation.likelihood import Likelihood, batched
from lmlab.experiment import Experiment, Samples
from lmlab.figures import curves, style
from lmlab.models.conditional_rnn import ConditionalRNN, NextTokenOfTopic
from lmlab.sources import Resident
from lmlab.training import optimizer

FAMILY, PAPER = "recurrent", "Mikolov and Zweig 2012; Saxton et al. 2019"
VARIANTS = {
    "demo": "64 units on equations in LaTeX of five kinds, generated: half a minute",
    "cpu": "128 units on eight modules of mathematics, 2,000 steps",
    "unconditional": "no topic is told, in training or after",
}
TOLD = {"given": "with the topic", "without": "without", "wrong": "with another"}


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="20 epochs",
        batch_size=64,
        evaluate_every="10 %",
        conditional=True,
        model={"cell": "gru", "num_layers": 2, "d_model": 512},
        data={"path": "mathematics/train", "test": "mathematics/interpolate", "lines": 2},
        optimizer={"learning_rate": 5e-3, "schedule": "cosine", "warmup": "2 %", "clip": 1.0},
    )
    config.conditional = "unconditional" not in parts
    if "cpu" in parts or "demo" in parts:
        config.update(duration="2000 steps", batch_size=32)
        config.model.update(num_layers=1, d_model=128)
    if "demo" in parts:
        config.duration = "800 steps"
        config.data.update(path="", test="", lines=1)
        config.model.d_model = 64
    return config


def sweep():
    for variant in ("cpu", "unconditional,cpu"):
        for seed in range(3):
            yield {"variant": variant, "seed": seed}


def build(config, assets):
    topics = Topics(assets=assets, **config.data)
    model = ConditionalRNN(vocab_size=topics.tokenizer.vocab_size, **config.model)
    task = NextTokenOfTopic(model)
    blank = 1.0 if config.conditional else 0.0

    def source():
        arrays = topics.arrays("train")
        data = {name: jnp.asarray(array) for name, array in arrays.items()} | {
            "topic": blank * jnp.asarray(arrays["topic"])
        }
        return Resident(
            data=data, num_examples=len(data["tokens"]), batch_size=config.batch_size, seed=config.seed
        )

    def sample(
        variables,
        key,
        *,
        topic: str = "",
        num_samples: int = 4,
        max_tokens: int = 200,
        temperature: float = 1.0,
    ) -> Samples:
        """Examples of a topic, each to its end; lines are told apart by a sign.

        topic: its name; none: of every topic
        num_samples: how many of each
        max_tokens: the most characters of one
        temperature: 0 takes the likeliest character, 1 samples, below 1 is more careful
        """
        if topic and topic not in topics.names:
            raise ValueError(f"topic: received {topic!r}; allowed: {', '.join(topics.names)}")
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, received {num_samples}")
        names = [name for name in ([topic] if topic else topics.names) for _ in range(num_samples)]
        told = (
            blank * np.eye(len(topics.names), dtype=np.float32)[[topics.names.index(name) for name in names]]
        )
        end = special(topics.tokenizer, "<end>")
        tokens, _, ends, _ = sampling.sample(
            Partial(model.step, variables),
            model.apply(variables, jnp.asarray(told), method=model.begin),
            jnp.full((len(names), 1), end, jnp.int32),
            jnp.ones(len(names), jnp.int32),
            key,
            max_tokens,
            temperature,
            end=end,
        )
        texts = [
            topics.tokenizer.decode([i for i in row[1:stop] if i != end]).strip().replace("\n", " ⏎ ")
            for row, stop in zip(np.asarray(tokens), np.asarray(ends), strict=True)
        ]
        return Samples(texts=[f"{name}: {text}" for name, text in zip(names, texts, strict=True)])

    def show(batch):
        names = [topics.names[i] for i in np.argmax(np.asarray(batch["topic"]), -1)]
        rows = [topics.tokenizer.decode(row) for row in np.asarray(batch["tokens"])]
        shown = [row.replace("<end>", "").strip().replace("\n", " ⏎ ") for row in rows]
        return Samples(
            texts=[f"{name}: {text}" if blank else text for name, text in zip(names, shown, strict=True)]
        )

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=source,
        evaluations={
            part: Bits(topics, part, Likelihood(task, dict), tuple(TOLD) if blank else ("without",))
            for part in ("validation", "test")
        },
        sample=sample,
        show=show,
        dynamic=("optimizer.learning_rate", "optimizer.weight_decay"),
    )


@dataclasses.dataclass
class Bits:
    """Bits a character of a part, <end> being one, by what is told of the topic.

    Scalars: `bits`, as the model was trained, and `loss`, the same in nats; bits_without, bits_wrong. Arrays: by topic.
    """

    topics: Topics
    part: str
    likelihood: Likelihood
    told: tuple[str, ...]

    @property
    def held_out(self):
        return self.part == "test"

    def __call__(self, variables, key):
        by_topic = {
            how: np.array([self.likelihood.score(variables, key, batches)["loss"] for batches in each])
            for how, each in self._batches.items()
        }
        shares = self._characters / self._characters.sum()
        loss = {how: float(losses @ shares) for how, losses in by_topic.items()}
        scalars = {"loss": loss[self.told[0]], "bits": loss[self.told[0]] / math.log(2)}
        scalars |= {f"bits_{how}": loss[how] / math.log(2) for how in self.told[1:]}
        return scalars, {how: losses / math.log(2) for how, losses in by_topic.items()}

    @functools.cached_property
    def _characters(self):
        return np.array([self.topics.arrays(self.part, [name])["mask"].sum() for name in self.topics.names])

    @functools.cached_property
    def _batches(self):
        parts = [self.topics.arrays(self.part, [name]) for name in self.topics.names]
        return {
            how: [batched(arrays | {"topic": tell(arrays["topic"], how)}, 64) for arrays in parts]
            for how in self.told
        }


def tell(topic, how):
    """The topics of examples as they are given, as zeros, or wrong: each of the others in turn."""
    if how == "wrong":
        count = topic.shape[1]
        moved = (np.argmax(topic, -1) + 1 + np.arange(len(topic)) % (count - 1)) % count
        return np.eye(count, dtype=topic.dtype)[moved]
    return topic if how == "given" else np.zeros_like(topic)


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    if len(runs) > 1:
        label = {True: "with the topic", False: "trained without"}
        return {
            "loss": curves.loss(
                runs,
                ("validation/bits",),
                label=lambda run: label[run.config.conditional],
                ylabel="validation, bits a character",
            )
        }
    run = runs[0]
    told = ["bits", *(f"bits_{how}" for how in TOLD if how != "given" and run.config.conditional)]
    drawn = {
        "loss": curves.loss(
            runs, [f"validation/{name}" for name in told], ylabel="validation, bits a character", wide=True
        )
    }
    return drawn | {"topics": by_topic(run)}


def by_topic(run):
    """Bits a character of each topic's test examples, and beside them a sample of it."""
    import jax

    arrays, experiment = run.arrays("test"), run.experiment
    drawn = experiment.sample(run.variables, jax.random.key(0), num_samples=1).texts
    names, texts = zip(*(text.split(": ", 1) for text in drawn), strict=True)
    figure, ((left, right),) = style.new(1, 2, width=style.PAGE, height=0.7 + 0.4 * len(names))
    told = [how for how in TOLD if how in arrays]
    for i, how in enumerate(told):
        places = np.arange(len(names)) + 0.26 * (i - (len(told) - 1) / 2)
        left.barh(places, arrays[how], 0.26, color=style.COLORS[i], label=TOLD[how])
    left.set_yticks(range(len(names)), names, parse_math=False)
    left.set(xlabel="bits a character, test", ylim=(len(names) - 0.5, -0.5))
    left.legend(loc="lower right")
    right.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, 1))
    right.set_axis_off()
    right.set_title("a sample of each", loc="left")
    for place, text in enumerate(texts):
        shown = "\n".join(text[i : i + 58] for i in range(0, min(len(text), 174), 58))
        right.text(0, place, shown, fontsize=5.5, family="monospace", va="center", parse_math=False)
    return figure
