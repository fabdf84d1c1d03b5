"""Where numbers go while a model trains: metrics.jsonl, TensorBoard, Weights & Biases, the progress bar."""

import contextlib
import functools
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from lmlab.training import hosts

PEAK_FLOPS = {  # dense, of one chip, from the makers' data sheets
    "H100": {"bf16": 989e12, "tf32": 494e12, "float32": 67e12},
    "H200": {"bf16": 989e12, "tf32": 494e12, "float32": 67e12},
    "A100": {"bf16": 312e12, "tf32": 156e12, "float32": 19.5e12},
    "L4": {"bf16": 121e12, "tf32": 60e12, "float32": 30e12},
    "RTX 4090": {"bf16": 165e12, "tf32": 83e12, "float32": 83e12},
    "TPU v4": {"bf16": 275e12},
    "TPU v5 lite": {"bf16": 197e12},
    "TPU v5": {"bf16": 459e12},
    "TPU v6 lite": {"bf16": 918e12},
}


def peak_flops(device_kind: str, precision: str) -> float:
    """FLOP/s of one device at a precision; nan where the table does not know it (CPUs)."""
    for name in sorted(PEAK_FLOPS, key=len, reverse=True):
        if name in device_kind:
            return PEAK_FLOPS[name].get(precision, math.nan)
    return math.nan


def read(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; what is none, as a line cut short by a crash, is left out."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, dict) and {"step", "seconds"} <= row.keys():
                rows.append(row)
    return rows


class Writers:
    """One row a log interval, to every place that wants it. On resuming, rows after the checkpoint go."""

    def __init__(self, folder: Path, step: int, wandb: str = "", config: Mapping | None = None):
        path = folder / "metrics.jsonl"
        rows = [row for row in read(path) if row["step"] <= step]
        temporary = folder / "metrics.jsonl.tmp"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        temporary.replace(path)
        self.seconds = max((row["seconds"] for row in rows), default=0.0)
        self.file = path.open("a")
        self.tensorboard = {"folder": folder / "tensorboard", "begin": step + 1 if rows else 0}
        self.wandb = None
        if wandb:
            try:
                import wandb as library
            except ImportError:
                raise ValueError("--wandb needs the package wandb: pip install 'lmlab[wandb]'") from None
            self.wandb = library.init(
                project=wandb, dir=str(folder), config=dict(config or {}), resume="allow"
            )

    @functools.cached_property
    def events(self) -> "Events":
        """TensorBoard's, from the first row that has something for it."""
        return Events(**self.tensorboard)

    def write(self, row: Mapping[str, float]) -> None:
        plain = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self.file.write(json.dumps(plain) + "\n")
        self.file.flush()
        for name, value in row.items():
            if "/" in name:
                self.events.scalar(row["step"], name, value)
        if self.wandb:
            self.wandb.log(dict(row), step=row["step"])

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # each, also where another finds no room
            stack.callback(self.file.close)
            if "events" in vars(self):
                stack.callback(self.events.close)
            if self.wandb:
                stack.callback(self.wandb.finish)


FLUSH = 30.0
"""Seconds after which TensorBoard is shown what is new."""


class Events:
    """Scalars for TensorBoard. begin: the step from which on earlier files are no longer so; 0: there are none.

    Written here and now: a SummaryWriter's thread dies of a full disk, and who gives it more then waits for ever.
    """

    def __init__(self, folder: Path, begin: int):
        from tensorboardX import event_file_writer, summary  # late: takes PyTorch along where it is installed
        from tensorboardX.proto import event_pb2

        self.protocol, self.summary, self.flushed = event_pb2, summary, time.monotonic()
        folder.mkdir(exist_ok=True)
        self.file = event_file_writer.EventsWriter(str(folder / "events"))
        if begin:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(begin, session_log=start)

    def scalar(self, step: int, name: str, value: float) -> None:
        self._write(step, summary=self.summary.scalar(name, value))

    def _write(self, step: int, **what) -> None:
        self.file.write_event(self.protocol.Event(wall_time=time.time(), step=step, **what))
        if time.monotonic() - self.flushed > FLUSH:
            self.file.flush()
            self.flushed = time.monotonic()

    def close(self) -> None:
        self.file.close()


class Silence:
    """The writers of every process but the first."""

    seconds = 0.0

    def write(self, row: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def open_writers(
    folder: Path, step: int, wandb: str = "", config: Mapping | None = None
) -> Writers | Silence:
    """Those of a run, of whose processes the first one writes."""
    return Writers(folder, step, wandb, config) if hosts.first() else Silence()


class Progress:
    """A bar with loss, speed, time left and MFU on a terminal; on anything else, a line an evaluation."""

    def __init__(self, total: int, step: int, unit: str = "examples"):
        hidden = not sys.stderr.isatty() or not hosts.first()
        self.bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, disable=hidden)
        self.unit = unit

    def advance(self, steps: int) -> None:
        self.bar.update(steps)

    def show(self, row: Mapping[str, float]) -> None:
        shown = {"loss": f"{row['train/loss']:.4f}"} if "train/loss" in row else {}
        speed = row.get(f"speed/{self.unit}_per_second")
        if speed:
            shown[f"{self.unit}/s"] = f"{speed:,.0f}"
        if "speed/mfu" in row:
            shown["MFU"] = f"{row['speed/mfu']:.1%}"
        self.bar.set_postfix(shown)

    def say(self, text: str) -> None:
        if self.bar.disable:
            with contextlib.suppress(OSError):  # whoever read along has gone: no reason to stop
                print(text, flush=True)
        else:
            self.bar.write(text)

    def close(self) -> None:
        self.bar.close()


class Timer:
    """Seconds spent training: compilation, evaluations and saving are left out by `pause`."""

    def __init__(self, seconds: float):
        self.before, self.started = seconds, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.before + (time.perf_counter() - self.started if self.started is not None else 0.0)

    def pause(self) -> None:
        self.before, self.started = self.seconds, None

    def go_on(self) -> None:
        self.started = time.perf_counter()
