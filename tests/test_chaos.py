"""What a run survives: killed, stopped, damaged, robbed of its disk and data, it ends as if it had not been.

The processes are a user's: compiled programs are kept as usual; a kill may fall into that.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import lmlab
from lmlab import run as runs_lib
from lmlab.__main__ import main
from lmlab.sweeps import grid
from lmlab.training import metrics
from tests.test_experiments import rows, saved
from tests.training.test_checkpoint import damage

ROOT = Path(__file__).parents[1]
SURVIVOR = ROOT / "tests" / "papers" / "survivor.py"
KILLS = 20


def same(folder: Path, other: Path) -> None:
    """Two runs ended alike: step, parameters, state of the optimizer and rows, bitwise."""
    (step, state), (expected_step, expected) = saved(folder), saved(other)
    assert step == expected_step
    named = jax.tree_util.tree_leaves_with_path(expected)
    for (name, leaf), found in zip(named, jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(found, leaf, err_msg=jax.tree_util.keystr(name))
    assert rows(folder) == rows(other)


@pytest.fixture
def points(tmp_path):
    """A file that survivor.py learns from."""
    path = tmp_path / "points.npy"
    np.save(path, np.random.default_rng(0).normal(size=(64, 20)).astype(np.float32))
    return path


@pytest.fixture
def environment(tmp_path):
    """A user's, but for TensorBoard's writer: it takes PyTorch along where it is installed, for seconds."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "torch.py").write_text("raise ImportError")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    path = f"{tmp_path / 'path'}{os.pathsep}{ROOT}"
    return {**kept, "PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}


class Victim:
    """`lmlab` under way, or not, with arguments that are always the same.

    pace: seconds that it takes to begin, and for a step.
    """

    def __init__(self, folder: Path, argv: list[str], environment: dict[str, str], pace=(0.0, 0.0)):
        self.folder, self.pace = folder, pace
        self.argv = [sys.executable, "-m", "lmlab", *argv, f"--workdir={folder}"]
        self.environment = environment
        self.random = np.random.default_rng(0)

    def start(self) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(self.argv, cwd=ROOT, env=self.environment, **pipes)

    def end(self, process: subprocess.Popen) -> tuple[int, str, str]:
        """(exit code, what it said, what it complained of but for warnings)."""
        out, err = process.communicate()
        complaints = [line for line in err.splitlines(keepends=True) if "warning" not in line.lower()]
        return process.returncode, out, "".join(complaints)

    @property
    def newest(self) -> int:
        """The sum of the newest checkpoints in it: of one run, or of all of a sweep."""
        made = {}
        for path in (*self.folder.glob("checkpoints/*"), *self.folder.glob("*/checkpoints/*")):
            if path.name.isdigit():
                made[path.parent] = max(made.get(path.parent, 0), int(path.name))
        return sum(made.values())

    def after_a_save(self) -> subprocess.Popen:
        """Started, and some moment after it has saved."""
        before, process = self.newest, self.start()
        while self.newest <= before and process.poll() is None:
            time.sleep(0.02)
        time.sleep(self.random.uniform(0, 5 * self.pace[1]))
        return process

    def undisturbed(self) -> None:
        """To its end; notes its pace."""
        began, process = time.monotonic(), self.start()
        while not self.newest and process.poll() is None:
            time.sleep(0.02)
        saved = time.monotonic()
        code, out, err = self.end(process)
        assert (code, err) == (0, ""), (out, err)
        self.pace = saved - began, (time.monotonic() - saved) / self.newest

    # -- what befalls it -----------------------------------------------------------------------------

    def killed(self, below: bool = False) -> None:
        """At a random moment; every third time before it has begun: in imports, set-up, compiling, restoring.

        below: one of its processes is killed a moment before.
        """
        if self.random.random() < 1 / 3:
            before, process = self.newest, self.start()
            end = time.monotonic() + self.random.uniform(0, self.pace[0])
            while self.newest <= before and time.monotonic() < end:  # the first had to compile
                time.sleep(0.02)
        else:
            process = self.after_a_save()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if below and children:
            os.kill(int(self.random.choice(children)), signal.SIGKILL)
            time.sleep(self.random.uniform(0, 1))
        process.kill()
        assert self.end(process)[0] == -signal.SIGKILL, "it ended before it was killed"

    def stopped(self) -> None:
        process = self.after_a_save()
        process.terminate()
        code, out, err = self.end(process)
        assert (code, err) == (75, "") and f"stopped by SIGTERM after step {self.newest}; saved" in out

    def truncated(self) -> None:
        """Its newest checkpoint is cut short, which is found out by the next start that gets so far."""
        damage(self.folder / "checkpoints" / str(self.newest))

    def filled(self, disk: Path) -> None:
        """Its disk is full while it trains, and still when it is started again."""
        process = self.after_a_save()
        fill(disk / "filler")
        self.refused(process, (1, 2), "room", "space")
        self.refused(self.start(), (1, 2), "room", "space")
        (disk / "filler").unlink()

    def begun_without(self, data: Path) -> None:
        """Its data are gone when it begins."""
        data.rename(data.with_suffix(".away"))
        self.refused(self.start(), (2,), str(data))
        data.with_suffix(".away").rename(data)

    def robbed_of(self, data: Path) -> None:
        """Its data go while it trains."""
        process = self.after_a_save()
        data.rename(data.with_suffix(".away"))
        self.refused(process, (2,), str(data))
        data.with_suffix(".away").rename(data)

    def refused(self, process: subprocess.Popen, codes: tuple[int, ...], *words: str) -> None:
        """It ends with one line that has one of the words."""
        code, _, err = self.end(process)
        assert code in codes and err.count("\n") == 1 and any(word in err for word in words), (code, err)


def fill(path: Path) -> None:
    """A file as large as the disk has room for."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


@pytest.fixture(params=["resident", "stream"])
def straight(request, tmp_path, points, environment):
    """A run that nothing befalls."""
    argv = ["train", f"--config={SURVIVOR}:{request.param}", f"--config.data.path={points}"]
    run = Victim(tmp_path / "straight", argv, environment)
    run.undisturbed()
    return run


def another(straight: Victim, folder: Path) -> Victim:
    return Victim(folder, straight.argv[3:-1], straight.environment, straight.pace)


def finish(run: Victim, straight: Victim) -> None:
    code, out, _ = run.end(run.start())
    assert code == 0, out
    same(run.folder, straight.folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_survives(straight, tmp_path, points):
    run = another(straight, tmp_path / "run")
    events = [run.killed] * KILLS + [run.stopped, lambda: run.begun_without(points)]
    if "stream" in straight.argv[4]:  # the other has read all
        events.append(lambda: run.robbed_of(points))
    run.random.shuffle(events)
    events.insert(len(events) // 2, run.truncated)
    for event in events:
        event()
    finish(run, straight)
    assert len(list(run.folder.glob("damaged-*"))) == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of eight megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_survives_a_full_disk(straight, small_disk):
    run = another(straight, small_disk / "run")
    for _ in range(4):
        run.filled(small_disk)
    finish(run, straight)


# -- one trainer at a time, and how it is told to end --------------------------------------------------


def test_the_lock_goes_with_the_process_that_holds_it(tmp_path, points, environment, capsys):
    """Killed, it leaves the file and not the lock. Seven seconds."""
    argv = ["train", f"--config={SURVIVOR}", f"--config.data.path={points}"]
    first = Victim(tmp_path / "run", argv, environment)
    process = first.after_a_save()
    process.send_signal(signal.SIGSTOP)  # it does not end meanwhile
    assert main(["train", f"--workdir={first.folder}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"lmlab train: {first.folder} is being trained by another process; name another --workdir"
    process.kill()
    assert first.end(process)[0] == -signal.SIGKILL
    assert (first.folder / "lock").exists() and not runs_lib.is_locked(first.folder)
    assert lmlab.train("", first.folder, {"checkpoint.every": "0"}).finished


SLOW_TO_SAVE = """
import sys, time
from orbax.checkpoint import StandardCheckpointHandler
from lmlab.__main__ import main

def finalize(self, directory):
    print("saving", flush=True)
    time.sleep(3600)

StandardCheckpointHandler.finalize = finalize
sys.exit(main(sys.argv[1:]))
"""


def test_a_second_ctrl_c_ends_a_run_that_saves_after_the_first(tmp_path, points, environment):
    """At once and with a line; what was half saved is no checkpoint. Seven seconds."""
    folder = tmp_path / "run"
    begun = lmlab.train(f"{SURVIVOR}", folder, {"data.path": str(points), "duration": "4 steps"})
    slow = Victim(folder, ["--config.duration=10000000 steps", "--config.checkpoint.every=0"], environment)
    slow.argv[1:3] = ["-c", SLOW_TO_SAVE, "train"]
    process = slow.start()
    while metrics.read(folder / "metrics.jsonl")[-1]["step"] == 4:
        assert process.poll() is None, slow.end(process)
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    while (line := process.stdout.readline()) != "saving\n":
        assert line, slow.end(process)  # an evaluation may still tell its score
    process.send_signal(signal.SIGTERM)
    time.sleep(1)  # of two at once the second may go to another thread, and the first sleep on
    assert process.poll() is None, "it saves as it was told to"
    process.send_signal(signal.SIGINT)
    code, _, err = slow.end(process)
    assert (code, err) == (130, "lmlab train: interrupted; nothing was saved since the last checkpoint\n")
    assert list((folder / "checkpoints").glob("*tmp*")) and not runs_lib.is_locked(folder)
    step, variables = lmlab.load(folder).at()
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, variables, begun.variables)


# -- sweeps -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_survives(tmp_path, points, environment):
    """Its launcher is killed over and over, and now and then a run first."""
    axes = ["--grid=variant=resident,stream", "--seeds=2", "--jobs=2", "--retry_failed"]
    argv = ["sweep", f"--config={SURVIVOR}", f"--config.data.path={points}", *axes]
    straight = Victim(tmp_path / "straight", argv, environment)
    straight.undisturbed()
    sweep = Victim(tmp_path / "sweep", argv, environment, straight.pace)
    for number in range(KILLS // 2):
        sweep.killed(below=number % 4 == 3)
    code, out, _ = sweep.end(sweep.start())
    assert code == 0 and "4 runs: 4 done" in out
    for cell in grid.read(sweep.folder)["cells"]:
        same(sweep.folder / cell.name, straight.folder / cell.name)
