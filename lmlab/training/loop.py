"""The loop: exactly N updates, and what happens between them."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmlab.config import Clock
from lmlab.experiment import Experiment, Mean
from lmlab.sources import Resident
from lmlab.training import parallel
from lmlab.training.checkpoint import Checkpoints
from lmlab.training.metrics import Progress, Timer, Writers, peak_flops
from lmlab.training.signals import Signals
from lmlab.training.state import State
from lmlab.training.step import create, make_step

DISPATCH_SECONDS = 0.25
"""How long one dispatch of several steps may take: what the progress bar and a signal wait for."""


class NotFinite(ArithmeticError):
    """The loss or its gradient became infinite or NaN."""


class Stopped(Exception):
    """A signal came and the state is saved. `args`: (signal number, step)."""


class Keys(NamedTuple):
    """What a run draws from: its parameters, its steps, its evaluations, and `batch_fn` on the host."""

    init: Any
    step: Any
    evaluation: Any
    data: Any

    @classmethod
    def of(cls, config) -> "Keys":
        return cls(*_keys(np.uint32(config.seed)))


@jax.jit
def _keys(seed):
    """In one program: each of its four would take longer to load than to run."""
    init, step, evaluation = jax.random.split(jax.random.key(seed), 3)
    return init, step, evaluation, jax.random.fold_in(step, 2**31 - 1)


class Trainer:
    """An experiment made ready to run: data opened, devices laid out, the step traced, nothing written.

    What can be wrong with a configuration is found here, before a file is touched.
    """

    def __init__(self, experiment: Experiment, config):
        self.experiment, self.config = experiment, config
        self.evaluations = {name: e for name, e in experiment.evaluations.items() if not e.held_out}
        best = config.checkpoint.best
        if best and best.split("/")[0] not in self.evaluations:
            names = ", ".join(f"{name}/loss" for name in self.evaluations) or "none in this experiment"
            raise ValueError(
                f"checkpoint.best: received {best!r}; allowed: a scalar of an evaluation ({names})"
            )
        self.source = experiment.train_data()
        self.clock = Clock.of(config, self.source)
        self.keys = Keys.of(config)
        if experiment.fit is not None:
            return
        self.layout = parallel.layout(**config.parallel)
        self.layout.check(config.batch_size, config.accumulate)
        optimizer = experiment.optimizer(self.clock)
        example = self.layout.example(self.source)

        def make():
            batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), example)
            return create(experiment, optimizer, self.keys.init, batch, config.ema > 0)

        def step(axis_name: str | None):
            options = {"accumulate": config.accumulate, "ema": config.ema, "axis_name": axis_name}
            return make_step(experiment, optimizer, self.keys.step, **options)

        # Under jit both are traced once, by whatever asks for their shapes first; inline: the same program.
        self.make = jax.jit(make, inline=True)
        self.alone = jax.jit(step(None), inline=True)
        self.step = self.alone if self.layout.axis_name is None else step(self.layout.axis_name)
        if experiment.batch_fn is None:
            self.metric_shapes = jax.eval_shape(self.alone, self.layout.abstract(self.make), example)[1]

    def run(self, folder: Path, wandb: str = "", profile: bool = False) -> State:
        """Trains until `config.duration` updates are done, from the newest checkpoint in `folder` if there is one."""
        config = self.config
        checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep, config.checkpoint.best)
        evaluate = Evaluator(self.evaluations, self.keys.evaluation, folder / "evaluations")
        if self.experiment.fit is not None:
            return self._fit(checkpoints, evaluate, folder, wandb)
        state, kept = self._begin(checkpoints)
        done = int(self.layout.save(state).step)
        writers = Writers(folder, done, wandb, config.to_dict())
        progress = Progress(self.clock.total, done, self.unit)
        if done >= self.clock.total:
            progress.say(
                f"already at step {done:,} of {self.clock.total:,}; for longer: --config.duration=..."
            )
        try:
            trace = Trace(folder / "profile" if profile else None)
            state = Loop(self, state, kept, checkpoints, evaluate, writers, progress, trace).run()
            checkpoints.close()
        except Exception:
            checkpoints.wait()  # what is being saved stays of use
            raise
        finally:
            progress.close()
            writers.close()
        return self.layout.save(state)

    @property
    def unit(self) -> str:
        return "tokens" if self.experiment.tokens else "examples"

    def batch(self, raw, state: State, done: int):
        """What the step is given of what the source read."""
        if self.experiment.batch_fn is None:
            return raw
        key = jax.random.fold_in(self.keys.data, done)
        return self.experiment.batch_fn(self.layout.save(state).variables, raw, key)

    def shapes_logged(self, state: State) -> dict[str, Mean]:
        """Shapes and types of what a step logs."""
        if self.experiment.batch_fn is None:
            return self.metric_shapes
        batch = self.batch(self.source.example(), state, 0)
        return jax.eval_shape(self.alone, self.layout.save(state), batch)[1]

    def _begin(self, checkpoints: Checkpoints) -> tuple[State, dict[str, Any]]:
        restored = checkpoints.restore(self.layout.abstract(self.make))
        if restored:
            return self.layout.load(restored[0]), restored[1]
        state = self.layout.create(self.make)
        if self.experiment.init_from is not None:
            saved = self.layout.save(state)
            start = self.experiment.init_from(saved.params)
            params = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), start, saved.params)
            ema = None if saved.ema is None else jax.tree.map(jnp.copy, params)
            state = self.layout.load(saved.replace(params=params, ema=ema))
        return state, {}

    def _fit(self, checkpoints: Checkpoints, evaluate: "Evaluator", folder: Path, wandb: str) -> State:
        """A closed form: one call, one checkpoint, evaluated like any other."""
        if checkpoints.steps:
            return State(1, checkpoints.variables()[1]["params"], {}, {})
        state = State(jnp.int32(1), self.experiment.fit(self.source, self.keys.init), {}, {})
        scalars = evaluate(state.variables, 1)
        writers = Writers(folder, 0, wandb, self.config.to_dict())
        writers.write({"step": 1, "examples": self.source.num_examples, "seconds": 0.0, **scalars})
        writers.close()
        checkpoints.save(state, {}, scalars)
        checkpoints.close()
        return state


class Loop:
    """A trainer at work: the state, the sums of the open log interval, and what is due after each dispatch.

    kept: what the checkpoint says of an interval that was open, and of where the data stood.
    """

    def __init__(
        self,
        trainer: Trainer,
        state: State,
        kept: dict[str, Any],
        checkpoints: Checkpoints,
        evaluate: "Evaluator",
        writers: Writers,
        progress: Progress,
        trace: "Trace",
    ):
        self.trainer, self.config, self.layout = trainer, trainer.config, trainer.layout
        self.state, self.checkpoints, self.evaluate = state, checkpoints, evaluate
        self.writers, self.progress, self.trace = writers, progress, trace
        self.report = Report(trainer, checkpoints, writers, progress)
        clock, config = trainer.clock, trainer.config
        self.done, self.total = int(self.layout.save(state).step), clock.total
        self.every = {
            "log": clock.every(config.log_every, "log_every"),
            "evaluate": clock.every(config.evaluate_every, "evaluate_every"),
            "save": clock.every(config.checkpoint.every, "checkpoint.every"),
        }
        self.iterator, self.data = None, None
        if isinstance(trainer.source, Resident):
            self.data = self.layout.everywhere(trainer.source.data)
        else:
            self.iterator = trainer.source.open(jax.process_index(), jax.process_count())
            if kept.get("iterator"):
                self.iterator.set_state(kept["iterator"])
        self.shapes = trainer.shapes_logged(state)
        self.sums = self.zeros(kept.get("sums", {}))
        self.since = self.done - int(kept.get("unlogged", 0))  # where the open log interval began
        self.compiled, self.pending, self.chunk, self.best = None, None, 1, math.inf
        self.timer = Timer(writers.seconds)

    def run(self) -> State:
        """All updates up to the last one, with what is due between them."""
        with Signals() as signals:
            while self.done < self.total:
                self.dispatch()
                if self.due("log"):
                    self.pending = (self.since, self.done, self.sums, self.timer.seconds)
                    self.sums, self.since = self.zeros(), self.done
                if signals.received or self.due("evaluate") or self.due("save"):
                    self.halt(signals.received)
        self.trace.stop()
        return self.state

    def due(self, event: str) -> bool:
        every = self.every[event]
        return self.done == self.total or (every > 0 and self.done % every == 0)

    def dispatch(self) -> None:
        """One call of the compiled step: one update of a stream, as many as fit of data on the device."""
        n = 1
        if self.iterator is None:
            ahead = [every - self.done % every for every in self.every.values() if every]
            n = min(self.chunk, self.total - self.done, *ahead)
        else:
            self.data = self.layout.place(self.trainer.batch(next(self.iterator), self.state, self.done))
        if self.compiled is None:
            self.timer.pause()
            self.compiled = self.compile()
            self.timer.go_on()
        self.trace.dispatch()
        started = time.perf_counter()
        self.state, self.sums = self.compiled(self.state, self.sums, self.data, np.int32(n))
        self.write()  # while the device works
        if self.iterator is None or self.layout.block:
            jax.block_until_ready(self.sums)
            self.chunk = max(1, int(DISPATCH_SECONDS * n / (time.perf_counter() - started)))
        self.done += n
        self.progress.advance(n)

    def compile(self):
        run = self.layout.compile(self.trainer.step, self.trainer.source, self.trainer.make)
        return run.lower(self.state, self.sums, self.data, np.int32(1)).compile()

    def zeros(self, sums: Mapping[str, Sequence[float]] = MappingProxyType({})) -> dict[str, Mean]:
        """What a log interval begins with: zeros, or the sums of one that a checkpoint cut."""
        begun = {name: Mean(*sums.get(name, (0.0, 0.0))) for name in self.shapes}
        return self.layout.everywhere(
            jax.tree.map(lambda value, leaf: np.asarray(value, leaf.dtype), begun, self.shapes)
        )

    def write(self) -> None:
        """The row of the interval that ended last, if it is not written yet."""
        if self.pending:
            self.report(*self.pending)
            self.pending = None

    def halt(self, received: int) -> None:
        """Evaluates and saves as is due, outside of the time that counts as training; ends on a signal."""
        self.timer.pause()
        self.write()
        scalars = {}
        if self.due("evaluate") and self.trainer.evaluations:  # also when stopped: it would not come again
            scalars = self.scores()
        value = scalars.get(self.config.checkpoint.best, math.inf)
        if self.due("save") or received or value < self.best:
            self.save(scalars)
        self.best = min(self.best, value)
        if received:
            self.checkpoints.close()
            raise Stopped(received, self.done)
        self.timer.go_on()

    def scores(self) -> dict[str, float]:
        """The scalars of all evaluations, written and told."""
        best = self.config.checkpoint.best
        scalars = self.evaluate(self.layout.save(self.state).variables, self.done)
        if best and best not in scalars:
            raise ValueError(f"checkpoint.best: received {best!r}; allowed: {', '.join(scalars)}")
        self.writers.write(self.report.position(self.done, self.timer.seconds) | scalars)
        told = ", ".join(f"{key} {value:.4f}" for key, value in scalars.items())
        self.progress.say(f"step {self.done:,}: {told}")
        return scalars

    def save(self, scalars: dict[str, float]) -> None:
        """A checkpoint, once what led to it is known to be finite."""
        sums = self.layout.fetch(self.sums)
        if self.done > self.since:
            check_finite(sums, self.since, self.done, self.checkpoints)
        if not self.layout.is_finite(self.state):  # the last update made them; its metrics came before it
            raise not_finite("parameters", self.since, self.done, self.checkpoints)
        kept = {
            "sums": {name: [float(mean.total), float(mean.count)] for name, mean in sums.items()},
            "unlogged": self.done - self.since,
            "iterator": self.iterator.get_state() if self.iterator is not None else {},
        }
        self.checkpoints.save(self.layout.save(self.state), kept, scalars)


class Report:
    """Turns the sums of a log interval into a row for the writers and the bar."""

    def __init__(self, trainer: Trainer, checkpoints: Checkpoints, writers: Writers, progress: Progress):
        self.trainer, self.checkpoints, self.writers, self.progress = trainer, checkpoints, writers, progress
        self.seconds = writers.seconds
        flops = trainer.experiment.flops
        device = trainer.layout.devices[0].device_kind
        peak = peak_flops(device, trainer.config.precision) * trainer.layout.num_devices
        params = jax.tree.leaves(trainer.layout.shapes(trainer.make).params)
        self.mfu_per_speed = flops(sum(leaf.size for leaf in params)) / peak if flops else math.nan

    def position(self, step: int, seconds: float) -> dict[str, float]:
        examples = step * self.trainer.config.batch_size
        row = {
            "step": step,
            "epoch": round(step / self.trainer.source.steps_per_epoch, 4),
            "examples": examples,
        }
        if self.trainer.experiment.tokens:
            row["tokens"] = examples * self.trainer.experiment.tokens
        return {**row, "seconds": round(seconds, 4)}

    def __call__(self, since: int, until: int, sums, seconds: float) -> None:
        values = check_finite(self.trainer.layout.fetch(sums), since, until, self.checkpoints)
        row = self.position(until, seconds) | {f"train/{name}": value for name, value in values.items()}
        speed = (until - since) * self.trainer.config.batch_size / max(seconds - self.seconds, 1e-9)
        self.seconds = seconds
        row[f"speed/{self.trainer.unit}_per_second"] = round(speed * (self.trainer.experiment.tokens or 1), 1)
        if math.isfinite(self.mfu_per_speed):
            row["speed/mfu"] = round(speed * self.mfu_per_speed, 4)
        self.writers.write(row)
        self.progress.show(row)


def check_finite(sums: dict[str, Mean], since: int, until: int, checkpoints: Checkpoints) -> dict[str, float]:
    """The means; a NotFinite that names the steps if one of them is infinite or NaN."""
    values = {name: float(mean.total) / (float(mean.count) or 1.0) for name, mean in sums.items()}
    broken = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise not_finite(", ".join(broken), since, until, checkpoints)
    return values


def not_finite(what: str, since: int, until: int, checkpoints: Checkpoints) -> NotFinite:
    checkpoints.wait()
    last = checkpoints.steps[-1:]
    kept = f"the last good checkpoint is that of step {last[0]}" if last else "there is no checkpoint yet"
    return NotFinite(f"not finite within steps {min(since + 1, until)} to {until}: {what}; {kept}")


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
            if arrays and jax.process_index() == 0:
                path = self.folder / str(step)
                path.mkdir(parents=True, exist_ok=True)
                np.savez_compressed(
                    path / f"{name}.npz", **{key: np.asarray(value) for key, value in arrays.items()}
                )
        return scalars


class Trace:
    """A profile of the third to the sixth dispatch, when the first have warmed up."""

    def __init__(self, folder: Path | None):
        self.folder, self.dispatches, self.running = folder, 0, False

    def dispatch(self) -> None:
        self.dispatches += 1
        if self.folder and self.dispatches == 3:
            jax.profiler.start_trace(self.folder)
            self.running = True
        elif self.dispatches == 7:
            self.stop()

    def stop(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
