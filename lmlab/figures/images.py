"""Images: labelled rows, grids, and a plain PNG of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lmlab.figures import style

GAP = 2
"""Pixels between two images."""
SMALL = 320
"""Pixels up to which an animation is shown at twice its width."""


def rows(images: Mapping[str, Num[Any, "N ..."]]) -> Figure:
    """One labelled row of images a name; a column is one example (original above reconstruction)."""
    if not images:
        raise ValueError("rows of images: received none")
    pixels = {name: _pixels(values) for name, values in images.items()}
    _, high, wide, _ = np.broadcast_shapes(*((1, *p.shape[1:3], 1) for p in pixels.values()))
    count = max(len(p) for p in pixels.values())
    beside = 0.2 + 0.08 * max(map(len, pixels))  # inches for the names
    width = min(style.PAGE, beside + max(2.0, 0.45 * count))
    height = (width - beside) * (len(pixels) * (high + GAP)) / (count * (wide + GAP))
    figure, axes = style.new(width=width, height=height)
    for row, (name, batch) in enumerate(pixels.items()):
        for column, image in enumerate(batch):
            _place(axes, image, row, column, f"{name} {column}")
    _frame(axes, len(pixels), count, high, wide)
    centres = [row * (high + GAP) + high / 2 for row in range(len(pixels))]
    axes.set_yticks(centres, list(pixels), fontsize=style.SIZE, parse_math=False)
    return figure


def grid(images: Num[Any, "N ..."], columns: int | None = None) -> Figure:
    """All images in reading order, in a near-square grid unless `columns` says otherwise."""
    pixels = _pixels(images)
    columns = columns or math.ceil(math.sqrt(len(pixels)))
    lines = math.ceil(len(pixels) / columns)
    _, high, wide, _ = pixels.shape
    width = min(style.PAGE, max(style.COLUMN, 0.35 * columns))
    figure, axes = style.new(width=width, height=width * lines * (high + GAP) / (columns * (wide + GAP)))
    for index, image in enumerate(pixels):
        _place(axes, image, *divmod(index, columns), str(index))
    _frame(axes, lines, columns, high, wide)
    axes.set_yticks([])
    return figure


def captioned(images: Num[Any, "N ..."], captions: Sequence[str], columns: int = 10) -> Figure:
    """A grid with a line of text above each image."""
    pixels = _pixels(images)
    columns = min(columns, len(pixels))
    lines = math.ceil(len(pixels) / columns)
    figure, axes = style.new(lines, columns, width=min(style.PAGE, 0.7 * columns), height=0.85 * lines)
    axes = np.ravel(axes)
    for one, image, caption in zip(axes, pixels, captions, strict=False):
        _place(one, image, 0, 0, caption)
        one.set_title(caption, fontsize=style.SIZE - 1, pad=2)
    for one in axes:
        one.set_axis_off()
    return figure


def write_png(images: Num[Any, "N ..."], path: str | Path, columns: int | None = None) -> None:
    """The images pixel for pixel in a near-square grid on white, without a figure round them."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sheet(_pixels(images), columns).save(path, format="PNG")


def write_gif(frames: Num[Any, "F N ..."], path: str | Path, columns: int | None = None) -> None:
    """The same grid at each moment, as an animation of four seconds that rests on its last frame; if SMALL, doubled."""
    sheets = [_sheet(_pixels(moment), columns) for moment in frames]
    if not sheets:
        raise ValueError("an animation wants a frame or more; received none")
    times = 2 if sheets[0].width <= SMALL else 1
    sheets = [
        sheet.resize((times * sheet.width, times * sheet.height), Image.Resampling.NEAREST)
        for sheet in sheets
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    durations = [max(20, 4000 // len(sheets))] * (len(sheets) - 1) + [2000]
    sheets[0].save(path, "GIF", save_all=True, append_images=sheets[1:], duration=durations, loop=0)


def raster(points: Num[Any, "N 2"], bound: float, size: int = 96) -> np.ndarray:
    """Points of the square [-bound, bound]^2 as an image in [0, 1], the second coordinate upwards."""
    x, y = np.asarray(points).T
    counts, _, _ = np.histogram2d(-y, x, bins=size, range=[(-bound, bound)] * 2)
    return (1 - np.exp(-counts)).astype(np.float32)


def _sheet(pixels: np.ndarray, columns: int | None) -> Image.Image:
    count, high, wide, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    sheet = np.full((lines * (high + GAP) - GAP, columns * (wide + GAP) - GAP, channels), 255, np.uint8)
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        top, left = row * (high + GAP), column * (wide + GAP)
        sheet[top : top + high, left : left + wide] = _bytes(image)
    return Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet)


def _pixels(images) -> np.ndarray:
    """[N, H, W, C] with C 1 or 3: bytes, or floats from 0 to 1 (what lies a little outside is cut)."""
    pixels = np.asarray(images)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3) or pixels.size == 0:
        raise ValueError(
            f"images must be [N, H, W], or that and 1 or 3 channels; received {np.shape(images)}"
        )
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        pixels = pixels.astype(np.float32)
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -0.5 and high <= 1.5):
        raise ValueError(f"images must be bytes, or floats from 0 to 1; received {low:g} to {high:g}")
    return np.clip(pixels, 0, 1)


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else np.round(pixels * 255).astype(np.uint8)


def _place(axes: Axes, image: np.ndarray, row: int, column: int, label: str) -> None:
    high, wide, channels = image.shape
    left, top = column * (wide + GAP), row * (high + GAP)
    drawn = axes.imshow(
        image.squeeze(-1) if channels == 1 else image,
        cmap="gray",
        vmin=0,
        vmax=255 if image.dtype == np.uint8 else 1,
        extent=(left, left + wide, top + high, top),
    )
    drawn.set_label(label)


def _frame(axes: Axes, rows: int, columns: int, high: int, wide: int) -> None:
    axes.set_xlim(0, columns * (wide + GAP) - GAP)
    axes.set_ylim(rows * (high + GAP) - GAP, 0)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
