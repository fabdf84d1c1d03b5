"""Sweeps as jobs of a real Slurm, that of one machine, which `make test-slurm` starts: two minutes on two cores."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import lmlab
from lmlab.flags import UsageError
from lmlab.sweeps import slurm
from lmlab.sweeps.grid import Cell, read, status
from tests.test_chaos import SURVIVOR, same

ROOT = Path(__file__).parents[2]
LINE = ROOT / "tests" / "papers" / "line.py"
ENV = os.environ | {"PYTHONPATH": str(ROOT)}


def slurm_is_ours() -> bool:
    """Whether the Slurm of this machine alone is up: no test submits jobs to somebody's cluster."""
    if not shutil.which("scontrol") or not importlib.util.find_spec("submitit"):
        return False
    asked = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True)
    return "one_machine" in asked.stdout


real = pytest.mark.skipif(
    "SLURM_CONF" not in os.environ or not slurm_is_ours(), reason="needs Slurm: make test-slurm"
)


@pytest.fixture(autouse=True, scope="module")
def without_torch(tmp_path_factory):
    """TensorBoard's writer takes PyTorch along where it is installed: three of the six seconds of a run."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "torch.py").write_text("raise ImportError")
    ENV["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"


@pytest.fixture(autouse=True)
def empty_queue():
    yield
    if slurm_is_ours():
        call("scancel", "--me")


def call(*words) -> str:
    return subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True).stdout


def sweep(*words, code=0) -> str:
    """What `lmlab sweep` says."""
    command = [sys.executable, "-m", "lmlab", "sweep", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def until(condition, seconds=120):
    """Waits for what must come, however slow the machine."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, call("scontrol", "show", "jobs")
        time.sleep(0.1)
    return found


def all_ended() -> bool:
    return not slurm.queue()


def requeued(job: str) -> None:
    """Waits until it is in the queue again, which it would be for two minutes: Slurm revokes what it gave it."""
    until(lambda: slurm.queue().get(job) == "PENDING")
    time.sleep(3)
    call("scontrol", "update", f"JobId={job}", "StartTime=now")


def states(work: Path) -> list[str]:
    return [status(work, cell) for cell in read(work)["cells"]]


def steps(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit()]


def log(work: Path) -> str:
    """What submitit said of the jobs."""
    return "".join(path.read_text() for path in sorted(work.glob("slurm/*.err")))


@real
def test_an_array_of_runs_one_of_which_fails(tmp_path):
    work = tmp_path / "sweep"
    flags = [
        f"--config={LINE}:demo",
        f"--workdir={work}",
        "--grid=optimizer.learning_rate=0.1,0.05,0.01,1e30",
    ]
    told = sweep(*flags, "--launcher=slurm", "--time=10", "--partition=debug")
    jobs = json.loads((work / "slurm" / "jobs.json").read_text())
    array = jobs["learning_rate=0.1"].split("_")[0]
    assert list(jobs.values()) == [f"{array}_{i}" for i in range(4)]
    assert all(f"{name}: submitted as job {job}\n" in told for name, job in jobs.items())

    again = sweep(*flags)  # with the launcher that it was begun with
    in_queue = [name for name, job in jobs.items() if f"{name}: in the queue as job {job}\n" in again]
    assert "submitted" not in again and in_queue, "none is submitted twice"

    until(all_ended)
    assert states(work) == ["done"] * 3 + ["failed"]
    again = sweep(f"--workdir={work}", code=1)
    assert "skipped: 3 done, 1 failed\n" in again and "submitted" not in again
    assert f"failed: {work}/learning_rate=1e+30: lmlab train: not finite within steps 1 to 2: " in again
    straight = lmlab.train(f"{LINE}:demo", tmp_path / "straight", {"optimizer.learning_rate": 0.05})
    same(work / "learning_rate=0.05", straight.folder)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """(the file that the runs learn from, a run that nothing befell)."""
    folder = tmp_path_factory.mktemp("straight")
    np.save(folder / "points.npy", np.random.default_rng(0).normal(size=(64, 20)).astype(np.float32))
    lmlab.train(f"{SURVIVOR}:stream", folder / "run", {"data.path": str(folder / "points.npy")})
    return folder / "points.npy", folder / "run"


@pytest.fixture
def under_way(tmp_path, straight):
    """(a sweep of one run, that run, which has begun to save, its job)."""
    work = tmp_path / "sweep"
    flags = [f"--config={SURVIVOR}:stream", f"--config.data.path={straight[0]}", f"--workdir={work}"]
    sweep(*flags, "--seeds=1", "--launcher=slurm")
    until(lambda: steps(work / "seed=0"))
    (job,) = slurm.queue()
    return work, work / "seed=0", job


@real
def test_a_preempted_run_goes_on_as_if_it_had_not_been(under_way, straight):
    """By a job of the partition before whose jobs those of ours give way."""
    work, run, job = under_way
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true", "--output=/dev/null"]
    call("sbatch", *urgent)
    until(lambda: list(slurm.queue().items()) == [(job, "PENDING")])
    at = max(steps(run))
    assert 0 < at < 120 and states(work) == ["cut"]
    assert f"stopped by SIGTERM after step {at}; saved" in (run / "log.txt").read_text()
    assert "Caught signal SIGUSR2" in "".join(path.read_text() for path in work.glob("slurm/*.err"))
    assert f"seed=0: in the queue as job {job}\n" in sweep(f"--workdir={work}")
    requeued(job)
    until(all_ended)
    assert states(work) == ["done"]
    same(run, straight[1])


@real
def test_preempted_by_sigterm_alone_it_queues_itself_again(under_way, straight):
    _, run, job = under_way
    call("scancel", "--signal=TERM", job)
    requeued(job)
    assert 0 < max(steps(run)) < 120
    until(all_ended)
    same(run, straight[1])


@real
def test_a_cancelled_run_saves_and_is_submitted_again_when_asked(under_way, straight):
    work, run, job = under_way
    call("scancel", job)
    until(all_ended)
    assert states(work) == ["cut"] and not (run / "failure.json").exists()
    told = sweep(f"--workdir={work}", "--wait")
    assert "seed=0: submitted as job" in told and f"job {job}\n" not in told
    assert "seed=0: running\n" in told and "seed=0: done: step 120/120" in told
    same(run, straight[1])


@real
def test_a_run_of_two_nodes_is_two_processes(tmp_path, straight):
    work, run = tmp_path / "sweep", tmp_path / "sweep" / "seed=0"
    leaves = {"data.path": straight[0], "duration": "40 steps", "parallel.data": 2}
    flags = [f"--config.{key}={value}" for key, value in leaves.items()]
    sweep(
        f"--config={SURVIVOR}:stream",
        f"--workdir={work}",
        "--seeds=1",
        "--launcher=slurm",
        "--nodes=2",
        *flags,
    )
    until(lambda: steps(run))
    (job,) = slurm.queue()
    assert "NumNodes=2" in call("scontrol", "show", "job", job)
    call("scancel", "--signal=USR2", job)
    requeued(job)
    assert 0 < max(steps(run)) < 40 and states(work) == ["cut"]
    until(all_ended)
    assert states(work) == ["done"] and lmlab.load(run).record["devices"] == "2 x cpu"
    alone = lmlab.train(f"{SURVIVOR}:stream", tmp_path / "alone", {**leaves, "data.path": str(straight[0])})
    found = lmlab.load(run).metrics()
    np.testing.assert_allclose(found["train/loss"], alone.metrics()["train/loss"], rtol=1e-4)


@real
@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--partition=nowhere", "Invalid partition name specified"),
        ("--time=soon", "Invalid --time specification"),
        ("--sbatch=account=me", "--sbatch: received 'account=me'; allowed: --OPTION=VALUE"),
    ],
)
def test_what_slurm_refuses_is_one_line(tmp_path, flag, told):
    flags = [f"--config={LINE}:demo", f"--workdir={tmp_path}/sweep", "--seeds=2", "--launcher=slurm"]
    said = sweep(*flags, flag, code=2)
    assert said.count("\n") == 1 and told in said and "Traceback" not in said


def test_without_slurm_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"^--launcher=slurm: no Slurm found [^\n]*; allowed: local, vmap$"):
        slurm.launch(tmp_path, [Cell("seed=0", str(LINE), {"seed": 0})])


def test_options_of_sbatch_are_read_as_sbatch_writes_them():
    assert slurm.parsed("--account=me --exclusive --constraint='a100|h100'") == {
        "account": "me",
        "exclusive": True,
        "constraint": "a100|h100",
    }
    assert slurm.parsed("") == {}
