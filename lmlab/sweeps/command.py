"""`lmlab sweep`: its flags, and which launcher does the work.

A launcher is a module with `launch(workdir: Path, cells: list[Cell], *, ...) -> None`: it trains the cells it
is given (none of them done, none failed unless asked for) and returns when it has done its part. Its keyword-only
parameters become flags of `lmlab sweep`, with the lines `name: text` of its docstring as their help. Stopped by
a signal it raises `lmlab.training.signals.Stopped(number, 0)`, its runs saved. Heavy imports are made inside it.
"""

import dataclasses
import functools
import shlex
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from lmlab import config as config_lib
from lmlab import experiment, run
from lmlab.flags import Flags, UsageError, value
from lmlab.provenance import now
from lmlab.sweeps import grid
from lmlab.sweeps.grid import Cell
from lmlab.training.signals import Stopped

LAUNCHERS = ("local", "slurm", "vmap")
AXES = ("grid", "zip", "random", "seeds")


def main(argv: list[str]) -> int:
    """Many runs of one experiment that differ in some leaves of its configuration.

        lmlab sweep --config=experiments/autoencoder.py:demo --workdir=sweeps/ae \\
            --grid=optimizer.learning_rate=1e-3,3e-4 --grid=model.code=8,32 --seeds=3
        lmlab sweep --workdir=sweeps/ae                      # goes on where it stopped
        lmlab sweep --workdir=sweeps/ae --retry_failed       # and repeats what failed
        lmlab report --workdir=sweeps/ae                     # means over seeds, best runs, figures

    Axes. Each --grid is one, all --zip together are one, all --random together are one, --seeds is the last;
    the runs are every combination of them. Without any, the experiment's own sweep() says what to run.

        --grid=model.code=8,32                               # two values
        --grid="model.features=(64,);(128,64)"               # ";" separates values that hold commas
        --grid="variant=gru,cpu;lstm,cpu"                    # variants, added to that of --config
        --zip=model.code=8,32 --zip=duration="5 epochs,9 epochs"     # two runs: they advance together
        --random="optimizer.learning_rate=log_uniform(1e-4,1e-2)" --random="batch_size=choice(16,32)" --num_random=20
                                                             # also uniform(a,b) and int_uniform(a,b), a to b

    Random values are drawn from --random_seed: asked again they are the same, and a greater --num_random adds
    to them. --config.KEY=VALUE sets a leaf for all. Each value is read as --config.KEY=VALUE is, and each run's
    configuration is checked, before anything starts; --dry_run shows the runs and starts none.

    Each run has a directory named after what sets it apart, WORKDIR/learning_rate=0.001,code=8,seed=0, which is
    a run like any other; what it prints goes to log.txt in it. The same command again skips what is done, goes on
    with what was cut, leaves what failed (failure.json tells why) unless --retry_failed, and may add runs.
    Ctrl-C and SIGTERM stop the runs under way, which save. Exit codes: 0 all done (slurm: submitted), 1 some
    failed, 2 wrong use, 75 and 130 stopped.

    Launchers. local: a process a run on this machine, as many at a time as it has GPUs, or cores where it has
    none. slurm: a job a run on a cluster. vmap: all runs as one program, as far as they differ in the seed and in
    leaves that the experiment calls dynamic; it fills a GPU with small models, and on a CPU it serves only those.
    `lmlab sweep --launcher=NAME --help` shows the flags of each.
    """
    fv = Flags(main.__doc__)
    fv.string("workdir", "", "directory of the sweep; made if it is not there")
    fv.strings("grid", "KEY=V1,V2,...: an axis")
    fv.strings("zip", "KEY=V1,V2,...: advances together with the others of --zip")
    fv.strings("random", "KEY=log_uniform(a,b), uniform(a,b), int_uniform(a,b) or choice(a,b,...)")
    fv.integer("num_random", 0, "how many draws of --random")
    fv.integer("random_seed", 0, "what they are drawn from")
    fv.integer("seeds", 0, "N: an axis of seed=0 to N-1")
    fv.integer("max_runs", 200, "more runs than that are refused")
    fv.boolean("dry_run", False, "show the runs, start none")
    fv.boolean("retry_failed", False, "repeat runs that failed")
    fv.string("launcher", "", "local, slurm or vmap; local, or what the sweep was begun with, if not given")
    asked, workdir, before = argv, Path(value(argv, "workdir")), None
    if value(argv, "workdir") and (workdir / "sweep.json").is_file():
        before = grid.read(workdir)
    chosen = value(argv, "launcher") or (before["launcher"] if before else "local")
    launch = launcher(chosen).launch
    options = fv.options(launch)
    resumed = before and not value(argv, "config")
    if resumed:
        argv = [f"--config={before['spec']}", *argv]
    spec, overrides = fv.config(argv, required=True)
    fv.require("workdir")
    if before:
        overrides = same(workdir, before, spec, before["overrides"] | overrides if resumed else overrides)
    else:
        run.check_new(workdir, "sweep")
    again = resumed and not any(getattr(fv, axis) for axis in AXES)
    if again:
        cells = [dataclasses.replace(cell, overrides=cell.overrides | overrides) for cell in before["cells"]]
        for cell in cells:
            config_lib.load(cell.spec, cell.overrides)
    else:
        names = (*AXES, "num_random", "random_seed", "max_runs")
        cells = grid.cells(spec, overrides, **{name: getattr(fv, name) for name in names})
    options = {name: getattr(fv, name) for name in options}
    if before and before["launcher"] == chosen:  # what is not said is as it was
        options |= {
            name: value for name, value in before.get("options", {}).items() if not fv.values[name].present
        }
    record = {
        "spec": spec,
        "overrides": overrides,
        "launcher": chosen,
        "options": options,
        "cells": grid.join(workdir, before["cells"] if before else [], cells),
        "command": before["command"] if again else shlex.join(["lmlab", "sweep", *asked]),
        "when": now(),
    }
    if fv.dry_run:
        print(table(workdir, cells))
        return 0
    launch = functools.partial(launch, **options)
    return carry_out(workdir, record, cells, fv.retry_failed, launch)


def carry_out(workdir: Path, record: dict, cells: list[Cell], retry_failed: bool, launch: Callable) -> int:
    """Launches what is left of the cells, alone in the directory; returns the exit code."""
    workdir.mkdir(parents=True, exist_ok=True)
    with run.locked(workdir):
        grid.write(workdir, record)
        skipped = ("done",) if retry_failed else ("done", "failed")
        wanted = [cell for cell in cells if grid.status(workdir, cell) not in skipped]
        if len(wanted) < len(cells):
            print(f"skipped: {counts(workdir, [cell for cell in cells if cell not in wanted])}", flush=True)
        try:
            if wanted:
                launch(workdir, wanted)
        except Stopped as stopped:
            number = stopped.args[0]
            print(f"stopped by {signal.Signals(number).name}: {counts(workdir, cells)}")
            print(f"to go on: lmlab sweep --workdir={workdir}")
            return 130 if number == signal.SIGINT else 75
    code = summary(workdir, cells)
    return 0 if code == 75 and record["launcher"] == "slurm" else code  # what was cut is in the queue


def launcher(name: str) -> ModuleType:
    """The module that launches."""
    if name not in LAUNCHERS:
        raise UsageError(f"--launcher: received {name!r}; allowed: {', '.join(LAUNCHERS)}")
    if name == "local":
        from lmlab.sweeps import local as module
    elif name == "slurm":
        from lmlab.sweeps import slurm as module
    else:
        from lmlab.sweeps import vmapped as module
    return module


def same(workdir: Path, before: dict, spec: str, overrides: dict) -> dict:
    """What is common to all runs, which must be what it was; what a resumed run may set anew stays unless said."""
    if experiment.split_spec(before["spec"]) != experiment.split_spec(spec):
        raise UsageError(
            f"{workdir} holds a sweep of {before['spec']}, not of {spec}; name another --workdir"
        )
    for key in overrides:
        if key in before["axes"]:
            raise UsageError(f"--config.{key} is given, and {key} is swept; allowed: one of them")
    kept = {key: value for key, value in before["overrides"].items() if config_lib.may_change(key)}
    overrides = kept | overrides
    changes = config_lib.difference(before["overrides"], overrides)
    told = [
        f"{key}: {a!r} there, {b!r} here" for key, (a, b) in changes.items() if not config_lib.may_change(key)
    ]
    if told:
        raise UsageError(
            f"{workdir} holds a sweep with another configuration ({'; '.join(told)}); name another --workdir"
        )
    return overrides


def counts(workdir: Path, cells: list[Cell]) -> str:
    """ "3 done, 1 failed"."""
    found = Counter(grid.status(workdir, cell) for cell in cells)
    return ", ".join(f"{number} {status}" for status, number in found.items())


def table(workdir: Path, cells: list[Cell]) -> str:
    """A line a run: its name, what sets it apart, its status."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell.varies))
    rows = [["run", *keys, "status"]]
    for cell in cells:
        values = [str(cell.varies.get(key, "-")) for key in keys]
        rows.append([cell.name, *values, grid.status(workdir, cell)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, f"{len(cells)} runs: {counts(workdir, cells)}"])


def summary(workdir: Path, cells: list[Cell]) -> int:
    """Tells how the sweep ended, why what failed failed; returns the exit code."""
    states = {cell.name: grid.status(workdir, cell) for cell in cells}
    failed = [name for name, state in states.items() if state == "failed"]
    for name in failed:
        print(f"failed: {workdir / name}: {experiment.read_json(workdir / name / 'failure.json')['line']}")
    print(f"{len(cells)} runs: {counts(workdir, cells)}  (lmlab report --workdir={workdir})")
    return 1 if failed else 75 if "cut" in states.values() else 0
