"""The one style of every figure, and saving a figure with the numbers it shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from lmlab.figures import table

COLUMN, PAGE = 3.5, 7.0
"""Inches: the widths of one column and of a whole page of a paper."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, told apart by the colour-blind; their yellow is left out: too pale for a line."""

LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)))
"""Line styles, one for each colour, so that a figure printed in grey can still be read."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
COLORMAP = "viridis"

FONT = "DejaVu Sans"
SIZE = 8.0
STYLE = {
    "font.family": FONT,
    "font.size": SIZE,
    "axes.titlesize": SIZE,
    "axes.labelsize": SIZE,
    "axes.prop_cycle": matplotlib.cycler(color=COLORS, linestyle=LINES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.labelsize": SIZE - 1,
    "ytick.labelsize": SIZE - 1,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "image.cmap": COLORMAP,
    "image.interpolation": "nearest",
    "lines.linewidth": 1.2,
    "lines.markersize": 3.0,
    "legend.fontsize": SIZE - 1,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "pdf.fonttype": 42,  # text stays text
}

WHITESPACE = {" ": "␣", "\n": "⏎", "\t": "⇥"}
TICK = 0.11
"""Inches from one token label to the next below which they would touch."""


class Panel(Axes):
    """Axes that keep the style for what matplotlib sizes late, when it is added."""

    def set_title(self, *args, **options):
        with matplotlib.rc_context(STYLE):
            return super().set_title(*args, **options)

    def legend(self, *args, **options):
        with matplotlib.rc_context(STYLE):
            return super().legend(*args, **options)

    def text(self, *args, **options):
        with matplotlib.rc_context(STYLE):
            return super().text(*args, **options)

    def annotate(self, *args, **options):
        with matplotlib.rc_context(STYLE):
            return super().annotate(*args, **options)

    def plot(self, *args, **options):
        with matplotlib.rc_context(STYLE):
            return super().plot(*args, **options)


def new(
    rows: int = 1, columns: int = 1, width: float | None = None, height: float | None = None
) -> tuple[Figure, Any]:
    """A figure and its axes: one Axes, or an array [rows, columns] of them when there are more.

    Sizes are inches; by default a column's width for each column up to a page, and 3:4 panels. Made without
    pyplot, so nothing global is touched and nothing needs closing.
    """
    width = min(PAGE, COLUMN * columns) if width is None else width
    height = 0.72 * width / columns * rows if height is None else height
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, subplot_kw={"axes_class": Panel})
        for one in axes.flat:
            one.tick_params(labelsize=SIZE - 1, width=0.6)
    return figure, axes[0, 0] if axes.size == 1 else axes


def colorbar(figure: Figure, image, axes, label: str, extend: str = "neither") -> None:
    """A labelled colour bar beside `axes` (one or many); `extend` "max": an arrow for values above it."""
    bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=25, pad=0.02, extend=extend)
    bar.set_label(label, fontsize=SIZE)
    bar.ax.tick_params(labelsize=SIZE - 1, width=0.6)
    bar.outline.set_linewidth(0.6)


def save(
    figure: Figure, folder: str | Path, name: str, kinds: Sequence[str] = ("png", "pdf", "csv")
) -> list[Path]:
    """Writes name.png, name.pdf and name.csv (the numbers, read off the figure): same bytes every time."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writers = {
        "csv": lambda path: table.write(figure, path),
        "png": lambda path: figure.savefig(path, dpi=150),
        "pdf": lambda path: figure.savefig(path, metadata={"CreationDate": None}, dpi=300),
    }
    paths = [folder / f"{name}.{kind}" for kind in kinds]
    with matplotlib.rc_context(STYLE):
        for kind, path in zip(kinds, paths, strict=True):
            writers[kind](path)
    return paths


# -- tokens as tick labels --------------------------------------------------------------------------


def visible(token: str) -> str:
    """A token as a label: ␣ for a space, ⏎ for a new line, U+hex for what the font lacks, ∅ for nothing."""
    shown = (WHITESPACE.get(c, c) for c in token)
    return "".join(c if ord(c) in _glyphs() and c.isprintable() else f"U+{ord(c):04X}" for c in shown) or "∅"


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())


def label_tokens(axis: Axis, tokens: Sequence[str], inches: float, size: float = SIZE - 2) -> None:
    """Labels `axis`, which is `inches` long, by its tokens: each, or every n-th where they would touch."""
    narrow = axis.axis_name == "x" and all(len(visible(token)) == 1 for token in tokens)
    room = (0.6 if narrow else 1.0) * TICK * size / (SIZE - 2)  # characters are narrower than lines are high
    every = max(1, math.ceil(len(tokens) * room / inches))
    places = np.arange(0, len(tokens), every)
    labels = [visible(tokens[place]) for place in places]
    axis.set_ticks(places, labels, fontsize=size, parse_math=False)
    axis.set_tick_params(length=2)
    if axis.axis_name == "x" and max(map(len, labels), default=0) > 1:
        for label in axis.get_ticklabels():
            label.set_rotation(90)
