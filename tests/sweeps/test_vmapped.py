"""A sweep as one program: each run is what it would be alone. A minute on two cores."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import lmlab
from lmlab import config as configs
from lmlab import experiment
from lmlab.__main__ import main
from lmlab.run import Start
from lmlab.sweeps import grid, vmapped
from lmlab.sweeps.grid import Cell
from lmlab.sweeps.program import Group, Program, stacked
from lmlab.training import loop
from lmlab.training.checkpoint import Checkpoints
from lmlab.training.record import NotFinite
from lmlab.training.signals import Stopped
from tests.test_experiments import EACH, small
from tests.training import test_checkpoint

ROOT = Path(__file__).parents[2]
SWEPT = ROOT / "tests" / "papers" / "swept.py"
VALUES = {  # of eight runs, all different
    "optimizer.learning_rate": np.geomspace(1e-3, 3e-2, 8),
    "optimizer.weight_decay": np.linspace(0.01, 0.3, 8),
    "model.dropout": np.linspace(0.05, 0.7, 8),
    "beta": np.linspace(0.1, 2, 8),
    "seed": [0, 1, 2, 3, 2**32 - 1, 7, 0, 0],
}


def cells(*changes, variant="demo", **common):
    return [Cell(f"run{i}", f"{SWEPT}:{variant}", {**common, **change}) for i, change in enumerate(changes)]


def rows_of(values):
    """[{key: value}] of {key: values}, in plain numbers."""
    return [
        {key: type(np.asarray(column).tolist()[0])(column[i]) for key, column in values.items()}
        for i in range(len(next(iter(values.values()))))
    ]


def close(a, b, tolerance):
    for (name, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(name))


def logged(run):
    """metrics.jsonl without what a clock says."""
    return run.metrics().drop(columns=["seconds", "speed/examples_per_second"])


def saved(run):
    """All of the newest checkpoint, as a trainer of that run alone restores it."""
    trainer = loop.Trainer(run.module.build(run.config, run.assets), run.config)
    checkpoints = Checkpoints(run.folder / "checkpoints", read_only=True)
    return checkpoints.restore(trainer.layout.abstract(trainer.make))


def same(workdir, cell, tolerance, reference):
    """Whether a run of a sweep is that of `reference`, its directory to the last file."""
    run, alone = lmlab.load(workdir / cell.name), lmlab.load(reference)
    table, expected = logged(run), logged(alone)
    assert list(table) == list(expected)
    np.testing.assert_allclose(table, expected, rtol=tolerance)
    (state, kept), (wanted, told) = saved(run), saved(alone)
    close(state, wanted, tolerance)
    assert kept["unlogged"] == told["unlogged"] and kept["sums"].keys() == told["sums"].keys()
    assert run.config.to_dict() == alone.config.to_dict()
    assert (run.checkpoints.steps, run.finished) == (alone.checkpoints.steps, True)
    own = {"when", "command"}
    assert {k: v for k, v in run.record.items() if k not in own} == {
        k: v for k, v in alone.record.items() if k not in own
    }

    def files(folder):
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return {name for name in names if not name.startswith(("checkpoints/", "tensorboard/"))}

    assert files(run.folder) == files(alone.folder)
    for name in files(run.folder):
        if name.startswith("evaluations/"):
            with np.load(run.folder / name) as a, np.load(alone.folder / name) as b:
                assert a.files == b.files
                for key in a.files:
                    np.testing.assert_allclose(a[key], b[key], rtol=tolerance)


def trained_alone(folder, cell):
    lmlab.train(cell.spec, folder / cell.name, cell.overrides)
    return folder / cell.name


@pytest.mark.parametrize("extra", [{}, {"accumulate": 2, "ema": 0.9}], ids=["plain", "accumulated"])
def test_each_run_is_what_it_would_be_alone(tmp_path, extra):
    """Whatever varies varies at once; the runs are dealt out to the eight devices that tests have."""
    eight = cells(*rows_of(VALUES), **extra)
    vmapped.launch(tmp_path / "sweep", eight)
    for cell in eight[::3]:
        assert grid.status(tmp_path / "sweep", cell) == "done"
        same(tmp_path / "sweep", cell, 1e-6, trained_alone(tmp_path / "alone", cell))
    losses = [lmlab.load(tmp_path / "sweep" / cell.name).metrics()["train/loss"].iloc[-1] for cell in eight]
    assert len(set(losses)) == 8


def test_fifty_steps_agree_in_float64(tmp_path):
    """Float32 drifts apart by rounding; in float64 a difference of meaning would show."""
    two = cells(*rows_of(VALUES)[:6:5], variant="double", duration="50 steps", log_every="10")
    with jax.enable_x64(True):
        vmapped.launch(tmp_path / "sweep", two)
        for cell in two:
            alone = trained_alone(tmp_path / "alone", cell)
            assert jax.tree.leaves(lmlab.load(alone).variables)[0].dtype == np.float64
            same(tmp_path / "sweep", cell, 1e-9, alone)


def test_what_differs_otherwise_makes_programs_of_its_own(tmp_path, capsys):
    asked = cells(
        {"seed": 0},
        {"model.features": 8},
        {"seed": 1, "beta": 1.0},
        {"optimizer.weight_decay": 0.0},
        {"model.features": 8, "seed": 1},
        {"optimizer.weight_decay": 0.0, "beta": 2.0},
        {"model.dropout": 0.0},
        {"duration": "4 steps"},
    )
    vmapped.launch(tmp_path / "sweep", asked)
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("program")] == [
        f"program {i} of 5, runs: {runs}" for i, runs in enumerate((2, 2, 2, 1, 1), 1)
    ]
    for cell in (asked[4], asked[5]):
        same(tmp_path / "sweep", cell, 1e-6, trained_alone(tmp_path / "alone", cell))


def test_a_program_is_no_larger_than_asked_for(tmp_path, capsys):
    vmapped.launch(tmp_path, cells(*({"seed": i} for i in range(3)), duration="1 step"), together=2)
    assert "program 1 of 2, runs: 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--together: received -1; allowed: 1 or more, or 0 for all"):
        vmapped.launch(tmp_path, [], together=-1)


def test_data_are_read_once_a_group(tmp_path):
    four = cells(*({"seed": i, "optimizer.learning_rate": 10.0**-i} for i in range(1, 5)))
    opened = experiment.load_module(SWEPT).OPENED
    opened.clear()
    vmapped.launch(tmp_path, four)
    assert opened == ["train", "validation", "validation"], "one for each evaluation"


def test_data_are_arguments_of_the_program(tmp_path):
    """Not constants in it, which would be compiled into each program and kept by the compiler's cache."""
    starts = [
        Start(cell.spec, tmp_path / cell.name, cell.overrides) for cell in cells({"seed": 0}, {"seed": 1})
    ]
    program = Program(group := Group(starts), group.lanes)
    assert program.layout.num_devices == 2, "runs are dealt out"
    state, sums = program.layout.create(program.make), program.metric_shapes
    run = program.layout.compile(program.step, program.source, program.make)
    text = run.lower(state, sums, program.source.data, np.int32(1)).as_text()
    assert group.source.data["x"].nbytes > 60_000 > 10 * max(map(len, text.splitlines()))


@pytest.fixture
def stop(monkeypatch):
    """`stop(step)`: SIGTERM comes when that step is done."""

    def at(step):
        advance, done = loop.Progress.advance, []

        def counted(self, steps):
            advance(self, steps)
            done.append(steps)
            if sum(done) == step:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(loop.Progress, "advance", counted)

    yield at
    monkeypatch.undo()


unawaited = test_checkpoint.unawaited
CUT = {"duration": "8 steps", "log_every": "5", "evaluate_every": "4", "checkpoint.every": "2"}


@pytest.mark.parametrize("step", [1, 6])
def test_a_signal_saves_all_and_a_second_start_goes_on(tmp_path, stop, monkeypatch, step):
    """Amid a log interval. The runs are then bitwise those that were never stopped."""
    three = cells({"seed": 0}, {"seed": 1}, {"beta": 1.0}, **CUT)
    vmapped.launch(tmp_path / "straight", three)
    stop(step)
    with pytest.raises(Stopped) as stopped:
        vmapped.launch(tmp_path / "cut", three)
    assert stopped.value.args == (signal.SIGTERM, step)
    assert {grid.status(tmp_path / "cut", cell) for cell in three} == {"cut"}
    assert {lmlab.load(tmp_path / "cut" / cell.name).checkpoints.steps[-1] for cell in three} == {step}
    monkeypatch.undo()
    vmapped.launch(tmp_path / "cut", three)
    for cell in three:
        same(tmp_path / "cut", cell, 0, tmp_path / "straight" / cell.name)


def test_runs_at_different_steps_go_on_apart(unawaited, tmp_path, stop, monkeypatch, capsys):
    """One lost its newest checkpoint, one is new, one is done."""
    four = cells({"seed": 0}, {"seed": 1}, {"seed": 2}, {"seed": 3}, **CUT)
    stop(6)
    with pytest.raises(Stopped):
        vmapped.launch(tmp_path / "sweep", four[:2])
    monkeypatch.undo()
    vmapped.launch(tmp_path / "sweep", four[3:])
    test_checkpoint.damage(tmp_path / "sweep" / "run1" / "checkpoints" / "6")
    capsys.readouterr()
    before = (tmp_path / "sweep" / "run3" / "run.json").read_text()
    vmapped.launch(tmp_path / "sweep", four)
    assert "warning: checkpoint 6 is damaged" in capsys.readouterr().out
    assert (tmp_path / "sweep" / "run3" / "run.json").read_text() == before, "it was done"
    for cell in (four[1], four[2]):
        alone = trained_alone(tmp_path / "alone", cell)
        state, wanted = (saved(lmlab.load(folder))[0] for folder in (tmp_path / "sweep" / cell.name, alone))
        close(state, wanted, 1e-6)


def test_one_that_diverges_fails_alone(tmp_path, capsys):
    """With the words of a run alone, which stops; the program does not."""
    rough = {"optimizer.name": "sgd", "optimizer.b1": 0.0, "optimizer.clip": 0.0, "checkpoint.every": "1"}
    rates = [{"optimizer.learning_rate": rate} for rate in (0.01, 1e30, 0.1)]
    three = cells(*rates, **rough, **{"optimizer.schedule": "constant"})
    vmapped.launch(tmp_path / "sweep", three)
    assert [grid.status(tmp_path / "sweep", cell) for cell in three] == ["done", "failed", "done"]
    with pytest.raises(NotFinite) as error:
        trained_alone(tmp_path / "alone", three[1])
    failure = json.loads((tmp_path / "sweep" / "run1" / "failure.json").read_text())
    assert (failure["code"], failure["line"]) == (1, f"lmlab train: {error.value}")
    assert f"run1 failed: {error.value}" in capsys.readouterr().out
    for cell in (three[0], three[2]):
        same(tmp_path / "sweep", cell, 1e-6, trained_alone(tmp_path / "alone", cell))
    record = json.loads((tmp_path / "sweep" / "run1" / "run.json").read_text())
    assert "done" not in record
    vmapped.launch(tmp_path / "again", [three[1]])  # none is left: it ends
    assert grid.status(tmp_path / "again", three[1]) == "failed"


def test_a_run_goes_on_alone(tmp_path):
    """`lmlab train` and `lmlab evaluate` find nothing in it that is of a sweep."""
    two = cells({"seed": 4, "beta": 1.0}, {"seed": 5})
    vmapped.launch(tmp_path / "sweep", two)
    folder = tmp_path / "sweep" / "run0"
    assert main(["train", f"--workdir={folder}", "--config.duration=9 steps"]) == 0
    lmlab.train(two[0].spec, tmp_path / "alone", {**two[0].overrides})
    longer = lmlab.train("", tmp_path / "alone", {"duration": "9 steps"})
    close(saved(lmlab.load(folder))[0], saved(longer)[0], 1e-6)
    assert main(["evaluate", f"--workdir={folder}"]) == 0


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        ("stream", r"its data are not picked within the step \(Stream\)"),
        ("fitted", r"its data are not picked within the step \(fit\)"),
        ("rollouts", r"its data are not picked within the step \(batch_fn\)"),
        ("by_seed", "seed, model.dropout cannot vary within a program, since a value is asked for"),
        ("by_key", r"its training data depend on what varies \(model.dropout, seed\)"),
        ("asked", "cannot vary within a program, since a value is asked for"),
    ],
)
def test_what_no_program_can_train_is_refused(tmp_path, variant, told):
    two = cells({"seed": 0}, {"seed": 1, "model.dropout": 0.3}, variant=variant)
    with pytest.raises(ValueError, match=told) as error:
        vmapped.launch(tmp_path / "sweep", two)
    assert "allowed: --launcher=local" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "sweep").exists()


def test_pmap_is_refused(tmp_path):
    two = cells({"seed": 0}, {"seed": 1}, **{"parallel.mode": "pmap", "parallel.data": 1})
    with pytest.raises(ValueError, match=r"parallel.mode: received 'pmap'; allowed: 'jit', or --launcher"):
        vmapped.launch(tmp_path / "sweep", two)


@pytest.mark.slow
def test_the_command(tmp_path):
    """In processes: stopped by SIGTERM, gone on with, stopped again."""
    flags = ["--launcher=vmap", "--grid=optimizer.learning_rate=1e-3,1e-2", "--seeds=2"]
    flags += ["--config.duration=3000000", "--config.log_every=1000"]
    flags += ["--config.evaluate_every=0", "--config.checkpoint.every=0"]
    command = [sys.executable, "-m", "lmlab", "sweep", f"--workdir={tmp_path}"]
    options = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE, "text": True}

    def rows():
        return [path.read_text().count("\n") for path in tmp_path.glob("*/metrics.jsonl")]

    def stopped(*more):
        """The one step at which all runs stand when it has been stopped."""
        before = max(rows(), default=0)
        with subprocess.Popen([*command, *more], cwd=ROOT, **options) as process:
            while not any(count > before for count in rows()):
                assert process.poll() is None
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=100)
        assert process.returncode == 75 and "stopped by SIGTERM: 4 cut" in out
        runs = [lmlab.load(path.parent) for path in tmp_path.glob("*/run.json")]
        (step,) = {run.checkpoints.steps[-1] for run in runs}
        return step

    first = stopped(f"--config={SWEPT}:demo", *flags)
    assert stopped() > first > 1000


# -- the experiments ----------------------------------------------------------------------------------


def varied(path):
    """Two runs of a demo, small, in which all that is called dynamic differs; (cells, what differs)."""
    overrides = small(path, "demo") | {"duration": "3 steps", "log_every": "1", "evaluate_every": "3"}
    config, module = configs.load(f"{path}:demo", overrides)
    dynamic = module.build(config, experiment.Assets()).dynamic
    assert set(dynamic) <= {key for key, _ in configs.leaves(config)}
    first = {key: configs.get(config, key) for key in dynamic}
    changes = {key: value * 0.5 for key, value in first.items() if value}
    return [
        Cell("run0", f"{path}:demo", overrides),
        Cell("run1", f"{path}:demo", {**overrides, "seed": 1} | changes),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", EACH)
def test_every_experiment_is_the_same_in_a_program(path, tmp_path):
    two = varied(path)
    try:
        vmapped.launch(tmp_path / "sweep", two)
    except ValueError as error:
        if "allowed: --launcher=local" not in str(error):
            raise
        pytest.skip(str(error))
    for cell in two:
        run, alone = (lmlab.load(f) for f in (tmp_path / "sweep" / cell.name, trained_alone(tmp_path, cell)))
        np.testing.assert_allclose(
            run.metrics().filter(like="train/"), alone.metrics().filter(like="train/"), rtol=1e-5
        )


def test_numbers_are_as_weak_as_python_numbers():
    """So that a float32 or a bfloat16 stays one, whatever multiplies it."""
    config, _ = configs.load(f"{SWEPT}:demo")
    values, _ = stacked([config, config], ["beta", "model.dropout"])
    assert (values["beta"].astype("bfloat16") * 1.0).dtype == "bfloat16"
    assert (jax.numpy.ones(2, "bfloat16") * values["beta"]).dtype == "bfloat16"
