"""Speed beside a peer, in one run on this machine: both sides in turns, medians, the best of the peer's ways.

    python -m benchmarks                  # all of these, some 45 minutes on two cores; make bench does the same
    python -m benchmarks gpt_small gru    # some
    python -m benchmarks startup          # imports, --help, from the command to the first step
    python -m benchmarks spine            # what the loop and a checkpoint cost
    python -m benchmarks sweep            # a sweep as one program, beside processes
    python -m benchmarks scaling          # how time and memory grow with the model; a figure
    python -m benchmarks limits           # what the machine's arithmetic and memory allow
    python -m benchmarks precision        # whether bf16 learns as well as float32
    python -m benchmarks word_vectors     # gensim's word vectors by the recipe of ours; --ours: how fast both are
    python -m benchmarks gpu              # all that is told of a GPU, in ten minutes

Results go to results/speed/NAME.json, and by `make results` into README. The peers need
torch and transformers (make bench installs them). A busy machine is refused.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from benchmarks import protocol
from benchmarks.workloads import WORKLOADS


def compare(name: str, rounds: int, busy: bool) -> dict:
    """The record of one workload."""
    workload = WORKLOADS[name]
    load = protocol.other_load() if busy else protocol.check_quiet()
    arms = protocol.alternate(name, workload.arms, rounds)
    rows = []
    for row in workload.rows:
        best = min(row.peers, key=lambda peer: arms[peer]["wall_ms"]["median"])
        value = protocol.ratio(arms[row.ours], arms[best])
        rows.append(
            {
                "title": row.title,
                "unit": workload.unit,
                "ours": row.ours,
                "peer": best,
                "ratio": value,
                "bar": row.bar,
                "stretch": row.stretch,
                "met": value["median"] >= row.bar,
            }
        )
    for arm in arms.values():
        arm.pop("rounds_wall_ms")
    facts = {"load_before": round(load, 3), "rounds": rounds, **protocol.machine()}
    return {"workload": name, "sizes": workload.sizes, "rows": rows, "arms": arms, **facts}


SCRIPTS = ("startup", "spine", "sweep", "scaling", "limits", "precision", "word_vectors", "gpu")
"""Modules with a command line of their own."""


MEASURED = [name for name, workload in WORKLOADS.items() if workload.rows]


def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in SCRIPTS:
        return importlib.import_module(f"benchmarks.{argv[0]}").main(argv[1:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*", help=f"what to measure: {', '.join(MEASURED)}; all if none")
    parser.add_argument("--rounds", type=protocol.count, default=protocol.ROUNDS, help="turns of each side")
    parser.add_argument("--busy", action="store_true", help="measure although other programs run")
    parser.add_argument("--output", type=Path, default=Path("results/speed"), help="folder of the records")
    options = parser.parse_args(argv)
    unknown = set(options.name) - set(MEASURED)
    if unknown:
        parser.error(f"unknown {', '.join(sorted(unknown))}; allowed: {', '.join([*MEASURED, *SCRIPTS])}")
    for name in options.name or MEASURED:
        print(name, flush=True)
        try:
            record = compare(name, options.rounds, options.busy)
        except (protocol.Busy, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        for arm, row in record["arms"].items():
            wall, cpu = row["wall_ms"], row["cpu_ms"]["median"]
            print(
                f"  {arm:28} {wall['median']:9.2f} ms ({wall['p25']:.2f} to {wall['p75']:.2f}), cpu {cpu:9.2f} ms,"
                f" first step {row['first_step_seconds']:.1f} s, {row['peak_memory_mb']:.0f} MB"
            )
        for row in record["rows"]:
            verdict = f"bar {row['bar']:g} {'met' if row['met'] else 'MISSED'}"
            spread = f"{row['ratio']['p25']:.2f} to {row['ratio']['p75']:.2f}"
            print(f"  {row['title']}: {row['ratio']['median']:.2f} ({spread}) of {row['peer']}; {verdict}")
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
