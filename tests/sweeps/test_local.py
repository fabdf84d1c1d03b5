"""Sweeps by processes of this machine: real ones, stopped, killed and started again. A minute on two cores."""

import io
import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import lmlab
from lmlab import run
from lmlab.sweeps import local
from lmlab.sweeps.attempt import Attempt
from lmlab.sweeps.board import Board
from lmlab.sweeps.grid import Cell, cells, read, status, write
from lmlab.training import metrics
from lmlab.training.signals import Stopped

ROOT = Path(__file__).parents[2]
GATED = ROOT / "tests" / "sweeps" / "gated.py"
LINE = ROOT / "tests" / "papers" / "line.py"
ENV = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(autouse=True, scope="module")
def without_torch(tmp_path_factory):
    """TensorBoard's writer takes PyTorch along where it is installed: three of the six seconds of a run."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "torch.py").write_text("raise ImportError")
    ENV["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"


def sweep(*flags, **options):
    argv = [sys.executable, "-m", "lmlab", "sweep", *map(str, flags)]
    return subprocess.Popen(
        argv, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finish(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def until(condition, *, seconds=120):
    """Waits for what must come, however slow the machine."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def children(process) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(word) for word in listed.split()]


def rows(folder) -> list[dict]:
    """The metrics of a run: once there are some, a signal is one to save at."""
    return metrics.read(folder / "metrics.jsonl")


def states(workdir) -> list[str]:
    return [status(workdir, cell) for cell in read(workdir)["cells"]]


def steps(workdir) -> list[int]:
    """Of the checkpoints there are: the newest of each run."""
    folders = [workdir / cell.name / "checkpoints" for cell in read(workdir)["cells"]]
    return [max((int(p.name) for p in f.glob("*") if p.name.isdigit()), default=0) for f in folders]


# -- real sweeps --------------------------------------------------------------------------------------


def test_a_failure_is_told_while_the_others_go_on_and_is_repeated_when_asked(tmp_path):
    broken = tmp_path / "broken"
    broken.touch()
    work = tmp_path / "sweep"
    flags = [f"--config={GATED}", f"--workdir={work}", f"--zip=data.broken={broken},", "--zip=seed=0,1"]
    code, out, err = finish(sweep(*flags, "--jobs=2"))
    bad, good = [cell.name for cell in read(work)["cells"]]
    assert code == 1 and err == "", err
    lines = out.splitlines()
    assert f"{bad}: running" in lines and f"{good}: running" in lines
    assert any(line.startswith(f"{bad}: failed: ") and "[red] broken is there" in line for line in lines)
    assert any(line.startswith(f"{good}: done: step 6/6, loss ") for line in lines)
    assert lines[-2] == f"failed: {work / bad}: lmlab train: [red] broken is there"
    assert lines[-1] == f"2 runs: 1 failed, 1 done  (lmlab report --workdir={work})"
    failure = json.loads((work / bad / "failure.json").read_text())
    assert failure["code"] == 2 and failure["line"] == "lmlab train: [red] broken is there"
    assert not (work / good / "failure.json").exists() and "done: " in (work / good / "log.txt").read_text()
    record = json.loads((work / good / "run.json").read_text())
    assert record["total"] == record["done"] == 6

    broken.unlink()
    before = (work / good / "run.json").stat().st_mtime_ns
    code, out, _ = finish(sweep(f"--workdir={work}", "--retry_failed"))
    assert code == 0 and states(work) == ["done", "done"]
    assert "skipped: 1 done" in out and f"{good}: running" not in out
    assert not (work / bad / "failure.json").exists()
    assert "[red]" in (work / bad / "log.txt").read_text(), "what it said before is kept"
    assert (work / good / "run.json").stat().st_mtime_ns == before


def test_a_killed_launcher_leaves_nothing_running_and_the_sweep_goes_on(tmp_path):
    gate, work = tmp_path / "gate", tmp_path / "sweep"
    common = {
        "duration": "400 steps",
        "log_every": "5",
        "checkpoint.every": "150",
        "evaluate_every": "0",
        "data.gate": str(gate),
    }
    leaves = [f"--config.{key}={value}" for key, value in common.items()]
    flags = [f"--config={GATED}", f"--workdir={work}", "--seeds=2", *leaves]
    first = sweep(*flags, "--jobs=2")
    until(lambda: rows(work / "seed=0") and rows(work / "seed=1"))
    assert states(work) == ["running", "running"]
    pids = children(first)
    assert len(pids) == 2
    cores = [os.sched_getaffinity(pid) for pid in pids]
    assert cores == [set(place.cores) for place in local.places(2, 2)]
    assert all(os.getpgid(pid) == pid for pid in pids)

    code, out, err = finish(sweep(*flags))
    assert (code, out) == (2, "") and err.count("\n") == 1 and "by another process" in err
    assert first.poll() is None and children(first) == pids, "the first was left alone"

    first.kill()
    finish(first)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert states(work) == ["cut", "cut"] and all(0 < step < 400 for step in steps(work)), "they saved"

    gate.touch()
    code, out, _ = finish(sweep(f"--workdir={work}"))
    assert code == 0 and states(work) == ["done", "done"] and "step 400/400" in out
    straight = lmlab.train(str(GATED), tmp_path / "straight", {**common, "seed": 1})
    jax.tree.map(np.testing.assert_array_equal, straight.variables, lmlab.load(work / "seed=1").variables)


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 75)]
)
def test_a_signal_stops_the_runs_which_save(tmp_path, number, code):
    work = tmp_path / "sweep"
    flags = [
        "--config.duration=100000 steps",
        "--config.checkpoint.every=0",
        f"--config.data.gate={tmp_path}/gate",
    ]
    process = sweep(f"--config={GATED}", f"--workdir={work}", "--seeds=3", "--jobs=1", *flags)
    until(lambda: rows(work / "seed=0"))
    process.send_signal(number)
    found, out, err = finish(process)
    assert (found, err) == (code, "")
    assert states(work) == ["cut", "new", "new"] and steps(work)[0] > 0
    assert not (work / "seed=0" / "failure.json").exists()
    assert f"stopped by {number.name}: 1 cut, 2 new\nto go on: lmlab sweep --workdir={work}\n" in out
    assert "seed=0: stopped: step" in out


def test_a_second_ctrl_c_does_not_wait_for_runs_that_save(tmp_path, monkeypatch, capsys):
    """Told at the first what a second does; the runs, here one that hears nothing, are told to end all the same."""
    told = []

    class Deaf:
        def __init__(self, workdir, cell, env, cores):
            self.cell = cell

        def poll(self):
            os.kill(os.getpid(), signal.SIGINT)

        def signal(self, number):
            told.append(number)

    monkeypatch.setattr(local, "Attempt", Deaf)
    with pytest.raises(Stopped) as stopped:
        local.launch(tmp_path, [Cell("seed=0", str(LINE), {"seed": 0})], jobs=1)
    assert stopped.value.args == (signal.SIGINT, 0) and told == [signal.SIGTERM]
    assert "stopping: runs under way save first; Ctrl-C again does not wait" in capsys.readouterr().out


@pytest.mark.slow
def test_what_another_process_trains_is_waited_for(tmp_path):
    """As after a launcher was killed: what it left may still be saving."""
    made = cells(str(LINE), {}, seeds=2)
    write(tmp_path, {"spec": str(LINE), "overrides": {}, "launcher": "local", "cells": made, "command": ""})
    (tmp_path / "seed=0").mkdir()
    with run.locked(tmp_path / "seed=0"):
        process = sweep(f"--workdir={tmp_path}", "--jobs=1")
        said = []
        until(lambda: said.append(process.stdout.readline()) or said[-1].startswith("seed=1: done"))
        assert "seed=0: elsewhere\n" in said and states(tmp_path) == ["running", "done"]
    code, out, _ = finish(process)
    assert code == 0 and out.startswith("seed=0: running\nseed=0: done")


def test_the_table_is_live_on_a_terminal(tmp_path):
    leader, follower = pty.openpty()
    argv = ["--config=" + str(LINE), f"--workdir={tmp_path / 'sweep'}", "--seeds=1"]
    command = [sys.executable, "-m", "lmlab", "sweep", *argv]
    env = ENV | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(command, env=env, stdout=follower, stderr=follower, stdin=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += os.read(leader, 1 << 16)
        except OSError:  # the terminal is gone with the last who writes to it
            break
    assert process.wait() == 0
    text = shown.decode()
    assert "seed=0" in text and "running" in text and "6/6" in text
    assert "1 done" in text and "\x1b[" in text


# -- one attempt --------------------------------------------------------------------------------------


def test_an_attempt_that_is_killed_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ENV["PYTHONPATH"])
    gated = {"duration": "100000 steps", "data.gate": str(tmp_path / "gate")}
    begun = Attempt(tmp_path, Cell("a", str(GATED), gated))
    until(lambda: rows(tmp_path / "a"))
    begun.signal(signal.SIGKILL)
    assert begun.wait() == begun.poll() == -signal.SIGKILL
    failure = json.loads((tmp_path / "a" / "failure.json").read_text())
    assert failure["line"] == "killed by SIGKILL" and status(tmp_path, begun.cell) == "failed"
    assert Attempt(tmp_path, Cell("b", str(LINE), {"model.powr": 1})).wait() == 2
    assert status(tmp_path, Cell("b", str(LINE), {})) == "failed"
    assert "did you mean config.model.power?" in (tmp_path / "b" / "failure.json").read_text()
    cell = Cell("b", f"{LINE}:steep", {"optimizer.learning_rate": 0.01, "model.start": 2.0})
    assert Attempt(tmp_path, cell).wait() == 0 and status(tmp_path, cell) == "done"
    loaded = lmlab.load(tmp_path / "b")
    assert loaded.spec == cell.spec and loaded.record["overrides"] == cell.overrides


# -- places -------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """`machine(cores, gpus)`: a machine that has them, as far as it can be asked."""
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)

    def machine(cores, gpus=0):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
        lines = [f"GPU {i}: NVIDIA H100 80GB HBM3 (UUID: GPU-{i:08x}-1a2b-3c4d)" for i in range(gpus)]
        lines.append("  MIG 1g.10gb     Device  0: (UUID: MIG-1)")
        smi = tmp_path / "nvidia-smi"
        smi.write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
        smi.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return machine


def test_jobs_share_out_the_cores(machine):
    machine(8)
    for jobs in (1, 2, 3, 8):
        cores = [place.cores for place in local.places(jobs, 100)]
        assert len(cores) == jobs and sorted(itertools.chain(*cores)) == list(range(8))
        assert max(map(len, cores)) - min(map(len, cores)) <= 1
        assert not any(place.env for place in local.places(jobs, 100))
    assert len(local.places(0, 100)) == 8 and len(local.places(0, 3)) == 3
    assert [len(place.cores) for place in local.places(0, 2)] == [4, 4], "few runs have more each"
    assert [place.cores for place in local.places(16, 100)] == [[i % 8] for i in range(16)]
    with pytest.raises(ValueError, match=r"--jobs: received -1; allowed: 1 or more"):
        local.places(-1, 3)


def test_jobs_share_out_the_gpus(machine, monkeypatch):
    machine(8, 4)
    gpus = [f"GPU-{i:08x}-1a2b-3c4d" for i in range(4)]

    def visible(jobs, runs=100):
        return [place.env["CUDA_VISIBLE_DEVICES"] for place in local.places(jobs, runs)]

    assert visible(0) == gpus and visible(0, runs=2) == gpus[:2], "one each"
    assert visible(2) == [",".join(gpus[:2]), ",".join(gpus[2:])]
    assert [place.cores for place in local.places(0, 100)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert sorted(visible(8)) == sorted(gpus * 2), "two jobs a GPU"
    fractions = {place.env["XLA_PYTHON_CLIENT_MEM_FRACTION"] for place in local.places(8, 100)}
    assert fractions == {"0.450"}
    assert all(set(place.env) == {"CUDA_VISIBLE_DEVICES"} for place in local.places(4, 100))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert visible(0) == ["2", "3"]
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert local.devices() == [] and len(local.places(0, 100)) == 8
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert local.devices() == []
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert local.devices() == gpus


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_pinned_process_has_threads_for_its_cores_alone():
    """XLA asks the operating system which cores it has: no variable need be set."""
    program = (
        "import sys, os; os.sched_setaffinity(0, eval(sys.argv[1])); import jax, jax.numpy as jnp\n"
        "x = jax.jit(lambda x: x @ x)(jnp.ones((600, 600))).block_until_ready()\n"
        "from pathlib import Path\n"
        "told = [t.joinpath('status').read_text().split() for t in Path('/proc/self/task').iterdir()]\n"
        "names = [t[t.index('Name:') + 1] for t in told]\n"
        "print({t[t.index('Cpus_allowed_list:') + 1] for t in told}, sum('Eigen' in n for n in names))\n"
    )
    env = {key: value for key, value in ENV.items() if key not in ("NPROC", "XLA_FLAGS")}
    first, second = sorted(os.sched_getaffinity(0))[:2]

    def threads(cores):
        argv = [sys.executable, "-c", program, str(cores)]
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout.strip()

    allowed, one = threads({second}).rsplit(" ", 1)
    assert allowed == str({str(second)})
    assert int(one) == 1 and int(threads({first, second}).rsplit(" ", 1)[1]) == 2


# -- the board ----------------------------------------------------------------------------------------


def board(tmp_path, number):
    made = Board(tmp_path, [Cell(f"seed={seed}", "", {}) for seed in range(number)])
    made.console = Console(file=io.StringIO(), width=100)
    return made


def drawn(board, room) -> str:
    board.console.print(board.table(room))
    return board.console.file.getvalue()


def test_where_there_is_no_room_those_are_shown_that_matter_most(tmp_path):
    full = board(tmp_path, 40)
    rows = list(full.rows.values())
    rows[7].status, rows[7].line = "failed", "lmlab train: [bold] it broke"
    rows[30].status = "running"
    for row in rows[:5]:
        row.status = "done"
    text = drawn(full, 4)
    assert "seed=7 " in text and "[bold] it broke" in text and "seed=30" in text
    assert text.count("waiting") == 2 + 1 and "done" in text.splitlines()[-1]
    assert "1 failed, 1 running, 33 waiting, 5 done" in text
    assert all(f"seed={i} " in drawn(full, 40) for i in range(40))


def test_a_narrow_terminal_shows_names_and_that_lines_are_cut(tmp_path):
    narrow = board(tmp_path, 2)
    narrow.console = Console(file=io.StringIO(), width=30)
    first, _ = narrow.rows.values()
    first.status, first.line, first.step, first.total = "failed", "lmlab train: it broke", 10_000, 100_000
    narrow.note = "stopping"
    text = drawn(narrow, 4)
    assert all(
        word in text
        for word in ("seed=0  failed   lmlab", "…", "seed=1  waiting", "1 failed, 1 waiting", "stopping")
    )


def test_progress_is_what_the_files_of_a_run_say(tmp_path):
    full = board(tmp_path, 1)
    (row,) = full.rows.values()
    row.look()
    assert row.numbers()[:2] == ["", ""], "nothing is there yet"
    folder = tmp_path / "seed=0"
    folder.mkdir()
    (folder / "run.json").write_text('{"total": 1200}')
    lines = [json.dumps({"step": i, "train/loss": 1 / i, "speed/mfu": 0.1}) for i in range(1, 1001)]
    lines.append(json.dumps({"step": 1001, "validation/f1": 0.3, "validation/loss": None}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 1002, "train/lo')
    row.look()
    assert row.numbers()[:2] == ["1,001/1,200", "0.0010"]
