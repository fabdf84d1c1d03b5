"""How the runs of a sweep fare: a live table on a terminal, on anything else a line a change."""

import contextlib
import dataclasses
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lmlab import experiment
from lmlab.sweeps.attempt import STOPPED, tail
from lmlab.sweeps.grid import Cell

COLOURS = {"failed": "red", "running": "cyan", "done": "green", "elsewhere": "yellow", "stopped": "yellow"}
ORDER = ("failed", "running", "elsewhere", "stopped", "waiting", "done")
"""Which rows are shown where a terminal has no room for all."""

NARROW = 72
"""Columns of a terminal below which progress, loss and seconds give way to names and lines of failures."""


@dataclasses.dataclass
class Row:
    """One run: where it stands, as its own files tell. seconds: since it was started here."""

    folder: Path
    status: str = "waiting"
    step: int = 0
    total: int = 0
    loss: float = math.nan
    started: float = math.nan
    seconds: float = math.nan
    line: str = ""

    def look(self) -> None:
        """Reads the run's progress: run.json says how many steps there are, the last metrics how many are made."""
        self.seconds = time.monotonic() - self.started
        with contextlib.suppress(OSError, ValueError):
            self.total = experiment.read_json(self.folder / "run.json").get("total", 0)
        for text in tail(self.folder / "metrics.jsonl"):
            with contextlib.suppress(ValueError):  # the first and the last may be parts of lines
                row = json.loads(text)
                self.step = row["step"]
                self.loss = next(
                    (v for k, v in row.items() if k.endswith("/loss") and v is not None), self.loss
                )

    @property
    def progress(self) -> str:
        return f"{self.step:,}/{self.total:,}" if self.total else ""

    def numbers(self) -> list[str]:
        """Progress, loss and seconds, those that are known."""
        loss = "" if math.isnan(self.loss) else f"{self.loss:.4f}"
        return [self.progress, loss, "" if math.isnan(self.seconds) else f"{self.seconds:.1f}"]


class Board:
    """The table of all runs, while they run."""

    def __init__(self, workdir: Path, cells: Sequence[Cell]):
        self.rows = {cell.name: Row(workdir / cell.name) for cell in cells}
        self.console = Console()
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.note = ""

    def __enter__(self):
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_):
        if self.live:
            self.look()
            self.live.stop()

    def began(self, cell: Cell) -> None:
        self.rows[cell.name].started = time.monotonic()
        self.set(cell, "running")

    def ended(self, cell: Cell, code: int) -> None:
        """With its exit code; why it failed is in its failure.json."""
        row = self.rows[cell.name]
        row.look()
        if code and code not in STOPPED:
            row.line = experiment.read_json(row.folder / "failure.json")["line"]
        self.set(cell, "done" if code == 0 else "stopped" if code in STOPPED else "failed")

    def set(self, cell: Cell, status: str) -> None:
        row = self.rows[cell.name]
        if row.status == status:
            return
        row.status = status
        if not self.live:
            step, loss, seconds = row.numbers()
            told = [
                f"step {step}" if step else "",
                f"loss {loss}" if loss else "",
                f"{seconds} s" if seconds else "",
            ]
            ended = ", ".join(filter(None, told)) if status in ("done", "stopped", "failed") else ""
            self.print(": ".join(filter(None, [cell.name, status, ended, row.line])))

    def print(self, line: str) -> None:
        with contextlib.suppress(OSError):  # whoever read along has gone: no reason to stop
            print(line, flush=True)

    def say(self, text: str) -> None:
        """A line about all of them."""
        self.note = text
        if not self.live:
            self.print(text)
        self.look()

    def look(self) -> None:
        """How far those under way are."""
        for row in self.rows.values():
            if row.status == "running":
                row.look()
        if self.live:
            self.live.update(self.table(self.console.height - 5), refresh=True)

    def table(self, room: int) -> Table:
        """All runs, or as many as there is room for: those that matter most."""
        counts = Counter(row.status for row in self.rows.values())
        caption = ", ".join(f"{counts[status]} {status}" for status in ORDER if counts[status])
        caption += f"\n{self.note}" * bool(self.note)
        table = Table(box=None, expand=True, caption=caption, caption_justify="left", pad_edge=False)
        table.add_column("run", overflow="fold", max_width=self.console.width // 3)
        table.add_column("status", no_wrap=True)
        numbers = () if self.console.width < NARROW else ("step", "loss", "seconds")
        for name in numbers:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True, overflow="ellipsis", ratio=1)
        first = sorted(self.rows, key=lambda name: ORDER.index(self.rows[name].status))
        shown = set(first[: max(1, room)])
        for name, row in self.rows.items():
            if name in shown:
                status = Text(row.status, style=COLOURS.get(row.status, "dim"))
                table.add_row(Text(name), status, *row.numbers()[: len(numbers)], Text(row.line))
        return table
