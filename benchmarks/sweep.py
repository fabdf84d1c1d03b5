"""A sweep as one program beside the same sweep as processes, two at a time: the time of the whole command.

    python -m benchmarks sweep            # four minutes

Sixteen runs of the autoencoder's demo, eight learning rates by two seeds. Each side starts with no compiled program
kept and no directory made; they take turns. The bar is "at most", a part of the processes' time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import protocol

ROUNDS = 3
SIDES = {"vmap": ["--launcher=vmap"], "local": ["--launcher=local", "--jobs=2"]}
RATES = "1e-4,2e-4,5e-4,1e-3,2e-3,5e-3,1e-2,2e-2"
SWEEP = [
    "--config=experiments/autoencoder.py:demo",
    f"--grid=optimizer.learning_rate={RATES}",
    "--seeds=2",
]


def seconds(options: list[str]) -> float:
    """From the start of `lmlab sweep` to its end."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "XDG_CACHE_HOME": folder}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        workdir = f"--workdir={folder}/sweep"
        command = [sys.executable, "-m", "lmlab", "sweep", *SWEEP, workdir, *options]
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        took = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(
            f"{options[0]} ended with exit code {done.returncode}: {(done.stdout + done.stderr)[-300:]}"
        )
    return took


def measure(rounds: int, say=print) -> dict[str, list[float]]:
    """Seconds of each side, round by round."""
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    for number in range(rounds):
        for name in list(SIDES)[:: 1 if number % 2 else -1]:
            times[name].append(seconds(SIDES[name]))
        told = ", ".join(f"{name} {each[-1]:.1f} s" for name, each in times.items())
        say(f"  round {number + 1}: {told}", flush=True)
    return times


def record(times: dict[str, list[float]]) -> dict:
    """The row of the table."""
    spreads = {name: protocol.spread(each) for name, each in times.items()}
    ours, peer = spreads["vmap"]["median"], spreads["local"]["median"]
    ratio = round(ours / peer, 4)
    row = {
        "title": "16 runs of the autoencoder's demo as one program, beside two processes at a time, from cold",
        "unit": "s",
        "ours": ours,
        "peer": peer,
        "ratio": ratio,
        "bar": 0.5,
        "met": ratio <= 0.5,
    }
    return {"rows": [row], "seconds": spreads, "rounds": len(times["vmap"]), **protocol.machine()}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=protocol.count, default=ROUNDS, help="turns of each side")
    parser.add_argument("--busy", action="store_true", help="measure although other programs run")
    parser.add_argument("--output", type=Path, default=Path("results/speed/sweep.json"), help="the record")
    options = parser.parse_args(argv)
    try:
        load = protocol.other_load() if options.busy else protocol.check_quiet()
        result = record(measure(options.rounds))
    except (protocol.Busy, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (row,) = result["rows"]
    print(
        f"{row['title']}: {row['ours']:.1f} s, {row['ratio']:.2f} x the {row['peer']:.1f} s of processes;"
        f" bar {row['bar']:g} {'met' if row['met'] else 'MISSED'}"
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result | {"load_before": round(load, 3)}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
