"""A run: a directory that explains itself, and what can be asked of it.

config.json    the whole configuration
run.json       experiment file and its sha256, variant, overrides, versions, devices, git commit, changes
metrics.jsonl  a row a log interval or evaluation; tensorboard/ holds the same
checkpoints/   by Orbax
assets/        small facts fixed at the start: a tokenizer, the hash of the text
evaluations/   arrays of evaluations by step; figures/, samples/: what was drawn
"""

import contextlib
import dataclasses
import datetime
import fcntl
import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab import config as config_lib
from lmlab import experiment as experiment_lib
from lmlab.experiment import Assets, Samples

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ml-collections")


def train(
    spec: str,
    workdir: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    wandb: str = "",
    profile: bool = False,
) -> "Run":
    """Trains an experiment, or goes on with the run that `workdir` holds.

    spec: "experiments/gpt_char.py:cpu", or "" for the one that the run was started with. overrides: leaves
    by dotted key. A run goes on under its own configuration; only what `config.MAY_CHANGE` lists may differ.
    """
    folder = Path(workdir)
    overrides = dict(overrides or {})
    before = Run(folder) if (folder / "run.json").exists() else None
    if before is None:
        check_new(folder)
        if not spec:
            raise FileNotFoundError(f"{folder} holds no run; --config=FILE[:VARIANT] starts one")
    elif not spec:
        spec, overrides = before.spec, {**before.record["overrides"], **overrides}
    elif spec == before.spec:  # what may change stays as it was unless it is said anew
        kept = {key: value for key, value in before.record["overrides"].items() if config_lib.may_change(key)}
        overrides = kept | overrides
    config, module = config_lib.load(spec, overrides)
    changes = check_same(before, spec, config) if before else {}
    from lmlab.training import parallel
    from lmlab.training.loop import Trainer

    parallel.prepare(config.precision)
    assets = Assets(folder / "assets" if before else None)
    trainer = Trainer(module.build(config, assets), config)
    if "duration" in changes:
        check_longer(trainer.clock, *changes["duration"])
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        assets.save(folder / "assets")
        config_lib.write_json(config, folder / "config.json")
        record = describe(spec, overrides, config) | {"changes": []}
        if before:
            old = before.record
            kept = ("experiment", "sha256", "git_commit", "versions", "devices")
            changes |= {key: (old[key], record[key]) for key in kept if old[key] != record[key]}
            record |= {"when": old["when"], "changes": old["changes"]}
            if old["sha256"] != record["sha256"]:
                print(
                    f"warning: {record['experiment']} has changed since {folder} was begun", file=sys.stderr
                )
            if not (folder / "checkpoints").is_dir():
                print(f"warning: {folder} has no checkpoints; starting from step 0", file=sys.stderr)
        if changes:
            record["changes"].append({"when": _now(), **{key: list(pair) for key, pair in changes.items()}})
        config_lib.write_json(record, folder / "run.json")  # last: it makes the directory a run
        trainer.run(folder, wandb, profile)
    return Run(folder)


@contextlib.contextmanager
def locked(folder: Path):
    """One trainer a run. The lock is the operating system's: it goes with the process that holds it."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder} is being trained by another process; name another --workdir"
            ) from None
        yield


def check_new(folder: Path) -> None:
    """A new run wants a directory of its own that can be written to."""
    if folder.is_file():
        raise ValueError(
            f"workdir {str(folder)!r} is a file; allowed: a directory, new, empty or holding a run"
        )
    begun = {
        "lock",
        "assets",
        "config.json",
        "config.json.tmp",
        "run.json.tmp",
    }  # killed before run.json was there
    if folder.is_dir() and {path.name for path in folder.iterdir()} - begun:
        raise ValueError(f"workdir {str(folder)!r} is not empty and holds no run (no run.json); name another")
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(
            f"workdir {str(folder)!r} cannot be made: {str(parent)!r} is not a writable directory"
        )


def check_same(before: "Run", spec: str, config) -> dict[str, tuple[Any, Any]]:
    """The leaves that a resumed run sets anew; a ValueError names those that may not change."""
    path, _ = experiment_lib.split_spec(spec)
    if path.name != before.path.name:
        raise ValueError(
            f"{before.folder} holds a run of {before.spec}, not of {spec}; name another --workdir"
        )
    changes = config_lib.difference(before.config, config)
    fixed = {key: pair for key, pair in changes.items() if not config_lib.may_change(key)}
    if fixed:
        told = "; ".join(f"{key}: {old!r} there, {new!r} here" for key, (old, new) in fixed.items())
        raise ValueError(
            f"{before.folder} holds a run with another configuration ({told}); name another --workdir"
        )
    return changes


def check_longer(clock: config_lib.Clock, old: str, new: str) -> None:
    if clock.total < dataclasses.replace(clock, duration=old).total:
        raise ValueError(f"duration of a resumed run may only grow: {old!r} there, {new!r} here")


def describe(spec: str, overrides: Mapping[str, Any], config) -> dict[str, Any]:
    """What run.json says of how a run was made."""
    import jax

    path, variant = experiment_lib.split_spec(spec)
    devices = jax.devices()
    return {
        "experiment": str(path),
        "sha256": experiment_lib.sha256(path),
        "variant": variant,
        "overrides": dict(overrides),
        "precision": config.precision,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "host": {"cores": os.cpu_count(), "processor": processor(), "system": platform.system()},
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git_commit": git_commit(path.resolve().parent),
        "command": shlex.join(["lmlab", *sys.argv[1:]]) if sys.argv and "lmlab" in sys.argv[0] else "",
        "when": _now(),
    }


def git_commit(folder: Path) -> str:
    """The commit of the code, with "+changes" if the tree differs from it; empty outside git."""
    try:
        run = functools.partial(
            subprocess.run, cwd=folder, capture_output=True, text=True, check=True, timeout=10
        )
        commit = run(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        return commit + ("+changes" if run(["git", "status", "--porcelain", "-uno"]).stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Run:
    """A run on disk: `lmlab.load("runs/gpt")`.

    config, record (run.json), variables (parameters to evaluate and sample from), metrics() (a table),
    sample(...), evaluate(), figures().
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "run.json").is_file():
            raise FileNotFoundError(f"{str(folder)!r} holds no run (no run.json); `lmlab train` makes one")
        self.record: dict[str, Any] = experiment_lib.read_json(self.folder / "run.json")
        self.config = config_lib.read_json(self.folder / "config.json")
        self.path = Path(self.record["experiment"])
        self.variant: str = self.record["variant"]
        self.name = self.folder.name

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.spec})"

    @property
    def spec(self) -> str:
        return f"{self.path}:{self.variant}" if self.variant else str(self.path)

    @functools.cached_property
    def module(self):
        """The experiment file, which must still be there; a warning if it has changed since."""
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{self.folder} was made by {self.path}, which is not there; run from the folder that has it"
            )
        if experiment_lib.sha256(self.path) != self.record["sha256"]:
            print(f"warning: {self.path} has changed since {self.folder} was trained", file=sys.stderr)
        return experiment_lib.load_module(self.path)

    @functools.cached_property
    def assets(self) -> Assets:
        """The small facts that the run keeps, its tokenizer among them."""
        return Assets(self.folder / "assets")

    @functools.cached_property
    def experiment(self):
        from lmlab.training import parallel

        parallel.prepare(self.config.precision)
        return self.module.build(self.config, self.assets)

    @functools.cached_property
    def checkpoints(self):
        from lmlab.training import parallel
        from lmlab.training.checkpoint import Checkpoints

        parallel.prepare(self.config.precision)
        if not (self.folder / "checkpoints").is_dir():
            raise FileNotFoundError(f"{self.folder} has no checkpoint yet")
        return Checkpoints(self.folder / "checkpoints", best=self.config.checkpoint.best, read_only=True)

    @functools.cached_property
    def clock(self) -> config_lib.Clock:
        """What turns durations of this run into steps; opens the training data."""
        return config_lib.Clock.of(self.config, self.experiment.train_data())

    @property
    def finished(self) -> bool:
        """Whether the newest checkpoint is that of the last step."""
        last = 1 if self.experiment.fit is not None else self.clock.total
        return self.checkpoints.steps[-1:] == [last]

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        """Parameters (averaged ones, where the run keeps them) and collections of the newest checkpoint."""
        return self.at()[1]

    def at(self, step: int | str | None = None) -> tuple[int, dict[str, Any]]:
        """(step, variables) of a step, of the "best" checkpoint, or of the newest."""
        import jax

        if step == "best":
            if self.checkpoints.best_step is None:
                raise ValueError(f"{self.folder} keeps no best checkpoint (config.checkpoint.best is empty)")
            step = self.checkpoints.best_step
        if step is not None and int(step) not in self.checkpoints.steps:
            raise ValueError(
                f"{self.folder} has no checkpoint of step {step}; it has {self.checkpoints.steps}"
            )
        step, variables = self.checkpoints.variables(None if step is None else int(step))
        return step, jax.device_put(variables)

    def metrics(self):
        """metrics.jsonl as a pandas DataFrame: a row a step, a column a metric."""
        import pandas

        from lmlab.training.metrics import read

        rows = read(self.folder / "metrics.jsonl")
        if not rows:
            raise FileNotFoundError(f"{self.folder} has no metrics yet")
        return pandas.DataFrame(rows).groupby("step", as_index=False).first()

    def sample(self, *, seed: int = 0, checkpoint: int | str | None = None, **options) -> Samples:
        """Samples, with the experiment's own options (prompt, temperature, ...)."""
        import jax

        if self.experiment.sample is None:
            raise ValueError(f"{self.path} cannot be sampled from: its experiment has no sampler")
        variables = self.variables if checkpoint is None else self.at(checkpoint)[1]
        return self.experiment.sample(variables, jax.random.key(seed), **options)

    def evaluate(self, checkpoint: int | str | None = None, held_out: bool = True) -> dict[str, float]:
        """All evaluations, test splits among them, over their whole splits; arrays go to evaluations/."""
        from lmlab.training.loop import Evaluator, Keys

        step, variables = self.at(checkpoint)
        chosen = {n: e for n, e in self.experiment.evaluations.items() if held_out or not e.held_out}
        if not chosen:
            raise ValueError(f"{self.path} has no evaluations")
        folder = self.folder / "evaluations"
        return Evaluator(chosen, Keys.of(self.config).evaluation, folder)(variables, step)

    def arrays(self, name: str) -> dict[str, Any]:
        """The arrays that an evaluation keeps, of the newest checkpoint; it is run now if it was not yet."""
        import numpy as np

        if not self.checkpoints.steps:
            raise FileNotFoundError(f"{self.folder} has no checkpoint yet")
        folder = self.folder / "evaluations" / str(self.checkpoints.steps[-1])
        if not (folder / f"{name}.npz").exists():
            self.evaluate()
        if not (folder / f"{name}.npz").exists():
            kept = sorted(path.stem for path in folder.glob("*.npz"))
            raise ValueError(
                f"no evaluation {name!r} keeps arrays; those that do: {', '.join(kept) or 'none'}"
            )
        with np.load(folder / f"{name}.npz") as file:
            return dict(file)

    def figures(self) -> dict[str, Any]:
        """{name: matplotlib Figure}: the experiment's own, from this run."""
        return figures([self])


def figures(runs: list[Run]) -> dict[str, Any]:
    """The figures of one run, or of several of one experiment."""
    module = runs[0].module
    for run in runs:
        if run.path.name != runs[0].path.name:
            raise ValueError(f"figures are of runs of one experiment; received {runs[0].spec} and {run.spec}")
    if not hasattr(module, "figures"):
        raise ValueError(f"{runs[0].path} draws no figures (it has no figures(runs))")
    return module.figures(runs)


def find(folder: str | Path) -> list[Run]:
    """The run in a directory, or all runs below it, by name."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no directory {str(folder)!r}")
    if (folder / "run.json").exists():
        return [Run(folder)]
    runs = [Run(path.parent) for path in sorted(folder.rglob("run.json"))]
    if not runs:
        raise FileNotFoundError(
            f"{str(folder)!r} holds no run (no run.json, nor below it); `lmlab train` makes one"
        )
    return runs
