import csv

import numpy as np
import pytest
from PIL import Image

from lmlab.figures import style


def figure():
    made, axes = style.new()
    axes.plot([0, 1, 2], [1.5, 0.1, np.nan], label="loss")
    axes.set_xlabel("updates")
    axes.set_ylabel("loss")
    axes.set_title("a title")
    axes.legend()
    return made


def test_save_writes_three_files_and_draws_something(tmp_path):
    paths = style.save(figure(), tmp_path / "figures", "loss")
    assert [path.name for path in paths] == ["loss.png", "loss.pdf", "loss.csv"]
    assert paths[1].read_bytes().startswith(b"%PDF")
    pixels = np.asarray(Image.open(paths[0]).convert("L"))
    assert pixels.shape[1] == round(style.COLUMN * 150)
    assert (pixels < 128).mean() > 0.005 and (pixels == 255).mean() > 0.5
    rows = list(csv.DictReader(paths[2].read_text().splitlines()))
    assert [(row["series"], row["x"], row["y"]) for row in rows] == [
        ("loss", "0", "1.5"),
        ("loss", "1", "0.1"),
        ("loss", "2", "nan"),
    ]


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    for first, second in zip(
        style.save(figure(), tmp_path / "a", "x"), style.save(figure(), tmp_path / "b", "x"), strict=True
    ):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_what_is_added_late_keeps_the_style():
    axes = figure().axes[0]
    assert axes.title.get_fontsize() == style.SIZE
    assert {text.get_fontsize() for text in axes.get_legend().get_texts()} == {style.SIZE - 1}
    assert axes.annotate("here", (0, 0)).get_fontsize() == style.SIZE
    assert axes.text(0, 0, "here").get_fontsize() == style.SIZE


def test_new_touches_nothing_global():
    import matplotlib

    before = dict(matplotlib.rcParams)
    made, axes = style.new(2, 3)
    assert axes.shape == (2, 3) and len(made.axes) == 6
    assert dict(matplotlib.rcParams) == before
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []


def test_series_differ_in_colour_and_in_line():
    _, axes = style.new()
    lines = [axes.plot([0, 1], [i, i])[0] for i in range(len(style.COLORS))]
    assert [line.get_color() for line in lines] == list(style.COLORS)
    looks = {(line._unscaled_dash_pattern[1] or ()) for line in lines}
    assert len(set(map(str, looks))) == len(style.LINES) == len(style.COLORS)


@pytest.mark.parametrize(
    ("token", "label"),
    [
        ("a b", "a␣b"),
        ("\n", "⏎"),
        ("\t", "⇥"),
        ("$x$", "$x$"),
        ("", "∅"),
        ("\x00", "U+0000"),
        ("中", "U+4E2D"),
    ],
)
def test_tokens_are_visible(token, label):
    assert style.visible(token) == label


def test_long_sentences_label_every_nth_token(tmp_path):
    made, axes = style.new()
    axes.imshow(np.zeros((1, 100)))
    tokens = [str(i) for i in range(100)]
    style.label_tokens(axes.xaxis, tokens, inches=3.0)
    shown = [text.get_text() for text in axes.get_xticklabels()]
    assert 10 <= len(shown) < 40 and all(
        tokens[int(p)] == s for p, s in zip(axes.get_xticks(), shown, strict=True)
    )
    style.label_tokens(axes.xaxis, ["$", "$"], inches=3.0)
    style.save(made, tmp_path, "dollars")  # not read as mathematics
