"""One attempt at one cell of a sweep: `lmlab train` in a process of its own, and what is kept of how it ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from lmlab import config as config_lib
from lmlab.provenance import now
from lmlab.sweeps import leash
from lmlab.sweeps.grid import Cell

STOPPED = (75, 130, -signal.SIGTERM, -signal.SIGINT)
"""Codes of a run that was told to end: it is cut, not failed. The negative ones: before it could save."""

TAIL = 1 << 14  # bytes at a file's end that are looked at


class Attempt:
    """`lmlab train` of a cell under way, in a process group of its own, its output in WORKDIR/name/log.txt.

    It is told to end (SIGTERM: it saves) when the thread that started it dies. cores: those it may run on.
    """

    def __init__(
        self,
        workdir: Path,
        cell: Cell,
        env: Mapping[str, str] | None = None,
        cores: Collection[int] = (),
    ):
        self.cell, self.folder = cell, workdir / cell.name
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "failure.json").unlink(missing_ok=True)
        leashed = [sys.executable, "-IS", leash.__file__, str(os.getpid()), ",".join(map(str, cores))]
        with (self.folder / "log.txt").open("ab") as log:
            self.start = log.tell()
            self.process = subprocess.Popen(
                [*leashed, *command(workdir, cell)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                process_group=0,
            )

    def poll(self) -> int | None:
        """The exit code, once there is one."""
        code = self.process.poll()
        return None if code is None else self._ended(code)

    def wait(self) -> int:
        return self._ended(self.process.wait())

    def signal(self, number: int) -> None:
        """To all of its process group."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def _ended(self, code: int) -> int:
        if code and code not in STOPPED:
            config_lib.write_json(
                {"code": code, "line": self.last_line(code), "when": now()}, self.folder / "failure.json"
            )
        return code

    def last_line(self, code: int) -> str:
        """What the run said last; which signal killed it, if it had no time to say."""
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        lines = tail(self.folder / "log.txt", self.start)
        return lines[-1].strip() if lines else f"exit code {code}"


def tail(path: Path, start: int = 0) -> list[str]:
    """The last lines of a file that are not empty, of what was written from `start` on; the first may be cut."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - TAIL))
        return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def command(workdir: Path, cell: Cell) -> list[str]:
    """The command line that trains a cell, or goes on with it."""
    leaves = [f"--config.{key}={value}" for key, value in cell.overrides.items()]
    train = [sys.executable, "-m", "lmlab", "train", f"--config={cell.spec}"]
    return [*train, f"--workdir={workdir / cell.name}", *leaves]
