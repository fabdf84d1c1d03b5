"""Several processes as one run: how they meet, agree and part. A process alone does nothing of this.

Each process is told where process 0 listens, or Slurm knows. All run the same program, each on its own devices;
process 0 alone writes and speaks. When one is gone, JAX's runtime aborts the others from C++ with pages of text. So
what C++ prints goes through a filter (this file, run as a program), which outlives the process and says it in a line.
"""

import ctypes
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

OPTIONS = {
    "coordinator": "one of several processes: HOST:PORT where process 0 listens (under srun nothing need be said)",
    "num_processes": "how many there are",
    "process_id": "which of them this is, from 0",
    "timeout": "seconds after which a process that is missing or silent is given up (60 if not given)",
}
GONE = 6
"""Exit code of a process that another has left: what abort() would send as a signal."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Which of the processes of a run this one is. coordinator: HOST:PORT of process 0; "": Slurm knows."""

    coordinator: str
    num_processes: int
    process_id: int
    timeout: int

    @classmethod
    def of(cls, given: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> "Job | None":
        """That of OPTIONS, as they were written, or of a step of Slurm's; None: a process alone."""
        timeout = _number("timeout", given["timeout"] or "60", 1)
        missing = [f"--{name}" for name in OPTIONS if name != "timeout" and not given[name]]
        if len(missing) == 3:
            tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
            return cls("", tasks, int(environment["SLURM_PROCID"]), timeout) if tasks > 1 else None
        if missing:
            raise ValueError(
                f"{', '.join(missing)} missing: --coordinator, --num_processes and --process_id go together"
            )
        if not re.fullmatch(r".+:\d+", given["coordinator"]):
            raise ValueError(f"--coordinator: received {given['coordinator']!r}; allowed: HOST:PORT")
        count = _number("num_processes", given["num_processes"], 1)
        return cls(
            given["coordinator"], count, _number("process_id", given["process_id"], 0, count - 1), timeout
        )

    def join(self) -> None:
        """Meets the other processes; to be called before anything else of JAX."""
        libc = ctypes.CDLL(None)
        libc.signal(signal.SIGABRT, libc._exit)  # abort() is given as exit code what it would send: GONE
        filter_output(self)
        import jax

        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
        where = {"coordinator_address": self.coordinator, "cluster_detection_method": "deactivate"}
        jax.distributed.initialize(
            num_processes=self.num_processes,
            process_id=self.process_id,
            initialization_timeout=self.timeout,
            heartbeat_timeout_seconds=self.timeout,
            shutdown_timeout_seconds=self.timeout,
            **(where if self.coordinator else {"cluster_detection_method": "slurm"}),
        )
        # Under Slurm JAX gives each task one device; a task that is alone on its node takes all of them.
        if not self.coordinator and re.fullmatch(r"1(\(x\d+\))?", os.environ["SLURM_STEP_TASKS_PER_NODE"]):
            jax.config.update("jax_cuda_visible_devices", "all")
        if self.process_id:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends

    def verdict(self, said: str) -> str:
        """Which process is gone, by what the runtime said."""
        if "RegisterTask" in said:
            why = f"not all {self.num_processes} processes met at {self.coordinator or 'the first node'} in time"
        else:
            found = re.search(r"Task (\d+) heartbeat|heartbeats\):\s+(\d+)", said)
            number = 0 if "Socket closed" in said else found and (found[1] or found[2])
            who = "another process" if number is None else f"process {number}"
            why = f"{who} is gone; what is saved is kept: start all processes again to go on"
        return f"lmlab train: process {self.process_id} of {self.num_processes}: {why}\n"


joined: Job | None = None
"""That of this process, if it is one of several."""


def join(given: Mapping[str, str]) -> None:
    """Meets the other processes that the flags or Slurm speak of, if there are any."""
    global joined
    joined = Job.of(given)
    if joined:
        joined.join()


def _number(name: str, text: str, least: int, most: int | None = None) -> int:
    if not text.isdigit() or int(text) < least or (most is not None and int(text) > most):
        allowed = f"{least} or more" if most is None else f"{least} to {most}, below --num_processes"
        raise ValueError(f"--{name}: received {text!r}; allowed: {allowed}")
    return int(text)


# -- what processes say to each other: nothing, where there is one ---------------------------------------


def first() -> bool:
    """Whether this process writes and speaks."""
    import jax

    return jax.process_index() == 0


def meet(name: str) -> None:
    """Waits for all processes to come here."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agree(chunk: int, received: int) -> tuple[int, int]:
    """(the shortest chunk of any process, a signal that one of them received)."""
    import numpy as np
    from jax.experimental import multihost_utils

    chunks, signals = multihost_utils.process_allgather(np.array([chunk, received], np.int32)).T
    return int(chunks.min()), int(signals.max())


def same(scalars: Mapping[str, float]) -> dict[str, float]:
    """Those of process 0, to the last bit: what is decided by them is decided alike."""
    import jax
    import numpy as np

    if jax.process_count() == 1 or not scalars:
        return dict(scalars)
    from jax.experimental import multihost_utils

    words = np.array(list(scalars.values()), np.float64).view(np.uint32)
    values = multihost_utils.broadcast_one_to_all(words).view(np.float64)
    return dict(zip(scalars, values.tolist(), strict=True))


# -- parting -------------------------------------------------------------------------------------------------

BROKEN = re.compile(r"(?i:gloo|nccl|coordination ?service|heartbeat)|UNAVAILABLE|DEADLINE_EXCEEDED")
"""What an error says that comes of another process's end."""


def check_gone(error: BaseException | None) -> None:
    """Ends this process, with one line, if the error is that another one has left."""
    while joined and error:
        if BROKEN.search(str(error)):
            os.write(2, HUSH.encode())
            sys.stderr.write(joined.verdict(str(error)))
            os._exit(GONE)
        error = error.__cause__ or error.__context__


def leave(code: int) -> None:
    """A process that failed ends without waiting for the others, which may wait for it."""
    if joined and code in (1, 2):
        os.write(2, HUSH.encode())
        time.sleep(
            2 if joined.process_id == 0 else 1
        )  # those that fail alike say so: the others end with the first
        os._exit(code)


# -- what C++ prints -------------------------------------------------------------------------------------------

CONNECTED = re.compile(r"\[Gloo\] Rank ")
FATAL = re.compile(r"F\d{4} .*distributed service detected fatal errors")
RUNTIME = re.compile(r"[EF]\d{4} .*(coordination_service|distributed service)")
"""What the runtime says before and as it ends the process; many lines follow."""
HUSH = "lmlab has said why it ends\n"


def filter_output(job: Job) -> None:
    """Python goes on writing where it wrote; what C++ writes to stdout and stderr goes through the filter."""
    words = [str(value) for value in dataclasses.astuple(job)]
    reader = subprocess.Popen(
        [sys.executable, "-S", __file__, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        getattr(sys, name).flush()
        setattr(sys, name, os.fdopen(os.dup(descriptor), "w", buffering=1))
        os.dup2(reader.stdin.fileno(), descriptor)
    reader.stdin.close()


def main(coordinator: str, *numbers: str) -> None:
    """The filter. From the runtime's first line on all is held: a verdict if the last was fatal, else as it came."""
    held: list[str] = []
    for line in os.fdopen(0, errors="replace"):
        if line == HUSH:
            return
        if held or RUNTIME.match(line):
            held.append(line)
        elif not CONNECTED.match(line):
            sys.stderr.write(line)
    if any(FATAL.match(line) for line in held):
        held = [Job(coordinator, *map(int, numbers)).verdict("".join(held))]
    sys.stderr.write("".join(held))


if __name__ == "__main__":
    main(*sys.argv[1:])
