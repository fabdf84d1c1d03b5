"""The runs of a folder, grouped over their seeds and put in order by a metric."""

from __future__ import annotations

import dataclasses
import math
import statistics
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab import config as config_lib
from lmlab import experiment
from lmlab.flags import UsageError
from lmlab.run import Run
from lmlab.sweeps import grid
from lmlab.training import metrics

DIVERGED = "not finite within steps"
"""In the last line of a run that `training.loop` stopped because its numbers were not finite."""

BEST = {"min": min, "max": max}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run of the folder, begun or not.

    status: that of `grid.status`, or diverged. line: the last one of a run that failed. leaves: its
    configuration, "variant" among it. logged: {metric: its values, NaN where one was not finite}. step,
    seconds: of the last row. rank: 1 for the best run, the same for equals, None for what is not compared.
    """

    name: str
    status: str
    line: str
    leaves: Mapping[str, Any]
    run: Run | None = None
    logged: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0
    rank: int | None = None

    def last(self, metric: str) -> float:
        return self.logged.get(metric, (math.nan,))[-1]

    def extreme(self, metric: str, best: Callable) -> float:
        """The lowest or the highest value, of those that are finite."""
        return best((v for v in self.logged.get(metric, ()) if math.isfinite(v)), default=math.nan)


@dataclasses.dataclass(frozen=True)
class Group:
    """A setting: runs that differ in their seed alone. leaves: what sets it apart. rank: as of an Entry."""

    leaves: Mapping[str, Any]
    entries: Sequence[Entry]
    rank: int | None = None

    def values(self, metric: str, best: Callable | None = None) -> list[float]:
        """Of the runs that are done: the last values or, with `best`, the lowest or highest."""
        done = [entry for entry in self.entries if entry.status == "done"]
        found = [entry.extreme(metric, best) if best else entry.last(metric) for entry in done]
        return [value for value in found if math.isfinite(value)]

    @property
    def undone(self) -> Counter:
        """{status: how many} of the runs that are not done."""
        return Counter(entry.status for entry in self.entries if entry.status != "done")


class Ranking:
    """The runs of a folder and the settings they make, by the last value of one metric, the best first.

    What diverged comes after all that did not, a setting too of which one run did; then what is not done.
    `keys`: the leaves that vary; `settings`: those of them that are no seed.
    """

    def __init__(self, workdir: Path, metric: str = "", mode: str = "min"):
        if mode not in BEST:
            raise UsageError(f"--mode: received {mode!r}; allowed: {', '.join(BEST)}")
        self.workdir, self.mode, self.best = workdir, mode, BEST[mode]
        self.sweep = grid.read(workdir) if (workdir / "sweep.json").is_file() else {}
        cells = self.sweep.get("cells") or find(workdir)
        entries = [read(workdir, cell) for cell in cells]
        self.runs = [entry.run for entry in entries if entry.run]
        specs = {run.path.name: run.spec for run in self.runs}
        if len(specs) > 1:
            raise ValueError(
                f"a report is of runs of one experiment; received {' and '.join(specs.values())}"
            )
        self.metrics = list(dict.fromkeys(key for entry in entries for key in entry.logged))
        if not self.metrics:
            line = next((f"; {entry.name}: {entry.line}" for entry in entries if entry.line), "")
            raise ValueError(f"{workdir}: no metrics yet; {standing(entries)}{line}")
        self.metric = self._metric(entries, metric)
        self.keys = varying(entries, cells)
        self.settings = [key for key in self.keys if not is_seed(key)]
        entries = [self._judged(entry) for entry in entries]
        together: dict[str, list[Entry]] = {}
        for entry in entries:
            together.setdefault(repr([entry.leaves.get(key) for key in self.settings]), []).append(entry)
        groups = [Group({key: e[0].leaves.get(key) for key in self.settings}, e) for e in together.values()]
        self.entries, self.groups = _ranked(entries, self._order), _ranked(groups, self._order_of_groups)

    def _metric(self, entries: Sequence[Entry], asked: str) -> str:
        if asked and asked not in self.metrics:
            raise UsageError(f"--metric: received {asked!r}; logged: {', '.join(sorted(self.metrics))}")
        logged = [entry for entry in entries if entry.logged]
        done = [entry for entry in logged if entry.status == "done"] or logged
        losses = [name for name in self.metrics if name.endswith("/loss") and name != "train/loss"]
        preferred = ["validation/loss", *losses, "train/loss", *self.metrics]
        everywhere = (name for name in preferred if all(name in entry.logged for entry in done))
        return asked or next(everywhere, self.metrics[0])

    def _judged(self, entry: Entry) -> Entry:
        """A run that is done but ended on a number that is not finite has diverged."""
        lost = entry.status == "done" and self.metric in entry.logged and math.isnan(entry.last(self.metric))
        return dataclasses.replace(entry, status="diverged") if lost else entry

    def _order(self, entry: Entry) -> tuple[int, float]:
        value = entry.last(self.metric)
        if entry.status == "done" and math.isfinite(value):
            return 0, value if self.best is min else -value
        return (1 if entry.status == "diverged" else 2), 0.0

    def _order_of_groups(self, group: Group) -> tuple[int, float]:
        values, diverged = group.values(self.metric), "diverged" in group.undone
        if not values:
            return (2 if diverged else 3), 0.0
        mean = statistics.fmean(values)
        return int(diverged), mean if self.best is min else -mean


def _ranked(items: Sequence, order: Callable) -> list:
    items = sorted(items, key=order)
    orders = [order(item) for item in items]
    ranks = [bisect_left(orders, at) + 1 if at[0] == 0 else None for at in orders]
    return [dataclasses.replace(item, rank=rank) for item, rank in zip(items, ranks, strict=True)]


# -- reading a folder -----------------------------------------------------------------------------------


def find(workdir: Path) -> list[grid.Cell]:
    """The runs of a folder that no sweep made, and what failed before it became one, as cells."""
    if not workdir.is_dir():
        raise FileNotFoundError(f"no directory {str(workdir)!r}")
    folders = {path.parent for name in ("run.json", "failure.json") for path in workdir.rglob(name)}
    if not folders:
        raise FileNotFoundError(
            f"{str(workdir)!r} holds no run (no run.json, nor below it); `lmlab sweep` or `lmlab train` makes one"
        )
    return [grid.Cell(str(folder.relative_to(workdir)), "", {}) for folder in sorted(folders)]


def read(workdir: Path, cell: grid.Cell) -> Entry:
    """A cell as it stands on the disk."""
    folder, status, line = workdir / cell.name, grid.status(workdir, cell), ""
    if status == "failed":
        line = experiment.read_json(folder / "failure.json")["line"]
        status = "diverged" if DIVERGED in line else status
    name = cell.name if cell.name != "." else workdir.absolute().name
    if not (folder / "run.json").is_file():
        return Entry(name, status, line, {**cell.overrides, **cell.varies})
    run, rows = Run(folder), metrics.read(folder / "metrics.jsonl")
    leaves = {**dict(config_lib.leaves(run.config)), "variant": run.variant, **cell.varies}
    logged: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if "/" in key and not key.startswith("speed/"):
                logged.setdefault(key, []).append(math.nan if value is None else value)
    last = rows[-1] if rows else {"step": 0, "seconds": 0.0}
    return Entry(name, status, line, leaves, run, logged, last["step"], last["seconds"])


def varying(entries: Sequence[Entry], cells: Sequence[grid.Cell]) -> list[str]:
    """The leaves that set runs apart: a sweep's axes, or else those in which configurations differ.

    A leaf that only follows the variant is left out, unless a run was started with it.
    """
    if any(cell.varies for cell in cells):
        return list(dict.fromkeys(key for cell in cells for key in cell.varies))
    begun = [entry for entry in entries if entry.run]
    found = []
    for key in dict.fromkeys(key for entry in begun for key in entry.leaves):
        of: dict[str, set[str]] = {}
        for entry in begun:
            of.setdefault(entry.leaves["variant"], set()).add(repr(entry.leaves.get(key)))
        free = key == "variant" or any(key in entry.run.record["overrides"] for entry in begun)
        if len(set.union(*of.values())) > 1 and (free or any(len(values) > 1 for values in of.values())):
            found.append(key)
    return found


def is_seed(key: str) -> bool:
    return key.split(".")[-1] == "seed"


def standing(entries: Sequence[Entry]) -> str:
    """ "12 runs: 10 done, 2 failed"."""
    counts = Counter(entry.status for entry in entries)
    told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    return f"{len(entries)} run{'s' * (len(entries) != 1)}: {told}"
