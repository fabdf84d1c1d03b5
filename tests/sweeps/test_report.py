"""`lmlab report` on runs made up on the disk and on real ones; every number beside pandas'. Half a minute."""

import csv
import json
import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from lmlab.__main__ import main
from lmlab.figures import settings
from lmlab.run import locked
from lmlab.sweeps import report
from lmlab.sweeps.ranking import Ranking
from tests.sweeps import made

RATE, POWER = "optimizer.learning_rate", "model.power"
RATES, POWERS, SEEDS = (0.001, 0.01, 0.1), (1, 2), 3


def numbers(rate, power, seed):
    """Validation losses of a run, three of them, the second the lowest."""
    end = np.random.default_rng([int(rate * 1000), power, seed]).uniform(0.2, 1.0)
    return (3 * end, 0.8 * end, end)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A sweep of 18 runs, all done, and its report."""
    folder = tmp_path_factory.mktemp("sweeps") / "line"
    grid = [f"{RATE}=0.001,0.01,0.1", f"{POWER}=1,2"]
    cells = made.sweep(folder, "--seeds=3", grid=grid, seeds=SEEDS)
    made.fill(folder, cells, lambda *values: made.curve(*numbers(*values), train_loss=(2.0, 1.0, 0.5)))
    assert main(["report", f"--workdir={folder}"]) == 0
    return folder


@pytest.fixture
def refused(capsys, tmp_path):
    """`refused(*flags, told)`: code 2, one line that holds `told`, no report."""

    def refused(*flags, told):
        capsys.readouterr()
        assert main(["report", *map(str, flags)]) == 2
        out, error = capsys.readouterr()
        assert error.count("\n") == 1 and told in error and not out, error
        assert not list(tmp_path.rglob("report"))

    return refused


@pytest.fixture
def table(tmp_path):
    """`table("runs")`: runs.csv of the report in tmp_path/sweep, every word as it is written."""

    def read(name):
        with (tmp_path / "sweep" / "report" / f"{name}.csv").open() as file:
            return list(csv.DictReader(file))

    return read


def expected():
    """The made-up numbers as a table of pandas'."""
    rows = [
        {RATE: rate, POWER: power, "seed": seed, "last": end, "low": low, "high": high}
        for rate in RATES
        for power in POWERS
        for seed in range(SEEDS)
        for high, low, end in [numbers(rate, power, seed)]
    ]
    return pd.DataFrame(rows)


# -- numbers --------------------------------------------------------------------------------------------


def test_groups_are_pandas_means_and_deviations(workdir):
    ours = pd.read_csv(workdir / "report" / "groups.csv").set_index([RATE, POWER])
    by = expected().groupby([RATE, POWER])
    theirs = by["last"].agg(["mean", "std", "count"]).sort_values("mean")
    assert list(ours.index) == list(theirs.index), "the best first"
    assert list(ours["rank"]) == [1, 2, 3, 4, 5, 6]
    loss = "validation/loss"
    np.testing.assert_allclose(ours[f"{loss} mean"], theirs["mean"], rtol=1e-12)
    np.testing.assert_allclose(ours[f"{loss} deviation"], theirs["std"], rtol=1e-12)
    np.testing.assert_allclose(ours[f"{loss} min mean"], by["low"].mean()[theirs.index], rtol=1e-12)
    np.testing.assert_allclose(ours[f"{loss} min deviation"], by["low"].std()[theirs.index], rtol=1e-12)
    assert (ours[f"{loss} n"] == 3).all() and (ours["runs"] == 3).all() and (ours["diverged"] == 0).all()
    assert (ours["train/loss mean"] == 0.5).all() and (ours["train/loss deviation"] == 0).all()


def test_runs_are_all_there_with_last_lowest_and_highest(workdir):
    ours = pd.read_csv(workdir / "report" / "runs.csv")
    theirs = expected().sort_values("last")
    assert (
        ours[[RATE, POWER, "seed"]].to_numpy().tolist() == theirs[[RATE, POWER, "seed"]].to_numpy().tolist()
    )
    for name, column in {"last": "last", "min": "low", "max": "high"}.items():
        np.testing.assert_allclose(ours[f"validation/loss {name}"], theirs[column], rtol=1e-12)
    assert set(ours["status"]) == {"done"} and set(ours["step"]) == {6} and set(ours["seconds"]) == {1.5}
    assert list(ours["rank"]) == list(range(1, 19))
    assert not any(name.startswith("speed/") for name in ours)


def test_curves_are_means_and_bands(workdir):
    drawn = pd.read_csv(workdir / "report" / "curves.csv")
    losses = np.array([numbers(0.1, 2, seed) for seed in range(SEEDS)])
    of = drawn[drawn["series"] == "learning_rate 0.1, power 2"]
    mean, deviation = losses.mean(axis=0), losses.std(axis=0, ddof=1)
    low, high = (
        np.maximum(mean - deviation, losses.min(axis=0)),
        np.minimum(mean + deviation, losses.max(axis=0)),
    )
    for kind, values in {"line": mean, "band low": low, "band high": high}.items():
        rows = of[of["kind"] == kind]
        assert list(rows["x"]) == [2, 4, 6]
        np.testing.assert_allclose(rows["y"], values, rtol=1e-9)
    best = expected().groupby([RATE, POWER])["last"].mean().sort_values()
    names = [f"learning_rate {settings.written(rate)}, power {power}" for rate, power in best.index]
    assert list(dict.fromkeys(drawn[drawn["kind"] == "line"]["series"])) == names, "the best first"


def test_the_heat_map_holds_the_means(workdir):
    drawn = pd.read_csv(workdir / "report" / "heatmap.csv")
    means = expected().groupby([POWER, RATE])["last"].mean().unstack()
    ours = drawn.pivot(index="row", columns="column", values="value")
    np.testing.assert_allclose(ours, means, rtol=1e-9)


def test_axes_choose_and_turn_the_heat_map(workdir, tmp_path):
    flags = [f"--workdir={workdir}", f"--output={tmp_path}"]
    assert main(["report", *flags, f"--axes={POWER},{RATE}"]) == 0
    drawn = pd.read_csv(tmp_path / "heatmap.csv").pivot(index="row", columns="column", values="value")
    means = expected().groupby([RATE, POWER])["last"].mean().unstack()
    np.testing.assert_allclose(drawn, means, rtol=1e-9)
    assert main(["report", *flags, f"--axes={RATE}"]) == 0
    drawn = pd.read_csv(tmp_path / "axis.csv")
    means = expected().groupby(RATE)["last"].mean()
    line = drawn[(drawn["kind"] == "line") & (drawn["series"] == "mean")]
    np.testing.assert_allclose(line["x"], means.index)
    np.testing.assert_allclose(line["y"], means, rtol=1e-9)


def test_the_terminal_shows_settings_best_first(workdir, tmp_path, capsys):
    capsys.readouterr()
    assert main(["report", f"--workdir={workdir}", f"--output={tmp_path / 'here'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"line:demo in {workdir}, 18 runs: 18 done"
    assert lines[2].split("  ")[0] == "rank" and "validation/loss, last" in lines[2]
    best = expected().groupby([RATE, POWER])["last"].agg(["mean", "std"]).sort_values("mean").iloc[0]
    rate, power = best.name
    told = f"{best['mean']:#.5g} ± {best['std']:.2g}"
    assert lines[3].split()[:3] == ["1", f"{rate:g}", f"{power:g}"] and told in lines[3]
    one = expected().sort_values("last").iloc[0]
    name = f"learning_rate={one[RATE]:g},power={one[POWER]:g},seed={one['seed']:g}"
    assert f"best run: {name}, validation/loss {one['last']:#.5g}" in lines
    assert lines[-1].startswith(f"written: {tmp_path / 'here' / 'index.html'}")
    written = {path.name for path in (tmp_path / "here").iterdir()}
    pictures = {f"{name}.{kind}" for name in ("curves", "heatmap") for kind in ("png", "pdf", "csv")}
    assert written == {"index.html", "runs.csv", "groups.csv", *pictures}


def test_the_highest_may_be_the_best(workdir, tmp_path):
    assert main(["report", f"--workdir={workdir}", f"--output={tmp_path}", "--mode=max"]) == 0
    runs, groups = pd.read_csv(tmp_path / "runs.csv"), pd.read_csv(tmp_path / "groups.csv")
    theirs = expected().sort_values("last", ascending=False)
    np.testing.assert_allclose(runs["validation/loss last"], theirs["last"])
    by = expected().groupby([RATE, POWER])
    means = by["last"].mean().sort_values(ascending=False)
    np.testing.assert_allclose(groups["validation/loss mean"], means)
    np.testing.assert_allclose(groups["validation/loss max mean"], by["high"].mean()[means.index])


# -- how runs stand -------------------------------------------------------------------------------------


def test_what_is_not_done_is_listed_and_not_averaged(tmp_path, table, capsys):
    folder = tmp_path / "sweep"
    cells = made.sweep(folder, grid=[f"{RATE}=0.1,0.2,0.3,0.4"], seeds=2)
    done = {(0.1, 0): 0.5, (0.1, 1): 0.7, (0.2, 0): 0.4, (0.4, 1): 0.2}
    for values, end in done.items():
        made.run(folder / cells[values].name, cells[values].overrides, made.curve(2.0, end))
    failed, cut, running, lost = cells[0.2, 1], cells[0.3, 0], cells[0.3, 1], cells[0.4, 0]
    made.run(folder / failed.name, failed.overrides, made.curve(0.01), line="lmlab train: no room")
    made.run(folder / cut.name, cut.overrides, made.curve(0.01), done=False)
    made.run(folder / running.name, running.overrides, made.curve(0.01), done=False)
    line = "lmlab train: not finite within steps 1 to 2: loss = inf; there is no checkpoint yet"
    made.failure(folder / lost.name, line)
    with locked(folder / running.name):
        assert main(["report", f"--workdir={folder}"]) == 0
    runs = {(float(row[RATE]), int(row["seed"])): row for row in table("runs")}
    assert {values: row["status"] for values, row in runs.items()} == {
        **dict.fromkeys(done, "done"),
        (0.2, 1): "failed",
        (0.3, 0): "cut",
        (0.3, 1): "running",
        (0.4, 0): "diverged",
    }
    assert [row["rank"] for row in table("runs")] == ["1", "2", "3", "4", "", "", "", ""]
    assert list(runs)[:5] == [(0.4, 1), (0.2, 0), (0.1, 0), (0.1, 1), (0.4, 0)], "diverged after all done"
    assert runs[0.2, 1]["failure"] == "lmlab train: no room" and runs[0.4, 0]["failure"] == line
    groups = table("groups")
    assert [(float(row[RATE]), row["rank"]) for row in groups] == [
        (0.2, "1"),
        (0.1, "2"),
        (0.4, ""),
        (0.3, ""),
    ]
    assert [row["validation/loss n"] for row in groups] == ["1", "2", "1", "0"]
    assert [row["validation/loss mean"] for row in groups] == ["0.4", "0.6", "0.2", ""]
    assert groups[0]["validation/loss deviation"] == "", "of one run there is none"
    assert math.isclose(float(groups[1]["validation/loss deviation"]), np.std([0.5, 0.7], ddof=1))
    assert [row["diverged"] for row in groups] == ["0", "0", "1", "0"]
    out = capsys.readouterr().out
    assert "8 runs: 4 done, 1 diverged, 1 failed, 1 cut, 1 running" in out
    assert f"failed: {failed.name}: lmlab train: no room" in out and f"diverged: {lost.name}: {line}" in out
    lines = [line.split() for line in out.splitlines() if "0.40000" in line]
    assert lines[0][2] == "0.40000" and "±" not in lines[0]


def test_a_cell_that_never_began_is_new(tmp_path, table):
    cells = made.sweep(tmp_path / "sweep", grid=[f"{RATE}=0.1,0.2"])
    made.run(tmp_path / "sweep" / cells[(0.1,)].name, cells[(0.1,)].overrides, made.curve(2.0, 1.0))
    assert main(["report", f"--workdir={tmp_path / 'sweep'}"]) == 0
    assert [(row[RATE], row["status"]) for row in table("runs")] == [("0.1", "done"), ("0.2", "new")]


def test_where_nothing_is_done_there_is_a_report_without_pictures(tmp_path, table, capsys):
    cells = made.sweep(tmp_path / "sweep", grid=[f"{RATE}=0.1,0.2"])
    for values, cell in cells.items():
        made.run(tmp_path / "sweep" / cell.name, cell.overrides, made.curve(*values), done=False)
    assert main(["report", f"--workdir={tmp_path / 'sweep'}"]) == 0
    assert [row["validation/loss last"] for row in table("runs")] == ["0.1", "0.2"]
    assert [(row["rank"], row["validation/loss n"]) for row in table("groups")] == [("", "0"), ("", "0")]
    assert not list((tmp_path / "sweep" / "report").glob("*.png"))
    assert "2 runs: 2 cut" in capsys.readouterr().out


def test_equals_share_a_rank(tmp_path, table):
    cells = made.sweep(tmp_path / "sweep", grid=[f"{RATE}=0.1,0.2,0.3,0.4"])
    ends = {0.1: 0.5, 0.2: 0.7, 0.3: 0.5, 0.4: 0.9}
    made.fill(tmp_path / "sweep", cells, lambda rate: made.curve(2.0, ends[rate]))
    assert main(["report", f"--workdir={tmp_path / 'sweep'}"]) == 0
    told = [(row["rank"], row[RATE]) for row in table("runs")]
    assert told == [("1", "0.1"), ("1", "0.3"), ("3", "0.2"), ("4", "0.4")]
    assert [(row["rank"], row[RATE]) for row in table("groups")] == told


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_run_that_ends_on_nan_diverged(tmp_path, table, mode):
    cells = made.sweep(tmp_path / "sweep", grid=[f"{RATE}=0.1,0.2,0.3"])
    rows = {0.1: (0.9, None), 0.2: (2.0, 1.0), 0.3: (None, 1.5)}
    made.fill(tmp_path / "sweep", cells, lambda rate: made.curve(*rows[rate], train_loss=(1.0, 1.0)))
    assert main(["report", f"--workdir={tmp_path / 'sweep'}", f"--mode={mode}"]) == 0
    rows = table("runs")
    assert [row[RATE] for row in rows][-1] == "0.1" and rows[-1]["status"] == "diverged"
    assert rows[-1]["validation/loss last"] == "" and rows[-1]["validation/loss min"] == "0.9"
    assert {row["status"] for row in rows[:-1]} == {"done"}
    last = table("groups")[-1]
    assert (last[RATE], last["rank"], last["diverged"], last["validation/loss mean"]) == ("0.1", "", "1", "")
    assert ">diverged<" in (tmp_path / "sweep" / "report" / "index.html").read_text()


def test_a_real_sweep_in_which_one_run_diverges(tmp_path, table):
    folder = tmp_path / "sweep"
    flags = [f"--config={made.LINE}:demo", f"--workdir={folder}", f"--grid={RATE}=0.1,1e30", "--jobs=2"]
    environment = os.environ | {"PYTHONPATH": str(made.LINE.parents[2])}
    sweep = subprocess.run([sys.executable, "-m", "lmlab", "sweep", *flags], env=environment, timeout=200)
    assert sweep.returncode == 1, "one failed"
    assert main(["report", f"--workdir={folder}"]) == 0
    good, bad = table("runs")
    assert (good["status"], good["rank"]) == ("done", "1") and (bad["status"], bad["rank"]) == (
        "diverged",
        "",
    )
    assert "not finite within steps" in bad["failure"]
    rows = [json.loads(line) for line in (folder / good["run"] / "metrics.jsonl").read_text().splitlines()]
    losses = [row["validation/loss"] for row in rows if "validation/loss" in row]
    assert float(good["validation/loss last"]) == losses[-1]
    assert float(good["validation/loss min"]) == min(losses)
    assert int(good["step"]) == 6


# -- any folder of runs ---------------------------------------------------------------------------------


def test_without_a_sweep_what_varies_is_read_off_the_configurations(tmp_path, table):
    for rate in (0.1, 0.2):
        for seed in (0, 1):
            overrides = {RATE: rate, "seed": seed}
            made.run(tmp_path / "sweep" / f"{rate}" / f"{seed}", overrides, made.curve(2.0, 10 * rate + seed))
    assert main(["report", f"--workdir={tmp_path / 'sweep'}"]) == 0
    assert [(row[RATE], row["validation/loss mean"]) for row in table("groups")] == [
        ("0.1", "1.5"),
        ("0.2", "2.5"),
    ]
    assert {row["run"] for row in table("runs")} == {"0.1/0", "0.1/1", "0.2/0", "0.2/1"}
    assert set(table("runs")[0]) >= {RATE, "seed"} and POWER not in table("runs")[0]


def test_a_leaf_that_follows_the_variant_is_not_an_axis(tmp_path):
    made.run(tmp_path / "a", {}, made.curve(1.0))
    made.run(tmp_path / "b", {}, made.curve(2.0), variant="steep")  # with a slope of its own
    assert Ranking(tmp_path).keys == ["variant"]
    made.run(tmp_path / "c", {"data.slope": 3.0}, made.curve(3.0), variant="steep")
    assert set(Ranking(tmp_path).keys) == {"variant", "data.slope"}


def test_variants_are_an_axis_of_names(tmp_path, table):
    folder = tmp_path / "sweep"
    cells = made.sweep(folder, grid=["variant=steep;silent", f"{RATE}=0.1,0.2"], seeds=2)
    for values, cell in cells.items():
        variant = cell.spec.split(":")[1]
        ends = made.curve(2.0, 1.0 + values[1] + values[2] + (values[0] == "silent"))
        made.run(folder / cell.name, cell.overrides, ends, variant=variant)
    assert main(["report", f"--workdir={folder}"]) == 0
    assert [(row["variant"], row[RATE]) for row in table("groups")] == [
        ("steep", "0.1"),
        ("steep", "0.2"),
        ("silent", "0.1"),
        ("silent", "0.2"),
    ]
    drawn = pd.read_csv(folder / "report" / "heatmap.csv").pivot(
        index="row", columns="column", values="value"
    )
    np.testing.assert_allclose(drawn, [[1.6, 2.6], [1.7, 2.7]])


def test_one_run_is_a_report_too(tmp_path, capsys):
    made.run(tmp_path / "line", {}, made.curve(2.0, 1.0))
    assert main(["report", f"--workdir={tmp_path / 'line'}"]) == 0
    assert "1 run: 1 done" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "line" / "report").glob("*.png")}
    assert written == {"curves.png"}, "nothing varies: no heat map"


def test_many_settings_draw_the_best_eight(tmp_path):
    cells = made.sweep(tmp_path / "sweep", grid=[f"{RATE}={','.join(f'0.{i}' for i in range(1, 10))},1.0"])
    made.fill(tmp_path / "sweep", cells, lambda rate: made.curve(2.0, rate))
    assert main(["report", f"--workdir={tmp_path / 'sweep'}"]) == 0
    drawn = pd.read_csv(tmp_path / "sweep" / "report" / "curves.csv")
    assert list(dict.fromkeys(drawn["series"])) == [f"learning_rate 0.{i}" for i in range(1, 9)]
    assert "The best 8 of 10 settings" in (tmp_path / "sweep" / "report" / "index.html").read_text()


# -- which metric ---------------------------------------------------------------------------------------


def choose(tmp_path, **of):
    for name, metrics in of.items():
        rows = [{"step": 6, "seconds": 1.0, **dict.fromkeys(metrics, 1.0)}]
        made.run(tmp_path / "sweep" / name, {"seed": len(name)}, rows)
    return Ranking(tmp_path / "sweep").metric


def test_validation_is_compared_where_all_runs_have_it(tmp_path):
    assert choose(tmp_path, a=["train/loss", "test/loss", "validation/loss"]) == "validation/loss"
    assert choose(tmp_path, bb=["train/loss", "test/loss"]) == "test/loss"
    assert choose(tmp_path, ccc=["train/loss"]) == "train/loss"
    assert choose(tmp_path, dddd=["train/reward"]) == "train/loss", "what most begin with"


def test_without_a_loss_another_metric_is_compared(tmp_path):
    assert choose(tmp_path, a=["train/critic", "train/generator"]) == "train/critic"


def test_a_run_that_failed_has_no_say_in_the_metric(tmp_path):
    made.run(tmp_path / "sweep" / "failed", {"seed": 9}, made.curve(1.0, metric="train/loss"), line="no")
    assert choose(tmp_path, a=["train/loss", "validation/loss"]) == "validation/loss"


def test_a_run_whose_metrics_are_lost_has_no_say_either(tmp_path):
    lost = tmp_path / "sweep" / "lost"
    made.run(lost, {"seed": 9})
    (lost / "metrics.jsonl").write_bytes(b'\xff\xfe\n5\nnull\n{"train/loss": 1}\n')
    assert choose(tmp_path, a=["train/grad", "train/loss", "validation/loss"]) == "validation/loss"


# -- mistakes -------------------------------------------------------------------------------------------


def test_mistakes_are_one_line(workdir, refused, tmp_path):
    sweep, here = f"--workdir={workdir}", f"--output={tmp_path / 'report'}"
    refused(told="--workdir is needed")
    refused(
        sweep, here, "--metric=validation/lss", told="'validation/lss'; logged: train/loss, validation/loss"
    )
    refused(sweep, here, "--mode=best", told="--mode: received 'best'; allowed: min, max")
    refused(sweep, here, "--axes=seed", told=f"--axes: received 'seed'; what varies: {RATE}, {POWER}")
    refused(sweep, here, f"--axes={RATE},{RATE}", told="allowed: one leaf, or two that differ")
    refused(sweep, here, "--mertic=x", told="mertic")


def test_nothing_to_report_is_one_line(refused, tmp_path):
    refused(f"--workdir={tmp_path / 'no'}", told="no directory")
    (tmp_path / "empty").mkdir()
    refused(f"--workdir={tmp_path / 'empty'}", told="holds no run")
    made.sweep(tmp_path / "begun", grid=[f"{RATE}=0.1,0.2"])
    refused(f"--workdir={tmp_path / 'begun'}", told="no metrics yet; 2 runs: 2 new")
    made.failure(tmp_path / "begun" / "learning_rate=0.1", "lmlab train: no data")
    refused(
        f"--workdir={tmp_path / 'begun'}", told="1 failed, 1 new; learning_rate=0.1: lmlab train: no data"
    )


def test_runs_of_two_experiments_are_not_compared(refused, tmp_path):
    made.run(tmp_path / "two" / "a", {}, made.curve(1.0))
    made.run(tmp_path / "two" / "b", {}, made.curve(1.0))
    path = tmp_path / "two" / "b" / "run.json"
    path.write_text(path.read_text().replace("line.py", "gpt.py"))
    refused(f"--workdir={tmp_path / 'two'}", told="runs of one experiment; received")


def test_help_tells_the_flags(capsys):
    assert main(["report", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"--{name}" in out for name in ("workdir", "metric", "mode", "axes", "output"))
    assert report.main.__doc__.splitlines()[0] in out
