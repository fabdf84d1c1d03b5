"""The record of results, on runs that were trained by nobody: what is read of a run, written down."""

import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lmlab import config as configs
from lmlab import experiment
from lmlab.evaluation import results
from lmlab.experiment import Target

ROOT = Path(__file__).parents[1]
TABLES = ("experiments", "results", "generators", "speed")
EMPTY = "\n".join(f"{results.BEGIN.format(name)}\n{results.END.format(name)}" for name in TABLES)

PAPER = """
from lmlab import config
from lmlab.experiment import Target

VARIANTS = {"demo": "small", "cpu": "larger"}
TARGETS = {
    "cpu": [
        Target("test/loss", 1.0, 0.9, "the paper"),
        Target("test/accuracy", 0.8, higher_is_better=True),
        Target("train/loss@2 epochs", 2.0, 1.9, "its notebook"),
        Target("never/logged", 1.0),
    ]
}

def get_config(variant=""):
    made = config.base(duration="4 epochs", batch_size=10, data={"path": "", "tfds_dir": ""})
    return made

def build(config, assets): ...
"""


class Run:
    """Stands for lmlab.run.Run: what `results` asks of one."""

    def __init__(self, folder, spec, overrides=None, scores=None, seconds=120.0):
        self.folder, self.spec = folder, spec
        self.path, self.variant = experiment.split_spec(spec)
        self.config, self.module = configs.load(spec, overrides)
        self.scores, self.seconds = scores or {}, seconds
        self.record = {
            "git_commit": "abc",
            "versions": {"jax": "0.10"},
            "devices": "1 x cpu",
            "host": {"cores": 2, "processor": "Abacus 3 Processor", "system": "Linux"},
            "precision": "float32",
        }
        self.clock = configs.Clock(self.config.duration, batch_size=10, num_examples=50)
        self.finished = True

    def evaluate(self, checkpoint=None):
        return dict(self.scores)

    def metrics(self):
        table = {"step": [5, 10, 20], "train/loss": [3.0, 1.5, 1.0], "seconds": [1.0, 2.0, self.seconds]}
        return pd.DataFrame(table)


@pytest.fixture
def paper(tmp_path):
    path = tmp_path / "paper.py"
    path.write_text(PAPER)
    return path


@pytest.fixture
def make(paper, tmp_path):
    def make(seed, variant="cpu", **options):
        overrides = {"seed": seed, **options.pop("overrides", {})}
        return Run(tmp_path / f"run-{seed}", f"{paper}:{variant}".rstrip(":"), overrides, **options)

    return make


LOSSES = (0.91, 0.87, 1.04)


@pytest.fixture
def seeds(make):
    return [
        make(seed, scores={"test/loss": loss, "test/accuracy": 0.7}, seconds=60.0 * (seed + 1))
        for seed, loss in enumerate(LOSSES)
    ]


def test_score_adds_the_logged_values_that_targets_ask_for(seeds):
    """5 steps an epoch: two epochs are step 10, whose loss was 1.5. What was never logged is left out."""
    assert results.score(seeds[0]) == {"test/loss": 0.91, "test/accuracy": 0.7, "train/loss@2 epochs": 1.5}


def test_score_without_targets_is_the_evaluation(make):
    assert results.score(make(0, "demo", scores={"test/loss": 1.0})) == {"test/loss": 1.0}


def test_record_holds_mean_and_sample_deviation(seeds, tmp_path):
    path = results.record(seeds, [results.score(run) for run in seeds], tmp_path / "results")
    assert path == tmp_path / "results" / "paper-cpu.json"
    value = json.loads(path.read_text())
    loss = value["metrics"]["test/loss"]
    np.testing.assert_allclose(loss["mean"], np.mean(LOSSES), rtol=1e-12)
    np.testing.assert_allclose(loss["deviation"], np.std(LOSSES, ddof=1), rtol=1e-12)
    assert loss["values"] == list(LOSSES) and loss["met"] is True
    assert (loss["bar"], loss["published"], loss["source"]) == (1.0, 0.9, "the paper")
    accuracy = value["metrics"]["test/accuracy"]
    assert accuracy["met"] is False, "0.7 is under a bar of 0.8 where higher is better"
    assert accuracy["published"] is None and accuracy["deviation"] == 0.0
    assert value["metrics"]["train/loss@2 epochs"]["mean"] == 1.5
    assert value["seeds"] == [0, 1, 2] and value["training_seconds"] == [60.0, 120.0, 180.0]
    assert value["command"] == "lmlab train --config=experiments/paper.py:cpu --config.seed=SEED"
    assert value["versions"] == {"jax": "0.10"} and value["hardware"]["processor"] == "Abacus 3 Processor"


def test_record_joins_seeds_of_another_machine(make, tmp_path):
    """Values stand in the order of seeds; what was recorded earlier keeps where and with what it was made."""
    both = [make(seed, scores={"test/loss": loss}, seconds=60.0) for seed, loss in enumerate(LOSSES[:2])]
    results.record(both, [{"test/loss": loss} for loss in LOSSES[:2]], tmp_path)
    third = make(2, scores={"test/loss": LOSSES[2]}, seconds=70.0)
    third.record = third.record | {"git_commit": "later"}
    path = results.record([third], [{"test/loss": LOSSES[2]}], tmp_path, join=True)
    value = json.loads(path.read_text())
    assert value["seeds"] == [0, 1, 2] and value["training_seconds"] == [60.0, 60.0, 70.0]
    assert value["metrics"]["test/loss"]["values"] == list(LOSSES)
    np.testing.assert_allclose(value["metrics"]["test/loss"]["deviation"], np.std(LOSSES, ddof=1), rtol=1e-12)
    assert value["git_commit"] == "later"
    (earlier,) = value["earlier"]
    assert earlier["seeds"] == [0, 1] and earlier["git_commit"] == both[0].record["git_commit"]
    with pytest.raises(ValueError, match=r"one run a seed; received seeds \[0, 1, 2, 2\]"):
        results.record([third], [{"test/loss": 1.0}], tmp_path, join=True)


def test_one_run_has_no_deviation_and_no_variant_no_suffix(make, tmp_path):
    run = make(0, "", scores={"test/loss": 1.0})
    path = results.record([run], [results.score(run)], tmp_path)
    value = json.loads(path.read_text())
    assert path.name == "paper.json" and value["metrics"]["test/loss"]["deviation"] == 0.0
    assert value["command"].startswith("lmlab train --config=experiments/paper.py --config.seed")


@pytest.mark.parametrize(
    "overrides",
    [{"optimizer.learning_rate": 0.1}, {"batch_size": 20}, {"duration": "5 epochs"}, {"ema": 0.9}],
)
def test_record_refuses_what_the_variant_does_not_say(make, tmp_path, overrides):
    runs = [make(0), make(1, overrides=overrides)]
    with pytest.raises(ValueError) as error:
        results.record(runs, [{}, {}], tmp_path / "results")
    told = str(error.value)
    assert "run-1" in told and next(iter(overrides)) in told and "\n" not in told
    assert not (tmp_path / "results").exists()


def test_record_takes_seeds_and_places_of_data(make, tmp_path):
    run = make(7, scores={"test/loss": 1.0}, overrides={"data.path": "elsewhere", "data.tfds_dir": "there"})
    assert results.record([run], [results.score(run)], tmp_path).exists()


def test_record_refuses_a_run_that_is_not_finished(make, tmp_path):
    run = make(seed=0)
    run.finished = False
    with pytest.raises(ValueError, match="it is not finished"):
        results.record([run], [run.evaluate()], tmp_path)


def test_record_refuses_a_seed_twice_and_two_variants(make, tmp_path):
    with pytest.raises(ValueError, match=r"one run a seed; received seeds \[3, 3\]"):
        results.record([make(3), make(3)], [{}, {}], tmp_path / "results")
    with pytest.raises(ValueError, match=r"one experiment and variant; received .*:cpu and .*:demo"):
        results.record([make(0), make(1, "demo")], [{}, {}], tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_summary_says_what_was_met(seeds):
    text = results.summary(seeds, [results.score(run) for run in seeds])
    lines = text.splitlines()
    mean, deviation = np.mean(LOSSES), np.std(LOSSES, ddof=1)
    assert lines[0] == f"{seeds[0].spec}, 3 runs"
    assert lines[1] == f"  test/loss: {mean:.4f} ± {deviation:.4f}  bar 1: met; published 0.9"
    assert lines[2] == "  test/accuracy: 0.7000 ± 0.0000  bar 0.8: MISSED"
    assert results.summary(seeds[:1], [{"x": 1.0}]).startswith(f"{seeds[0].spec}, 1 run\n")


def test_table_has_a_row_a_bar_or_else_a_row_of_what_is_held_out(seeds, make, tmp_path):
    folder = tmp_path / "results"
    results.record(seeds, [results.score(run) for run in seeds], folder)
    demo = make(0, "demo", scores={"test/loss": 0.5, "test/accuracy": 0.9}, seconds=30.0)
    results.record([demo], [results.score(demo)], folder)
    (folder / "other.json").write_text('{"kind": "something else"}')
    lines = results.table(folder).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1, "every row has as many cells as the head"
    names = [row[:2] for row in cells[2:]]
    assert names == [
        ["[`paper:cpu`](results/paper-cpu.json)", "test/loss"],
        ["[`paper:cpu`](results/paper-cpu.json)", "test/accuracy"],
        ["[`paper:cpu`](results/paper-cpu.json)", "train/loss@2 epochs"],
        ["[`paper:demo`](results/paper-demo.json)", "test/accuracy, test/loss"],
    ]
    spread = f"{np.mean(LOSSES):.4f} ± {np.std(LOSSES, ddof=1):.4f} (3)"
    hardware = "2 cores of Abacus 3"
    assert cells[2][2:] == [spread, "1, met", "0.9 (the paper)", hardware]
    assert cells[3][3:5] == ["0.8, missed", ""]
    assert cells[5][2:] == ["0.9000, 0.5000 (1)", "", "", hardware]


def test_a_target_is_met_at_the_bar_itself():
    assert results._met(Target("x", 1.0), 1.0) and not results._met(Target("x", 1.0), 1.0001)
    higher = functools.partial(Target, "x", 1.0, higher_is_better=True)
    assert results._met(higher(), 1.0) and not results._met(higher(), 0.9999)


def test_readme_keeps_what_stands_around_its_table(tmp_path):
    text = f"# A\n\n{EMPTY}\n\nafter\n"
    new = results.readme(text, tmp_path)
    folder = tmp_path / "results"
    made = (
        results.catalogue(tmp_path / "experiments"),
        results.table(folder),
        results.generators(folder),
        results.speed_table(folder / "speed"),
    )
    blocks = [
        f"{results.BEGIN.format(name)}\n{table}\n{results.END.format(name)}"
        for name, table in zip(TABLES, made, strict=True)
    ]
    assert new == "# A\n\n" + "\n".join(blocks) + "\n\nafter\n"
    assert results.readme(new, tmp_path) == new
    with pytest.raises(ValueError, match="README lacks the lines"):
        results.readme("# A\n", tmp_path)


def test_check_compares_and_writes_nothing(tmp_path, monkeypatch, capsys, seeds):
    monkeypatch.chdir(tmp_path)
    stale = EMPTY + "\n"
    Path("README.md").write_text(stale)
    assert results.main(["--check"]) == 1 and "stale" in capsys.readouterr().out
    assert Path("README.md").read_text() == stale
    results.record(seeds, [results.score(run) for run in seeds], Path("results"))
    assert results.main([]) == 0 and "paper:cpu" in Path("README.md").read_text()
    assert results.main(["--check"]) == 0 and "current" in capsys.readouterr().out


def test_the_table_of_the_readme_is_current():
    path = ROOT / "README.md"
    if not path.exists():
        pytest.skip("README.md is not written yet")
    text = path.read_text()
    assert results.readme(text, ROOT) == text, "make results"


def test_the_catalogue_tells_what_files_say_of_themselves(tmp_path):
    said = '"""A model\nof names.\n\nMore of it."""\n'
    said += 'FAMILY, PAPER = "counts", "Someone 1999"\nVARIANTS = {"demo": "a", "cpu": "b"}\n'
    (tmp_path / "b.py").write_text(said)
    (tmp_path / "a.py").write_text(said.replace("counts", "words"))
    assert results.catalogue(tmp_path).splitlines()[2:] == [
        "| counts | [`b.py`](experiments/b.py) | A model of names. | Someone 1999 | demo, cpu |",
        "| words | [`a.py`](experiments/a.py) | A model of names. | Someone 1999 | demo, cpu |",
    ]


def test_generators_are_told_best_first(tmp_path):
    row = {"deviation": 0.1, "values": [1, 2], "bits": None, "size": [28, 28], "seconds_per_1000": 2.0}
    rows = [{"name": "gan:cpu", "mean": 9.0, **row}, {"name": "vae:cpu", "mean": 4.0, **row}]
    record = {"reference": "100 training images of mnist", "rows": rows, "scale": {"noise": 99.0}}
    (tmp_path / "frechet-mnist.json").write_text(json.dumps(record))
    made = results.generators(tmp_path)
    assert made.startswith("Against 100 training images of mnist:") and "*noise*" in made
    assert made.index("vae:cpu") < made.index("gan:cpu")


def test_the_speed_table_tells_ratios_beside_a_peer_and_costs_alone(tmp_path):
    row = {"title": "GPT", "unit": "step", "ours": "lmlab", "peer": "torch", "bar": 1.0, "met": True}
    row["ratio"] = {"p25": 1.1, "median": 1.234, "p75": 1.3}
    cost = {
        "title": "import",
        "unit": "s",
        "ours": 0.251,
        "peer": None,
        "ratio": None,
        "bar": 0.2,
        "met": False,
    }
    machine = {"cores": 2, "processor": "Some Processor"}
    share = {"title": "MFU", "unit": "of the peak", "ours": 0.5, "bar": 0.5, "at_least": True, "met": True}
    card = machine | {"devices": "1 x Some GPU"}
    (tmp_path / "a.json").write_text(json.dumps({"rows": [row, cost], "machine": machine}))
    (tmp_path / "c.json").write_text(json.dumps({"rows": [share], "machine": card}))
    (tmp_path / "b.json").write_text(json.dumps({"losses": [1.0]}))  # a record without rows
    assert results.speed_table(tmp_path).splitlines()[2:] == [
        "| [GPT](results/speed/a.json) | lmlab | 1.23 × as fast (1.10 to 1.30) as torch | ≥ 1, met | 2 cores of Some |",
        "| [import](results/speed/a.json) | 0.251 s |  | ≤ 0.2, missed | 2 cores of Some |",
        "| [MFU](results/speed/c.json) | 0.5 of the peak |  | ≥ 0.5, met | 1 x Some GPU |",
    ]
