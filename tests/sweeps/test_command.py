"""`lmlab sweep` in this process, with a launcher that only notes what it is given: three seconds."""

import json
import signal
from pathlib import Path

import pytest

from lmlab import run
from lmlab.__main__ import main
from lmlab.sweeps import local
from lmlab.sweeps.grid import read
from lmlab.training.signals import Stopped

ROOT = Path(__file__).parents[2]
LINE = f"{ROOT}/tests/papers/line.py"
GATED = f"{ROOT}/tests/sweeps/gated.py"
RATES = "--grid=optimizer.learning_rate=0.1,0.05"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def launched(monkeypatch):
    """What the launcher was given, name by name. Runs end well, but for those named in `launched.failing`."""

    class Launched(list):
        failing: tuple[str, ...] = ()
        jobs = None

    seen = Launched()

    def launch(workdir, cells, *, jobs: int = 0):
        assert run.is_locked(workdir) and (workdir / "sweep.json").exists()
        seen.jobs = jobs
        for cell in cells:
            seen.append(cell.name)
            folder = workdir / cell.name
            folder.mkdir(exist_ok=True)
            (folder / "failure.json").unlink(missing_ok=True)
            if cell.name in seen.failing:
                (folder / "failure.json").write_text('{"code": 1, "line": "it broke"}')
            else:
                facts = {"overrides": cell.overrides, "done": 6}
                (folder / "run.json").write_text(json.dumps(facts))

    monkeypatch.setattr(local, "launch", launch)
    return seen


def again(launched, *argv) -> tuple[int, list[str]]:
    launched.clear()
    return main(["sweep", "--workdir=work", *argv]), list(launched)


# -- what is done -------------------------------------------------------------------------------------


def test_a_sweep_is_written_down_before_it_begins(launched):
    code, names = again(
        launched, f"--config={LINE}:demo", RATES, "--seeds=2", "--config.model.power=2", "--jobs=3"
    )
    assert code == 0 and launched.jobs == 3
    assert names == [f"learning_rate={rate},seed={seed}" for rate in (0.1, 0.05) for seed in (0, 1)]
    record = json.loads(Path("work/sweep.json").read_text())
    assert record["spec"] == f"{LINE}:demo" and record["overrides"] == {"model.power": 2}
    assert record["axes"] == {"optimizer.learning_rate": [0.1, 0.05], "seed": [0, 1]}
    assert record["launcher"] == "local" and record["when"]
    assert record["command"].startswith("lmlab sweep --workdir=work --config=") and RATES in record["command"]
    assert record["cells"][1] == {
        "name": "learning_rate=0.1,seed=1",
        "spec": f"{LINE}:demo",
        "overrides": {"model.power": 2, "optimizer.learning_rate": 0.1, "seed": 1},
        "varies": {"optimizer.learning_rate": 0.1, "seed": 1},
    }


def test_asked_again_it_does_what_is_left(launched, capsys):
    flags = [f"--config={LINE}", RATES]
    launched.failing = ("learning_rate=0.05",)
    assert again(launched, *flags) == (1, ["learning_rate=0.1", "learning_rate=0.05"])
    told = capsys.readouterr().out
    assert "failed: work/learning_rate=0.05: it broke\n2 runs: 1 done, 1 failed  (lmlab report" in told
    launched.failing = ()
    assert again(launched, *flags) == (1, []), "what failed stays"
    assert capsys.readouterr().out.startswith("skipped: 1 done, 1 failed\n")
    assert again(launched) == (1, [])
    assert again(launched, "--retry_failed") == (0, ["learning_rate=0.05"])
    assert again(launched) == (0, [])


def test_runs_may_be_added(launched):
    again(launched, f"--config={LINE}", RATES)
    first = read(Path("work"))
    grown = "--grid=optimizer.learning_rate=0.1,0.01"
    assert again(launched, f"--config={LINE}", grown) == (0, ["learning_rate=0.01"])
    assert again(launched, "--seeds=1") == (0, ["seed=0"]), "the experiment is known"
    record = read(Path("work"))
    assert record["axes"] == {"optimizer.learning_rate": (0.1, 0.05, 0.01), "seed": (0,)}
    assert [cell.name for cell in record["cells"]] == [f"learning_rate={r}" for r in (0.1, 0.05, 0.01)] + [
        "seed=0"
    ]
    assert record["cells"][:2] == first["cells"]
    before = record["command"]
    assert again(launched) == (0, []) and read(Path("work"))["command"] == before


def test_a_launcher_is_told_again_what_it_was_told(launched):
    again(launched, f"--config={LINE}", RATES, "--jobs=3")
    assert again(launched, "--seeds=1") == (0, ["seed=0"]) and launched.jobs == 3
    assert again(launched, "--seeds=2", "--jobs=2")[0] == 0 and launched.jobs == 2
    assert read(Path("work"))["options"] == {"jobs": 2}


def test_all_may_go_on_for_longer(launched):
    again(launched, f"--config={LINE}", RATES)
    both = ["learning_rate=0.1", "learning_rate=0.05"]
    assert again(launched, "--config.duration=8 steps") == (0, both)
    assert all(cell.overrides["duration"] == "8 steps" for cell in read(Path("work"))["cells"])
    assert again(launched) == (0, [])
    assert again(launched, f"--config={LINE}", RATES, "--seeds=1")[1] == [f"{name},seed=0" for name in both]
    assert all(cell.overrides["duration"] == "8 steps" for cell in read(Path("work"))["cells"]), "it is kept"


def test_the_sweep_of_the_experiment_and_variants(launched):
    assert again(launched, f"--config={GATED}") == (0, [f"learning_rate={r},start=1" for r in (0.1, 0.05)])
    code = main(["sweep", f"--config={LINE}", "--workdir=other", "--grid=variant=demo;steep,silent"])
    assert code == 0 and launched[-2:] == ["variant=demo", "variant=steep+silent"]
    record = read(Path("other"))
    assert record["axes"] == {"variant": ("demo", "steep,silent")}
    assert record["cells"][1].spec == f"{LINE}:steep,silent"


def test_stopped_it_says_how_to_go_on(launched, monkeypatch, capsys):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):

        def launch(workdir, cells, number=number):
            raise Stopped(number, 0)

        monkeypatch.setattr(local, "launch", launch)
        assert main(["sweep", f"--config={LINE}", RATES, "--workdir=work"]) == code
        told = capsys.readouterr().out
        assert told == f"stopped by {number.name}: 2 new\nto go on: lmlab sweep --workdir=work\n"


def test_a_dry_run_shows_the_runs_and_starts_none(launched, capsys, tmp_path):
    argv = [f"--config={LINE}", RATES, "--grid=variant=demo,steep", "--dry_run"]
    assert again(launched, *argv) == (0, []) and contents(tmp_path) == {}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "optimizer.learning_rate", "variant", "status"]
    assert lines[2].split() == ["learning_rate=0.1,variant=steep", "0.1", "steep", "new"]
    assert len(lines) == 6 and lines[-1] == "4 runs: 4 new"
    assert again(launched, f"--config={LINE}", RATES)[0] == 0
    before = contents(tmp_path)
    with run.locked(tmp_path / "work"):
        assert again(launched, "--dry_run", "--seeds=1") == (0, []) and contents(tmp_path) == before
        capsys.readouterr()
        assert again(launched, "--dry_run") == (0, [])
    assert capsys.readouterr().out.splitlines()[-1] == "2 runs: 2 done"


def test_help_teaches(capsys):
    assert main(["sweep", "--help"]) == 0
    told = capsys.readouterr().out
    for words in ("--grid=model.code=8,32", "log_uniform(1e-4,1e-2)", "--seeds=3", "--max_runs", "--dry_run"):
        assert words in told
    assert (
        "--jobs: runs at a time" in told
        and "one a core" in told
        and "Exit codes" in told
        and "on a CPU" in told
    )
    assert main(["sweep", f"--config={LINE}", "--help"]) == 0
    assert "--config.optimizer.learning_rate=0.1" in capsys.readouterr().out


# -- what is refused ----------------------------------------------------------------------------------

HERE = [f"--config={LINE}", "--workdir=work"]
WRONG = [
    ([], ["--config=FILE[:VARIANT] is needed"]),
    (["--workdir=work"], ["--config=FILE[:VARIANT] is needed"]),
    ([f"--config={LINE}", "--seeds=2"], ["--workdir is needed"]),
    ([*HERE], ["0 runs", "has no sweep()", "--grid, --zip, --random or --seeds"]),
    ([*HERE, "--seeds=two"], ["--seeds: received 'two'", "int"]),
    ([*HERE, "--grid=learning_rate=1"], ["did you mean config.optimizer.learning_rate?"]),
    ([*HERE, "--grid=model.power=1,0.5"], ["config.model.power: received '0.5'", "int"]),
    ([*HERE, "--grid=variant=demo,dmo"], ["unknown variant 'dmo'", "demo, steep, silent"]),
    (
        [*HERE, "--seeds=2", "--launcher=kubernetes"],
        ["--launcher: received 'kubernetes'", "local, slurm, vmap"],
    ),
    ([*HERE, "--seeds=10000"], ["10,000 runs", "allowed: 200", "--max_runs"]),
    ([*HERE, "--seeds=3", "--max_runs=2"], ["3 runs", "allowed: 2"]),
    ([*HERE, "--seeds=2", "--config.seed=1"], ["--config.seed is given, and seed is swept"]),
    ([*HERE, "--seeds=2", "--config.sed=1"], ["config.sed: no such key"]),
    ([*HERE, "--seeds=2", "--time=9:00"], ["'time'"]),
    (["--config=nowhere.py", "--workdir=work", "--seeds=2"], ["no experiment file 'nowhere.py'"]),
    ([f"--config={LINE}", "--workdir=file", "--seeds=2"], ["'file' is a file"]),
    (
        [f"--config={LINE}", "--workdir=full", "--seeds=2"],
        ["'full' is not empty and holds no sweep (no sweep.json)"],
    ),
    ([f"--config={LINE}", "--workdir=file/x", "--seeds=2"], ["'file/x' cannot be made"]),
]


@pytest.fixture
def refused(capsys, tmp_path, launched):
    """`refused(argv, *told)`: one line that holds all of `told`, code 2, nothing written or launched."""

    def refused(argv, *told):
        before = contents(tmp_path)
        launched.clear()
        capsys.readouterr()
        assert main(["sweep", *argv]) == 2
        printed, error = capsys.readouterr()
        assert error.count("\n") == 1 and error.startswith("lmlab sweep: ") and printed == "", error
        for words in told:
            assert words in error, error
        assert contents(tmp_path) == before and not launched

    return refused


@pytest.mark.parametrize(("argv", "told"), WRONG, ids=[" ".join(c[0]).replace(str(ROOT), "") for c in WRONG])
def test_misuse(refused, argv, told, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "run.json").write_text("{}")
    refused(argv, *told)


def test_a_sweep_stays_what_it_was(refused, launched):
    again(launched, f"--config={LINE}:demo", RATES, "--config.model.power=2")
    same = ["--workdir=work", RATES]
    refused(
        [*same, f"--config={GATED}"], "holds a sweep of", "line.py:demo, not of", "name another --workdir"
    )
    refused([*same, f"--config={LINE}:steep"], "line.py:demo, not of")
    refused([*same, f"--config={LINE}:demo"], "another configuration (model.power: 2 there, None here)")
    refused([*same, "--config.model.power=3"], "model.power: 2 there, 3 here")
    refused(["--workdir=work", "--config.optimizer.learning_rate=1.0"], "optimizer.learning_rate is swept")
    with run.locked(Path("work")):
        refused(["--workdir=work", "--seeds=2"], "work is being trained by another process")
    Path("work/sweep.json").write_text("{")
    refused(["--workdir=work"], "sweep.json is damaged")
