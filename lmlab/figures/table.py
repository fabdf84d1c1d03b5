"""The numbers of a figure, read off the figure itself: no figure can be saved without its data."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.category import StrCategoryFormatter
from matplotlib.collections import (
    FillBetweenPolyCollection,
    LineCollection,
    PathCollection,
    QuadMesh,
)
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, FuncFormatter

COLUMNS = ("axes", "kind", "series", "x", "y", "row", "column", "value")
"""Lines, points, bands, errors and bars fill x and y; images and meshes fill row, column and value."""

Row = tuple[Any, ...]


def write(figure: Figure, path: Path) -> None:
    """Writes `rows(figure)` as CSV; numbers keep every digit of their own precision."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows(figure))


def rows(figure: Figure) -> list[Row]:
    """Every number drawn, axes by axes (named by their label, else title, else place), as rows of COLUMNS."""
    found: list[Row] = []
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    for place, axes in enumerate(panels):
        name = axes.get_label() or axes.get_title() or f"axes {place}"
        found.extend((name, *row) for row in _axes(axes))
    return found


def _axes(axes: Axes) -> Iterator[Row]:
    bars = [c for c in axes.containers if isinstance(c, BarContainer)]
    errors = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    owned = {id(part) for c in errors for part in _parts(c)}

    for place, line in enumerate(line for line in axes.lines if id(line) not in owned):
        yield from _line(line, _series(line, place), axes)
    for place, container in enumerate(errors):
        yield from _errors(container, _series(container, place))
    for place, container in enumerate(bars):
        yield from _bars(container, _series(container, place), axes)
    for place, artist in enumerate(a for a in axes.collections if id(a) not in owned):
        yield from _collection(artist, _series(artist, place))
    for place, image in enumerate(axes.images):
        yield from _image(image, _series(image, place))


def _series(artist, place: int) -> str:
    label = str(artist.get_label() or "")
    given = label and not label.startswith(("_child", "_nolegend_"))
    return label.removeprefix("_") if given else str(place)  # a leading _ only keeps it out of the legend


def _line(line, series: str, axes: Axes) -> Iterator[Row]:
    x, y = line.get_xdata(orig=True), line.get_ydata(orig=True)
    if line.get_transform() == axes.get_yaxis_transform(which="grid"):  # axhline: x runs over the axes
        yield ("reference", series, "", y[0], "", "", "")
    elif line.get_transform() == axes.get_xaxis_transform(which="grid"):  # axvline
        yield ("reference", series, x[0], "", "", "", "")
    else:
        for a, b in zip(x, y, strict=True):
            yield ("line", series, a, b, "", "", "")


def _parts(container: ErrorbarContainer) -> list:
    line, caps, bars = container.lines
    return [part for part in (line, *caps, *bars) if part is not None]


def _errors(container: ErrorbarContainer, series: str) -> Iterator[Row]:
    line, _, bars = container.lines
    if line is not None:
        for a, b in zip(line.get_xdata(orig=True), line.get_ydata(orig=True), strict=True):
            yield ("line", series, a, b, "", "", "")
    for bar in bars:
        for low, high in bar.get_segments():
            yield ("error low", series, *low, "", "", "")
            yield ("error high", series, *high, "", "", "")


def _bars(container: BarContainer, series: str, axes: Axes) -> Iterator[Row]:
    upright = container.orientation == "vertical"
    names = _names(axes.xaxis if upright else axes.yaxis)
    for bar in container.patches:
        centre = bar.get_x() + bar.get_width() / 2 if upright else bar.get_y() + bar.get_height() / 2
        centre = names.get(round(float(centre), 6), centre)
        x, y = (centre, bar.get_height()) if upright else (bar.get_width(), centre)
        yield ("bar", series, x, y, "", "", "")


def _names(axis: Axis) -> dict[float, str]:
    """{position: name} of an axis of categories."""
    formatter = axis.get_major_formatter()
    named = isinstance(axis.get_major_locator(), FixedLocator) and isinstance(formatter, FuncFormatter)
    if not (named or isinstance(formatter, StrCategoryFormatter)):
        return {}
    places = axis.get_majorticklocs()
    names = formatter.format_ticks(places)
    return {round(float(place), 6): name for place, name in zip(places, names, strict=True) if name}


def _collection(artist, series: str) -> Iterator[Row]:
    if isinstance(artist, FillBetweenPolyCollection):
        for path in artist.get_paths():
            corners = path.vertices
            for x in np.unique(corners[:, 0]):
                y = corners[corners[:, 0] == x, 1]
                yield ("band low", series, x, y.min(), "", "", "")
                yield ("band high", series, x, y.max(), "", "", "")
    elif isinstance(artist, PathCollection):
        places, values = np.ma.filled(artist.get_offsets(), np.nan), artist.get_array()
        for i, (x, y) in enumerate(places):
            yield ("point", series, x, y, "", "", "" if values is None else values[i])
    elif isinstance(artist, LineCollection):
        for i, segment in enumerate(artist.get_segments()):
            for x, y in segment:
                yield ("line", f"{series}.{i}", x, y, "", "", "")
    elif isinstance(artist, QuadMesh):
        yield from _matrix("mesh", series, artist.get_array())
    else:
        raise ValueError(
            f"a {type(artist).__name__} hides its data; draw lines, bands, points, bars or images"
        )


def _image(image: AxesImage, series: str) -> Iterator[Row]:
    values = image.get_array()
    if values.ndim == 2:
        yield from _matrix("image", series, values)
    else:
        for channel, name in enumerate(("red", "green", "blue", "alpha")[: values.shape[-1]]):
            yield from _matrix("image", f"{series} {name}", values[..., channel])


def _matrix(kind: str, series: str, values) -> Iterator[Row]:
    masked = np.ma.getmaskarray(values)
    for (row, column), value in np.ndenumerate(np.ma.getdata(values)):
        yield (kind, series, "", "", row, column, "nan" if masked[row, column] else value)
