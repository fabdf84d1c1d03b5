"""What every file of experiments/ must do: keep the contract, train, be killed, resume, evaluate, draw.

Files are found by themselves. Each one's demo is trained for 20 steps, made small by SMALL where it has
such leaves; it is cut off right after a save, and what it becomes after resuming is compared with a
straight run, bit by bit. (Processes are killed in test_checkpoint.py and test_chaos.py.)
"""

import functools
import json
import types
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

import lmlab
from lmlab import config as configs
from lmlab import experiment
from lmlab.__main__ import main
from lmlab.experiment import Assets
from lmlab.flags import Flags
from lmlab.training.checkpoint import Checkpoints
from lmlab.training.loop import Trainer

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "experiments").glob("*.py"))
TIERS = ("demo", "cpu")
SMALL = {
    "duration": "20 steps",
    "batch_size": 8,
    "log_every": "5",
    "evaluate_every": "10",
    "checkpoint.every": "7",
    "parallel.data": 1,
    "model.num_layers": 1,
    "model.num_heads": 1,
    "model.d_model": 8,
    "model.features": (16,),
    "model.context": 16,
    "prior.num_layers": 1,
    "prior.num_heads": 1,
    "prior.d_model": 8,
    "data.context": 16,
    "data.count": 200,
    "encoder.features": (4, 8),
    "model.d_embed": 8,
    "sizes": (2, 5),
    "draws": 2,
    "iterations": 3,
    "importance": (1, 2),
    "restarts": 1,
    "tracks.length": 10,
}


def param(path: Path, *more: str):
    """A case of a file, or of one of its variants."""
    return pytest.param(path, *more, id="-".join([path.stem, *more]))


EACH = [param(path) for path in FILES]
each = pytest.mark.parametrize("path", EACH)


def load(path: Path) -> types.ModuleType:
    return experiment.load_module(path)


def small(path: Path, variant: str) -> dict:
    """The overrides of SMALL for which the config has a leaf."""
    known = dict(configs.leaves(load(path).get_config(variant)))
    return {key: value for key, value in SMALL.items() if key in known}


def variants(path: Path) -> list[str]:
    """Every variant that is no tier, with demo."""
    return [name for name in experiment.describe(path)["VARIANTS"] if name not in TIERS]


# -- the contract ------------------------------------------------------------------------------------


def test_there_are_experiments():
    assert FILES


@each
def test_a_file_explains_itself_without_being_run(path):
    facts, module = experiment.describe(path), load(path)
    assert facts["doc"] == module.__doc__.strip() and facts["FAMILY"] == module.FAMILY
    assert facts["PAPER"] == module.PAPER and facts["VARIANTS"] == module.VARIANTS
    assert module.FAMILY and module.PAPER
    assert f"lmlab train --config=experiments/{path.name}" in module.__doc__, (
        "the docstring gives the command"
    )
    assert "demo" in module.VARIANTS and all(module.VARIANTS.values())
    assert "demo:" in module.__doc__, "the docstring says what the demo costs"


@each
def test_every_variant_is_a_valid_config_of_plain_leaves(path):
    names = list(load(path).VARIANTS)
    for variant in ["", *names, *(f"{name},demo" for name in names if name not in TIERS)]:
        config, _ = configs.load(f"{path}:{variant}")
        for key, leaf in configs.leaves(config):
            assert plain(leaf), f"{variant}: config.{key} is {leaf!r}"
        assert config.to_dict() == load(path).get_config(variant).to_dict(), "the same at every call"


def plain(leaf) -> bool:
    if isinstance(leaf, tuple):
        return all(plain(item) for item in leaf)
    return isinstance(leaf, bool | int | float | str)


@each
def test_variants_do_something(path):
    """A variant that changes nothing says so: "the default", or "the same as"."""
    module = load(path)
    for name, line in module.VARIANTS.items():
        same = module.get_config(name).to_dict() == module.get_config("").to_dict()
        assert not same or "default" in line or "same as" in line, f"{name} changes nothing"


def another(leaf):
    """(another value of the leaf's type, as written on a command line)."""
    if isinstance(leaf, bool):
        return not leaf, str(not leaf).lower()
    if isinstance(leaf, tuple):
        return leaf * 2 + leaf[:1], str(leaf * 2 + leaf[:1])
    value = leaf + "x" if isinstance(leaf, str) else leaf + 1
    return value, str(value)


@each
def test_every_leaf_can_be_set_by_a_flag(path):
    config = load(path).get_config("demo")
    wanted, argv = {}, [f"--config={path}:demo"]
    for key, leaf in configs.leaves(config):
        wanted[key], text = another(leaf)
        argv.append(f"--config.{key}={text}")
    spec, overrides = Flags("").config(argv)
    assert spec == f"{path}:demo" and overrides == wanted
    assert {key: type(value) for key, value in overrides.items()} == {k: type(v) for k, v in wanted.items()}
    configs.override(config, overrides)
    assert dict(configs.leaves(config)) == wanted


@each
def test_sweep_and_targets_name_what_there_is(path):
    module = load(path)
    known = dict(configs.leaves(module.get_config("demo")))
    for overrides in getattr(module, "sweep", tuple)():
        experiment.check_variant(module, overrides.get("variant", ""))
        assert set(overrides) - {"variant"} <= set(known), overrides
    for variant, targets in getattr(module, "TARGETS", {}).items():
        experiment.check_variant(module, variant)
        assert targets and all("/" in target.metric for target in targets)
        assert all(target.source for target in targets if np.isfinite(target.published))


# -- the demo, killed and resumed --------------------------------------------------------------------


class Cut(Exception):
    """Nothing that lmlab expects."""


@pytest.fixture(scope="module", params=EACH)
def demo(request, tmp_path_factory):
    """(folder of the run killed and resumed, folder of the straight run, checkpoints when it was killed)."""
    # A fixture with parameters is made anew when another parameter's test comes between.
    return trained(request.param, tmp_path_factory.getbasetemp())


@functools.cache
def trained(path, base):
    folder = base / path.stem
    leaves = [f"--config.{key}={value}" for key, value in small(path, "demo").items()]
    command = ["train", f"--config={path}:demo", *leaves]
    killed, straight = folder / "killed", folder / "straight"
    save = Checkpoints.save

    def save_and_end(self, state, *rest):
        save(self, state, *rest)
        if int(state.step) in (1, 14):  # 1: the only step of a closed form; 14: amid a log interval
            self.wait()  # its threads outlive the run here, and would meet the next one
            raise Cut

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        patch.setattr(Checkpoints, "save", save_and_end)
        main([*command, f"--workdir={killed}"])
    left = sorted(int(step.name) for step in (killed / "checkpoints").iterdir() if step.name.isdigit())
    for workdir in (killed, straight):
        assert main([*command, f"--workdir={workdir}"]) == 0
    return killed, straight, left


def saved(folder: Path):
    """(step, everything in the newest checkpoint but the place of the data)."""
    checkpoints = Checkpoints(folder / "checkpoints")
    step = checkpoints.steps[-1]
    shapes = checkpoints.manager.item_metadata(step)
    trees = {item: getattr(shapes[item], "tree", shapes[item]) for item in ("variables", "training")}
    empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), trees)
    wanted = {item: ocp.args.StandardRestore(tree) for item, tree in empty.items()}
    found = checkpoints.manager.restore(step, args=ocp.args.Composite(**wanted))
    checkpoints.close()
    return step, {item: found[item] for item in wanted}


def rows(folder: Path) -> list[dict]:
    """metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key != "seconds" and not key.startswith("speed/")}
        for line in lines
    ]


def test_killed_and_resumed_equals_straight(demo):
    killed, straight, left = demo
    assert all(step < 20 for step in left), "it was killed on the way"
    step, state = saved(killed)
    other, expected = saved(straight)
    assert step == other and step in (1, 20)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    named = jax.tree_util.tree_leaves_with_path(expected)
    assert named
    for (name, wanted), found in zip(named, jax.tree.leaves(state), strict=True):
        assert wanted.dtype == found.dtype
        np.testing.assert_array_equal(found, wanted, err_msg=jax.tree_util.keystr(name))


def test_killed_and_resumed_logs_the_same(demo):
    killed, straight, _ = demo
    assert rows(killed) == rows(straight)
    steps = [row["step"] for row in rows(straight)]
    assert steps == sorted(steps) and steps[-1] in (1, 20)
    record = json.loads((killed / "run.json").read_text())
    assert record["changes"] == [] and record["variant"] == "demo"


def test_evaluate(demo, capsys):
    folder = demo[1]
    run = lmlab.load(folder)
    assert main(["evaluate", f"--workdir={folder}"]) == 0
    printed = capsys.readouterr().out.removeprefix(f"{folder}: ").strip().split(", ")
    scores = {name: float(value) for name, value in (word.rsplit(" ", 1) for word in printed)}
    assert {name.split("/")[0] for name in scores} == set(run.experiment.evaluations)
    assert all(np.isfinite(value) for value in scores.values())
    logged = rows(folder)[-1]
    for name, value in logged.items():
        if name.split("/")[0] in run.experiment.evaluations:
            np.testing.assert_allclose(scores[name], value, rtol=1e-3, err_msg=name)


def test_sample(demo, capsys):
    folder = demo[1]
    run = lmlab.load(folder)
    if run.experiment.sample is None:
        assert main(["sample", f"--workdir={folder}"]) == 2
        assert "has no sampler" in capsys.readouterr().err
        return
    drawn = []
    for name in ("first", "again"):
        assert main(["sample", f"--workdir={folder}", "--seed=5"]) == 0
        drawn.append(capsys.readouterr().out)
        kept = list((folder / "samples").iterdir())
        assert kept and all(path.stat().st_size for path in kept), name
    assert drawn[0] == drawn[1]


def test_figures(demo, capsys):
    folder = demo[1]
    run = lmlab.load(folder)
    if not hasattr(run.module, "figures"):
        assert main(["figures", f"--workdir={folder}"]) == 2
        return
    assert main(["figures", f"--workdir={folder}"]) == 0
    names = [Path(line.split()[0]).stem for line in capsys.readouterr().out.splitlines()]
    assert names
    for name in names:
        picture, paper, table = (folder / "figures" / f"{name}.{kind}" for kind in ("png", "pdf", "csv"))
        pixels = np.asarray(Image.open(picture).convert("L"))
        inked = (pixels < 128).mean()
        assert min(pixels.shape) >= 100 and 0.002 < inked < 0.98, f"{name} is blank: {inked:.2%} ink"
        assert paper.read_bytes().startswith(b"%PDF")
        assert len(table.read_text().splitlines()) > 1, f"{name}.csv has no rows"


def test_data(demo, capsys, tmp_path):
    spec = lmlab.load(demo[1]).spec
    assert main(["data", f"--config={spec}", f"--output={tmp_path / 'grid.png'}", "--examples=4"]) == 0
    printed = capsys.readouterr().out
    assert "training: " in printed and "the run: " in printed and "batch" in printed


def test_compare(demo, capsys, tmp_path):
    killed, straight, _ = demo
    assert main(["compare", str(killed), str(straight), f"--output={tmp_path / 'both'}"]) == 0
    table = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:-1]}
    assert table["step"][0] == table["step"][1]
    losses = [name for name in table if name.endswith("/loss")]
    assert losses and all(table[name][0] == table[name][1] for name in losses)
    if lmlab.load(straight).experiment.fit is None:  # of one row no curve is drawn
        assert (tmp_path / "both" / "loss.png").stat().st_size


# -- the other variants ------------------------------------------------------------------------------


EVERY = [(path, variant) for path in FILES for variant in variants(path)]


@pytest.mark.parametrize(("path", "variant"), [param(*case) for case in EVERY])
def test_a_variant_is_traced(path, variant):
    """Its data are opened, its model and optimizer begin, and a step of its own can be made of them."""
    both = f"{variant},demo"
    config, module = configs.load(f"{path}:{both}", small(path, both))
    trainer = Trainer(module.build(config, Assets()), config)
    assert trainer.clock.total > 0


@pytest.mark.slow
@pytest.mark.parametrize(("path", "variant"), [param(*case) for case in EVERY])
def test_a_variant_trains(path, variant, tmp_path):
    """Two steps in this process: the loss is finite and a parameter moves.

    What differs from the demo in numbers of the optimizer alone is left out: its program is the demo's.
    """
    both = f"{variant},demo"
    short = {"duration": "2 steps", "log_every": "1", "evaluate_every": "0", "checkpoint.every": "1"}
    overrides = small(path, both) | short
    config, _ = configs.load(f"{path}:{both}", overrides)
    demo, _ = configs.load(f"{path}:demo", small(path, "demo") | short)
    if all(key.startswith("optimizer.") for key in configs.difference(demo, config)):
        return
    run = lmlab.train(f"{path}:{both}", tmp_path / "run", overrides)
    table = run.metrics()
    assert table["step"].tolist()[-1] in (1, 2)
    assert np.isfinite(table["train/loss"]).all() if "train/loss" in table else True
    if run.experiment.fit is None:
        first, last = run.at(1)[1]["params"], run.at(2)[1]["params"]
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), first, last)
        assert any(jax.tree.leaves(moved))
