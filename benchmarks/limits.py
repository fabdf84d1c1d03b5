"""What this machine's arithmetic and memory allow, through XLA and through PyTorch: the limits of the other rows.

    python -m benchmarks limits

The rate of products in GFLOP/s, for the sizes of the models measured, and of reading memory in GB/s.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import protocol
from benchmarks.protocol import Arm
from benchmarks.workloads import WORKLOADS

PRODUCTS = {
    "feed-forward of GPT 4/4/128": (768, 128, 512),
    "attention's out of GPT 4/4/128": (768, 128, 128),
    "feed-forward of GPT 6/6/384": (2048, 384, 1536),
    "a step of GRU 256": (32, 256, 768),
    "a step of LSTM 256": (32, 256, 1024),
    "first layer of the autoencoder": (256, 784, 128),
    "large": (2048, 2048, 2048),
}
SIDES = {"lmlab": "ours", "torch": "peers"}
ROUNDS = 7


def rates(workload: str, options: dict, amount: float) -> dict[str, float]:
    """Amount (FLOPs or bytes) in 1e9 a second, by side: medians, in turns."""
    arms = [Arm(name, side, options) for name, side in SIDES.items()]
    rows = protocol.alternate(workload, arms, ROUNDS, say=lambda *_, **__: None)
    return {name: round(amount / 1e6 / row["wall_ms"]["median"], 1) for name, row in rows.items()}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks limits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--busy", action="store_true", help="measure although other programs run")
    parser.add_argument("--output", type=Path, default=Path("results/speed/limits.json"))
    options = parser.parse_args(argv)
    try:
        load = protocol.other_load() if options.busy else protocol.check_quiet()
    except protocol.Busy as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    products = []
    for name, (rows, inner, columns) in PRODUCTS.items():
        sizes = {"rows": rows, "inner": inner, "columns": columns}
        row = {"name": name, **sizes}
        for precision in ("float32", "bf16"):
            row[precision] = rates("product", {**sizes, "precision": precision}, 2 * rows * inner * columns)
        products.append(row)
        told = "; ".join(
            f"{p}: " + ", ".join(f"{k} {v:,.0f}" for k, v in row[p].items()) for p in ("float32", "bf16")
        )
        print(f"{name} ({rows} x {inner} x {columns}), GFLOP/s: {told}", flush=True)
    reading = rates("read", {}, 4 * WORKLOADS["read"].sizes["numbers"])
    print("reading memory, GB/s: " + ", ".join(f"{k} {v:.0f}" for k, v in reading.items()))
    record = {"gflops": products, "read_gb_per_second": reading, "load_before": round(load, 3)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record | protocol.machine(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
