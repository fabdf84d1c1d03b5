"""The loop: exactly N updates, and what happens between them."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmlab.config import Clock
from lmlab.experiment import Experiment, Mean
from lmlab.sources import Resident
from lmlab.training import hosts, parallel
from lmlab.training.checkpoint import Checkpoints
from lmlab.training.metrics import Progress, Timer, open_writers
from lmlab.training.record import Evaluator, Interval, Record
from lmlab.training.signals import Signals, Stopped
from lmlab.training.state import State
from lmlab.training.step import create, make_step

DISPATCH_SECONDS = 0.25
"""How long one dispatch of several steps may take: what the progress bar and a signal wait for."""


class Keys(NamedTuple):
    """What a run draws from: its parameters, its steps, its evaluations, and `batch_fn` on the host."""

    init: Any
    step: Any
    evaluation: Any
    data: Any

    @classmethod
    def of(cls, config) -> "Keys":
        return cls(*_keys(jnp.asarray(config.seed, jnp.uint32)))


@jax.jit
def _keys(seed):
    """In one program: each of its four would take longer to load than to run."""
    init, step, evaluation = jax.random.split(jax.random.key(seed), 3)
    return init, step, evaluation, jax.random.fold_in(step, 2**31 - 1)


class Trainer:
    """An experiment made ready to run: data opened, devices laid out, the step traced, nothing written.

    What can be wrong with a configuration is found here, before a file is touched.
    """

    def __init__(self, experiment: Experiment, config, layout: parallel.Layout | None = None):
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
        self.layout = layout or parallel.layout(**config.parallel)
        self.layout.check(config.batch_size, config.accumulate)
        self.example = self.layout.example(self.source)
        self.trace()

    def trace(self) -> None:
        """Traces how the state begins and what a step makes of it, for their shapes."""
        make, step = self.parts(self.experiment, self.keys)
        # Under jit both are traced once, by whatever asks for their shapes first; inline: the same program.
        self.make = jax.jit(make, inline=True)
        self.step = self.alone = jax.jit(step, inline=True)
        if self.layout.axis_name is not None:
            _, self.step = self.parts(self.experiment, self.keys, self.layout.axis_name)
        if self.experiment.batch_fn is None:
            self.metric_shapes = jax.eval_shape(self.alone, self.layout.abstract(self.make), self.example)[1]

    def parts(self, experiment: Experiment, keys: Keys, axis_name: str | None = None):
        """(make, step) of an experiment of these sizes: `make() -> State`, `step(state, batch) -> (state, metrics)`."""
        optimizer, config = experiment.optimizer(self.clock), self.config

        def make():
            batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.example)
            return create(experiment, optimizer, keys.init, batch, config.ema > 0)

        options = {"accumulate": config.accumulate, "ema": config.ema, "axis_name": axis_name}
        step = make_step(experiment, optimizer, keys.step, **options)
        return make, self.layout.spread(step, config.batch_size // config.accumulate)

    def run(self, folder: Path, wandb: str = "", profile: bool = False) -> State:
        """Trains until `config.duration` updates are done, from the newest checkpoint in `folder` if there is one."""
        checkpoints = self.checkpoints(folder)
        if self.experiment.fit is not None:
            return self._fit(checkpoints, folder, wandb)
        state, kept = self.begin(checkpoints)
        done = int(self.layout.save(state).step)
        trace = Trace(folder / "profile" if profile and hosts.first() else None)
        record = Record(self, checkpoints, folder, done, wandb)
        progress = Progress(self.clock.total, done, self.unit)
        # Signals are watched for until all is on the disk, not in the loop alone: a save may take minutes.
        with Signals() as signals, contextlib.closing(progress), record:
            if done >= self.clock.total:
                progress.say(
                    f"already at step {done:,} of {self.clock.total:,}; for longer: --config.duration=..."
                )
            state = Loop(self, state, done, kept, record, progress, trace).run(signals)
        return self.layout.save(state)

    def checkpoints(self, folder: Path) -> Checkpoints:
        """Those of the run in `folder`, open."""
        return Checkpoints(folder / "checkpoints", self.config.checkpoint.keep, self.config.checkpoint.best)

    def evaluator(self, folder: Path) -> Evaluator:
        """What runs the evaluations of the run in `folder`."""
        return Evaluator(self.evaluations, self.keys.evaluation, folder / "evaluations")

    @property
    def total(self) -> int:
        """How many steps the run has."""
        return 1 if self.experiment.fit is not None else self.clock.total

    @property
    def unit(self) -> str:
        return "tokens" if self.experiment.tokens else "examples"

    def batch(self, raw, state: State, done: int):
        """What the step is given of what the source read."""
        if self.experiment.batch_fn is None:
            return raw
        key = jax.random.fold_in(self.keys.data, done)
        return self.experiment.batch_fn(self.layout.local(self.layout.save(state).variables), raw, key)

    def shapes_logged(self, state: State) -> dict[str, Mean]:
        """Shapes and types of what a step logs."""
        if self.experiment.batch_fn is None:
            return self.metric_shapes
        batch = self.batch(self.source.example(), state, 0)
        return jax.eval_shape(self.alone, self.layout.save(state), batch)[1]

    def create(self) -> State:
        """The state before the first step."""
        return self.layout.create(self.make)

    def begin(self, checkpoints: Checkpoints) -> tuple[State, dict[str, Any]]:
        """The state to go on from, and what the checkpoint keeps of the loop ({}: a fresh start)."""
        restored = checkpoints.restore(self.layout.abstract(self.make))
        if restored:
            return self.layout.load(restored[0]), restored[1]
        state = self.create()
        if self.experiment.init_from is not None:
            saved = self.layout.save(state)
            start = self.experiment.init_from(self.layout.local(saved.params))
            put = jax.make_array_from_process_local_data
            params = jax.tree.map(lambda new, old: put(old.sharding, new, old.shape), start, saved.params)
            ema = None if saved.ema is None else jax.tree.map(jnp.copy, params)
            state = self.layout.load(saved.replace(params=params, ema=ema))
        return state, {}

    def _fit(self, checkpoints: Checkpoints, folder: Path, wandb: str) -> State:
        """A closed form: one call, one checkpoint, evaluated like any other."""
        if checkpoints.steps:
            return State(1, checkpoints.variables()[1]["params"], {}, {})
        state = State(jnp.int32(1), self.experiment.fit(self.source, self.keys.init), {}, {})
        scalars = hosts.same(self.evaluator(folder)(state.variables, 1))
        writers = open_writers(folder, 0, wandb, self.config.to_dict())
        writers.write({"step": 1, "examples": self.source.num_examples, "seconds": 0.0, **scalars})
        writers.close()
        checkpoints.save(jax.device_get(state), {}, scalars)
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
        done: int,
        kept: dict[str, Any],
        record: Record | None,
        progress: Progress,
        trace: "Trace",
    ):
        self.trainer, self.layout, self.state = trainer, trainer.layout, state
        self.record, self.progress, self.trace = record, progress, trace
        clock, config = trainer.clock, trainer.config
        self.done, self.total = done, clock.total
        self.every = {
            "log": clock.every(config.log_every, "log_every"),
            "evaluate": clock.every(config.evaluate_every, "evaluate_every"),
            "save": clock.every(config.checkpoint.every, "checkpoint.every"),
        }
        self.iterator, self.data = None, None
        if isinstance(trainer.source, Resident):
            self.data = self.layout.everywhere(trainer.source.data)
        else:
            # What `batch_fn` makes is made whole by each process, and its devices take their part.
            alone = trainer.experiment.batch_fn is not None
            self.share = (0, 1) if alone else self.layout.share(trainer.config.batch_size)
            self.iterator = trainer.source.open(*self.share)
            if kept.get("iterator"):
                self.iterator.set_state(kept["iterator"])
        self.shapes = trainer.shapes_logged(state)
        self.sums = self.zeros(kept.get("sums", {}))
        self.since = self.done - int(kept.get("unlogged", 0))  # where the open log interval began
        self.compiled, self.pending, self.chunk = None, None, 1
        self.timer = Timer(0.0)
        self.met = self.done, 0.0  # when several processes last asked each other

    def run(self, signals: Signals) -> State:
        """All updates up to the last one, with what is due between them."""
        while self.done < self.total:
            self.dispatch()
            if self.due("log"):
                self.pending = self.interval()
                self.sums, self.since = self.zeros(), self.done
            received = signals.received if jax.process_count() == 1 else self.agree(signals.received)
            if received or self.due("evaluate") or self.due("save"):
                self.halt(received)
        self.trace.stop()
        return self.state

    def due(self, event: str) -> bool:
        every = self.every[event]
        return self.done == self.total or (every > 0 and self.done % every == 0)

    def agree(self, received: int) -> int:
        """The signal at which all processes stop, if any was sent one: they ask each other when a chunk is done.

        A chunk is as long for all, so that they stop at one step and dispatch as many at once.
        """
        if self.iterator is not None:
            steps, seconds = self.done - self.met[0], self.timer.seconds - self.met[1]
            if steps < self.chunk:
                return 0
            self.chunk = max(1, int(DISPATCH_SECONDS * steps / max(seconds, 1e-9)))
        self.chunk, received = hosts.agree(self.chunk, received)
        self.met = self.done, self.timer.seconds
        return received

    def dispatch(self) -> None:
        """One call of the compiled step: one update of a stream, as many as fit of data on the device."""
        n = 1
        if self.iterator is None:
            ahead = [every - self.done % every for every in self.every.values() if every]
            n = min(self.chunk, self.total - self.done, *ahead)
        else:
            batch = self.trainer.batch(next(self.iterator), self.state, self.done)
            self.data = self.layout.place(batch, self.share[1])
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
        if self.iterator is None:
            self.chunk = max(1, int(DISPATCH_SECONDS * n / (time.perf_counter() - started)))
        self.done += n
        self.progress.advance(n)

    def compile(self):
        run = self.layout.compile(self.trainer.step, self.trainer.source, self.trainer.make)
        return run.lower(self.state, self.sums, self.data, np.int32(1)).compile()

    def zeros(self, sums: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Mean]:
        """What a log interval begins with: zeros, or the sums (pairs, by name) of one that a checkpoint cut."""
        begun = {name: Mean(*sums.get(name, (0.0, 0.0))) for name in self.shapes}
        return self.layout.everywhere(
            jax.tree.map(lambda value, leaf: np.full(leaf.shape, value, leaf.dtype), begun, self.shapes)
        )

    def interval(self) -> Interval:
        """The open one, its sums still on the device."""
        return Interval(self.since, self.done, self.sums, self.timer.seconds)

    def write(self) -> None:
        """The row of the interval that ended last, if it is not written yet."""
        pending, self.pending = self.pending, None
        if pending:
            self.log(pending._replace(sums=self.layout.fetch(pending.sums)))

    def log(self, interval: Interval) -> None:
        self.progress.show(self.record.log(interval))

    def halt(self, received: int) -> None:
        """Evaluates and saves as is due, outside of the time that counts as training; ends on a signal."""
        self.timer.pause()
        self.write()
        interval = self.interval()
        # Evaluated also when stopped: it would not come again.
        self.settle(
            interval._replace(sums=self.layout.fetch(self.sums)),
            evaluate=self.due("evaluate"),
            save=self.due("save") or received > 0,
        )
        if received:
            raise Stopped(received, self.done)
        self.timer.go_on()

    def settle(self, interval: Interval, evaluate: bool, save: bool) -> None:
        iterator = self.iterator.get_state() if self.iterator is not None else None
        state = self.layout.save(self.state)
        scalars = self.record.settle(state, interval, evaluate, save, iterator)
        if scalars:
            told = ", ".join(f"{key} {value:.4f}" for key, value in scalars.items())
            self.progress.say(f"step {self.done:,}: {told}")


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
