"""From a command to its first finished training step, beside PyTorch's; and what it takes to import lmlab.

    python -m benchmarks startup          # a minute and a half

Each measurement is a process of its own, from the moment it is started; ours and the peer's take turns.
All is warm: byte code, compiled programs, files in memory. The peer makes up its text, ours reads one, learns
its characters and writes down what the run is made of.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import protocol

ROUNDS = 9
EXPERIMENT = "experiments/gpt_char.py:demo"
OURS = """
import os, sys
from lmlab.training.metrics import Progress
def advance(self, steps):
    print("done", flush=True)
    os._exit(0)
Progress.advance = advance  # what the loop calls when a step is done
from lmlab.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
PEER = """
import json, sys
from benchmarks import peers
run, _ = peers.gpt(**json.loads(sys.argv[1]))
run(1)
print("done", flush=True)
"""
SIZES = {"num_layers": 4, "num_heads": 4, "d_model": 128, "context": 64, "batch_size": 12}
IMPORT = ["-c", "import lmlab; print('done', flush=True)"]
HELP = ["-c", "import sys; from lmlab.__main__ import main; main(['--help']); print('done', flush=True)"]


def seconds(arguments: list[str], environment: dict[str, str]) -> float:
    """From the start of a Python with these arguments to its line "done"."""
    started = time.perf_counter()
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if line == "done\n":
                return time.perf_counter() - started
    raise RuntimeError(f"{' '.join(arguments)[:80]!r} ended with exit code {process.returncode}")


def measure(rounds: int, folder: Path, say=print) -> dict[str, list[float]]:
    """Seconds of each contender, round by round, after one round that warms up."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "pyc"), "XDG_CACHE_HOME": str(folder)}
    for name in ("PYTHONDONTWRITEBYTECODE", "JAX_COMPILATION_CACHE_DIR"):
        environment.pop(name, None)
    train = ["train", f"--config={EXPERIMENT}", f"--workdir={folder / 'run'}"]
    contenders = {
        "ours": ["-c", OURS, *train],
        "peer": ["-c", PEER, json.dumps(SIZES)],
        "import": IMPORT,
        "help": HELP,
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            shutil.rmtree(folder / "run", ignore_errors=True)
            times[name].append(seconds(contenders[name], environment))
        told = ", ".join(f"{name} {each[-1]:.2f} s" for name, each in times.items())
        say(f"  round {number}: {told}", flush=True)
    return {name: each[1:] for name, each in times.items()}


def record(times: dict[str, list[float]]) -> dict:
    """Rows of the table; bars are "at most", that of the first a multiple of the peer's time."""
    spreads = {name: protocol.spread(each) for name, each in times.items()}
    medians = {name: each["median"] for name, each in spreads.items()}
    ratio = round(medians["ours"] / medians["peer"], 4)
    first = {
        "title": "command to the first step, GPT 4/4/128, all warm",
        "unit": "s",
        "ours": medians["ours"],
    }
    rows = [first | {"peer": medians["peer"], "ratio": ratio, "bar": 1.3, "met": ratio <= 1.3}]
    for name, title, bar in (("import", "import lmlab", 0.3), ("help", "lmlab --help", 0.5)):
        cost = {"title": title, "unit": "s", "ours": medians[name], "peer": None, "ratio": None}
        rows.append(cost | {"bar": bar, "met": medians[name] <= bar})
    return {"rows": rows, "seconds": spreads, "rounds": len(times["ours"]), **protocol.machine()}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks startup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=protocol.count, default=ROUNDS, help="turns of each side")
    parser.add_argument("--busy", action="store_true", help="measure although other programs run")
    parser.add_argument("--output", type=Path, default=Path("results/speed/startup.json"), help="the record")
    options = parser.parse_args(argv)
    try:
        load = protocol.other_load() if options.busy else protocol.check_quiet()
        with tempfile.TemporaryDirectory() as folder:
            result = record(measure(options.rounds, Path(folder)))
    except (protocol.Busy, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for row in result["rows"]:
        beside = f", {row['ratio']:.2f} x the peer's {row['peer']:.2f} s" if row["peer"] else ""
        verdict = "met" if row["met"] else "MISSED"
        print(f"{row['title']}: {row['ours']:.2f} s{beside}; bar {row['bar']:g} {verdict}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result | {"load_before": round(load, 3)}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
