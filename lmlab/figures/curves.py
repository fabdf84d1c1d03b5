"""Learning curves: one run, or groups of runs with bands over their seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from lmlab.config import leaves
from lmlab.figures import settings, style

LOSSES = ("train/loss", "validation/loss")
AXES = {"step": "updates", "tokens": "training tokens", "examples": "training examples", "seconds": "seconds"}


@runtime_checkable
class Run(Protocol):
    """What a curve needs of a run; `metrics()` has a row a logged step, NaN where a metric was not logged."""

    name: str
    config: Any

    def metrics(self) -> pd.DataFrame: ...


def loss(
    runs: Run | Sequence[Run],
    metrics: Sequence[str] = LOSSES,
    x: str = "step",
    label: Callable[[Run], str] | None = None,
    ylabel: str = "loss",
    wide: bool = False,
) -> Figure:
    """The metrics of one run, or of runs grouped by `label`: the group's mean and a band.

    The band is one deviation to both sides, within what the group's runs reached. Without `label`, runs that differ
    in nothing but their seed are a group, named by what they differ in. A group is drawn at the steps that all its
    runs logged. Colours tell groups, line styles metrics. `wide`: as wide as a page, the legend below, a logarithmic
    axis where the values span a decade.
    """
    if x not in AXES:
        raise ValueError(f"unknown x {x!r}; allowed: {', '.join(AXES)}")
    runs = list(runs) if isinstance(runs, Sequence) else [runs]
    if not runs:
        raise ValueError("loss curves: received no run")
    tables = {id(run): run.metrics() for run in runs}
    metrics = _logged(metrics, tables.values())
    groups: dict[str, list[pd.DataFrame]] = {}
    label = label or differences(runs)
    for run in runs:
        groups.setdefault(label(run), []).append(tables[id(run)])
    figure, axes = style.new(width=style.PAGE, height=3.6) if wide else style.new()
    for g, (group, members) in enumerate(groups.items()):
        for m, metric in enumerate(metrics):
            drawn = [member for member in members if metric in member and member[metric].notna().any()]
            if not drawn:
                continue
            names = [group] * (len(groups) > 1) + [metric] * (len(metrics) > 1)
            color = style.COLORS[(g if len(groups) > 1 else m) % len(style.COLORS)]
            again = g // len(style.COLORS)  # a colour's second line has another style
            line = style.LINES[(m if len(metrics) > 1 else g + again) % len(style.LINES)]
            _curve(axes, _together(drawn, metric, x, group), color, line, " ".join(names) or metric)
    axes.set_xlabel(AXES[x])
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if x in ("tokens", "examples"):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if len(groups) == 1 and len(runs) > 1:
        axes.set_title(f"{next(iter(groups))}, {len(runs)} runs".removeprefix(", "))
    if wide:
        settings.place(axes.yaxis, [value for line in axes.lines for value in line.get_ydata()])
        _legend_below(figure, axes)
    else:
        axes.legend()
    return figure


def best_rate(runs: Sequence[Run], metric: str = "validation/loss") -> list[Run]:
    """The runs of the learning rate with the lowest mean of the metric's last value."""
    rates: dict[float, list[Run]] = {}
    for run in runs:
        rates.setdefault(run.config.optimizer.learning_rate, []).append(run)
    return min(rates.values(), key=lambda group: statistics.fmean(last(r, metric) for r in group), default=[])


def last(run: Run, metric: str) -> float:
    """The metric's last value."""
    table = run.metrics()
    if metric not in table or table[metric].isna().all():
        raise ValueError(f"{run.name} logged no {metric}")
    return float(table[metric].dropna().iloc[-1])


def differences(runs: Sequence[Run]) -> Callable[[Run], str]:
    """A label function: the leaves, other than seeds, in which these runs' configs differ."""
    flat = {id(run): dict(leaves(run.config)) for run in runs}
    names = sorted({name for config in flat.values() for name in config if name.split(".")[-1] != "seed"})
    told = [n for n in names if len({repr(config.get(n)) for config in flat.values()}) > 1]
    return lambda run: ", ".join(f"{n.split('.')[-1]} {flat[id(run)].get(n)}" for n in told)


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(4, len(labels), int(130 / (10 + max(map(len, labels))))))
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.16 * rows)
    with matplotlib.rc_context(style.STYLE):
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _logged(metrics: Sequence[str], tables) -> list[str]:
    """Those metrics that some run logged; of LOSSES one is enough, others must all be there."""
    known = {name for table in tables for name in table if table[name].notna().any()}
    found = [metric for metric in metrics if metric in known]
    if not found or (len(found) < len(metrics) and tuple(metrics) != LOSSES):
        missing = ", ".join(metric for metric in metrics if metric not in known)
        raise ValueError(f"no run logged {missing}; logged: {', '.join(sorted(known - AXES.keys()))}")
    return found


def _together(tables: Sequence[pd.DataFrame], metric: str, x: str, group: str) -> pd.DataFrame:
    """Columns x, mean, low and high (a deviation from it, within what the runs reached) at the steps all logged."""
    if any(x not in table or table[x].isna().all() for table in tables):
        raise ValueError(f"no {x!r} was logged for {metric}; allowed here: step, seconds")
    rows = [table.assign(at=table["step"]).set_index("at")[[x, metric]].dropna() for table in tables]
    joined = pd.concat(rows, axis=1, join="inner", keys=range(len(rows)))
    if joined.empty:
        raise ValueError(
            f"{len(tables)} runs{f' of {group}' * bool(group)} logged {metric} at no step in common"
        )
    values = joined.xs(metric, axis=1, level=1)
    mean, deviation = values.mean(axis=1), values.std(axis=1, ddof=1).fillna(0.0)
    table = {
        "x": joined.xs(x, axis=1, level=1).mean(axis=1),
        "mean": mean,
        "low": (mean - deviation).clip(lower=values.min(axis=1)),
        "high": (mean + deviation).clip(upper=values.max(axis=1)),
    }
    return pd.DataFrame(table).sort_index()


def _curve(axes: Axes, table: pd.DataFrame, color, linestyle, label: str) -> None:
    x, mean, low, high = (table[name].to_numpy() for name in ("x", "mean", "low", "high"))
    marker = "o" if len(x) == 1 else None  # a line of one point is not seen
    axes.plot(x, mean, color=color, linestyle=linestyle, marker=marker, label=label)
    if (low < high).any():
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0, label=f"_{label}")
