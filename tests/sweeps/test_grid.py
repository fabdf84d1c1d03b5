"""What flags make of a sweep, checked on a configuration that needs no JAX: two seconds."""

import itertools
import json
import math

import pytest

from lmlab import run
from lmlab.sweeps import grid

SOURCE = """
from lmlab import config as configs
VARIANTS = {"wide": "", "deep": "", "cpu": ""}

def get_config(variant=""):
    parts = variant.split(",")
    return configs.base(
        model={"code": 64 if "wide" in parts else 8, "features": (64,), "bias": True, "name": "plain", "rate": 0.5},
        data={"path": ""},
    )

def build(config, assets):
    raise NotImplementedError
"""


@pytest.fixture
def paper(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper.py").write_text(SOURCE)
    return "paper.py"


def names(cells):
    return [cell.name for cell in cells]


def test_a_grid_is_every_combination_the_seed_runs_fastest(paper):
    made = grid.cells(
        paper,
        {"duration": "5 steps"},
        grid=["optimizer.learning_rate=1e-3,3e-4", "model.code=8,32"],
        seeds=2,
    )
    expected = list(itertools.product([1e-3, 3e-4], [8, 32], [0, 1]))
    keys = ("optimizer.learning_rate", "model.code", "seed")
    assert [tuple(cell.varies.values()) for cell in made] == expected
    assert all(cell.overrides == {"duration": "5 steps", **cell.varies} for cell in made)
    assert all(tuple(cell.varies) == keys and cell.spec == "paper.py" for cell in made)
    assert names(made)[:3] == [
        "learning_rate=0.001,code=8,seed=0",
        "learning_rate=0.001,code=8,seed=1",
        "learning_rate=0.001,code=32,seed=0",
    ]


def test_zipped_keys_advance_together(paper):
    made = grid.cells(paper, {}, zip=["model.code=8,16,32", "batch_size=64,32,16"], grid=["seed=1,2"])
    assert [tuple(cell.varies.values()) for cell in made] == [
        (seed, *pair) for seed in (1, 2) for pair in ((8, 64), (16, 32), (32, 16))
    ]


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("model.code=8,32", [8, 32]),
        ("optimizer.learning_rate=1,1e-3", [1.0, 0.001]),
        ("model.bias=true,False", [True, False]),
        ("model.features=(64,);(128,64)", [(64,), (128, 64)]),
        ("model.features=(64,),(128, 64)", [(64,), (128, 64)]),
        ("model.name=plain,fancy", ["plain", "fancy"]),
        ("model.name=a,b;", ["a,b"]),
        ("duration=500, 5 epochs", ["500", "5 epochs"]),
        ("data.path=;b.txt", ["", "b.txt"]),
    ],
)
def test_values_are_of_the_type_of_their_leaf(paper, axis, values):
    made = grid.cells(paper, {}, grid=[axis])
    key = axis.partition("=")[0]
    found = [cell.overrides[key] for cell in made]
    assert found == values and [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("variant", "specs"),
    [
        ("wide;deep,cpu;", ["paper.py:wide", "paper.py:deep,cpu"]),
        (";wide", ["paper.py", "paper.py:wide"]),
    ],
)
def test_variants_are_an_axis(paper, variant, specs):
    made = grid.cells(paper, {}, grid=[f"variant={variant}", "seed=3"])
    assert [cell.spec for cell in made] == specs
    assert all(cell.overrides == {"seed": 3} for cell in made)


def test_variants_are_added_to_that_of_the_config(paper):
    made = grid.cells("paper.py:cpu", {}, grid=["variant=wide,deep"])
    assert [cell.spec for cell in made] == ["paper.py:cpu,wide", "paper.py:cpu,deep"]
    assert names(made) == ["variant=wide", "variant=deep"]
    assert [cell.spec for cell in grid.cells("paper.py:cpu", {}, grid=["variant=wide,cpu;deep"])] == [
        "paper.py:cpu,wide",
        "paper.py:cpu,deep",
    ]
    assert names(grid.cells(paper, {}, grid=["variant=wide,deep;cpu"]))[0] == "variant=wide+deep"


def test_random_values_keep_to_their_bounds_and_to_their_seed(paper):
    asked = [
        "optimizer.learning_rate=log_uniform(1e-4,1e-2)",
        "model.rate=uniform(0,0.5)",
        "model.code=int_uniform(1,4)",
        "batch_size=choice(16,32)",
    ]
    made = grid.cells(paper, {}, random=asked, num_random=100)
    columns = [[cell.varies[key] for cell in made] for key in made[0].varies]
    rates, others, codes, sizes = columns
    assert all(1e-4 <= rate <= 1e-2 and rate == float(f"{rate:.4g}") for rate in rates)
    assert 30 < sum(rate < 1e-3 for rate in rates) < 70, "half of the decades, half of the draws"
    assert all(0 <= value <= 0.5 for value in others) and 30 < sum(value < 0.25 for value in others) < 70
    assert set(codes) == {1, 2, 3, 4} and set(sizes) == {16, 32}
    assert grid.cells(paper, {}, random=asked, num_random=100) == made
    assert grid.cells(paper, {}, random=asked, num_random=10) == made[:10]
    assert (
        grid.cells(paper, {}, random=asked[:1], num_random=10)[4].varies["optimizer.learning_rate"]
        == rates[4]
    )
    drawn = grid.cells(paper, {}, random=["batch_size=choice(16,32)"], num_random=100)
    assert set(names(drawn)) == {"batch_size=16", "batch_size=32"} and len(drawn) == 2, (
        "twice drawn, once run"
    )
    other = grid.cells(paper, {}, random=asked, num_random=10, random_seed=1)
    assert not {cell.varies["model.rate"] for cell in other} & set(others)


def test_names_are_short_and_told_apart(paper):
    (cell,) = grid.cells(paper, {}, grid=["optimizer.name=sgd", "model.name=a/b", "duration=5 epochs"])
    first, second, third = cell.name.split(",")
    assert first == "optimizer.name=sgd" and third == "duration=5_epochs"
    assert second.startswith("model.name=a-b-") and len(second) == len("model.name=a-b-") + 8
    (other,) = grid.cells(paper, {}, grid=["optimizer.name=sgd", "model.name=a:b", "duration=5 epochs"])
    assert other.name != cell.name
    assert names(grid.cells(paper, {}, grid=["model.features=(64,32)"])) == ["features=64x32"]
    assert names(grid.cells(paper, {}, grid=["optimizer.learning_rate=1e-5,0.30000000000000004"])) == [
        "learning_rate=1e-05",
        "learning_rate=0.30000000000000004",
    ]
    foreign = names(grid.cells(paper, {}, grid=[f"model.name={'日' * 200},{'本' * 200}"]))
    assert len(set(foreign)) == 2 and all(len(name.encode()) <= 255 for name in foreign)
    long = grid.cells(paper, {}, grid=[f"model.name={'x' * 119}y,{'x' * 119}z"])
    assert len(set(names(long))) == 2 and {len(name) for name in names(long)} == {grid.NAME_LENGTH}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"grid": ["model.cod=8"]}, "config.model.cod: no such key; did you mean config.model.code?"),
        ({"grid": ["model=8"]}, "config.model is a group"),
        ({"grid": ["model.code=8,0.5"]}, "--config.model.code: received '0.5'; allowed: a value of type int"),
        ({"grid": ["model.code="]}, "--config.model.code: received ''"),
        (
            {"grid": ["model.bias=maybe"]},
            "--config.model.bias: received 'maybe'; allowed: a value of type bool",
        ),
        ({"grid": ["model.code"]}, "--grid: received 'model.code'; allowed: KEY=VALUES"),
        ({"grid": ["variant=wide;narrow"]}, "unknown variant 'narrow'; allowed: wide, deep, cpu"),
        ({"grid": ["optimizer.learning_rate=1e-3,-1"]}, "optimizer.learning_rate: received -1"),
        (
            {"grid": ["batch_size=8,9"], "overrides": {"accumulate": 4}},
            "accumulate 4 does not divide batch_size 9",
        ),
        ({"grid": ["model.code=8,8"]}, "two runs would be 'code=8'; allowed: values that differ"),
        ({"grid": ["model.name=a b,a_b"]}, "'model.name=a_b'; allowed: values that differ, by more than '_'"),
        ({"grid": ["model.rate=nan"]}, "model.rate: received nan; allowed: a number"),
        ({"grid": ["seed=1,2"], "seeds": 2}, "seed is swept twice; allowed: once"),
        ({"grid": ["model.code=8"], "zip": ["model.code=9"]}, "model.code is swept twice"),
        ({"zip": ["model.code=8,9", "model.code=7,6"]}, "model.code is swept twice"),
        ({"random": ["seed=choice(1)", "seed=choice(2)"], "num_random": 2}, "seed is swept twice"),
        ({"seeds": 3, "max_runs": 0}, "--max_runs: received 0; allowed: 1 or more"),
        ({"grid": ["seed=1"], "overrides": {"seed": 2}}, "--config.seed is given, and seed is swept"),
        ({"zip": ["model.code=8,16", "batch_size=8"]}, "--zip: model.code has 2, batch_size has 1"),
        ({"random": ["model.code=int_uniform(1,8)"]}, "--random and --num_random=N (above 0) go together"),
        ({"num_random": 3}, "--random and --num_random=N (above 0) go together"),
        (
            {"random": ["model.code=normal(0,1)"], "num_random": 1},
            "--random=model.code: received 'normal(0,1)'",
        ),
        ({"random": ["model.code=8"], "num_random": 1}, "allowed: log_uniform(1e-4,1e-2)"),
        ({"random": ["model.rate=log_uniform(0,1)"], "num_random": 1}, "bounds above 0"),
        ({"random": ["model.rate=uniform(1,0)"], "num_random": 1}, "received 'uniform(1,0)'"),
        ({"random": ["model.rate=uniform(1)"], "num_random": 1}, "received 'uniform(1)'"),
        ({"random": ["model.code=int_uniform(1,2.5)"], "num_random": 1}, "received 'int_uniform(1,2.5)'"),
        ({"random": ["model.code=uniform(0,1)"], "num_random": 1}, "--config.model.code: received '0."),
        ({"seeds": -1}, "--seeds: received -1; allowed: 1 or more"),
        ({}, "0 runs: paper.py has no sweep(); give --grid, --zip, --random or --seeds"),
        ({"seeds": 300}, "300 runs; allowed: 200, or as many as --max_runs=N says"),
        ({"grid": ["seed=" + ",".join(map(str, range(100)))], "zip": ["model.code=1,2,3"]}, "300 runs"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(paper, asked, told):
    asked = dict(asked)
    with pytest.raises(ValueError) as error:
        grid.cells(paper, asked.pop("overrides", {}), **asked)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_ten_thousand_runs_are_counted_not_made(paper):
    axes = [f"{key}={','.join(map(str, range(1, 11)))}" for key in ("seed", "batch_size", "model.code")]
    with pytest.raises(ValueError, match=r"10,000 runs; allowed: 200,.* --max_runs=N"):
        grid.cells(paper, {}, grid=axes, zip=["model.rate=0,1,2,3,4,5,6,7,8,9"])
    with pytest.raises(ValueError, match=r"1,000,000,000,000 runs; allowed: 200"):
        grid.cells(paper, {}, random=["model.rate=uniform(0,1)"], num_random=10**12)
    with pytest.raises(ValueError, match=r"1,000,000,000,000 runs; allowed: 200"):
        grid.cells(paper, {}, seeds=10**12)


def test_the_sweep_of_the_experiment_itself(paper, tmp_path):
    (tmp_path / "own.py").write_text(
        SOURCE
        + "def sweep():\n"
        + "    for rate in (1e-3, 1e-2):\n"
        + "        yield {'variant': 'wide', 'optimizer.learning_rate': rate, 'model.features': (3,)}\n"
    )
    made = grid.cells("own.py:cpu", {"seed": 4})
    assert names(made) == [f"variant=wide,learning_rate={rate},features=3" for rate in ("0.001", "0.01")]
    assert made[1].spec == "own.py:cpu,wide"
    assert made[1].overrides == {"seed": 4, "optimizer.learning_rate": 1e-2, "model.features": (3,)}
    with pytest.raises(ValueError, match=r"more than 1 runs; allowed: 1, "):
        grid.cells("own.py", {}, max_runs=1)
    assert names(grid.cells("own.py", {}, seeds=1)) == ["seed=0"], "an axis takes the place of sweep()"
    (tmp_path / "none.py").write_text(SOURCE + "def sweep():\n    return []\n")
    with pytest.raises(ValueError, match=r"^0 runs: sweep\(\) of none\.py yields none"):
        grid.cells("none.py", {})
    (tmp_path / "odd.py").write_text(SOURCE + "def sweep():\n    yield {'model.code': 0.5}\n")
    with pytest.raises(ValueError, match=r"config\.model\.code: received 0\.5; allowed: a value of type int"):
        grid.cells("odd.py", {})


def test_a_sweep_is_read_as_it_was_written(paper, tmp_path):
    made = grid.cells(paper, {}, grid=["model.features=(64,);(32,8)", "variant=wide,deep"])
    grid.write(tmp_path, {"spec": paper, "overrides": {}, "cells": made, "launcher": "local"})
    record = grid.read(tmp_path)
    assert record["cells"] == made
    assert record["axes"] == {"model.features": ((64,), (32, 8)), "variant": ("wide", "deep")}
    with pytest.raises(FileNotFoundError, match=r"'nowhere' holds no sweep \(no sweep\.json\)"):
        grid.read(tmp_path.__class__("nowhere"))
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ValueError, match=r"sweep\.json is damaged: 'cells'$"):
        grid.read(tmp_path)


def test_cells_may_be_added_but_not_changed(paper, tmp_path):
    old = grid.cells(paper, {}, seeds=2)
    new = grid.cells(paper, {}, seeds=3)
    assert grid.join(tmp_path, old, new) == new and grid.join(tmp_path, new, old) == new
    longer = grid.cells(paper, {"duration": "2000 steps"}, seeds=1)
    assert grid.join(tmp_path, old, longer) == [*longer, old[1]]
    for other in (
        grid.cells(paper, {"model.code": 9}, seeds=1),
        grid.cells("paper.py:wide", {}, seeds=1),
    ):
        with pytest.raises(ValueError, match=r"holds another run 'seed=0'; name another --workdir"):
            grid.join(tmp_path, old, other)


def test_the_status_of_a_run_is_told_by_its_files(tmp_path):
    cell = grid.Cell("seed=0", "paper.py", {"seed": 0, "duration": "6 steps"}, {"seed": 0})
    folder = tmp_path / cell.name
    assert grid.status(tmp_path, cell) == "new"
    folder.mkdir()
    (folder / "log.txt").touch()
    assert grid.status(tmp_path, cell) == "new"
    with run.locked(folder):
        assert grid.status(tmp_path, cell) == "running"
    (folder / "failure.json").write_text("{}")
    assert grid.status(tmp_path, cell) == "failed"
    (folder / "failure.json").unlink()

    def record(**facts):
        (folder / "run.json").write_text(json.dumps({"overrides": {"duration": "6 steps"}, **facts}))

    record()
    assert grid.status(tmp_path, cell) == "cut"
    record(done=6)
    assert grid.status(tmp_path, cell) == "done"
    longer = grid.Cell("seed=0", "paper.py", {"seed": 0, "duration": "8 steps"})
    assert grid.status(tmp_path, longer) == "cut", "it is to go on"
    assert grid.status(tmp_path, grid.Cell("seed=0", "paper.py", {"seed": 0})) == "done"


def test_log_uniform_is_uniform_in_the_logarithm():
    draw = grid.DRAWS["log_uniform"]
    assert draw(0.0, 1e-4, 1e-2) == 1e-4 and math.isclose(draw(0.5, 1e-4, 1e-2), 1e-3)
