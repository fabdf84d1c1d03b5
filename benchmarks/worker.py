"""One arm of a workload, run by `protocol.Worker`: python -m benchmarks.worker WORKLOAD SIDE OPTIONS."""

import importlib
import json
import sys

from benchmarks import protocol
from benchmarks.workloads import WORKLOADS
from lmlab import cpu


def main() -> None:
    name, side, options = sys.argv[1:]
    cpu.keep_memory()  # peers get the same settings of malloc
    builders = importlib.import_module(f"benchmarks.{side}")
    workload = WORKLOADS[name]
    build = getattr(builders, workload.builder)
    protocol.serve(lambda: build(**workload.sizes, **json.loads(options)))


if __name__ == "__main__":
    main()
