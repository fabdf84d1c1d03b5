"""Show, attend and tell: captions by a network that looks at a part of the image for each word.

Xu et al. 2015, soft attention. The images are scenes of one or two handwritten digits, "an eight left of a small two",
so that it is known where the digit lies that a word is about: how much of the attention falls into its box is
measured, beside what even attention would have there, which is the box's part of the image.

    lmlab train --config=experiments/captioner.py:demo --workdir=runs/captions-demo
    lmlab train --config=experiments/captioner.py:cpu --workdir=runs/captions          # needs MNIST
    lmlab evaluate --workdir=runs/captions         # exact match, BLEU, attention within the box
    lmlab sample --workdir=runs/captions --number=3 --beam_size=5
    lmlab sample --workdir=runs/captions --image=scene.png
    lmlab figures --workdir=runs/captions          # word by word, where it looks
    lmlab train --config=experiments/captioner.py:folder --config.data.path=photos --workdir=runs/photos

The penalty of eq. 14 asks that all places be looked at alike, and so works against the box (demo: 0.79 of the
attention within it, 0.03 with the penalty): it is 0 but in `even`. BLEU is sacreBLEU's; the paper's BLEU-4 of 24.3 on
COCO is of photographs, and of an encoder that was trained on a million of them before: context.

demo: a minute on one core. cpu: a quarter of an hour on one. default: a larger network, for a GPU (not run). Scenes for
training are made of train[:55000], those for validation of train[55000:], those of the test of test digits alone.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from lmlab import config as configs
from lmlab.data import captions, scenes
from lmlab.data.captions import Captions
from lmlab.data.images import scaled
from lmlab.data.scenes import Scenes
from lmlab.data.tokenizers import WordTokenizer
from lmlab.decoding.translate import Answer, Translator
from lmlab.evaluation import bleu
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Samples, Target
from lmlab.figures import curves, style
from lmlab.models.captioner import Caption, Captioner
from lmlab.sources import Resident, rows
from lmlab.training import optimizer

FAMILY, PAPER = "captioner", "Xu et al. 2015"
VARIANTS = {
    "demo": "scenes of scikit-learn's digits of 8 x 8: a minute",
    "cpu": "a smaller network, which one core trains in a quarter of an hour",
    "folder": "a folder of images and a file of captions, data.path; with demo, scenes",
    "even": "the penalty at 1, as the paper has it: all places are to be looked at alike",
}
TARGETS = {"cpu": [Target("captions/mass", 0.6, higher_is_better=True)]}
BATCH = 250  # images that are looked at together in evaluation
PANELS = 10  # side by side in a figure


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="30 epochs",
        batch_size=128,
        evaluate_every="10 %",
        encoder={"features": (64, 128, 256, 256), "halvings": 2},
        model={"d_embed": 256, "d_model": 512, "d_attention": 256, "dropout": 0.2},
        data={"name": "mnist", "tfds_dir": "", "canvas": 56, "count": 50_000, "seed": 0},
        optimizer={"learning_rate": 1e-3, "warmup": "2 %", "schedule": "cosine", "final": 0.05, "clip": 1.0},
        penalty=0.0,
    )
    if "cpu" in parts:
        config.update(duration="10 epochs", batch_size=32)
        config.encoder.features = (16, 32, 64)
        config.model.update(d_embed=64, d_model=128, d_attention=64, dropout=0.0)
        config.data.canvas = 48
        config.optimizer.learning_rate = 2e-3
    if "folder" in parts:
        config.data = {"path": "", "size": (112, 112), "split_seed": 0, "min_count": 2, "length": 30}
        config.encoder.halvings = 3
    if "even" in parts:
        config.penalty = 1.0
    if "demo" in parts:
        config.update(duration="5 epochs", batch_size=32)
        config.encoder.update(features=(16, 32, 64), halvings=2)
        config.model.update(d_embed=32, d_model=96, d_attention=64, dropout=0.0)
        config.data = {"name": "digits", "tfds_dir": "", "canvas": 36, "count": 7500, "seed": 0}
        config.optimizer.learning_rate = 3e-3
    return config


def opened(config, assets) -> tuple[Scenes | Captions, "Describer"]:
    """The data that the config names, and the model on them."""
    options = dict(config.data)
    if "path" in options:
        data, shape, length = Captions(assets=assets, **options), config.data.size, config.data.length
    else:
        data, shape, length = Scenes(assets=assets, **options), (config.data.canvas,) * 2, scenes.LENGTH
    model = Captioner(data.tokenizer.vocab_size, shape, **config.encoder, **config.model)
    return data, Describer(model, data.tokenizer, length + 1)


def build(config, assets):
    data, describer = opened(config, assets)
    task = Caption(describer.model, config.penalty)

    def arrays(part):
        return {name: values for name, values in data.arrays(part).items() if name in ("image", "tokens")}

    def take(held, indices, epoch, seed):
        return scaled(rows(held, indices, epoch))

    def likelihood(part):
        return Likelihood(task, lambda: scaled(arrays(part)), BATCH, held_out=part == "test")

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: Resident.of(arrays("train"), config.batch_size, config.seed, take=take),
        evaluations={
            "validation": likelihood("validation"),
            "test": likelihood("test"),
            "captions": Described(describer, data),
        },
        sample=sampler(describer, data),
        show=lambda batch: Samples(
            images=batch["image"], texts=[describer.read(row) for row in np.asarray(batch["tokens"])]
        ),
        dynamic=("optimizer.learning_rate", "model.dropout", "penalty"),
    )


class Describer:
    """Captions of images by a model. most: words of a caption, its end among them."""

    def __init__(self, model: Captioner, tokenizer: WordTokenizer, most: int):
        self.model, self.tokenizer = model, tokenizer
        self.translator = Translator(model, tokenizer, None, most)
        self._weights = jax.jit(model.weights)

    def answers(
        self, variables, image: UInt8[np.ndarray, "N H W"], beam_size: int = 1, length_penalty: float = 0.0
    ) -> list[list[Answer]]:
        """The n-best list of each image."""
        options = (beam_size, length_penalty)
        return [
            best for _, batch in batches(image) for best in self.translator.best(variables, batch, *options)
        ]

    def read(self, ids: Int[np.ndarray, "N"]) -> str:
        """The words after <start>, up to the end or to padding."""
        over = (ids == self.translator.end) | (ids == 0)
        return self.tokenizer.decode(ids[np.cumsum(over) == 0][1:])

    def weights(
        self, variables, image: UInt8[np.ndarray, "N H W"], tokens: Int[np.ndarray, "N n"]
    ) -> Float[np.ndarray, "N T L"]:
        """Where the model looks for each word of captions but <start>, T = n - 1."""
        return np.concatenate(
            [np.asarray(self._weights(variables, batch, tokens[places])) for places, batch in batches(image)]
        )


def batches(image):
    """(their places, BATCH images in [0, 1]), from the first to the last."""
    for first in range(0, len(image), BATCH):
        places = slice(first, first + BATCH)
        yield places, scaled({"image": jnp.asarray(image[places])})["image"]


# -- evaluation --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Described:
    """Exact match and BLEU of greedy captions and of the best of beams of 5; of scenes, where the model looks.

    mass: how much of the attention falls into a digit's box as its word is said, after the words that are true before
    it; mass_even: the box's part of the image. Arrays of scenes: inside (N, 2, T), the mass in the box of each digit
    at each word of the caption; even (N, 2); named and tokens, as of `Scenes`.
    """

    describer: Describer
    images: Scenes | Captions
    part: str = "test"
    held_out: bool = True

    def __call__(self, variables, key):
        del key
        image, wanted = self.images.references(self.part)
        scalars, kept = {}, {}
        for size, suffix in ((1, ""), (5, "_beam")):
            told = [best[0].text for best in self.describer.answers(variables, image, size)]
            scalars[f"exact{suffix}"] = float(np.mean([t in w for t, w in zip(told, wanted, strict=True)]))
            scalars[f"bleu{suffix}"] = bleu.corpus_bleu(told, wanted)[0]
            kept[f"told{suffix}"] = np.array(told)
        if isinstance(self.images, Captions):
            return scalars, kept
        arrays = self.images.arrays(self.part)
        named, tokens = arrays["named"], arrays["tokens"]
        cells = inside(arrays["boxes"], image.shape[1:], self.describer.model.grid)
        weights, even = self.describer.weights(variables, image, tokens), cells.mean(-1)
        mass = np.einsum("ntl,ndl->ndt", weights, cells)
        said = np.take_along_axis(mass, np.maximum(named - 1, 0)[..., None], 2)[..., 0]
        scalars |= {"mass": float(said[named > 0].mean()), "mass_even": float(even[named > 0].mean())}
        return scalars, kept | {"inside": mass, "even": even, "named": named, "tokens": tokens}


def inside(
    boxes: Int[np.ndarray, "N D 4"], size: tuple[int, int], grid: tuple[int, int]
) -> Float[np.ndarray, "N D L"]:
    """The part of each cell of a grid over an image that lies in a box (y0, x0, y1, x1), the ends outside."""
    shares = []
    for axis in range(2):
        edges = np.linspace(0, size[axis], grid[axis] + 1)
        low, high = (np.clip(boxes[..., side, None], edges[:-1], edges[1:]) for side in (axis, 2 + axis))
        shares.append((high - low) / np.diff(edges))
    down, across = shares
    return (down[..., :, None] * across[..., None, :]).reshape(*boxes.shape[:2], -1)


# -- samples -----------------------------------------------------------------------------------------


def sampler(describer, data):
    """The `sample` of the experiment."""

    def sample(
        variables,
        key,
        *,
        image: str | Sequence[str] = "",
        number: int = 3,
        beam_size: int = 5,
        length_penalty: float = 0.0,
    ) -> Samples:
        """Captions of an image, the best first, with their scores, and a figure of where each word looks.

        image: a file; repeat the flag for several
        number: without a file, how many images of the test part, with their own captions above
        beam_size: captions that are kept at each word, and printed; 1 is greedy
        length_penalty: scores are log-probabilities over ((5 + words) / 6)^this; 0 prefers short ones
        """
        files = [image] if isinstance(image, str) else list(image)
        if any(files):
            shown = np.stack([captions.read_image(Path(file), describer.model.image_shape) for file in files])
            above = files
        else:
            shown, told = data.references("test")
            if not 1 <= number <= len(shown):
                raise ValueError(f"number must be from 1 to {len(shown):,}, received {number}")
            chosen = np.asarray(jax.random.permutation(key, len(shown)))[:number]
            shown, above = shown[chosen], [" / ".join(told[i]) for i in chosen]
        found = describer.answers(variables, shown, beam_size, length_penalty)
        lists = [[f"{each.score:.3f}  {each.text}" for each in best] for best in found]
        return Samples(
            texts=["\n".join([top, *lines]) for top, lines in zip(above, lists, strict=True)],
            figures={"words": looks(describer, variables, shown, [best[0] for best in found])},
        )

    return sample


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    drawn = {
        "loss": curves.loss(runs, ("train/cross_entropy", "validation/cross_entropy"), ylabel="nats a word")
    }
    if "canvas" in runs[0].config.data:
        drawn["mass"] = mass(runs)
    if len(runs) == 1:
        data, describer = opened(runs[0].config, runs[0].assets)
        image = data.references("validation")[0][:6]
        best = [answers[0] for answers in describer.answers(runs[0].variables, image)]
        drawn["words"] = looks(describer, runs[0].variables, image, best)
    return drawn


def looks(describer, variables, image, answers):
    """Each image, and for each word of its caption how much the model looks where, by the most of that word."""
    lines = []
    for picture, answer in zip(image, answers, strict=True):
        weights = describer.weights(variables, picture[None], answer.ids[None])[0]
        words = [describer.tokenizer.decode(answer.ids[i : i + 1]) for i in range(1, len(answer.ids))]
        panels = [(None, None), *zip(words, weights, strict=True)]
        lines += [(picture, panels[i : i + PANELS]) for i in range(0, len(panels), PANELS)]
    wide, side = max(len(panels) for _, panels in lines), style.PAGE / PANELS
    figure, axes = style.new(len(lines), wide, width=side * wide, height=(side + 0.15) * len(lines))
    axes = np.reshape(axes, (len(lines), wide))
    for one in axes.flat:
        one.set_axis_off()
    for line, (picture, panels) in enumerate(lines):
        for column, (word, weights) in enumerate(panels):
            one = axes[line, column]
            one.set_label(f"{line} {column}")
            one.imshow(picture, cmap="gray", vmin=0, vmax=255).set_label("image")
            if word is None:
                continue
            one.set_title(style.visible(word), fontsize=style.SIZE - 1, pad=2, parse_math=False)
            one.imshow(
                weights.reshape(describer.model.grid),
                cmap=style.COLORMAP,
                vmin=0,
                alpha=0.6,
                interpolation="bilinear",
                extent=(-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5),
            ).set_label(f"attention for {style.visible(word)}")
    return figure


def mass(runs):
    """Of test scenes of two digits: attention within a digit's box, by words before and after its own."""
    label, groups = curves.differences(runs), {}
    kept = [run.arrays("captions") for run in runs]
    for run, arrays in zip(runs, kept, strict=True):
        groups.setdefault(label(run), []).append(by_distance(**arrays))
    figure, axes = style.new()
    for i, (name, means) in enumerate(groups.items()):
        x = sorted(set.intersection(*map(set, means)))
        values = np.array([[mean[distance] for distance in x] for mean in means])
        color = style.COLORS[i % len(style.COLORS)]
        axes.plot(x, values.mean(0), marker="o", color=color, label=name or "learned")
        if len(means) > 1:
            axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
    even = np.mean([arrays["even"][arrays["named"] > 0].mean() for arrays in kept])
    axes.axhline(even, color="0.6", linestyle="--", label="even")
    axes.set(xlabel="words from the digit's own", ylabel="attention within its box", ylim=(0, 1))
    axes.legend()
    return figure


def by_distance(inside, named, tokens, **_) -> dict[int, float]:
    """{how many words after a digit's own: the mean part of attention within its box}, of scenes of two digits."""
    two = named[:, 1] > 0
    inside, named, tokens = inside[two], named[two], tokens[two, None, 1:]
    there = np.broadcast_to(tokens > 0, inside.shape)
    away = np.arange(1, inside.shape[2] + 1) - named[..., None]
    return {int(distance): inside[there & (away == distance)].mean() for distance in np.unique(away[there])}
