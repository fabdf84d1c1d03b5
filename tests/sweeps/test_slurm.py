"""Sweeps as jobs of a real Slurm, that of one machine, which `make test-slurm` starts: minutes on two cores.

What is to be stopped half way learns slowly until a gate is opened, so that no machine is too slow, or too quick.
"""

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
from tests.test_chaos import same

ROOT = Path(__file__).parents[2]
LINE = ROOT / "tests" / "papers" / "line.py"
GATED = ROOT / "tests" / "sweeps" / "gated.py"
LONG = {"duration": "2000 steps", "log_every": "50", "evaluate_every": "200", "checkpoint.every": "50"}
ENV = os.environ | {"PYTHONPATH": str(ROOT)}


def slurm_is_ours() -> bool:
    """Whether the Slurm of this machine alone is up: no test submits jobs to somebody's cluster."""
    if not shutil.which("scontrol") or not importlib.util.find_spec("submitit"):
        return False
    asked = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True)
    return "one_machine" in asked.stdout


skipped = pytest.mark.skipif(
    "SLURM_CONF" not in os.environ or not slurm_is_ours(), reason="needs Slurm: make test-slurm"
)


def real(test):
    """What asks for Slurm waits for it as long as a busy machine takes."""
    return pytest.mark.timeout(1800)(skipped(test))


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


def sweep(*words, codes=(0,)) -> str:
    """What `lmlab sweep` says."""
    command = [sys.executable, "-m", "lmlab", "sweep", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode in codes, done.stdout + done.stderr
    return done.stdout + done.stderr


def until(condition, seconds=600):
    """Waits for what must come, however slow the machine."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, call("scontrol", "show", "jobs")
        time.sleep(0.3)
    return found


def all_ended() -> bool:
    return not slurm.queue()


def waits(job: str) -> bool:
    """Whether it is back in the queue."""
    return slurm.queue().get(job) == "PENDING"


def leaves(gate: Path, **changes) -> list[str]:
    """Flags of a run that is long until the gate is opened."""
    return [f"--config.{key}={value}" for key, value in {"data.gate": gate, **LONG, **changes}.items()]


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
    flags = [f"--config={GATED}", f"--workdir={work}", *leaves(tmp_path / "gate")]
    flags.append("--grid=optimizer.learning_rate=0.1,0.05,0.01,1e30")
    told = sweep(*flags, "--launcher=slurm", "--time=10", "--partition=debug")
    jobs = json.loads((work / "slurm" / "jobs.json").read_text())
    array = jobs["learning_rate=0.1"].split("_")[0]
    assert list(jobs.values()) == [f"{array}_{i}" for i in range(4)]
    assert all(f"{name}: submitted as job {job}\n" in told for name, job in jobs.items())

    again = sweep(
        *flags, codes=(0, 1)
    )  # with the launcher that it was begun with; one may have failed by now
    in_queue = [name for name, job in jobs.items() if f"{name}: in the queue as job {job}\n" in again]
    assert "submitted" not in again and in_queue, "none is submitted twice"
    (tmp_path / "gate").touch()
    until(all_ended)
    assert states(work) == ["done"] * 3 + ["failed"]
    again = sweep(f"--workdir={work}", codes=(1,))
    assert "skipped: 3 done, 1 failed\n" in again and "submitted" not in again
    assert f"failed: {work}/learning_rate=1e+30: lmlab train: not finite within steps 1 to 50: " in again
    straight = lmlab.train(str(GATED), tmp_path / "straight", {**LONG, "optimizer.learning_rate": 0.05})
    same(work / "learning_rate=0.05", straight.folder)


class Gate:
    """A sweep of one run, which learns slowly until it is opened. run: its directory; job: its job."""

    def __init__(self, folder: Path, *flags: str, **changes):
        self.work, self.run, self.file = folder / "sweep", folder / "sweep" / "seed=0", folder / "gate"
        where = [f"--config={GATED}", f"--workdir={self.work}"]
        sweep(*where, *leaves(self.file, **changes), "--seeds=1", "--launcher=slurm", *flags)
        until(lambda: steps(self.run))
        (self.job,) = slurm.queue()

    def goes_on(self) -> None:
        """To its end, from where it was stopped."""
        until(lambda: waits(self.job))
        assert 0 < max(steps(self.run)) < 2000 and states(self.work) == ["cut"]
        self.file.touch()
        until(all_ended)
        assert states(self.work) == ["done"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing befell."""
    return lmlab.train(str(GATED), tmp_path_factory.mktemp("straight") / "run", LONG).folder


@real
def test_a_preempted_run_goes_on_as_if_it_had_not_been(tmp_path, straight):
    """By a job of the partition before whose jobs those of ours give way."""
    gate = Gate(tmp_path)
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true", "--output=/dev/null"]
    call("sbatch", *urgent)
    until(lambda: list(slurm.queue().items()) == [(gate.job, "PENDING")])
    assert (
        f"stopped by SIGTERM after step {max(steps(gate.run))}; saved" in (gate.run / "log.txt").read_text()
    )
    assert "Caught signal SIGUSR2" in log(gate.work)
    assert f"seed=0: in the queue as job {gate.job}\n" in sweep(f"--workdir={gate.work}")
    gate.goes_on()
    same(gate.run, straight)


@real
def test_preempted_by_sigterm_alone_it_queues_itself_again(tmp_path, straight):
    gate = Gate(tmp_path)
    call("scancel", "--signal=TERM", gate.job)
    gate.goes_on()
    same(gate.run, straight)


@real
def test_a_cancelled_run_saves_and_is_submitted_again_when_asked(tmp_path, straight):
    gate = Gate(tmp_path)
    call("scancel", gate.job)
    until(all_ended)
    assert states(gate.work) == ["cut"] and not (gate.run / "failure.json").exists()
    gate.file.touch()
    told = sweep(f"--workdir={gate.work}", "--wait")
    assert "seed=0: submitted as job" in told and f"job {gate.job}\n" not in told
    assert "seed=0: running\n" in told and "seed=0: done: step 2,000/2,000" in told
    same(gate.run, straight)


@real
def test_a_run_of_two_nodes_is_two_processes(tmp_path, straight):
    gate = Gate(tmp_path, "--nodes=2", **{"parallel.data": 2})
    assert "NumNodes=2" in call("scontrol", "show", "job", gate.job)
    call("scancel", "--signal=USR2", gate.job)
    gate.goes_on()
    assert lmlab.load(gate.run).record["devices"] == "2 x cpu"
    found, alone = (lmlab.load(run).metrics()["train/loss"] for run in (gate.run, straight))
    np.testing.assert_allclose(found, alone, rtol=1e-4)


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
    said = sweep(*flags, flag, codes=(2,))
    assert said.count("\n") == 1 and told in said and "Traceback" not in said


def test_without_slurm_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"^--launcher=slurm: no Slurm found [^\n]*; allowed: local, vmap$"):
        slurm.launch(tmp_path, [Cell("seed=0", str(LINE), {"seed": 0})])


def test_a_workdir_that_slurm_would_read_as_a_pattern_is_refused(tmp_path, monkeypatch):
    (tmp_path / "sbatch").write_text("")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    pytest.importorskip("submitit")
    with pytest.raises(UsageError, match=r"^--workdir: received 'runs/5%j'; allowed: no '%' in its path"):
        slurm.launch(Path("runs/5%j"), [Cell("seed=0", str(LINE), {"seed": 0})])


def test_options_of_sbatch_are_read_as_sbatch_writes_them():
    assert slurm.parsed("--account=me --exclusive --constraint='a100|h100'") == {
        "account": "me",
        "exclusive": True,
        "constraint": "a100|h100",
    }
    assert slurm.parsed("") == {}
