"""What a run writes while it trains: rows of metrics, evaluations, checkpoints."""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lmlab.experiment import Mean
from lmlab.training import hosts
from lmlab.training.checkpoint import Checkpoints
from lmlab.training.metrics import open_writers, peak_flops
from lmlab.training.state import State


class NotFinite(ArithmeticError):
    """The loss or its gradient became infinite or NaN."""


class Interval(NamedTuple):
    """Updates between two rows of the log: those after `since` up to `until`.

    sums: of what they logged, on the host. seconds: of training, when the last of them was done.
    """

    since: int
    until: int
    sums: dict[str, Mean]
    seconds: float


class Record:
    """The rows, evaluations and checkpoints of one run. Within it they are open.

    trainer: the run's. done: updates that the state in use has behind it; rows after it go.
    """

    def __init__(self, trainer, checkpoints: Checkpoints, folder: Path, done: int, wandb: str = ""):
        self.trainer, self.config, self.checkpoints = trainer, trainer.config, checkpoints
        self.evaluate = trainer.evaluator(folder)
        self.writers = open_writers(folder, done, wandb, self.config.to_dict())
        self.before = self.seconds = self.writers.seconds
        self.best, self.mfu_per_speed = math.inf, math.nan
        if trainer.experiment.flops:
            layout = trainer.layout
            peak = peak_flops(layout.devices[0].device_kind, self.config.precision) * layout.num_devices
            params = jax.tree.leaves(layout.shapes(trainer.make).params)
            self.mfu_per_speed = trainer.experiment.flops(sum(leaf.size for leaf in params)) / peak

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.checkpoints.close()
            elif issubclass(kind, Exception):
                self.checkpoints.wait()  # what is being saved stays of use
        finally:
            self.writers.close()

    def log(self, interval: Interval) -> dict[str, float]:
        """Writes the row of an interval."""
        trainer = self.trainer
        row = self._position(interval)
        row |= {f"train/{name}": value for name, value in self._means(interval).items()}
        steps, seconds = interval.until - interval.since, self.before + interval.seconds
        speed = steps * self.config.batch_size / max(seconds - self.seconds, 1e-9)
        self.seconds = seconds
        row[f"speed/{trainer.unit}_per_second"] = round(speed * (trainer.experiment.tokens or 1), 1)
        if math.isfinite(self.mfu_per_speed):
            row["speed/mfu"] = round(speed * self.mfu_per_speed, 4)
        self.writers.write(row)
        return row

    def settle(
        self, state: State, interval: Interval, evaluate: bool, save: bool, iterator: Any = None
    ) -> dict[str, float]:
        """Evaluates and saves as asked, and saves what is the best so far; the scalars.

        state: as it is saved. interval: the one that is open. iterator: where a stream stands.
        """
        scalars = self._scores(state, interval) if evaluate and self.trainer.evaluations else {}
        value = scalars.get(self.config.checkpoint.best, math.inf)
        if save or value < self.best:
            self._save(state, interval, iterator, scalars)
        self.best = min(self.best, value)
        return scalars

    def _scores(self, state: State, interval: Interval) -> dict[str, float]:
        best = self.config.checkpoint.best
        variables = self.trainer.layout.local(state.variables)
        scalars = hosts.same(self.evaluate(variables, interval.until))
        if best and best not in scalars:
            raise ValueError(f"checkpoint.best: received {best!r}; allowed: {', '.join(scalars)}")
        self.writers.write(self._position(interval) | scalars)
        return scalars

    def _save(self, state: State, interval: Interval, iterator: Any, scalars: dict[str, float]) -> None:
        """A checkpoint, once what led to it is known to be finite."""
        if interval.until > interval.since:
            self._means(interval)
        if not self.trainer.layout.is_finite(state):  # the last update made them; its metrics came before it
            raise self._not_finite("parameters", interval)
        kept = {
            "sums": {name: [float(mean.total), float(mean.count)] for name, mean in interval.sums.items()},
            "unlogged": interval.until - interval.since,
            "iterator": iterator or {},
        }
        self.checkpoints.save(state, kept, scalars)

    def _position(self, interval: Interval) -> dict[str, float]:
        trainer, step = self.trainer, interval.until
        examples = step * self.config.batch_size
        row = {"step": step, "epoch": round(step / trainer.source.steps_per_epoch, 4), "examples": examples}
        if trainer.experiment.tokens:
            row["tokens"] = examples * trainer.experiment.tokens
        return {**row, "seconds": round(self.before + interval.seconds, 4)}

    def _means(self, interval: Interval) -> dict[str, float]:
        """A NotFinite that names the steps if one of them is infinite or NaN."""
        sums = interval.sums.items()
        values = {name: float(mean.total) / (float(mean.count) or 1.0) for name, mean in sums}
        broken = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise self._not_finite(", ".join(broken), interval)
        return values

    def _not_finite(self, what: str, interval: Interval) -> NotFinite:
        self.checkpoints.wait()
        last = self.checkpoints.steps[-1:]
        kept = f"the last good checkpoint is that of step {last[0]}" if last else "there is no checkpoint yet"
        first = min(interval.since + 1, interval.until)
        return NotFinite(f"not finite within steps {first} to {interval.until}: {what}; {kept}")


@dataclasses.dataclass
class Evaluator:
    """Runs evaluations; keeps their arrays in evaluations/<step>/<name>.npz."""

    evaluations: dict[str, Any]
    key: Any
    folder: Path

    def __call__(self, variables, step: int) -> dict[str, float]:
        scalars = {}
        for name, evaluation in self.evaluations.items():
            values, arrays = evaluation(variables, jax.random.fold_in(self.key, step))
            scalars |= {f"{name}/{key}": float(value) for key, value in values.items()}
            if arrays and hosts.first():
                path = self.folder / str(step)
                path.mkdir(parents=True, exist_ok=True)
                np.savez_compressed(
                    path / f"{name}.npz", **{key: np.asarray(value) for key, value in arrays.items()}
                )
        return scalars
