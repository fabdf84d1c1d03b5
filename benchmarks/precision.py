"""Whether bf16 learns as well as float32: final losses of the same runs, seed by seed.

    python -m benchmarks precision                                        # on the text that Python carries
    python -m benchmarks precision --experiment=experiments/gpt_char.py:cpu   # needs tiny shakespeare

A precision counts as faster only if its mean final loss lies within 0.005 of that of float32, over 3 seeds.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from benchmarks import protocol

TOLERANCE = 0.005


def final_losses(experiment: str, precision: str, seeds: int, folder: Path) -> list[float]:
    import lmlab

    losses = []
    for seed in range(seeds):
        run = lmlab.train(experiment, folder / f"{precision}-{seed}", {"precision": precision, "seed": seed})
        losses.append(run.evaluate()["validation/loss"])
    return losses


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--experiment", default="experiments/gpt_char.py:demo", help="what is trained")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("results/speed/precision.json"))
    options = parser.parse_args(argv)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, received {options.seeds}")
    with tempfile.TemporaryDirectory() as folder:
        losses = {
            precision: final_losses(options.experiment, precision, options.seeds, Path(folder))
            for precision in ("float32", "bf16")
        }
    means = {precision: statistics.fmean(values) for precision, values in losses.items()}
    difference = means["bf16"] - means["float32"]
    record = {
        "experiment": options.experiment,
        "validation_loss": losses,
        "difference": difference,
        "tolerance": TOLERANCE,
        "met": difference <= TOLERANCE,
        **protocol.machine(),
    }
    print(f"float32 {means['float32']:.4f}, bf16 {means['bf16']:.4f}: {difference:+.4f}, allowed {TOLERANCE}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
