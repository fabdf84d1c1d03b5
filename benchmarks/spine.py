"""What surrounds the compiled step: the loop, and saving a checkpoint.

    python -m benchmarks spine

The loop beside the compiled step alone, at steps of some 10 ms and of less than 0.1 ms (several a dispatch);
and how long a checkpoint of GPT-2 124M with Adam's moments, 1.5 GB, keeps training waiting. Bars are "at most".
"""

import argparse
import dataclasses
import functools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import protocol

STEPS = {"large": (200, 1024, 100), "small": (20_000, 8, 8)}
"""Steps of a run, width of the autoencoder's layers, batch size: for a step of some 10 ms, and of little."""


def prepared(steps: int, width: int, batch_size: int):
    """A trainer whose step is an autoencoder's, over data on the device."""
    import numpy as np

    from lmlab import config as configs
    from lmlab.data import images
    from lmlab.experiment import Experiment
    from lmlab.models.autoencoder import Autoencoder
    from lmlab.tasks import Reconstruct
    from lmlab.training import optimizer, parallel
    from lmlab.training.loop import Trainer

    parallel.prepare("float32")
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 8, 8)).astype(np.uint8)
    source = images.resident({"image": pixels, "label": np.zeros(2000, np.int32)}, batch_size, 0)
    config = configs.base(
        duration=f"{steps} steps", batch_size=batch_size, log_every="10 %", evaluate_every="0"
    )
    config.checkpoint.every = "0"
    task = Reconstruct(Autoencoder(features=(width,), code=width, input_size=64))
    build = functools.partial(optimizer.build, **config.optimizer)
    return Trainer(Experiment(task=task, optimizer=build, train_data=lambda: source), config)


def looped(trainer) -> float:
    """Seconds a step in the loop, over the last nine tenths of a run."""
    from lmlab.training.metrics import read

    with tempfile.TemporaryDirectory() as folder:
        trainer.run(Path(folder))
        rows = read(Path(folder) / "metrics.jsonl")
    return (rows[-1]["seconds"] - rows[0]["seconds"]) / (rows[-1]["step"] - rows[0]["step"])


def alone(trainer, steps: int) -> float:
    """Seconds a step of the compiled program, all steps in one call."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    layout = trainer.layout
    state, data = layout.create(trainer.make), layout.everywhere(trainer.source.data)
    sums = layout.everywhere(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), trainer.metric_shapes))
    program = layout.compile(trainer.step, trainer.source, trainer.make)
    program = program.lower(state, sums, data, np.int32(1)).compile()
    state, sums = jax.block_until_ready(program(state, sums, data, np.int32(steps // 10)))
    started = time.perf_counter()
    jax.block_until_ready(program(state, sums, data, np.int32(steps)))
    return (time.perf_counter() - started) / steps


def overhead(size: str, rounds: int) -> tuple[float, float]:
    """(seconds a step of the compiled program, seconds a step that the loop adds): medians, in turns."""
    trainer = prepared(*STEPS[size])
    steps = STEPS[size][0]
    pairs = [(alone(trainer, steps), looped(trainer)) for _ in range(rounds)]
    added = statistics.median(loop - program for program, loop in pairs)
    return statistics.median(program for program, _ in pairs), added


def blocking(rounds: int) -> list[float]:
    """Seconds for which each save of GPT-2 124M with Adam's moments holds up the loop."""
    import jax

    from benchmarks.ours import tokens
    from lmlab import config as configs
    from lmlab.data import text
    from lmlab.experiment import Experiment
    from lmlab.models.gpt import GPT
    from lmlab.tasks import NextToken
    from lmlab.training import optimizer, parallel
    from lmlab.training.checkpoint import Checkpoints
    from lmlab.training.loop import Trainer

    parallel.prepare("float32")
    config = configs.base(batch_size=1)
    model = GPT(vocab_size=50_304, context=1024, num_layers=12, num_heads=12, d_model=768)
    build = functools.partial(optimizer.build, **config.optimizer)
    source = text.windows(tokens(), 1024, 1, 0)
    trainer = Trainer(Experiment(task=NextToken(model), optimizer=build, train_data=lambda: source), config)
    state = jax.block_until_ready(trainer.layout.create(trainer.make))
    times = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoints", keep=1)
        for step in range(1, rounds + 2):
            state = state.replace(step=state.step + 1)
            started = time.perf_counter()
            assert trainer.layout.is_finite(state)
            checkpoints.save(trainer.layout.save(state), {"step": step}, {})
            times.append(time.perf_counter() - started)
            checkpoints.wait()
        checkpoints.close()
    return times[1:]  # the first compiles and takes memory for the first time


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks spine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=protocol.count, default=15, help="turns of each side, and saves")
    parser.add_argument("--busy", action="store_true", help="measure although other programs run")
    parser.add_argument("--output", type=Path, default=Path("results/speed/spine.json"))
    options = parser.parse_args(argv)
    try:
        load = protocol.other_load() if options.busy else protocol.check_quiet()
    except protocol.Busy as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (large, added), (small, added_small) = (overhead(size, options.rounds) for size in STEPS)
    saves = blocking(options.rounds)
    rows = [
        Cost(f"the loop, over a compiled step of {1e3 * large:.1f} ms", "%", 100 * added / large, 2.0),
        Cost(
            f"the loop, over a compiled step of {1e3 * small:.2f} ms, several a dispatch",
            "ms",
            1e3 * added_small,
            0.1,
        ),
        Cost(
            "a checkpoint of 124M parameters with Adam holds training up", "s", statistics.median(saves), 0.3
        ),
    ]
    for row in rows:
        print(f"{row.title}: {row.ours:.3g} {row.unit}; bar {row.bar} {'met' if row.met else 'MISSED'}")
    record = {
        "rows": [dataclasses.asdict(row) | {"met": row.met, "peer": None, "ratio": None} for row in rows],
        "saves_seconds": saves,
        "load_before": round(load, 3),
        **protocol.machine(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    return 0


@dataclasses.dataclass(frozen=True)
class Cost:
    """A line of the table that has no peer: what it costs, and the most it may."""

    title: str
    unit: str
    ours: float
    bar: float

    @property
    def met(self) -> bool:
        return self.ours <= self.bar


if __name__ == "__main__":
    sys.exit(main())
