"""Scenes whose labels are known by construction; intersection over union counted by hand."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab import config as configs
from lmlab.data import images
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Assets

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "segmentation.py"


@pytest.fixture(scope="module")
def module():
    return configs.load(f"{EXPERIMENT}:demo")[1]


def scenes(module, pieces, count=20):
    arrays = {name: jnp.asarray(values) for name, values in images.digits("train").items()}
    scene = module.Scene(16, pieces, 4)
    return arrays, jax.device_get(scene(arrays, jnp.arange(count), jax.random.key(0)))


def test_labels_are_the_digits_own_pixels_wherever_it_lies(module):
    arrays, made = scenes(module, 0)
    corners = set()
    for number in range(20):
        image, label = made["image"][number], made["label"][number]
        digit = np.asarray(arrays["image"][number])
        rows, columns = np.nonzero(image)
        inked = np.argwhere(digit)
        top, left = rows.min() - inked[:, 0].min(), columns.min() - inked[:, 1].min()
        expected = np.zeros((16, 16), np.uint8)
        expected[top : top + 8, left : left + 8] = digit
        np.testing.assert_allclose(image, expected / np.float32(255))
        np.testing.assert_array_equal(label, np.where(expected > 127, int(arrays["label"][number]) + 1, 0))
        corners.add((top, left))
    assert len(corners) > 10, "places differ"


def test_pieces_of_others_are_background(module):
    arrays, bare = scenes(module, 0)
    _, full = scenes(module, 6)
    more = 0
    for number in range(20):
        assert set(np.unique(full["label"][number])) <= {0, int(arrays["label"][number]) + 1}
        unlabelled = full["image"][number][full["label"][number] == 0]
        more += (unlabelled > 0.5).sum() - (bare["image"][number][bare["label"][number] == 0] > 0.5).sum()
    assert more > 100, "there is clutter outside of the digit"


def test_scenes_are_new_each_epoch_and_the_same_for_the_same_seed():
    def first(seed, epoch):
        config, module = configs.load(f"{EXPERIMENT}:demo", {"seed": seed})
        source = module.build(config, Assets()).train_data()
        return source.take(source.data, jnp.arange(4), epoch, seed)["image"]

    np.testing.assert_array_equal(first(0, 0), first(0, 0))
    assert (first(0, 0) != first(0, 1)).any() and (first(0, 0) != first(1, 0)).any()


class Says:
    """A model whose logits are those of the guesses it is given as images."""

    def apply(self, variables, image, *rest, **options):
        return jax.nn.one_hot(image, 11)


def test_overlap_by_hand(module):
    """Over all images of a part at once; what is padding counts for nothing."""
    label = np.array(
        [[[0, 0, 1, 1], [2, 2, 0, 0]], [[0, 0, 0, 0], [3, 3, 3, 3]], [[0, 0, 0, 3], [3, 0, 0, 0]]]
    )
    guess = np.array(
        [[[0, 1, 1, 0], [2, 0, 0, 0]], [[0, 0, 0, 0], [0, 3, 3, 3]], [[0, 0, 0, 0], [0, 0, 0, 3]]]
    )
    part = {"image": guess, "label": label}
    scores, shown = module.Overlap(
        Likelihood(module.Segment(Says()), lambda: part, batch_size=2, held_out=True)
    )({"params": {}}, jax.random.key(0))
    # class 1: 1 of 3 pixels; class 2: 1 of 2; class 3: 3 of 4 in the second image and 0 of 3 in the third
    assert [round(scores[f"iou_{k}"], 6) for k in range(4)] == [0.333333, 0.5, round(3 / 7, 6), 0.0]
    background = np.sum((guess == 0) & (label == 0)) / np.sum((guess == 0) | (label == 0))
    np.testing.assert_allclose(scores["iou_background"], background, rtol=1e-6)
    np.testing.assert_allclose(scores["iou"], (1 / 3 + 1 / 2 + 3 / 7) / 10, rtol=1e-6)
    np.testing.assert_allclose(scores["accuracy"], np.mean(guess == label), rtol=1e-6)
    np.testing.assert_array_equal(shown["guess"], guess)


def test_bars_are_means_and_deviations_over_runs(module):
    runs = [
        SimpleNamespace(arrays=lambda name, value=value: {"iou": np.full(10, value)}) for value in (0.4, 0.6)
    ]
    bars, error = module.overlap(runs).axes[0].containers[::-1]
    np.testing.assert_allclose([bar.get_height() for bar in bars], 0.5)
    (_, low), (_, high) = error.lines[2][0].get_segments()[0]
    np.testing.assert_allclose(high - low, 2 * np.std([0.4, 0.6], ddof=1))


@pytest.mark.parametrize(
    "changes", [{"data.canvas": 7}, {"data.piece": 9}, {"data.piece": 0}, {"data.pieces": -1}]
)
def test_scenes_that_cannot_be_are_refused(module, changes):
    config, _ = configs.load(f"{EXPERIMENT}:demo", changes)
    with pytest.raises(ValueError, match="allowed: a canvas of 8 or more, 0 pieces or more of 1 to 8"):
        module.build(config, Assets())
