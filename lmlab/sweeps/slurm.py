"""Sweeps on a cluster: a job of Slurm a run, through submitit; a job comes again until its run is done.

What submitit writes is in WORKDIR/slurm: scripts, logs, and pickles, which only the jobs that they are for read.
jobs.json there says which job a run is.
"""

import contextlib
import dataclasses
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time as clock
from collections.abc import Mapping
from pathlib import Path

from lmlab import config as config_lib
from lmlab import experiment
from lmlab.flags import UsageError
from lmlab.sweeps.attempt import STOPPED, Attempt, command
from lmlab.sweeps.board import Board
from lmlab.sweeps.grid import Cell, status
from lmlab.training.signals import Signals, Stopped

ARRAY = 1000  # jobs of one array; Slurm's MaxArraySize is 1001 unless the cluster says otherwise
REQUEUES = 1000  # how often a job may come again
POLL = 5.0  # seconds from question to question


def launch(
    workdir: Path,
    cells: list[Cell],
    *,
    time: str = "1:00:00",
    partition: str = "",
    nodes: int = 1,
    gpus_per_node: int = 0,
    sbatch: str = "",
    wait: bool = False,
) -> None:
    """Submits the cells that are not in the queue already, as one array.

    time: of one job, as sbatch reads it; a run that takes longer saves, is queued again and goes on
    partition: where the jobs go; the cluster's own choice if not given
    nodes: of one run; on more than one, a run is a process a GPU
    gpus_per_node: of one run
    sbatch: more options of sbatch, e.g. "--account=me --cpus-per-task=8 --mem=32G"
    wait: show the runs until all have ended; without it, return when they are submitted
    """
    if not shutil.which("sbatch"):
        raise UsageError("--launcher=slurm: no Slurm found (no sbatch on the PATH); allowed: local, vmap")
    try:
        import submitit
    except ImportError:
        raise UsageError("--launcher=slurm needs the package submitit: pip install 'lmlab[slurm]'") from None
    folder = workdir.absolute() / "slurm"
    if "%" in str(folder):
        raise UsageError(
            f"--workdir: received '{workdir}'; allowed: no '%' in its path, to which Slurm gives a meaning"
        )
    executor = submitit.SlurmExecutor(folder, max_num_timeout=REQUEUES)
    options = {"time": time, "partition": partition, "gpus_per_node": gpus_per_node, **parsed(sbatch)}
    executor.update_parameters(
        job_name=f"lmlab-{folder.parent.name}",
        nodes=nodes,
        ntasks_per_node=max(1, gpus_per_node) if nodes > 1 else 1,
        additional_parameters={key: value for key, value in options.items() if value},
        setup=['[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK'],
    )
    jobs = experiment.read_json(folder / "jobs.json") if (folder / "jobs.json").exists() else {}
    known = queue()
    new = [cell for cell in cells if jobs.get(cell.name) not in known and status(workdir, cell) != "running"]
    for start in range(0, len(new), ARRAY):
        array = new[start : start + ARRAY]
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                submitted = executor.submit_array([Job(folder.parent, cell) for cell in array])
        except submitit.core.utils.FailedJobError as error:
            raise UsageError(str(error).strip().splitlines()[-1]) from None
        jobs |= {cell.name: job.job_id for cell, job in zip(array, submitted, strict=True)}
        config_lib.write_json(jobs, folder / "jobs.json")
    for cell in cells:
        told = "submitted as" if cell in new else "in the queue as" if jobs.get(cell.name) in known else ""
        print(f"{cell.name}: {told} job {jobs[cell.name]}" if told else f"{cell.name}: trained elsewhere")
    if wait:
        watch(workdir, [cell for cell in cells if cell.name in jobs], jobs)


def parsed(sbatch: str) -> dict[str, str | bool]:
    """{"account": "me", "exclusive": True} of "--account=me --exclusive"."""
    options = {}
    for word in shlex.split(sbatch):
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise UsageError(f"--sbatch: received {word!r}; allowed: --OPTION=VALUE and --OPTION of sbatch")
        options[key] = value if equals else True
    return options


def queue() -> dict[str, str]:
    """{ID or ARRAY_INDEX: PENDING, RUNNING, ...} of the user's jobs."""
    asked = subprocess.run(
        ["squeue", "--me", "--array", "--noheader", "--format=%i %T"], capture_output=True, text=True
    )
    if asked.returncode:
        raise UsageError(asked.stderr.strip().splitlines()[-1])
    return dict(line.split() for line in asked.stdout.splitlines())


def watch(workdir: Path, cells: list[Cell], jobs: Mapping[str, str]) -> None:
    """Shows the runs until no job is left of them."""
    ended = {"done": 0, "failed": 1}
    with Board(workdir, cells) as board, Signals() as signals:
        left = True
        while left and not signals.received:
            asked = queue()
            left = [cell for cell in cells if jobs[cell.name] in asked]
            for cell in cells:
                state = asked.get(jobs[cell.name])
                if state is None:
                    board.ended(cell, ended.get(status(workdir, cell), 75))
                elif state == "PENDING":
                    board.set(cell, "waiting")
                elif board.rows[cell.name].status != "running":
                    board.began(cell)
            board.look()
            clock.sleep(POLL if left else 0)
    if signals.received:
        print(f"the jobs go on; to end them: scancel --name=lmlab-{workdir.absolute().name}")
        raise Stopped(signals.received, 0)


@dataclasses.dataclass
class Job:
    """A cell as submitit runs it: `lmlab train` in a process below its own.

    Slurm signals every process of a job. USR2 says that it is preempted or soon out of time: the run, which would
    die of it, does not hear it, and submitit calls `checkpoint` and queues the job again. A cluster that preempts
    by SIGTERM alone takes a job that then ends for failed: it queues itself again, unless it was cancelled.
    """

    workdir: Path
    cell: Cell

    child = None

    def __call__(self) -> None:
        import submitit

        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})  # what is started now goes without
        if os.environ["SLURM_PROCID"] != "0":  # of several processes the first keeps the run, and stops it
            sys.exit(subprocess.run(command(self.workdir, self.cell)).returncode)
        self.child = Attempt(self.workdir, self.cell)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        code = self.child.wait()
        job = submitit.JobEnvironment().job_id
        if code in STOPPED and queue().get(job) == "RUNNING":
            subprocess.run(["scontrol", "requeue", job])
        sys.exit(code)

    def checkpoint(self):
        """Stops the run, which saves; the job to submit in place of this one."""
        from submitit.helpers import DelayedSubmission

        if self.child:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has just ended
                self.child.signal(signal.SIGTERM)
                os.waitid(
                    os.P_PID, self.child.process.pid, os.WEXITED | os.WNOWAIT
                )  # `wait` waits for it too
        return DelayedSubmission(Job(self.workdir, self.cell))
