"""Checkpoints by Orbax: asynchronous, the newest and the best kept, damaged ones stepped over.

A checkpoint has three items: `variables` (params, collections, ema: all that sampling and fine-tuning
read), `training` (step and optimizer state) and `loop` (JSON: where the data stand, and the sums of the
unfinished log interval).
"""

import contextlib
import errno
import functools
import json
import math
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep_policy

from lmlab.training import hosts
from lmlab.training.state import State

WORST = 1e30
"""What stands for a metric that is NaN or was not measured: Orbax would take a NaN for the best."""


STARTER = ThreadPoolExecutor(1)
"""Where saves begin, those of several runs one after the other: Orbax numbers them by process, and two that begin
at once would share a number and wait for each other's folders."""


class DiskFull(OSError):
    """No room for a checkpoint; the last good one is untouched."""


class Checkpoints:
    """The checkpoints of one run. `best`: the metric whose lowest checkpoint is kept besides the newest `keep`.

    read_only: for who looks while another trains; nothing is written, moved or cleaned up.
    """

    def __init__(self, folder: Path, keep: int = 1, best: str = "", read_only: bool = False):
        logging.set_verbosity(logging.FATAL)  # Orbax tells every file it writes, and of what it raises
        _silence_closed_loops()
        self.folder, self.best = folder.absolute(), best

        if not read_only:
            _forget_damaged_metrics(self.folder)

        def value(metrics) -> float:
            return metrics.get(best, WORST)

        policies = [keep_policy.LatestN(keep)]
        if best:
            policies.append(keep_policy.BestN(get_metric_fn=value, reverse=True, n=1))
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep_policy.AnyPreservationPolicy(policies),
                best_fn=value,
                best_mode="min",
                cleanup_tmp_directories=not read_only,
                enable_async_checkpointing=not read_only,
                read_only=read_only,
            ),
            item_handlers={
                "variables": ocp.StandardCheckpointHandler(),
                "training": ocp.StandardCheckpointHandler(),
                "loop": ocp.JsonCheckpointHandler(),
            },
        )
        self.started: Future | None = None

    @property
    def steps(self) -> list[int]:
        self._join()
        return sorted(self.manager.all_steps())

    @property
    def best_step(self) -> int | None:
        return self.manager.best_step() if self.best else None

    def save(self, state: State, loop: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Starts saving; returns when the arrays are copied. An earlier save that failed is reported here."""
        step = int(state.step)
        if step in self.steps:
            return
        metrics = {name: value if math.isfinite(value) else WORST for name, value in (metrics or {}).items()}
        local = jax.process_count() == 1 and jax.default_backend() == "cpu"
        state = jax.block_until_ready(jax.tree.map(_copy, state)) if local else state
        args = ocp.args.Composite(
            variables=ocp.args.StandardSave(_variables(state)),
            training=ocp.args.StandardSave(_training(state)),
            loop=ocp.args.JsonSave(dict(loop)),
        )
        start = functools.partial(self.manager.save, step, args=args, metrics=metrics, force=True)
        if local:
            self.started = STARTER.submit(start)
        else:  # arrays of a GPU are fetched in it, and hosts wait for each other
            with self._explained():
                start()

    def wait(self) -> None:
        self._join()
        with self._explained():
            self.manager.wait_until_finished()

    def _join(self) -> None:
        """Waits until a save has begun: for a moment."""
        started, self.started = self.started, None
        if started is not None:
            with self._explained():
                started.result()

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except Exception as error:
            if _disk_is_full(error):
                told = f"no room for a checkpoint in {self.folder}; the last good one is kept"
                raise DiskFull(errno.ENOSPC, told) from error
            raise

    def restore(self, state: State) -> tuple[State, dict[str, Any]] | None:
        """(state, loop) of the newest whole checkpoint, shaped and placed like `state`; None if there is none.

        One that cannot be read is named and the one before it taken; once that has been read, the damaged
        one is set aside as `damaged-<step>`. Where none can be read, none is moved.
        """
        damaged: list[tuple[int, Exception]] = []
        for step in reversed(self.steps):
            try:
                saved = self.manager.restore(
                    step,
                    args=ocp.args.Composite(
                        variables=ocp.args.StandardRestore(_variables(state)),
                        training=ocp.args.StandardRestore(_training(state)),
                        loop=ocp.args.JsonRestore(),
                    ),
                )
            except Exception as error:
                damaged.append((step, error))
                continue
            for number, error in damaged:
                print(
                    f"warning: checkpoint {number} is damaged ({_first_line(error)}); using {step}",
                    flush=True,
                )
                self._set_aside(number)
            variables, training = saved["variables"], saved["training"]
            return State(
                training["step"],
                variables["params"],
                training["opt_state"],
                variables["collections"],
                variables.get("ema"),
            ), saved["loop"]
        if damaged:
            step, error = damaged[0]
            raise RuntimeError(
                f"checkpoint {step} in {self.folder} cannot be read, nor one before it (damaged, or the model"
                f" has changed): {_first_line(error)}"
            ) from error
        return None

    def _set_aside(self, step: int) -> None:
        target = self.folder.parent / f"damaged-{step}"
        if hosts.first():
            shutil.rmtree(target, ignore_errors=True)
            (self.folder / str(step)).rename(target)
        hosts.meet(f"{step} set aside")
        self.manager.reload()

    def variables(self, step: int | None = None) -> tuple[int, dict[str, Any]]:
        """(step, parameters and collections alone), as NumPy arrays, whatever devices they were saved from."""
        steps = [step] if step is not None else list(reversed(self.steps))
        for number, step in enumerate(steps):
            try:
                shapes = self.manager.item_metadata(step)["variables"]
                abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), _tree(shapes))
                saved = self.manager.restore(
                    step, args=ocp.args.Composite(variables=ocp.args.StandardRestore(abstract))
                )["variables"]
            except Exception as error:
                if number + 1 == len(steps):
                    raise RuntimeError(
                        f"checkpoint {step} in {self.folder} cannot be read: {_first_line(error)}"
                    ) from error
                print(f"warning: checkpoint {step} is damaged; using the one before it", flush=True)
                continue
            return step, {"params": saved.get("ema") or saved["params"], **saved["collections"]}
        raise FileNotFoundError(f"no checkpoint in {self.folder}")

    def close(self) -> None:
        self.wait()
        self.manager.close()


def _forget_damaged_metrics(folder: Path) -> None:
    """Orbax reads the metrics of all checkpoints as it begins, and does without those that are not there."""
    for path in folder.glob("*/metrics/metrics"):
        try:
            json.loads(path.read_text())
        except ValueError:
            path.unlink(missing_ok=True)


@functools.cache
def _silence_closed_loops() -> None:
    """What was being read beside damage, or written to a full disk, reports afterwards, from C++ and with a
    traceback each, that nobody waits for it."""
    usual = sys.unraisablehook

    def hook(what):
        if str(what.exc_value) != "Event loop is closed":
            usual(what)

    sys.unraisablehook = hook


def _copy(leaf):
    """An array of the CPU's in memory of its own. Orbax reads the memory of an array as it writes, and a step
    that is given this memory for its results would wait until all is on the disk."""
    return jax.device_put(leaf, leaf.sharding, may_alias=False) if isinstance(leaf, jax.Array) else leaf


def _variables(state: State) -> dict[str, Any]:
    variables = {"params": state.params, "collections": state.collections}
    return variables if state.ema is None else {**variables, "ema": state.ema}


def _training(state: State) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state}


def _tree(metadata):
    return getattr(metadata, "tree", metadata)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether that is at the root of whatever was raised on top of it."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(text in str(error) for text in ("No space left", "RESOURCE_EXHAUSTED", "ENOSPC")):
            return True
        error = error.__cause__ or error.__context__
    return False
