"""How two programs are compared: each in a process of its own that stays, in turns, by medians.

The parent starts one worker an arm, `python -m benchmarks.worker WORKLOAD ARM`, and asks one after the
other for a round of steps, the first to go another in each round. A worker answers with wall and CPU time.
Other programs on the machine would spoil this, and not evenly: PyTorch's threads spin while they wait for
each other. So the machine's load is looked at first, and told in the record.
"""

import argparse
import dataclasses
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROUNDS, SECONDS = 15, 0.5
BUSY = 0.10
"""The part of one core that other programs may use."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One contender: which side builds it (`ours` or `peers`), with which options, under which environment."""

    name: str
    side: str
    options: dict = dataclasses.field(default_factory=dict)
    environment: dict = dataclasses.field(default_factory=dict)


class Busy(RuntimeError):
    """Other programs use the machine."""


def other_load(seconds: float = 2.0) -> float:
    """How many cores other programs kept busy during the next seconds; NaN where /proc is not there."""
    before, mine = _busy_seconds(), time.process_time()
    time.sleep(seconds)
    return (_busy_seconds() - before - (time.process_time() - mine)) / seconds


def check_quiet(patience: int = 5) -> float:
    """The load; a `Busy` when it stays above BUSY."""
    for _ in range(patience):
        load = other_load()
        if not load > BUSY:
            return load
    raise Busy(
        f"other programs keep {load:.2f} cores busy, allowed {BUSY:.2f}; wait until they end (--busy measures anyway)"
    )


def _busy_seconds() -> float:
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return float("nan")
    user, nice, system, _, _, irq, softirq, steal = (int(field) for field in fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Worker:
    """The parent's end of a worker, `python -m MODULE WORKLOAD SIDE OPTIONS`. RuntimeError: why it failed."""

    def __init__(self, workload: str, arm: Arm, module: str = "benchmarks.worker"):
        self.arm = arm
        environment = {**os.environ, **arm.environment, "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, workload, arm.side, json.dumps(arm.options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.facts = self._read()
        self.steps = max(1, round(SECONDS / self.facts["seconds"]))

    def round(self, steps: int | None = None) -> dict[str, float]:
        """{"wall": seconds a step, "cpu": process seconds a step} over some steps."""
        return self._ask({"steps": steps or self.steps})

    def close(self) -> dict[str, float]:
        """Ends the worker; its peak memory in MB."""
        facts = self._ask({"steps": 0})
        self.process.stdin.close()
        self.process.wait(timeout=60)
        return facts

    def kill(self) -> None:
        """Ends the worker, whatever it does."""
        with self.process:  # waits for it and closes the pipes
            self.process.kill()

    def _ask(self, question: dict) -> dict:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.kill()
            raise RuntimeError(
                f"the worker of {self.arm.name!r} ended with exit code {code}; its messages are above"
            )
        answer = json.loads(line)
        if "error" in answer:
            self.kill()
            raise RuntimeError(f"the worker of {self.arm.name!r} failed: {answer['error']}")
        return answer


def serve(make: Callable[[], tuple[Callable[[int], None], dict]]) -> None:
    """The worker's loop. `make` builds `run(steps)`, which returns when they are done, and facts to record."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr

    def answer(value: dict) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    started = time.perf_counter()
    try:
        run, facts = make()
        run(1)
    except Exception as error:
        answer({"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]})
        raise
    first = time.perf_counter() - started
    for steps in (1, 2, 3):
        started = time.perf_counter()
        run(steps)
        seconds = (time.perf_counter() - started) / steps
    answer({"first_step_seconds": first, "seconds": seconds, **facts})
    for line in sys.stdin:
        steps = json.loads(line)["steps"]
        if not steps:
            answer({"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})
            return
        wall, cpu = time.perf_counter(), time.process_time()
        run(steps)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        answer({"wall": wall / steps, "cpu": cpu / steps})


def alternate(workload: str, arms: Sequence[Arm], rounds: int = ROUNDS, say=print) -> dict[str, dict]:
    """{arm: times in ms, memory in MB, facts}: all arms in turns, the order drawn anew each round."""
    workers = []
    try:
        for arm in arms:
            say(f"  starting {arm.name}", flush=True)
            workers.append(Worker(workload, arm))
        return take_turns(workers, rounds)
    finally:
        for worker in workers:
            worker.kill()


def take_turns(workers: Sequence[Worker], rounds: int) -> dict[str, dict]:
    """The rounds of workers that have started, and their ends: see `alternate`."""
    times: dict[str, list[dict]] = {worker.arm.name: [] for worker in workers}
    for number in range(rounds):
        order = random.Random(number).sample(workers, len(workers))
        for worker in order:
            times[worker.arm.name].append(worker.round())
    rows = {}
    for worker in workers:
        mine = times[worker.arm.name]
        rows[worker.arm.name] = {
            "wall_ms": spread([1e3 * each["wall"] for each in mine]),
            "cpu_ms": spread([1e3 * each["cpu"] for each in mine]),
            "rounds_wall_ms": [round(1e3 * each["wall"], 4) for each in mine],
            "steps_per_round": worker.steps,
            **{key: value for key, value in worker.facts.items() if key != "seconds"},
            **worker.close(),
        }
    return rows


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"p25": round(low, 4), "median": round(middle, 4), "p75": round(high, 4)}


def ratio(ours: dict, peer: dict) -> dict[str, float]:
    """Peer's time over ours: of the medians, and the quartiles of round against round."""
    pairs = zip(peer["rounds_wall_ms"], ours["rounds_wall_ms"], strict=True)
    return spread([theirs / mine for theirs, mine in pairs]) | {
        "median": round(peer["wall_ms"]["median"] / ours["wall_ms"]["median"], 4)
    }


def count(text: str) -> int:
    """A number of rounds, as argparse takes it."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"received {text!r}; allowed: 1 or more")
    return int(text)


def machine() -> dict:
    """What a record says of where it was made."""
    from lmlab.provenance import git_commit, processor

    facts = {"cores": os.cpu_count(), "processor": processor(), "system": platform.system()}
    return {"machine": facts, "python": platform.python_version(), "git_commit": git_commit(Path.cwd())}
