"""How a training step's time and memory grow with width, depth, context and batch, beside what arithmetic says.

    python -m benchmarks scaling                # all four, about four minutes on two cores
    python -m benchmarks scaling width depth    # some; the others stay as they were recorded

From a GPT of 4 layers, width 128 (heads of 32), context 64 and batch 12 one size at a time goes up by factors
of two. Over the larger half of the sizes a line is fitted to log y against log x; its slope is the exponent.
Beside it stand the slope of the exact count over the same sizes (small models also have heads, logits and
attention, which grow otherwise) and the exponent in the limit. Peak memory is what XLA says of the compiled
step before it runs, checked at two sizes against what a process of its own really took.

    python -m benchmarks.scaling SIZES          # the memory of one size, in that process
"""

import argparse
import ctypes
import dataclasses
import functools
import gc
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import protocol

BASE = {"num_layers": 4, "d_model": 128, "context": 64, "batch_size": 12}
HEAD, VOCAB = 32, 65
ROUNDS, SECONDS = 5, 0.3
"""Rounds of a size, and what a round should take at least."""
PATIENCE = 6.0
"""Seconds after which a size gets no more rounds, if it had three."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """One size that grows. time, memory: the exponents in the limit of large sizes."""

    size: str
    values: tuple[int, ...]
    label: str
    time: float
    memory: float

    @property
    def points(self) -> list[dict[str, int]]:
        return [{**BASE, self.size: value} for value in self.values]


AXES = {
    "width": Axis("d_model", (32, 64, 128, 256, 512, 1024), "width", 2, 2),
    "depth": Axis("num_layers", (1, 2, 4, 8, 16), "layers", 1, 1),
    "context": Axis("context", (16, 32, 64, 128, 256, 512, 1024), "context (tokens)", 2, 2),
    "batch": Axis("batch_size", (3, 6, 12, 24, 48, 96, 192), "batch (sequences)", 1, 1),
}


# -- the counts --------------------------------------------------------------------------------------


def weights(num_layers: int, d_model: int) -> int:
    """Entries of the matrices that every token meets: 12 D^2 a layer, and the output's V D."""
    return 12 * num_layers * d_model**2 + VOCAB * d_model


def flops(*, num_layers: int, d_model: int, context: int, batch_size: int) -> float:
    """Of one training step: 6 a weight and token, and 12 L D T a token for attention over all T places."""
    tokens = batch_size * context
    return tokens * (6.0 * weights(num_layers, d_model) + 12.0 * num_layers * d_model * context)


def floats(*, num_layers: int, d_model: int, context: int, batch_size: int) -> float:
    """Held at the peak: weights, gradients and Adam's two moments; what the backward pass needs again.

    A layer keeps 16 D a token (inputs of two normalizations and four products: 9; queries, keys, values: 3;
    the hidden layer before its activation: 4) and H T attention weights; then come logits and their gradient.
    """
    tokens, heads = batch_size * context, d_model // HEAD
    kept = num_layers * (16.0 * d_model + heads * context) + 2 * VOCAB
    return 4.0 * weights(num_layers, d_model) + tokens * kept


def exponent(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """(slope, intercept) of log value against log size by least squares, over the larger half."""
    x, y = ([math.log(each) for each in numbers[-_larger(sizes) :]] for numbers in (sizes, values))
    slope, intercept = statistics.linear_regression(x, y)
    return slope, intercept


def _larger(sizes: Sequence[float]) -> int:
    """How many sizes make the larger half."""
    return max(2, math.ceil(len(sizes) / 2))


# -- measuring ---------------------------------------------------------------------------------------


def compiled_step(sizes: dict[str, int]) -> tuple[Callable[[int], None], dict[str, float]]:
    """(run(steps), MB given to a step and predicted at its peak): the trainer's own loop, float32, random text."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks import ours
    from lmlab import config as configs
    from lmlab.data import text
    from lmlab.experiment import Experiment
    from lmlab.models.gpt import GPT
    from lmlab.tasks import NextToken
    from lmlab.training import optimizer, parallel
    from lmlab.training.loop import Trainer

    parallel.prepare("float32")
    shape = {key: value for key, value in sizes.items() if key != "batch_size"}
    model = GPT(VOCAB, num_heads=sizes["d_model"] // HEAD, bias=False, **shape)
    leaves = {"optimizer": {"weight_decay": 0.1, "clip": 1.0}, "parallel": {"data": 1}}  # one device
    config = configs.base(batch_size=sizes["batch_size"], **leaves)
    source = text.windows(ours.tokens(), sizes["context"], config.batch_size, 0)
    build = functools.partial(optimizer.build, **config.optimizer)
    trainer = Trainer(Experiment(task=NextToken(model), optimizer=build, train_data=lambda: source), config)
    layout = trainer.layout
    state, data = layout.create(trainer.make), layout.everywhere(source.data)
    sums = layout.everywhere(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), trainer.metric_shapes))
    compiled = layout.compile(trainer.step, source, trainer.make)
    compiled = compiled.lower(state, sums, data, np.int32(1)).compile()
    memory = compiled.memory_analysis()
    given = memory.argument_size_in_bytes
    peak = given + memory.output_size_in_bytes + memory.temp_size_in_bytes - memory.alias_size_in_bytes

    def run(steps: int) -> None:
        nonlocal state, sums
        state, sums = compiled(state, sums, data, np.int32(steps))
        jax.block_until_ready(sums)

    return run, {"given_mb": given / 2**20, "predicted_mb": peak / 2**20}


def measure(sizes: dict[str, int]) -> dict:
    """Milliseconds of a step (median and quartiles) and predicted memory, with the counts."""
    run, memory = compiled_step(sizes)
    run(1)
    started = time.perf_counter()
    run(1)
    steps = max(1, round(SECONDS / (time.perf_counter() - started)))
    walls, begun = [], time.perf_counter()
    while len(walls) < 3 or (len(walls) < ROUNDS and time.perf_counter() - begun < PATIENCE):
        started = time.perf_counter()
        run(steps)
        walls.append(1e3 * (time.perf_counter() - started) / steps)
    wall = protocol.spread(walls)
    return {
        "sizes": sizes,
        "wall_ms": wall,
        "predicted_mb": round(memory["predicted_mb"], 2),
        "gflops": round(flops(**sizes) / 1e9, 4),
        "gflops_per_second": round(flops(**sizes) / wall["median"] / 1e6, 2),
    }


def taken_memory(sizes: dict[str, int]) -> dict[str, float | None]:
    """Predicted MB, and the MB that a step really took; None where the system does not tell.

    On a CPU: what the step was given, and how far resident memory rose above that before it came back.
    """
    import jax

    os.environ["LMLAB_KEEP_MEMORY"] = "0"  # or a step would find what the one before it had
    run, memory = compiled_step(sizes)
    run(1)
    measured, device = None, jax.devices()[0].memory_stats()
    if device:
        measured = device["peak_bytes_in_use"] / 2**20
    elif trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # Linux with glibc
        gc.collect()
        trim(0)  # what the compiler left
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the highest, is counted from here
        run(2)
        measured = memory["given_mb"] + _resident("VmHWM") - before
    return {"predicted_mb": memory["predicted_mb"], "measured_mb": measured}


def _resident(name: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


@functools.cache
def check(sizes: str) -> dict:
    """`taken_memory` of sizes (JSON) in a process of its own, and measured over predicted."""
    command = [sys.executable, "-m", "benchmarks.scaling", sizes]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if answer.returncode:
        raise RuntimeError(f"the process for the memory of {sizes} failed; its messages are above")
    memory = json.loads(answer.stdout.splitlines()[-1])
    ratio = memory["measured_mb"] and memory["measured_mb"] / memory["predicted_mb"]
    return {"sizes": json.loads(sizes), **memory, "ratio": ratio}


def grow(axis: Axis, say=print) -> dict:
    """The record of an axis: every point, the exponents of time and memory, the check of memory."""
    rows = []
    for sizes in axis.points:
        rows.append(measure(sizes))
        row = f"{rows[-1]['wall_ms']['median']:9.2f} ms {rows[-1]['predicted_mb']:8.1f} MB"
        say(
            f"  {axis.label} {sizes[axis.size]:5}: {row}, {rows[-1]['gflops_per_second']:.0f} GFLOP/s",
            flush=True,
        )
    times, memories = [row["wall_ms"]["median"] for row in rows], [row["predicted_mb"] for row in rows]
    record = {
        "size": axis.size,
        "label": axis.label,
        "points": rows,
        "time": exponents(axis, times, [flops(**sizes) for sizes in axis.points], axis.time),
        "memory": exponents(axis, memories, [floats(**sizes) for sizes in axis.points], axis.memory),
        "checks": [check(json.dumps(sizes)) for sizes in (BASE, axis.points[-1])],
        **protocol.machine(),
    }
    for what in ("time", "memory"):
        row = record[what]
        say(
            f"  {what}: exponent {row['measured']:.2f}, of the count {row['counted']:.2f}, in the limit {row['limit']}"
        )
    for row in record["checks"]:
        if row["ratio"]:
            say(f"  memory measured {row['measured_mb']:.1f} MB, {row['ratio']:.3f} of that predicted")
    return record


def exponents(axis: Axis, values: Sequence[float], counts: Sequence[float], limit: float) -> dict:
    measured, at = exponent(axis.values, values)
    return {
        "measured": round(measured, 4),
        "log_at_1": round(at, 4),
        "counted": round(exponent(axis.values, counts)[0], 4),
        "counts": counts,
        "limit": limit,
    }


# -- the figure and the command ----------------------------------------------------------------------


def draw(axes: dict[str, dict]):
    """A column an axis: step time above, peak memory below; points, fitted lines, and the counts' course."""
    from lmlab.figures import style

    figure, panels = style.new(2, len(axes), width=2.5 * len(axes), height=4.8)
    for column, record in enumerate(axes.values()):
        points = record["points"]
        checks = [each for each in record["checks"] if each["measured_mb"]]
        times = [row["wall_ms"]["median"] for row in points]
        memories = [row["predicted_mb"] for row in points]
        above, below = panels[:, column]
        _curves(above, record, "time", times, "measured", "FLOPs")
        _curves(below, record, "memory", memories, "predicted", "floats")
        x = [each["sizes"][record["size"]] for each in checks]
        taken = [each["measured_mb"] for each in checks]
        black = {"color": style.COLORS[4], "linestyle": "none", "markersize": 6}
        below.plot(x, taken, marker="x", label="measured", **black)
        above.set_ylabel("step time (ms)")
        below.set_ylabel("peak memory (MB)")
        below.legend(loc="upper left")
    return figure


def _curves(panel, record: dict, what: str, y: Sequence[float], points: str, count: str) -> None:
    from matplotlib import ticker

    from lmlab.figures import style

    fit, x = record[what], [row["sizes"][record["size"]] for row in record["points"]]
    blue, red = style.COLORS[:2]
    half = x[-_larger(x) :]
    line = [math.exp(fit["log_at_1"]) * each ** fit["measured"] for each in half]
    counted = [line[-1] * each / fit["counts"][-1] for each in fit["counts"]]
    panel.plot(x, y, marker="o", linestyle="none", color=blue, label=points)
    panel.plot(half, line, linestyle="-", color=blue, label=f"fit, slope {fit['measured']:.2f}")
    panel.plot(x, counted, linestyle="--", color=red, label=f"{count}, slope {fit['counted']:.2f}")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_ylim(top=2 * max(y))  # room for the legend
    panel.xaxis.set_major_locator(ticker.FixedLocator(x))
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_locator(ticker.NullLocator())
        axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    panel.set_xlabel(record["label"])
    panel.set_label(f"{what} against {record['label']}")
    panel.legend(loc="upper left")


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks scaling", description=__doc__, formatter_class=raw)
    parser.add_argument("name", nargs="*", help=f"what grows: {', '.join(AXES)}; all if none is named")
    parser.add_argument("--busy", action="store_true", help="measure although other programs run")
    parser.add_argument("--output", type=Path, default=Path("results/speed/scaling.json"), help="the record")
    parser.add_argument("--figures", type=Path, default=Path("results/figures"), help="folder of the figure")
    options = parser.parse_args(argv)
    unknown = set(options.name) - set(AXES)
    if unknown:
        parser.error(f"unknown {', '.join(sorted(unknown))}; allowed: {', '.join(AXES)}")
    from lmlab import cpu
    from lmlab.figures import style

    cpu.keep_memory()
    done = json.loads(options.output.read_text()) if options.name and options.output.exists() else {}
    try:
        for name in options.name or AXES:
            load = protocol.other_load() if options.busy else protocol.check_quiet()
            print(name, flush=True)
            done[name] = grow(AXES[name]) | {"load_before": round(load, 3)}
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    done = {name: done[name] for name in AXES if name in done}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(done, indent=1) + "\n")
    paths = style.save(draw(done), options.figures, "scaling")
    print(f"written to {options.output}, {', '.join(map(str, paths))}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("the command is: python -m benchmarks scaling")
    print(json.dumps(taken_memory(json.loads(sys.argv[1]))))
