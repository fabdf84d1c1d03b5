"""A metric over the settings of a sweep: along one axis, or over two."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Sequence
from numbers import Real

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lmlab.figures import style

GREY = "#8a8a8a"
EMPTY = "#efefef"
CELL = 0.86
"""Inches that a cell of a grid is wide at most; below half of it its number is left out."""


def along(x: Sequence[Hashable], values: Sequence[float], xlabel: str, ylabel: str) -> Figure:
    """One point a run; the mean of each setting, with bars of one sample deviation over its runs.

    NaN stands for a run that diverged: it is named above its setting, and counts in no mean.
    """
    figure, axes = style.new(width=style.PAGE * 0.75)
    runs = _together(x, values)
    known = {setting: ended for setting, (ended, _) in runs.items() if ended}
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    place(axes.yaxis, [value for ended in known.values() for value in ended])
    places = place(axes.xaxis, list(runs))
    middle = [places[setting] for setting in known]
    means = [statistics.fmean(ended) for ended in known.values()]
    numbers = all(_is_number(setting) for setting in runs)
    line = "-" if numbers else "none"
    axes.plot(middle, means, color=style.COLORS[0], linestyle=line, marker="o", markersize=5, label="mean")
    if any(len(ended) > 1 for ended in known.values()):
        bars = [statistics.stdev(ended) if len(ended) > 1 else 0.0 for ended in known.values()]
        axes.errorbar(
            middle,
            means,
            bars,
            fmt="none",
            ecolor=style.COLORS[0],
            elinewidth=1.2,
            capsize=3,
            label="deviation",
        )
        each = [(places[setting], value) for setting, ended in known.items() for value in ended]
        axes.scatter(
            *zip(*each, strict=True), s=9, color=GREY, alpha=0.7, linewidths=0, zorder=3, label="runs"
        )
        axes.legend()
    axes.update_datalim([(at, 0.0) for at in places.values()], updatey=False)
    axes.autoscale_view()
    for setting, (ended, diverged) in runs.items():
        if diverged:
            told = "diverged" if not ended else f"{diverged} of {len(ended) + diverged} diverged"
            axes.annotate(
                told, (places[setting], 0.98), xycoords=axes.get_xaxis_transform(), rotation=90, ha="center", va="top",
                color=GREY, fontsize=style.SIZE - 1,
            )  # fmt: skip
    return figure


def over(
    x: Sequence[Hashable],
    y: Sequence[Hashable],
    values: Sequence[float],
    xlabel: str,
    ylabel: str,
    label: str,
    best: Callable = min,
) -> Figure:
    """Means over the runs of each pair (x, y), NaN for a run that diverged.

    A grid of cells with their numbers, the best one of which no run diverged framed; points instead where fewer
    than half of the pairs were run, as in a random search.
    """
    pairs = _together(list(zip(x, y, strict=True)), values)
    columns, rows = _ordered(x), _ordered(y)
    if 2 * len(pairs) < len(columns) * len(rows):
        return _points(pairs, xlabel, ylabel, label)
    means, safe = np.full((2, len(rows), len(columns)), np.nan)
    for (a, b), (ended, diverged) in pairs.items():
        if ended:
            means[rows.index(b), columns.index(a)] = statistics.fmean(ended)
            safe[rows.index(b), columns.index(a)] = math.nan if diverged else statistics.fmean(ended)
    wide = min(CELL, (style.PAGE - 1.7) / len(columns))
    numbers = wide >= CELL / 2
    high = 0.55 * wide if numbers else 0.16
    size = (max(style.COLUMN, wide * len(columns) + 1.7), max(1.7, high * len(rows) + 0.7))
    figure, axes = style.new(width=size[0], height=size[1])
    axes.set_label(label)
    axes.set_facecolor(EMPTY)
    axes.spines[:].set_visible(False)
    image = axes.imshow(
        means, cmap=style.COLORMAP, norm=_norm(means.ravel().tolist()), aspect="auto", origin="lower"
    )
    names = [written(column) for column in columns]
    upright = max(map(len, names)) * 0.075 > wide
    axes.set_xticks(range(len(columns)), names, rotation=90 if upright else 0)
    axes.set_yticks(range(len(rows)), [written(row) for row in rows])
    axes.tick_params(length=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if numbers:
        _numbers(axes, image, means, pairs, columns, rows, wide)
    _frame(axes, safe, best)
    _colorbar(figure, image, axes, label)
    return figure


def place(axis: Axis, settings: Sequence[Hashable]) -> dict[Hashable, float]:
    """{setting: where it lies along an axis}; numbers lie where they are, others side by side under their names.

    Numbers above 0 that span a decade make the axis logarithmic. A few are ticks themselves, where there is room.
    """
    ordered = _ordered(settings)
    if not all(_is_number(setting) for setting in ordered):
        axis.set_ticks(range(len(ordered)), [written(setting) for setting in ordered])
        axis.axes.margins(**{axis.axis_name: 0.15})
        return {setting: float(number) for number, setting in enumerate(ordered)}
    if decade(ordered):
        getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
        _decades(axis, ordered)
    if axis.axis_name == "x" and len(ordered) <= 8:
        shown = _apart(ordered, np.log10 if decade(ordered) else np.asarray)
        axis.set_ticks(shown, [written(setting) for setting in shown])
    return {setting: float(setting) for setting in ordered}


def _apart(values: Sequence[float], scale: Callable) -> list[float]:
    """Values in their order, less those whose numbers would run into that of the one before."""
    at, shown = scale(np.asarray(values, float)), [0]
    for i in range(1, len(at)):
        if at[i] - at[shown[-1]] >= 0.05 * (at[-1] - at[0]):
            shown.append(i)
    return [values[i] for i in shown]


def _decades(axis: Axis, values: Sequence[float]) -> None:
    """Ticks of a logarithmic axis, as plain numbers: 0.1, 0.2, 0.5 where it is short."""
    axis.set_major_locator(LogLocator(subs=[1, 2, 5] if max(values) < 200 * min(values) else [1]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: written(float(value))))
    axis.set_minor_formatter(NullFormatter())


def decade(values: Sequence[float]) -> bool:
    """Whether values are above 0 and span a factor of ten or more."""
    known = [value for value in values if math.isfinite(value)]
    return len(known) > 0 and bool(0 < 10 * min(known) <= max(known))


def written(setting: Hashable) -> str:
    """A setting as it is written: 0.0003 for 3e-4."""
    return f"{setting:.6g}" if isinstance(setting, float) else str(setting)


def _is_number(setting: Hashable) -> bool:
    return isinstance(setting, Real) and not isinstance(setting, bool)


def _ordered(settings: Sequence[Hashable]) -> list:
    """Each once: numbers by size, others as they came."""
    distinct = list(dict.fromkeys(settings))
    return sorted(distinct) if all(_is_number(setting) for setting in distinct) else distinct


def _together(
    settings: Sequence[Hashable], values: Sequence[float]
) -> dict[Hashable, tuple[list[float], int]]:
    """{setting: (values of the runs that ended, how many diverged)}, in order."""
    runs: dict[Hashable, list[float]] = {setting: [] for setting in _ordered(settings)}
    for setting, value in zip(settings, values, strict=True):
        runs[setting].append(value)
    return {
        s: (ended := [v for v in all_ if math.isfinite(v)], len(all_) - len(ended))
        for s, all_ in runs.items()
    }


def _norm(values: Sequence[float]) -> Normalize:
    """Colours over the finite values, logarithmic where they span a decade."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    return (LogNorm if decade(known) else Normalize)(min(known), max(known))


def _colorbar(figure: Figure, image, axes: Axes, label: str) -> None:
    style.colorbar(figure, image, axes, label)
    if isinstance(image.norm, LogNorm):
        _decades(image.colorbar.long_axis, [image.norm.vmin, image.norm.vmax])


def _numbers(axes: Axes, image, means, pairs, columns, rows, wide: float) -> None:
    """In each cell its mean, deviation and who diverged, dark on light and light on dark."""
    size = style.SIZE - 1 if wide >= 0.7 * CELL else style.SIZE - 2.5
    for (row, column), mean in np.ndenumerate(means):
        ended, diverged = pairs.get((columns[column], rows[row]), ([], 0))
        lines = [f"{mean:#.4g}".rstrip(".")] if ended else ["diverged" if diverged else "not run"]
        lines += [f"± {statistics.stdev(ended):.2g}"] if len(ended) > 1 else []
        lines += [f"{diverged} diverged"] if ended and diverged else []
        red, green, blue, _ = image.to_rgba(mean) if ended else (1, 1, 1, 1)
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        color = "white" if dark else "black" if ended else GREY
        axes.text(column, row, "\n".join(lines), ha="center", va="center", color=color, fontsize=size)


def _frame(axes: Axes, means: np.ndarray, best: Callable) -> None:
    """A frame around the best cell."""
    known = means[np.isfinite(means)]
    if known.size < 2:
        return
    for row, column in np.argwhere(means == best(known)):
        for color, width in (("white", 3.0), ("black", 1.2)):
            corner = (column - 0.46, row - 0.46)
            axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=color, linewidth=width))


def _points(pairs, xlabel: str, ylabel: str, label: str) -> Figure:
    figure, axes = style.new(width=style.PAGE * 0.75)
    axes.set_label(label)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    across, up = (place(axis, [p[i] for p in pairs]) for i, axis in enumerate((axes.xaxis, axes.yaxis)))
    at = {pair: (across[pair[0]], up[pair[1]]) for pair in pairs}
    means = {pair: statistics.fmean(ended) for pair, (ended, _) in pairs.items() if ended}
    lost = [at[pair] for pair, (_, diverged) in pairs.items() if diverged]
    values = list(means.values())
    image = axes.scatter(
        *np.array([at[pair] for pair in means]).reshape(-1, 2).T, c=values, s=44, norm=_norm(values), label="mean",
        cmap=style.COLORMAP, edgecolors="black", linewidths=0.4,
    )  # fmt: skip
    if lost:
        axes.scatter(*np.array(lost).T, marker="x", s=26, color=GREY, linewidths=1.2, label="diverged")
        axes.legend(handles=axes.collections[1:])
    _colorbar(figure, image, axes, label)
    return figure
