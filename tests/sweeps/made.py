"""Runs made up on the disk in lmlab's own formats: what a report is tried on, without training."""

import functools
import json
from pathlib import Path

from lmlab import config as config_lib
from lmlab import run as run_lib
from lmlab.provenance import surroundings
from lmlab.sweeps import grid

LINE = Path(__file__).parents[1] / "papers" / "line.py"


@functools.cache
def where():
    return surroundings(LINE.parent)


def curve(*values, metric="validation/loss", **others):
    """Rows of metrics.jsonl: a value every two steps, None where it was not finite."""
    rows = []
    for i, value in enumerate(values, 1):
        position = {"step": 2 * i, "epoch": i / 2, "examples": 16 * i, "seconds": 0.5 * i}
        more = {name.replace("_", "/"): series[i - 1] for name, series in others.items()}
        rows.append({**position, metric: value, **more, "speed/examples_per_second": 32.0})
    return rows


def run(folder, overrides=None, rows=(), *, variant="demo", done=True, line=""):
    """A run's directory; `line`: that of a failure, and then it is not done."""
    folder.mkdir(parents=True)
    spec = f"{LINE}:{variant}"
    config, _ = config_lib.load(spec, overrides or {})
    config_lib.write_json(config, folder / "config.json")
    record = run_lib.describe(spec, overrides or {}, config) | where() | {"total": 6, "changes": []}
    config_lib.write_json(record | ({"done": 6} if done and not line else {}), folder / "run.json")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if line:
        failure(folder, line)


def failure(folder, line):
    """What is left of a run that failed, before it was one or after."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"code": 1, "line": line, "when": "2026-01-01T00:00:00+00:00"}
    config_lib.write_json(told, folder / "failure.json")


def sweep(workdir, *flags, variant="demo", **axes):
    """sweep.json as `lmlab sweep` writes it; returns the cells by the values that set them apart."""
    spec = f"{LINE}:{variant}"
    cells = grid.cells(spec, {}, **axes)
    workdir.mkdir(parents=True)
    command = "lmlab sweep --config=tests/papers/line.py:demo " + " ".join(flags)
    record = {"spec": spec, "overrides": {}, "launcher": "local", "cells": cells, "command": command.strip()}
    grid.write(workdir, record | {"when": "2026-01-01T00:00:00+00:00"})
    return {tuple(cell.varies.values()): cell for cell in cells}


def fill(workdir, cells, rows):
    """Runs of all cells; `rows(values of a cell)` are their metrics."""
    for values, cell in cells.items():
        run(workdir / cell.name, cell.overrides, rows(*values))
