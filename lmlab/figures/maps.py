"""Heat maps over tokens: attention by layer and head, an alignment, the activations of gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmlab.figures import style

UNITS = 32
"""Rows of an activation map; wider layers are averaged down to them."""


def attention(weights: Float[Any, "L H T S"], queries: Sequence[str], keys: Sequence[str]) -> Figure:
    """One map a head, a row of them a layer: the weight that each query (down) gives to each key (across).

    The colours end at the 99th percentile of the weights that are not 0: a first token has only itself to
    attend to, and its weight of 1 would leave all others dark.
    """
    weights = np.asarray(weights)
    layers, heads, *_ = weights.shape
    _fits("attention", weights.shape[2:], queries, keys)
    side = min(2.4, (style.PAGE - 1.6) / heads)  # inches of one map
    width = max(style.COLUMN, heads * side + 1.6)
    tall = side * min(1.0, len(queries) / len(keys))
    high = float(np.quantile(weights[weights > 0], 0.99)) if (weights > 0).any() else 1.0
    figure, axes = style.new(layers, heads, width=width, height=layers * (tall + 0.1) + 0.7)
    axes = np.reshape(axes, (layers, heads))
    for (layer, head), one in np.ndenumerate(axes):
        image = _map(one, weights[layer, head], f"layer {layer + 1}, head {head + 1}", 0.0, high)
        for axis in (one.xaxis, one.yaxis):
            axis.set_ticks([])
        if layer == 0:
            one.set_title(f"head {head + 1}", fontsize=style.SIZE)
        if layer == layers - 1:
            style.label_tokens(one.xaxis, keys, side * 0.85)
        if head == 0:
            style.label_tokens(one.yaxis, queries, tall * 0.85)
            one.set_ylabel(f"layer {layer + 1}", fontsize=style.SIZE)
    figure.supxlabel("key", fontsize=style.SIZE)
    figure.supylabel("query", fontsize=style.SIZE)
    style.colorbar(figure, image, axes, "attention weight", "max" if weights.max() > high else "neither")
    return figure


def alignment(weights: Float[Any, "T S"], targets: Sequence[str], sources: Sequence[str]) -> Figure:
    """One matrix: how much each target token (down) looks at each source token (across)."""
    weights = np.asarray(weights)
    _fits("alignment", weights.shape, targets, sources)
    cell = min(0.17, (style.PAGE - 1.6) / len(sources))
    wide, tall = cell * len(sources), cell * len(targets)
    figure, axes = style.new(width=max(style.COLUMN, wide + 1.6), height=max(1.6, tall + 1.0))
    image = _map(axes, weights, "alignment", 0.0, float(weights.max()))
    axes.set_aspect("equal")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    style.label_tokens(axes.xaxis, sources, wide, style.SIZE - 1)
    style.label_tokens(axes.yaxis, targets, tall, style.SIZE - 1)
    axes.set_xlabel("source")
    axes.set_ylabel("target")
    style.colorbar(figure, image, axes, "attention weight")
    return figure


def decoding(
    weights: Float[Any, "T S"], targets: Sequence[str], sources: Sequence[str]
) -> UInt8[np.ndarray, "F 1 H W 3"]:
    """Frames of an animation: the alignment as the target is written, a row and its word at a time."""
    weights = np.asarray(weights)
    figure = alignment(weights, targets, sources)
    axes = figure.axes[0]
    frames = []
    for written in range(len(targets) + 1):
        later = np.arange(len(targets))[:, None] >= written
        axes.images[0].set_data(np.ma.masked_where(np.broadcast_to(later, weights.shape), weights))
        for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True):
            label.set_alpha(0.0 if place >= written else 1.0)
        figure.canvas.draw()
        frames.append(np.array(figure.canvas.buffer_rgba())[None, ..., :3])
    return np.stack(frames)


def activations(values: Mapping[str, Float[Any, "T D"]], tokens: Sequence[str]) -> Figure:
    """One map a gate over a sentence: units down, from the most active on average to the least.

    Each gate has an order of its own. More than UNITS units are averaged by neighbours in that order.
    """
    if not values:
        raise ValueError("activations: received no gate")
    cell = min(0.17, (style.PAGE - 1.2) / len(tokens))
    width = max(style.COLUMN, cell * len(tokens) + 1.2)
    figure, axes = style.new(len(values), 1, width=width, height=1.3 * len(values) + 0.5)
    axes = np.ravel(axes)
    for one, (name, gate) in zip(axes, values.items(), strict=True):
        gate = np.asarray(gate)
        _fits(f"activations of {name}", gate.shape[:1], tokens)
        units = gate[:, np.argsort(-gate.mean(axis=0), kind="stable")]
        groups = np.array_split(np.arange(units.shape[1]), min(UNITS, units.shape[1]))
        rows = np.stack([units[:, group].mean(axis=1) for group in groups])
        limit = max(1.0, float(np.abs(rows).max()))
        image = _map(one, rows, name, 0.0 if gate.min() >= 0 else -limit, limit)
        one.set_xticks([])
        one.set_yticks([])
        one.set_ylabel(f"{units.shape[1]} units\nby mean")
        one.set_title(name)
        style.colorbar(figure, image, one, "activation")
    style.label_tokens(axes[-1].xaxis, tokens, width - 1.2)
    axes[-1].set_xlabel("token")
    return figure


def _map(axes: Axes, values: np.ndarray, label: str, low: float, high: float):
    axes.set_label(label)
    axes.spines[:].set_visible(True)
    return axes.imshow(
        values, cmap=style.COLORMAP, vmin=low, vmax=high, aspect="auto", interpolation="nearest"
    )


def _fits(what: str, shape: Sequence[int], *tokens: Sequence[str]) -> None:
    """ValueError unless there is one token for each row (and column)."""
    counts = tuple(len(t) for t in tokens)
    if tuple(shape) != counts:
        raise ValueError(f"{what}: weights for {tuple(shape)} tokens, but {counts} tokens received")
