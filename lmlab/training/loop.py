"""The loop: exactly N updates, and what happens between them."""

import dataclasses
import math
import signal
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmlab.config import Clock
from lmlab.experiment import Experiment, Mean
from lmlab.sources import Resident
from lmlab.training import parallel
from lmlab.training.checkpoint import Checkpoints
from lmlab.training.metrics import Progress, Timer, Writers, peak_flops
from lmlab.training.state import State
from lmlab.training.step import create, make_step

DISPATCH_SECONDS = 0.25
"""How long one dispatch of several steps may take: what the progress bar and a signal wait for."""


class NotFinite(ArithmeticError):
    """The loss or its gradient became infinite or NaN."""


class Stopped(Exception):
    """A signal came and the state is saved. `args`: (signal number, step)."""


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
        self.clock = Clock(config.duration, self.source.batch_size, self.source.num_examples)
        self.init_key, step_key, self.evaluation_key = jax.random.split(jax.random.key(config.seed), 3)
        self.data_key = jax.random.fold_in(step_key, 2**31 - 1)
        if experiment.fit is not None:
            return
        self.layout = parallel.layout(**config.parallel)
        self.layout.check(config.batch_size, config.accumulate)
        optimizer = experiment.optimizer(self.clock)
        self.example = jax.tree.map(jnp.asarray, self.source.example())
        options = {"accumulate": config.accumulate, "ema": config.ema}
        self.make = lambda: create(experiment, optimizer, self.init_key, self.example, config.ema > 0)
        self.alone = make_step(experiment, optimizer, step_key, **options)
        self.step = make_step(experiment, optimizer, step_key, **options, axis_name=self.layout.axis_name)
        if experiment.batch_fn is None:
            self.metric_shapes = jax.eval_shape(self.alone, self.layout.shapes(self.make), self.example)[1]

    def run(self, folder: Path, wandb: str = "", profile: bool = False) -> State:
        """Trains until `config.duration` updates are done, from the newest checkpoint in `folder` if there is one."""
        config = self.config
        checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep, config.checkpoint.best)
        evaluate = Evaluator(self.evaluations, self.evaluation_key, folder / "evaluations")
        if self.experiment.fit is not None:
            return self._fit(checkpoints, evaluate, folder, wandb)
        state, loop = self._begin(checkpoints)
        done = int(self.layout.save(state).step)
        writers = Writers(folder, done, wandb, config.to_dict())
        progress = Progress(self.clock.total, done, self.unit)
        if done >= self.clock.total:
            progress.say(
                f"already at step {done:,} of {self.clock.total:,}; for longer: --config.duration=..."
            )
        try:
            trace = Trace(folder / "profile" if profile else None)
            state = self._steps(state, loop, checkpoints, evaluate, writers, progress, trace)
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

    def _steps(self, state, loop, checkpoints, evaluate, writers, progress, trace) -> State:
        config, layout, source, total = self.config, self.layout, self.source, self.clock.total
        done = int(layout.save(state).step)
        iterator = None
        if isinstance(source, Resident):
            data = layout.everywhere(source.data)
        else:
            iterator = source.open(jax.process_index(), jax.process_count())
            if loop.get("iterator"):
                iterator.set_state(loop["iterator"])
        zeros = self._zeros(layout.save(state))
        sums = layout.everywhere(jax.tree.map(jnp.copy, zeros | _sums_from_json(loop.get("sums", {}))))
        zeros = layout.everywhere(zeros)
        since = done - int(loop.get("unlogged", 0))  # where the open log interval began
        every = {
            "log": self.clock.every(config.log_every, "log_every"),
            "evaluate": self.clock.every(config.evaluate_every, "evaluate_every"),
            "save": self.clock.every(config.checkpoint.every, "checkpoint.every"),
        }
        params = layout.save(state).params
        report = Report(
            self, checkpoints, writers, progress, sum(leaf.size for leaf in jax.tree.leaves(params))
        )
        del params
        run = layout.compile(self.step, source, self.make)
        compiled, pending, chunk, best = None, None, 1, math.inf
        timer = Timer(writers.seconds)

        def due(event: str) -> bool:
            return done == total or (every[event] > 0 and done % every[event] == 0)

        with Signals() as signals:
            while done < total:
                n = 1
                if iterator is None:
                    n = min([chunk, total - done, *(size - done % size for size in every.values() if size)])
                else:
                    data = layout.place(self._batch(next(iterator), state, done))
                if compiled is None:
                    timer.pause()
                    compiled = run.lower(state, sums, data, np.int32(n)).compile()
                    timer.go_on()
                trace.dispatch()
                started = time.perf_counter()
                state, sums = compiled(state, sums, data, np.int32(n))
                if pending:  # written while the device works on
                    report(*pending)
                    pending = None
                if iterator is None or layout.block:
                    jax.block_until_ready(sums)
                    chunk = max(1, int(DISPATCH_SECONDS * n / (time.perf_counter() - started)))
                done += n
                progress.advance(n)
                if due("log"):
                    pending = (since, done, sums, timer.seconds)
                    sums, since = jax.tree.map(jnp.copy, zeros), done
                if not (signals.received or due("evaluate") or due("save")):
                    continue
                timer.pause()
                if pending:
                    report(*pending)
                    pending = None
                scalars = {}
                if due("evaluate") and self.evaluations:  # also when stopped: it would not come again
                    scalars = evaluate(layout.save(state).variables, done)
                    if config.checkpoint.best and config.checkpoint.best not in scalars:
                        raise ValueError(
                            f"checkpoint.best: received {config.checkpoint.best!r}; allowed: {', '.join(scalars)}"
                        )
                    writers.write(report.position(done, timer.seconds) | scalars)
                    progress.say(
                        f"step {done:,}: " + ", ".join(f"{key} {value:.4f}" for key, value in scalars.items())
                    )
                value = scalars.get(config.checkpoint.best, math.inf)
                if due("save") or signals.received or value < best:
                    host = layout.fetch(sums)
                    if done > since:
                        check_finite(host, since, done, checkpoints)
                    if not layout.is_finite(state):  # the last update made them; its metrics came before it
                        raise not_finite("parameters", since, done, checkpoints)
                    facts = {"sums": _sums_to_json(host), "unlogged": done - since}
                    facts["iterator"] = iterator.get_state() if iterator is not None else {}
                    checkpoints.save(layout.save(state), facts, scalars)
                best = min(best, value)
                if signals.received:
                    checkpoints.close()
                    raise Stopped(signals.received, done)
                timer.go_on()
        trace.stop()
        return state

    def _batch(self, raw, state: State, done: int):
        if self.experiment.batch_fn is None:
            return raw
        return self.experiment.batch_fn(
            self.layout.save(state).variables, raw, jax.random.fold_in(self.data_key, done)
        )

    def _zeros(self, state: State) -> dict[str, Mean]:
        """Zeros in the shape of what a step logs."""
        shapes = None
        if self.experiment.batch_fn is None:
            shapes = self.metric_shapes
        else:
            shapes = jax.eval_shape(self.alone, state, self._batch(self.example, self.layout.load(state), 0))[
                1
            ]
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def _fit(self, checkpoints: Checkpoints, evaluate: "Evaluator", folder: Path, wandb: str) -> State:
        """A closed form: one call, one checkpoint, evaluated like any other."""
        if checkpoints.steps:
            return State(1, checkpoints.variables()[1]["params"], {}, {})
        state = State(jnp.int32(1), self.experiment.fit(self.source, self.init_key), {}, {})
        scalars = evaluate(state.variables, 1)
        writers = Writers(folder, 0, wandb, self.config.to_dict())
        writers.write({"step": 1, "examples": self.source.num_examples, "seconds": 0.0, **scalars})
        writers.close()
        checkpoints.save(state, {}, scalars)
        checkpoints.close()
        return state


class Report:
    """Turns the sums of a log interval into a row for the writers and the bar."""

    def __init__(
        self,
        trainer: Trainer,
        checkpoints: Checkpoints,
        writers: Writers,
        progress: Progress,
        num_params: int,
    ):
        self.trainer, self.checkpoints, self.writers, self.progress = trainer, checkpoints, writers, progress
        self.seconds = writers.seconds
        flops = trainer.experiment.flops
        device = trainer.layout.devices[0].device_kind
        peak = peak_flops(device, trainer.config.precision) * trainer.layout.num_devices
        self.mfu_per_speed = flops(num_params) / peak if flops else math.nan

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


class Signals:
    """Remembers a SIGTERM or a first Ctrl-C instead of dying of it; a second Ctrl-C interrupts at once."""

    received: int = 0

    def __enter__(self):
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {
                number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)
            }
        return self

    def _receive(self, number, frame):
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _sums_to_json(sums: dict[str, Mean]) -> dict[str, list[float]]:
    return {name: [float(mean.total), float(mean.count)] for name, mean in sums.items()}


def _sums_from_json(sums: dict[str, list[float]]) -> dict[str, Mean]:
    return {name: Mean(jnp.float32(total), jnp.float32(count)) for name, (total, count) in sums.items()}
