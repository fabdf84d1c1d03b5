"""A run: a directory that explains itself, and what can be asked of it.

config.json    the whole configuration
run.json       experiment file and its sha256, variant, overrides, versions, devices, git commit, changes;
               "total" steps, and once all of them are made, "done"
metrics.jsonl  a row a log interval or evaluation; tensorboard/ holds the same
checkpoints/   by Orbax
assets/        small facts fixed at the start: a tokenizer, the hash of the text
evaluations/   arrays of evaluations by step; figures/, samples/: what was drawn
"""

import contextlib
import dataclasses
import fcntl
import functools
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmlab import config as config_lib
from lmlab import experiment as experiment_lib
from lmlab.experiment import Assets, Samples
from lmlab.provenance import now, surroundings


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
    start = Start(spec, workdir, overrides)
    from lmlab.training import hosts, parallel
    from lmlab.training.loop import Trainer

    parallel.prepare(start.config.precision)
    trainer = Trainer(start.module.build(start.config, start.assets), start.config)
    hosts.meet("read")  # the first of several processes writes when all have read
    with start.begun(trainer) if hosts.first() else contextlib.nullcontext():
        hosts.meet("written")
        if not (start.folder / "run.json").exists():
            raise ValueError(
                f"{start.folder} is not there as process 0 made it; allowed: a --workdir that all processes share"
            )
        trainer.run(start.folder, wandb, profile)
        if hosts.first():
            start.ended()
    return Run(start.folder)


class Start:
    """A run that is to begin, or to go on, as `train` is asked for it: what is wrong with it is found here.

    assets: of the run that is there, or of a fresh start; what the experiment is to be built with.
    """

    def __init__(self, spec: str, workdir: str | Path, overrides: Mapping[str, Any] | None = None):
        self.folder, overrides = Path(workdir), dict(overrides or {})
        self.before = before = Run(self.folder) if (self.folder / "run.json").exists() else None
        if before is None:
            check_new(self.folder)
            if not spec:
                raise FileNotFoundError(f"{self.folder} holds no run; --config=FILE[:VARIANT] starts one")
        elif not spec:
            spec, overrides = before.spec, {**before.record["overrides"], **overrides}
        elif spec == before.spec:  # what may change stays as it was unless it is said anew
            old = before.record["overrides"]
            overrides = {key: value for key, value in old.items() if config_lib.may_change(key)} | overrides
        self.spec, self.overrides = spec, overrides
        self.config, self.module = config_lib.load(spec, overrides)
        self.changes = check_same(before, spec, self.config) if before else {}
        self.assets = Assets(self.folder / "assets" if before else None)

    @contextlib.contextmanager
    def begun(self, trainer, where: Mapping[str, Any] | None = None) -> Iterator[None]:
        """The directory is made, and it is locked and says what it holds, while the run is trained.

        where: `surroundings`, if they are known.
        """
        before, folder, changes = self.before, self.folder, dict(self.changes)
        if "duration" in changes:
            check_longer(trainer.clock, *changes["duration"])
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            self.assets.save(folder / "assets")
            config_lib.write_json(self.config, folder / "config.json")
            where = where or surroundings(experiment_lib.split_spec(self.spec)[0].resolve().parent)
            record = {**describe(self.spec, self.overrides, self.config), **where}
            record |= {"total": trainer.total, "changes": []}
            if before:
                old = before.record
                kept = ("experiment", "sha256", "git_commit", "versions", "devices")
                changes |= {key: (old[key], record[key]) for key in kept if old[key] != record[key]}
                record |= {"when": old["when"], "changes": old["changes"]}
                if old["sha256"] != record["sha256"]:
                    print(
                        f"warning: {record['experiment']} has changed since {folder} was begun",
                        file=sys.stderr,
                    )
                if not (folder / "checkpoints").is_dir():
                    print(f"warning: {folder} has no checkpoints; starting from step 0", file=sys.stderr)
            if changes:
                told = {key: list(pair) for key, pair in changes.items()}
                record["changes"].append({"when": now(), **told})
            self.record = record
            config_lib.write_json(record, folder / "run.json")  # last: it makes the directory a run
            yield

    def ended(self) -> None:
        """All steps are made: run.json says so."""
        config_lib.write_json(self.record | {"done": self.record["total"]}, self.folder / "run.json")


@contextlib.contextmanager
def locked(folder: Path):
    """One trainer a run. The lock is the operating system's: it goes with the process that holds it."""
    with (folder / "lock").open("w") as file:
        for patience in (0.1, 0.1, 0):  # `is_locked` of another process holds it for a moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not patience:
                    raise ValueError(
                        f"{folder} is being trained by another process; name another --workdir"
                    ) from None
                time.sleep(patience)
        yield


def is_locked(folder: Path) -> bool:
    """Whether a trainer is at work in it."""
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


BEGUN = {"lock", "assets", "config.json", "config.json.tmp", "run.json.tmp", "sweep.json.tmp"}
"""What is there of a run, or a sweep, that was killed before its run.json was there."""
LAUNCHED = {"log.txt", "failure.json", "failure.json.tmp"}
"""What a sweep keeps of an attempt at a run, from before the run begins."""


def check_new(folder: Path, kind: str = "run") -> None:
    """A new run, or sweep, wants a directory of its own that can be written to."""
    if folder.is_file():
        raise ValueError(
            f"workdir {str(folder)!r} is a file; allowed: a directory, new, empty or holding a {kind}"
        )
    if folder.is_dir() and {path.name for path in folder.iterdir()} - BEGUN - LAUNCHED:
        raise ValueError(
            f"workdir {str(folder)!r} is not empty and holds no {kind} (no {kind}.json); name another"
        )
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
    """What run.json says of what a run is."""
    path, variant = experiment_lib.split_spec(spec)
    return {
        "experiment": str(path),
        "sha256": experiment_lib.sha256(path),
        "variant": variant,
        "overrides": dict(overrides),
        "precision": config.precision,
    }


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
        if missing := {"experiment", "variant", "sha256", "overrides"} - set(self.record):
            raise ValueError(f"{self.folder / 'run.json'} is damaged: it lacks {', '.join(sorted(missing))}")
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
        with fitting(self.folder):
            return self.experiment.sample(variables, jax.random.key(seed), **options)

    def evaluate(self, checkpoint: int | str | None = None, held_out: bool = True) -> dict[str, float]:
        """All evaluations, test splits among them, over their whole splits; arrays go to evaluations/."""
        from lmlab.training.loop import Evaluator, Keys

        step, variables = self.at(checkpoint)
        chosen = {n: e for n, e in self.experiment.evaluations.items() if held_out or not e.held_out}
        if not chosen:
            raise ValueError(f"{self.path} has no evaluations")
        folder = self.folder / "evaluations"
        with fitting(self.folder):
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


@contextlib.contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """A ValueError where the parameters of a run are not of the model's shapes: a file it was made with is another."""
    from flax.errors import ScopeParamShapeError

    try:
        yield
    except ScopeParamShapeError as error:
        told = str(error).split(". (http")[0]
        raise ValueError(
            f"{folder} does not fit its model (the experiment or a file in assets/ is another): {told}"
        ) from None


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
