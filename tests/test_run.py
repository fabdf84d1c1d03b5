"""What can be asked of a run from Python: lmlab.train, lmlab.load, and the directory behind them."""

import datetime
import hashlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

import lmlab
from lmlab import provenance
from lmlab import run as runs_lib

ROOT = Path(__file__).parents[1]
LINE = ROOT / "tests" / "papers" / "line.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that no test changes."""
    folder = tmp_path_factory.mktemp("runs") / "line"
    return lmlab.train(f"{LINE}:demo", folder, {"seed": 3, "checkpoint.best": "validation/loss"})


@pytest.fixture
def copy(tmp_path):
    """(a run, the experiment file it was made by): both to be changed at will."""
    path = shutil.copy(LINE, tmp_path / "line.py")
    return lmlab.train(f"{path}:demo", tmp_path / "run"), Path(path)


def test_trained_and_loaded_runs_are_the_same(trained):
    loaded = lmlab.load(trained.folder)
    assert loaded.config.to_dict() == trained.config.to_dict() and loaded.config.seed == 3
    assert (loaded.name, loaded.variant, loaded.spec) == ("line", "demo", f"{LINE}:demo")
    assert repr(loaded) == f"Run('{trained.folder}', {LINE}:demo)"
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, trained.variables)
    assert loaded.metrics().equals(trained.metrics())


def test_metrics_are_a_table_of_a_row_a_step(trained):
    table = trained.metrics()
    assert table["step"].tolist() == [2, 3, 4, 6]
    assert table.set_index("step")["validation/loss"].dropna().index.tolist() == [3, 6]
    assert table.set_index("step")["train/loss"].dropna().index.tolist() == [2, 4, 6]
    assert (table["examples"] == 8 * table["step"]).all()
    assert "test/loss" not in table, "held out while training"


def test_training_follows_the_slope(trained):
    """Six steps of gradient descent, written out."""
    x = np.random.default_rng(0).normal(size=48).astype(np.float32)[:32]
    source = trained.experiment.train_data()
    w = b = 0.0
    for step in range(6):
        chosen = x[np.asarray(source.indices(step, xp=np)[1])]
        error = w * chosen + b - (2 * chosen + 1)
        w, b = w - 0.1 * 2 * (error * chosen).mean(), b - 0.1 * 2 * error.mean()
    params = trained.variables["params"]
    np.testing.assert_allclose([params["w"], params["b"]], [w, b], rtol=1e-5)


def test_variables_of_a_step_of_the_best_and_of_the_newest(trained):
    assert set(trained.checkpoints.steps) >= {4, 6}
    assert trained.at()[0] == 6
    table = trained.metrics().set_index("step")["validation/loss"]
    assert trained.at("best")[0] == table.idxmin()
    earlier = trained.at(4)
    assert earlier[0] == 4
    assert earlier[1]["params"]["w"] != trained.variables["params"]["w"]
    with pytest.raises(ValueError, match=r"no checkpoint of step 5; it has \["):
        trained.at(5)


def test_best_must_have_been_kept(copy):
    with pytest.raises(ValueError, match="keeps no best checkpoint"):
        copy[0].at("best")


def test_run_json_explains_the_run(trained):
    record = json.loads((trained.folder / "run.json").read_text())
    assert record == trained.record
    assert Path(record["experiment"]) == LINE and record["variant"] == "demo"
    assert record["sha256"] == hashlib.sha256(LINE.read_bytes()).hexdigest()
    assert record["overrides"] == {"seed": 3, "checkpoint.best": "validation/loss"}
    assert record["precision"] == "float32" and record["devices"] == "8 x cpu"
    assert record["versions"]["jax"] == importlib.metadata.version("jax")
    assert set(record["versions"]) == set(provenance.PACKAGES)
    assert re.fullmatch(r"([0-9a-f]{12}(\+changes)?)?", record["git_commit"])
    assert datetime.datetime.fromisoformat(record["when"]).tzinfo is not None
    assert record["host"]["cores"] >= 1 and record["changes"] == []


def test_the_directory_holds_what_it_says(trained):
    held = {path.name for path in trained.folder.iterdir()}
    assert {"config.json", "run.json", "metrics.jsonl", "tensorboard", "checkpoints", "assets"} <= held
    assert json.loads((trained.folder / "config.json").read_text())["seed"] == 3
    assert json.loads((trained.folder / "assets" / "slope.json").read_text()) == {"slope": 2.0}
    assert {path.parent.name for path in trained.folder.glob("evaluations/*/validation.npz")} == {"3", "6"}


def test_samples_are_a_function_of_the_seed_and_the_options(trained):
    first = trained.sample(seed=1, count=3)
    assert len(first.texts) == 3 and first.texts == trained.sample(seed=1, count=3).texts
    assert first.texts != trained.sample(seed=2, count=3).texts
    assert trained.sample(seed=1, count=3, loud=True).texts == [text.upper() for text in first.texts]
    assert trained.sample(seed=1, count=3, checkpoint=4).texts != first.texts
    with pytest.raises(TypeError, match="colour"):
        trained.sample(colour="red")
    with pytest.raises(ValueError, match="scale must be above 0, received -1"):
        trained.sample(scale=-1.0)


def test_what_has_no_sampler_cannot_be_sampled_from(tmp_path):
    run = lmlab.train(f"{LINE}:silent", tmp_path / "run", {"duration": "1 step"})
    with pytest.raises(ValueError, match=r"line\.py cannot be sampled from"):
        run.sample()


def test_evaluate_reads_the_held_out_split_and_can_leave_it(trained):
    scores = trained.evaluate()
    assert set(scores) == {"validation/loss", "test/loss"}
    assert set(trained.evaluate(held_out=False)) == {"validation/loss"}
    last = trained.metrics()["validation/loss"].iloc[-1]
    np.testing.assert_allclose(scores["validation/loss"], last, rtol=1e-6)
    assert trained.evaluate(checkpoint=4)["validation/loss"] != scores["validation/loss"]


def test_arrays_are_those_kept_last_or_made_now(copy):
    run, _ = copy
    x = np.random.default_rng(0).normal(size=48).astype(np.float32)
    errors = 2 * x + 1 - float(run.variables["params"]["b"])
    np.testing.assert_allclose(run.arrays("validation")["errors"], errors[32:40], rtol=1e-5)
    assert not list(run.folder.glob("evaluations/*/test.npz"))
    np.testing.assert_allclose(run.arrays("test")["errors"], errors[40:], rtol=1e-5)
    assert list(run.folder.glob("evaluations/6/test.npz"))


def test_figures_of_one_run_and_of_several(trained, copy):
    assert list(trained.figures()) == ["loss"]
    assert list(runs_lib.figures([trained, copy[0]])) == ["loss"]


def test_figures_are_of_one_experiment(trained, tmp_path):
    path = shutil.copy(LINE, tmp_path / "other.py")
    other = lmlab.train(str(path), tmp_path / "run", {"duration": "1 step"})
    with pytest.raises(ValueError, match=r"one experiment; received .*line\.py:demo and .*other\.py"):
        runs_lib.figures([trained, other])


def test_without_its_experiment_file_a_run_still_tells_its_metrics(copy):
    run, path = copy
    path.unlink()
    alone = lmlab.load(run.folder)
    assert alone.metrics()["step"].iloc[-1] == 6 and alone.config.duration == "6 steps"
    for ask in (alone.evaluate, alone.sample, alone.figures):
        with pytest.raises(FileNotFoundError) as error:
            ask()
        assert str(path) in str(error.value) and "not there" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_changed_experiment_file_is_told(copy, capsys):
    run, path = copy
    path.write_text(path.read_text() + "\n# another thought\n")
    expected = lmlab.load(run.folder).evaluate()
    told = capsys.readouterr().err
    assert told.count("warning") == 1 and str(path) in told and "has changed" in told
    assert expected.keys() == {"validation/loss", "test/loss"}
    longer = lmlab.train("", run.folder, {"duration": "7 steps"})
    assert "has changed" in capsys.readouterr().err
    now = hashlib.sha256(path.read_bytes()).hexdigest()
    assert longer.record["changes"][0]["sha256"] == [run.record["sha256"], now]
    longer.evaluate()
    assert capsys.readouterr().err == "", "the change is recorded: it is told once"


def test_a_run_goes_on_for_longer_and_remembers_what_changed(copy):
    run, _ = copy
    before = run.metrics()
    longer = lmlab.train("", run.folder, {"duration": "8 steps", "log_every": "1"})
    assert longer.config.duration == "8 steps" and longer.at()[0] == 8
    assert longer.metrics()["step"].tolist() == [2, 3, 4, 6, 7, 8]
    assert longer.metrics()["train/loss"][:4].equals(before["train/loss"])
    (change,) = longer.record["changes"]
    assert change["duration"] == ["6 steps", "8 steps"] and change["log_every"] == ["2", "1"]
    straight = lmlab.train(run.spec, run.folder.parent / "straight", {"duration": "8 steps"})
    jax.tree.map(np.testing.assert_array_equal, straight.variables, longer.variables)
    again = lmlab.train("", run.folder)
    assert again.config.duration == "8 steps" and len(again.record["changes"]) == 1
    assert again.metrics().equals(longer.metrics()), "nothing was left to do"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"seed": 1}, "seed: 3 there, 1 here"),
        (
            {"data.slope": 3.0, "model.power": 2},
            "data.slope: 2.0 there, 3.0 here; model.power: 1 there, 2 here",
        ),
        ({"duration": "5 steps"}, "may only grow: '6 steps' there, '5 steps' here"),
    ],
)
def test_a_run_goes_on_as_it_was(trained, overrides, told):
    before = {path: path.read_bytes() for path in trained.folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError) as error:
        lmlab.train("", trained.folder, overrides)
    assert told in str(error.value)
    assert {path: path.read_bytes() for path in trained.folder.rglob("*") if path.is_file()} == before


def test_a_run_keeps_its_assets(copy):
    """The slope was fixed at the start: the run decodes with it whatever would be made today."""
    run, _ = copy
    before = run.evaluate()
    (run.folder / "assets" / "slope.json").write_text('{"slope": 9.0}')
    assert lmlab.load(run.folder).evaluate()["validation/loss"] > before["validation/loss"] + 1


def test_find_takes_a_run_or_a_folder_of_runs(trained, copy, tmp_path):
    assert [run.folder for run in runs_lib.find(trained.folder)] == [trained.folder]
    assert [run.folder for run in runs_lib.find(tmp_path)] == [copy[0].folder]
    with pytest.raises(FileNotFoundError, match="no directory"):
        runs_lib.find(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no run"):
        runs_lib.find(tmp_path / "empty")


def test_what_is_no_run_is_not_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run \(no run\.json\)"):
        lmlab.load(tmp_path)


def test_training_from_python_reads_no_flags(trained):
    assert not flags.FLAGS.is_parsed()


def test_importing_lmlab_imports_no_jax_and_parses_no_flags():
    program = (
        "import sys; sys.argv = ['x', '--config=none', '--nonsense']\n"
        "import lmlab, lmlab.__main__, lmlab.config, lmlab.experiment, lmlab.run, absl.flags\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'matplotlib', 'pandas', 'tensorflow_datasets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert not absl.flags.FLAGS.is_parsed()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_experiment_is_read_without_what_only_its_figures_need():
    program = (
        "import sys\n"
        "from lmlab import config\n"
        "_, module = config.load('experiments/gpt_char.py:demo')\n"
        "late = {'matplotlib', 'pandas', 'orbax', 'tensorboardX', 'grain', 'tensorflow_datasets', 'torch'}\n"
        "assert not late & set(sys.modules), late & set(sys.modules)\n"
        "assert module.curves.LOSSES and 'matplotlib' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_has_one_trainer_at_a_time(tmp_path):
    spec, short = "experiments/autoencoder.py:demo", {"duration": "2 steps", "parallel.data": 1}
    lmlab.train(spec, tmp_path / "run", short)
    with (
        lmlab.run.locked(tmp_path / "run"),
        pytest.raises(ValueError, match="is being trained by another process"),
    ):
        lmlab.train(spec, tmp_path / "run", {**short, "duration": "4 steps"})
    assert lmlab.train(spec, tmp_path / "run", {**short, "duration": "4 steps"}).finished  # the lock is gone


def test_figures_are_of_the_newest_checkpoint(tmp_path):
    spec, short = "experiments/autoencoder.py:demo", {"duration": "2 steps", "parallel.data": 1}
    first = lmlab.train(spec, tmp_path / "run", short).arrays("test")
    second = lmlab.train(spec, tmp_path / "run", {**short, "duration": "40 steps"}).arrays("test")
    assert (first["output"] != second["output"]).any()
    with pytest.raises(ValueError, match="no evaluation 'tset' keeps arrays; those that do: test"):
        lmlab.load(tmp_path / "run").arrays("tset")


def test_what_may_change_stays_unless_said_anew(tmp_path):
    spec, short = "experiments/autoencoder.py:demo", {"duration": "2 steps", "parallel.data": 1}
    lmlab.train(spec, tmp_path / "run", {**short, "checkpoint.keep": 7})
    again = lmlab.train(spec, tmp_path / "run", {"duration": "4 steps"})
    assert again.config.checkpoint.keep == 7 and again.config.parallel.data == 1


def test_damaged_files_of_a_run_are_named(tmp_path):
    spec, short = "experiments/autoencoder.py:demo", {"duration": "2 steps", "parallel.data": 1}
    lmlab.train(spec, tmp_path / "run", short)
    (tmp_path / "run/config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        lmlab.load(tmp_path / "run")


def test_a_run_json_that_lacks_what_a_run_is_made_of_is_told(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "run.json").write_text('{"variant": "", "sha256": ""}')
    with pytest.raises(ValueError, match=r"run\.json is damaged: it lacks experiment, overrides$"):
        lmlab.load(tmp_path)
