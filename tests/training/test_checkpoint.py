"""What survives: the newest and the best, damage, other layouts, a full disk, kills at any moment."""

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.training.checkpoint import Checkpoints, DiskFull
from lmlab.training.loop import Trainer
from lmlab.training.state import State
from tests.training import toys
from tests.training.test_loop import equal, run

ROOT = Path(__file__).parents[2]


def state(step, value=1.0, size=4):
    params = {"w": jnp.full((size,), value)}
    return State(jnp.int32(step), params, {"m": jnp.zeros(size)}, {})


def test_the_newest_and_the_best_are_kept_and_nan_is_never_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, best="validation/loss")
    for step, loss in enumerate([5.0, 1.0, float("nan"), 3.0, 2.0, float("nan"), 4.0], start=1):
        checkpoints.save(state(step), {}, {"validation/loss": loss})
    checkpoints.close()
    again = Checkpoints(tmp_path, keep=2, best="validation/loss")
    assert again.best_step == 2
    assert again.steps == [2, 6, 7]


def test_a_save_without_the_metric_is_not_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=5, best="validation/loss")
    checkpoints.save(state(1), {}, {"validation/loss": 2.0})
    checkpoints.save(state(2), {}, {})
    checkpoints.wait()
    assert checkpoints.best_step == 1 and checkpoints.steps == [1, 2]


def test_memory_may_be_given_away_before_orbax_has_read_it(tmp_path, monkeypatch):
    """What is saved is the state of its step, though later steps wrote where it lay."""
    checkpoints, begin = Checkpoints(tmp_path), threading.Event()
    save = checkpoints.manager.save
    monkeypatch.setattr(
        checkpoints.manager, "save", lambda *args, **options: begin.wait(60) and save(*args, **options)
    )
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    now = state(1, value=1.0, size=100_000)
    checkpoints.save(now, {})
    for _ in range(3):
        now = jax.block_until_ready(step(now))
    begin.set()
    checkpoints.wait()
    assert checkpoints.variables()[0] == 1
    assert (checkpoints.variables()[1]["params"]["w"] == 1.0).all() and float(now.params["w"][0]) == 4.0


def test_a_save_that_fails_as_it_begins_is_reported_by_the_next(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)

    def fail(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.manager, "save", fail)
        checkpoints.save(state(1), {})
        with pytest.raises(DiskFull, match="no room for a checkpoint"):
            checkpoints.save(state(2), {})
    checkpoints.save(state(3), {})
    checkpoints.close()
    assert Checkpoints(tmp_path).steps == [3]


def test_what_else_a_save_fails_of_is_told_as_it_is(tmp_path, monkeypatch):
    checkpoints, error = Checkpoints(tmp_path), PermissionError(errno.EACCES, "Permission denied")

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(checkpoints.manager, "save", fail)
    checkpoints.save(state(1), {})
    with pytest.raises(PermissionError) as told:
        checkpoints.wait()
    assert told.value is error and error.__cause__ is None, "a cause of its own would have no end"


def damage(folder):
    """Cuts the largest file of a checkpoint short."""
    largest = max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 3])


@pytest.fixture
def unawaited():
    """Reading damage leaves coroutines of Orbax's behind that were never awaited: forgotten here, not later."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    yield
    gc.collect()
    sys.unraisablehook = hook


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(unawaited, tmp_path, capsys):
    straight = run(tmp_path / "straight")
    run(tmp_path / "hurt")
    damage(tmp_path / "hurt/checkpoints/6")
    again = run(tmp_path / "hurt")
    assert "checkpoint 6 is damaged" in capsys.readouterr().out
    equal(straight, again)
    assert Checkpoints(tmp_path / "hurt/checkpoints").steps == [2, 4, 6]  # made anew
    assert (tmp_path / "hurt/damaged-6").is_dir()


def test_sampling_steps_over_a_damaged_checkpoint_too(unawaited, tmp_path, capsys):
    run(tmp_path)
    damage(tmp_path / "checkpoints/6/variables")
    step, _ = Checkpoints(tmp_path / "checkpoints").variables()
    assert step == 4 and "damaged" in capsys.readouterr().out
    assert (tmp_path / "checkpoints/6").is_dir()  # reading moves nothing


def test_nothing_but_damage_is_an_error_of_one_line(unawaited, tmp_path):
    run(tmp_path, checkpoint={"every": "0"})
    damage(tmp_path / "checkpoints/6")
    with pytest.raises(RuntimeError, match=r"checkpoint 6 in .* cannot be read, nor one before it [^\n]*$"):
        run(tmp_path, duration="9 steps", checkpoint={"every": "0"})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"data": 1, "fsdp": 8}, {"data": 1}),
        ({"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}),
        ({"mode": "pmap", "data": 4}, {"data": 1}),
        ({"data": 8}, {"mode": "pmap", "data": 2}),
    ],
)
def test_a_run_goes_on_under_another_layout(tmp_path, before, after):
    run(tmp_path / "moved", duration="4 steps", parallel=before)
    moved = run(tmp_path / "moved", parallel=after)
    straight = run(tmp_path / "straight")
    for a, b in zip(jax.tree.leaves(moved.params), jax.tree.leaves(straight.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_parameters_alone_are_read_whatever_the_layout_was(tmp_path):
    config = toys.config(parallel={"data": 1, "fsdp": 8})
    kept = Trainer(toys.regression(config), config).run(tmp_path)
    step, variables = Checkpoints(tmp_path / "checkpoints").variables()
    assert step == 6 and set(variables) == {"params"}
    equal(jax.device_get(kept.params), variables["params"])


def test_sampling_takes_the_average_of_the_parameters(tmp_path):
    kept = run(tmp_path, ema=0.9)
    equal(kept.ema, Checkpoints(tmp_path / "checkpoints").variables()[1]["params"])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_with_one_line_and_keeps_the_last_good_checkpoint(small_disk):
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=10)
    rng = np.random.default_rng(0)
    with pytest.raises(DiskFull, match=r"no room for a checkpoint in .*; the last good one is kept"):
        for step in range(1, 10):
            kept = State(jnp.int32(step), {"w": jnp.asarray(rng.normal(size=40_000), jnp.float32)}, {}, {})
            checkpoints.save(kept, {})
            checkpoints.wait()
    good = Checkpoints(small_disk / "checkpoints", keep=10)
    assert good.steps == list(range(1, step))
    assert good.variables()[0] == step - 1


CHILD = """
import sys
from pathlib import Path
from tests.training import toys
from lmlab.training.loop import Trainer
config = toys.config(checkpoint={"every": "1 step", "keep": 2}, parallel={"data": 1})
config.duration = "60 steps"
config.log_every = "5 steps"
Trainer(toys.KINDS[sys.argv[2]](config), config).run(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("kind", ["dropout", pytest.param("stream", marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_as_if_never_killed(tmp_path, kind):
    """SIGKILL, several times, a save under way at nearly every moment: it saves at every step."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a kill might leave half of a program there
    command = [sys.executable, "-c", CHILD]
    rng = np.random.default_rng(0)
    killed = 0
    while killed < 3:
        child = subprocess.Popen(
            [*command, str(tmp_path / "killed"), kind], env=environment, stdout=subprocess.DEVNULL
        )
        newest = Checkpoints(tmp_path / "killed/checkpoints").steps[-1:] if killed else [0]
        while child.poll() is None and not _saved_after(
            tmp_path / "killed/checkpoints", newest[0] if newest else 0
        ):
            time.sleep(0.05)
        time.sleep(float(rng.uniform(0, 0.15)))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "it ended before it was killed"
        killed += 1
    for folder in ("killed", "straight"):
        subprocess.run(
            [*command, str(tmp_path / folder), kind], env=environment, check=True, stdout=subprocess.DEVNULL
        )
    states = [Checkpoints(tmp_path / folder / "checkpoints").variables() for folder in ("killed", "straight")]
    assert states[0][0] == states[1][0] == 60
    equal(states[0][1], states[1][1])


def _saved_after(folder, step):
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return any(name.isdigit() and int(name) > step for name in names)


def test_a_reader_leaves_a_save_under_way_alone(tmp_path):
    """What Orbax writes meanwhile has a temporary name; only the one who trains may clean it up."""
    run(tmp_path)
    under_way = tmp_path / "checkpoints/8.orbax-checkpoint-tmp"
    under_way.mkdir()
    reader = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert reader.variables()[0] == 6 and under_way.is_dir()
    Checkpoints(tmp_path / "checkpoints")
    deadline = time.monotonic() + 60
    while under_way.exists():  # Orbax cleans up at its own time
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_best_may_be_asked_of_another_metric_later(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=9, best="a/loss")
    for step, (a, b) in enumerate([(1.0, 3.0), (2.0, 1.0), (3.0, 2.0)], start=1):
        checkpoints.save(state(step), {}, {"a/loss": a, "b/loss": b})
    checkpoints.close()
    assert Checkpoints(tmp_path, best="a/loss", read_only=True).best_step == 1
    assert Checkpoints(tmp_path, best="b/loss", read_only=True).best_step == 2
