"""Two processes on one machine, started as a person would: they train as one, and end as one.

Each pair takes some five seconds, most of them spent starting.
"""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import lmlab
from lmlab.__main__ import main
from lmlab.training import hosts
from lmlab.training.hosts import Job
from tests.sweeps.test_slurm import real

ROOT = Path(__file__).parents[2]
POINTS = ROOT / "tests" / "papers" / "points.py"
SLOW = pytest.mark.slow
SELDOM = ("--config.evaluate_every=50", "--config.checkpoint.every=20")
ALL = "--config.parallel.data=-1"  # devices, for two to go on with what one began on one of its own


class Pair:
    """Processes of one run, by their numbers, at work on the command line that all are given."""

    def __init__(self, folder: Path, *words: str, numbers=(0, 1), devices=1, timeout=60, double=False):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "lmlab", "train", f"--workdir={folder}", *words, "--num_processes=2"]
        command += [f"--coordinator=127.0.0.1:{port}", f"--timeout={timeout}"]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_ENABLE_X64": str(double).lower(),
        }
        self.folder = folder
        self.processes = [
            subprocess.Popen(
                [*command, f"--process_id={number}"],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in numbers
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def ends(self, code: int = 0) -> list[tuple[str, str]]:
        """What each said on stdout and stderr, when all have ended with this code."""
        said = [process.communicate() for process in self.processes]
        codes = [process.returncode for process in self.processes]
        assert codes == [code] * len(codes), said
        return said

    def wait_for_checkpoint(self) -> None:
        while not [path for path in self.folder.glob("checkpoints/*") if path.name.isdigit()]:
            assert all(process.poll() is None for process in self.processes), self.ends()
            time.sleep(0.05)


def pair(folder: Path, *words: str, code: int = 0, **options) -> list[tuple[str, str]]:
    with Pair(folder, *words, **options) as both:
        return both.ends(code)


def alone(folder: Path, kind: str = "", **overrides):
    """A run of this process alone, on one of its devices."""
    leaves = {"parallel.data": 1, "parallel.fsdp": 1} | {
        k.replace("__", "."): v for k, v in overrides.items()
    }
    with jax.enable_x64(kind.endswith("64")):
        return lmlab.train(f"{POINTS}:{kind}" if kind else "", folder, leaves)


def close(one: Path, other: Path, tolerance: float) -> None:
    """What two runs logged at the same steps, and their newest parameters."""
    a, b = (lmlab.load(run).metrics().set_index("step") for run in (one, other))
    assert a.index[-1] == b.index[-1] and set(a) == set(b)
    names = [name for name in a if name.startswith(("train/", "validation/"))]
    for name in names:
        both = a[name].dropna().index.intersection(b[name].dropna().index)
        assert len(both) == len(a[name].dropna()), name
        np.testing.assert_allclose(b[name][both], a[name][both], rtol=tolerance, err_msg=name)
    params = [jax.tree.leaves(lmlab.load(run).checkpoints.variables()[1]) for run in (one, other)]
    for x, y in zip(*params, strict=True):
        np.testing.assert_allclose(y, x, rtol=tolerance, atol=tolerance * np.abs(x).max())


# -- training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "leaves", "steps", "tolerance"),
    [
        ("dropout", {}, 5, 1e-6),
        pytest.param("stream", {}, 5, 1e-6, marks=SLOW),
        pytest.param("stream", {"parallel.data": 1, "parallel.tensor": 2}, 5, 1e-6, marks=SLOW),
        pytest.param("plain64", {}, 100, 1e-9, marks=SLOW),
        pytest.param("carrying", {}, 5, 1e-6, marks=SLOW),
        pytest.param("rollouts", {}, 5, 1e-6, marks=SLOW),
        pytest.param("closed_form", {}, 1, 1e-6, marks=SLOW),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else ",".join(value) if isinstance(value, dict) else None
    ),
)
def test_two_processes_equal_one(tmp_path, kind, leaves, steps, tolerance):
    words = [f"--config.{key}={value}" for key, value in leaves.items()]
    duration = f"{steps} steps"
    said = pair(
        tmp_path / "two",
        f"--config={POINTS}:{kind}",
        f"--config.duration={duration}",
        *words,
        double=kind.endswith("64"),
    )
    alone(tmp_path / "one", kind, duration=duration)
    close(tmp_path / "one", tmp_path / "two", tolerance)
    assert "done: " in said[0][0] and said[1][0] == "", "the first speaks"
    assert [errors for _, errors in said] == ["", ""]
    assert lmlab.load(tmp_path / "two").record["devices"] == "2 x cpu"


def test_checkpoints_pass_between_one_process_and_two(tmp_path):
    """One, then two with the parameters split over both, then one again: the straight run."""
    alone(tmp_path / "run", "plain64", duration="4 steps")
    fsdp = ["--config.parallel.data=1", "--config.parallel.fsdp=4"]
    pair(tmp_path / "run", "--config.duration=8 steps", *fsdp, devices=2, double=True)
    change = lmlab.load(tmp_path / "run").record["changes"][-1]
    assert change["parallel.fsdp"] == [1, 4] and change["devices"][1] == "4 x cpu"
    with jax.enable_x64(True):
        lmlab.train("", tmp_path / "run", {"duration": "12 steps", "parallel.data": 1, "parallel.fsdp": 1})
    alone(tmp_path / "straight", "plain64", duration="12 steps")
    close(tmp_path / "straight", tmp_path / "run", 1e-9)


# -- ending --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=SLOW)])
def test_a_signal_to_one_stops_both_at_one_step(tmp_path, number):
    """And both go on together: a hundred steps in float64 are those of one process never stopped."""
    words = [f"--config={POINTS}:stream64", "--config.duration=100 steps", *SELDOM, "--config.delay=0.02"]
    with Pair(tmp_path / "two", *words, double=True) as both:
        both.wait_for_checkpoint()
        both.processes[1].send_signal(number)
        said = both.ends(75 if number == signal.SIGTERM else 130)
    run = lmlab.load(tmp_path / "two")
    last = run.checkpoints.steps[-1]
    assert last < 100 and f"stopped by {number.name} after step {last}; saved" in said[0][0]
    assert "done" not in run.record
    pair(tmp_path / "two", double=True)
    assert lmlab.load(tmp_path / "two").record["done"] == 100
    alone(tmp_path / "one", "stream64", duration="100 steps", evaluate_every="50")
    close(tmp_path / "one", tmp_path / "two", 1e-9)


@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=SLOW)])
def test_when_one_is_killed_the_other_ends_with_a_line_and_both_go_on(tmp_path, killed):
    words = [f"--config={POINTS}:stream", "--config.duration=100 steps", *SELDOM, "--config.delay=0.02"]
    with Pair(tmp_path / "run", *words, timeout=10) as both:
        both.wait_for_checkpoint()
        both.processes[killed].kill()
        survivor = both.processes[1 - killed]
        errors = survivor.communicate()[1]
    assert survivor.returncode == hosts.GONE, errors
    (line,) = errors.splitlines()
    assert line.startswith(f"lmlab train: process {1 - killed} of 2: ") and "is gone" in line
    kept = lmlab.load(tmp_path / "run").checkpoints.steps
    pair(tmp_path / "run")
    run = lmlab.load(tmp_path / "run")
    assert kept and run.finished and run.metrics()["step"].tolist() == list(range(1, 101))


@pytest.mark.parametrize("there", [0, pytest.param(1, marks=SLOW)])
def test_when_one_never_comes_the_other_ends_with_a_line(tmp_path, there):
    said = pair(tmp_path / "run", f"--config={POINTS}", numbers=[there], timeout=2, code=hosts.GONE)
    (line,) = said[0][1].splitlines()
    assert line.startswith(f"lmlab train: process {there} of 2: not all 2 processes met at 127.0.0.1:")
    assert not (tmp_path / "run").exists()


@SLOW
def test_what_one_alone_finds_wrong_ends_both(tmp_path):
    """Process 0 may not take the lock: it says so, and the other that one is gone."""
    alone(tmp_path / "run", "stream")
    with lmlab.run.locked(tmp_path / "run"), Pair(tmp_path / "run", ALL) as both:
        said = [process.communicate()[1].splitlines() for process in both.processes]
    assert [process.returncode for process in both.processes] == [2, hosts.GONE], said
    assert [len(lines) for lines in said] == [1, 1]
    assert "is being trained by another process" in said[0][0] and "is gone" in said[1][0]


@SLOW
def test_a_damaged_checkpoint_is_stepped_over_by_both(tmp_path):
    alone(tmp_path / "run", "stream64", duration="6 steps")
    for path in (tmp_path / "run/checkpoints/6").rglob("d/*"):
        path.write_bytes(b"")
    said = pair(tmp_path / "run", "--config.duration=8 steps", ALL, double=True)
    assert "warning: checkpoint 6 is damaged" in said[0][0] and (tmp_path / "run/damaged-6").is_dir()
    alone(tmp_path / "one", "stream64", duration="8 steps")
    close(tmp_path / "one", tmp_path / "run", 1e-9)


@real
def test_a_step_of_slurm_needs_no_flags(tmp_path):
    """Two tasks on the two nodes of the Slurm of this machine alone."""
    command = ["srun", "--nodes=2", "--ntasks=2", sys.executable, "-m", "lmlab", "train"]
    command += [f"--config={POINTS}:stream", f"--workdir={tmp_path / 'two'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("done: ") == 1, done
    assert lmlab.load(tmp_path / "two").record["devices"] == "2 x cpu"
    alone(tmp_path / "one", "stream")
    close(tmp_path / "one", tmp_path / "two", 1e-6)


# -- flags, Slurm, the filter --------------------------------------------------------------------------------


def words(**given: str) -> dict[str, str]:
    return dict.fromkeys(hosts.OPTIONS, "") | given


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"num_processes": "2"}, "--coordinator, --process_id missing"),
        ({"coordinator": "a:1", "process_id": "0"}, "--num_processes missing"),
        (
            {"coordinator": "here", "num_processes": "2", "process_id": "0"},
            "--coordinator: received 'here'; allowed: HOST:PORT",
        ),
        (
            {"coordinator": "a:1", "num_processes": "2", "process_id": "2"},
            "--process_id: received '2'; allowed: 0 to 1",
        ),
        (
            {"coordinator": "a:1", "num_processes": "0", "process_id": "0"},
            "--num_processes: received '0'; allowed: 1 or more",
        ),
        (
            {"coordinator": "a:1", "num_processes": "2", "process_id": "-1"},
            "--process_id: received '-1'; allowed: 0 to 1",
        ),
        ({"timeout": "soon"}, "--timeout: received 'soon'; allowed: 1 or more"),
    ],
)
def test_wrong_flags_are_told_in_a_line(capsys, given, told):
    argv = [f"--{name}={value}" for name, value in given.items()]
    assert main(["train", f"--config={POINTS}", "--workdir=runs/never", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lmlab train: {told}")


def test_a_job_is_that_of_the_flags_or_of_a_step_of_slurm():
    by_hand = words(coordinator="10.0.0.1:1234", num_processes="4", process_id="3", timeout="7")
    assert Job.of(by_hand, {}) == Job("10.0.0.1:1234", 4, 3, 7)
    assert Job.of(words(), {}) is None
    step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}
    assert Job.of(words(), step) == Job("", 4, 2, 60)
    assert Job.of(by_hand, step) == Job("10.0.0.1:1234", 4, 3, 7)
    assert Job.of(words(), {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None
    assert Job.of(words(), {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None, "a script of sbatch's"


FATAL = """\
E1121 18:58:24.172723    3055 coordination_service.cc:1549] [16] Use error polling to propagate the following error
UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
3
The tasks have crashed.
F1121 18:58:24.1732 3066 client.h:80] Terminating process because the JAX distributed service detected fatal errors.
*** Check failure stack trace: ***
    @     0x7f785d640634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""
IDLE = "[Gloo] Rank 1 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1\n"
OTHER = "F1121 rendezvous.cc:127] Expected 8 threads to join\n*** Check failure stack trace: ***\n"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (IDLE, ""),
        (IDLE + "malloc(): corrupted\n", "malloc(): corrupted\n"),
        (OTHER, OTHER),
        (FATAL.splitlines(True)[0] + OTHER, FATAL.splitlines(True)[0] + OTHER),
        ("a\n" + FATAL, "a\nlmlab train: process 1 of 4: process 3 is gone"),
        (FATAL.replace("3\n", "?\n") + "Socket closed\n", "lmlab train: process 1 of 4: process 0 is gone"),
        (
            FATAL + "RPC: RegisterTask\n",
            "lmlab train: process 1 of 4: not all 4 processes met at here:1 in time",
        ),
        (hosts.HUSH + FATAL, ""),
    ],
)
def test_the_filter_says_in_a_line_what_the_runtime_says_in_pages(said, told):
    command = [sys.executable, hosts.__file__, "here:1", "4", "1", "60"]
    done = subprocess.run(command, input=said, capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr.startswith(told)
    assert len(done.stderr.splitlines()) == len(told.splitlines())


@pytest.mark.parametrize(
    ("said", "gone"),
    [
        ("UNAVAILABLE: failed to connect to all addresses", True),
        ("Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:1", True),
        (os.strerror(errno.EAGAIN), False),  # "Resource temporarily unavailable": a lock that is held
    ],
)
def test_an_error_comes_of_anothers_end_or_is_this_ones_own(said, gone):
    assert bool(hosts.BROKEN.search(said)) == gone


def test_a_process_alone_is_left_as_it_is():
    assert hosts.first() and hosts.same({"loss": 0.1}) == {"loss": 0.1}
    hosts.meet("nobody")
    hosts.check_gone(ValueError("Gloo AllReduce failed"))
    hosts.leave(1)
