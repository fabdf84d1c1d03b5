"""Sweeps on one machine: processes that keep off each other's cores and devices."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lmlab.flags import UsageError
from lmlab.sweeps.attempt import Attempt
from lmlab.sweeps.board import Board
from lmlab.sweeps.grid import Cell, status
from lmlab.training.signals import Signals, Stopped

POLL, LOOK = 0.05, 0.5
"""Seconds: how often processes are asked whether they ended, and their metrics how far they are."""


def launch(workdir: Path, cells: Sequence[Cell], *, jobs: int = 0) -> None:
    """Trains cells in processes of this machine, each with cores and devices of its own.

    jobs: runs at a time, which share out the cores and the GPUs; 0: one a GPU, or without any, one a core
    """
    free = places(jobs, len(cells))
    waiting, active, told, looked = list(cells), {}, False, 0.0
    interrupted = contextlib.suppress(KeyboardInterrupt)  # by a second Ctrl-C
    with Board(workdir, cells) as board, Signals() as signals, interrupted:
        while active or (waiting and not signals.received):
            if signals.received and not told:
                told = True
                for attempt in active:
                    attempt.signal(signal.SIGTERM)
                board.say("stopping: runs under way save first; Ctrl-C again does not wait for them")
            for attempt in list(active):
                if (code := attempt.poll()) is not None:
                    free.insert(0, active.pop(attempt))
                    board.ended(attempt.cell, code)
                    looked = 0.0
            if time.monotonic() - looked > LOOK:
                looked = time.monotonic()
                while free and not signals.received and (cell := _next(workdir, waiting, board)):
                    place = free.pop(0)
                    active[Attempt(workdir, cell, os.environ | place.env, place.cores)] = place
                    board.began(cell)
                board.look()
            time.sleep(POLL)
    if signals.received:
        raise Stopped(signals.received, 0)


def _next(workdir: Path, waiting: list[Cell], board: Board) -> Cell | None:
    """The first of those waiting that no other process trains: that of a launcher that was killed may still save."""
    for cell in list(waiting):
        now = status(workdir, cell)
        if now == "running":
            board.set(cell, "elsewhere")
            continue
        waiting.remove(cell)
        if now != "done":
            return cell
        board.set(cell, "done")
    return None


class Place(NamedTuple):
    """Where a job runs: its cores, and what its environment says of devices."""

    cores: Sequence[int]
    env: dict[str, str]


def places(jobs: int, runs: int) -> list[Place]:
    """One for each job: even shares of this process's cores and of the GPUs it may see.

    XLA and NumPy have as many threads as the process has cores. Jobs that share a GPU share its memory.
    """
    if jobs < 0:
        raise UsageError(f"--jobs: received {jobs}; allowed: 1 or more, or 0 to choose")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    gpus = devices()
    usual = len(gpus) or len(cores) or os.cpu_count() or 1
    gpus = gpus if jobs else gpus[:runs]  # a GPU each, also where some are left
    jobs = min(jobs or usual, runs)
    env = [{"CUDA_VISIBLE_DEVICES": ",".join(_share(gpus, job, jobs))} if gpus else {} for job in range(jobs)]
    if len(gpus) < jobs and gpus and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        fraction = 0.9 / -(-jobs // len(gpus))
        env = [each | {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{fraction:.3f}"} for each in env]
    return [Place(_share(cores, job, jobs), env[job]) for job in range(jobs)]


def _share(items: list, job: int, jobs: int) -> list:
    """The job's part of what there is; where there is less than jobs, it is shared."""
    if len(items) < jobs:
        return [items[job % len(items)]] if items else []
    return items[job * len(items) // jobs : (job + 1) * len(items) // jobs]


def devices() -> list[str]:
    """The GPUs that a run may use, as CUDA_VISIBLE_DEVICES names them. JAX is not asked: it would take them."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return re.findall(r"^GPU \d+: .*\(UUID: (GPU-[\w-]+)\)", listed, re.MULTILINE)
