import json
import math

import ml_collections
import pytest

from lmlab import config as configs
from lmlab.config import Clock, parse_duration

CLOCK = Clock("1000 steps", batch_size=32, num_examples=1000)  # 31 whole batches an epoch


def config(**leaves):
    made = configs.base(model={"width": 8, "features": (16, 8), "rates": (0.1, 0.2), "bias": True}, **leaves)
    made.lock()
    return made


# -- durations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "steps"),
    [
        ("2000 steps", 2000),
        ("1 step", 1),
        ("500", 500),
        (500, 500),
        (" 7steps ", 7),
        ("2e3 steps", 2000),
        ("1 epoch", 31),
        ("2.5 epochs", round(2.5 * 31)),
        ("1e6 examples", math.ceil(1e6 / 32)),
        ("33 examples", 2),
        ("10 %", 100),
        ("0.5%", 5),
        ("0 steps", 0),
    ],
)
def test_durations_in_steps(written, steps):
    assert CLOCK.steps(written) == steps


@pytest.mark.parametrize(
    "written",
    ["", "steps", "-5", "-1 epochs", "5 fortnights", "1.2.3", "5 steps 3", "nan", "inf", "1e999", "%"],
)
def test_what_is_no_duration_is_refused(written):
    with pytest.raises(ValueError, match="log_every: received") as error:
        parse_duration(written, "log_every")
    assert repr(written) in str(error.value) and "5 epochs" in str(error.value)
    assert "\n" not in str(error.value)


def test_total_is_at_least_one_step_and_no_percentage_of_itself():
    assert Clock("1 examples", 32, 1000).total == 1
    assert Clock("0.001 epochs", 32, 1000).total == 1
    assert Clock("3 epochs", 32, 1000).total == 93
    with pytest.raises(ValueError, match="duration"):
        _ = Clock("10 %", 32, 1000).total


def test_an_interval_is_never_or_at_least_a_step():
    assert CLOCK.every("0", "log_every") == 0
    assert CLOCK.every("0 %", "log_every") == 0
    assert CLOCK.every("0.01 %", "log_every") == 1
    assert CLOCK.every("5 %", "log_every") == 50


# -- overrides ---------------------------------------------------------------------------------------


def test_overrides_set_leaves_of_their_type():
    made = config()
    values = {
        "seed": 3,
        "duration": 500,  # a bare number means steps
        "optimizer.learning_rate": 1,  # an int passes for a float
        "model.features": [4, 2],  # JSON knows no tuples
        "model.rates": (1, 0.5),
        "model.bias": False,
    }
    configs.override(made, values)
    assert made.seed == 3 and made.duration == "500" and made.model.bias is False
    assert made.model.features == (4, 2) and isinstance(made.model.features, tuple)
    assert made.optimizer.learning_rate == 1.0 and isinstance(made.optimizer.learning_rate, float)
    assert made.model.rates == (1.0, 0.5) and all(isinstance(rate, float) for rate in made.model.rates)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("seed", 0.5, "int"),
        ("seed", "one", "int"),
        ("seed", True, "int"),
        ("optimizer.learning_rate", "fast", "float"),
        ("optimizer.learning_rate", None, "float"),
        ("model.bias", 1, "bool"),
        ("model.bias", "yes", "bool"),
        ("model.features", 4, "tuple of int"),
        ("model.features", ("wide",), "tuple of int"),
        ("model.features", (1, 0.5), "tuple of int"),
        ("model.features", "44", "tuple of int"),
        ("model.rates", (0.1, True), "tuple of float"),
        ("precision", (1,), "str"),
    ],
)
def test_overrides_of_another_type_are_refused(key, value, kind):
    made = config()
    before = made.to_json()
    with pytest.raises(ValueError) as error:
        configs.override(made, {key: value})
    assert str(error.value) == f"config.{key}: received {value!r}; allowed: a value of type {kind}"
    assert made.to_json() == before


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("learning_rate", "did you mean config.optimizer.learning_rate?"),
        ("optimizer.learning_rte", "did you mean config.optimizer.learning_rate?"),
        ("sed", "did you mean config.seed?"),
        ("zzzzzz", "known keys: accumulate, batch_size"),
        ("seed.x", "did you mean config.seed?"),
        ("optimizer", "config.optimizer is a group; set one of its leaves: b1"),
    ],
)
def test_unknown_keys_are_told_what_is_near(key, told):
    with pytest.raises(ValueError) as error:
        configs.override(config(), {key: 1})
    assert f"config.{key}" in str(error.value) and told in str(error.value)
    assert "\n" not in str(error.value)


def test_base_merges_groups_and_adds_leaves():
    made = configs.base(batch_size=7, optimizer={"b2": 0.99}, model={"width": 8})
    assert made.batch_size == 7 and made.optimizer.b2 == 0.99 and made.optimizer.b1 == 0.9
    assert dict(configs.leaves(made))["model.width"] == 8
    assert configs.base().optimizer.b2 == 0.999, "one config must not share its leaves with the next"


# -- rules -------------------------------------------------------------------------------------------


def test_base_is_valid():
    configs.validate(config())


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("duration", "0", "positive"),
        ("duration", "10 %", "positive"),
        ("duration", "-5", "not negative"),
        ("log_every", "5 fortnights", "5 epochs"),
        ("evaluate_every", "often", "5 epochs"),
        ("checkpoint.every", "-1", "not negative"),
        ("checkpoint.keep", 0, "1 or more"),
        ("precision", "fp8", "float32, tf32, bf16"),
        ("parallel.mode", "xmap", "jit, pmap"),
        ("parallel.data", 0, "1 or more, or -1"),
        ("parallel.tensor", -2, "1 or more, or -1"),
        ("parallel.fsdp", -1, "only one axis"),
        ("optimizer.schedule", "cos", "constant, cosine, linear, rsqrt"),
        ("optimizer.name", "lion", "adamw, adam, sgd"),
        ("optimizer.warmup", "-1 steps", "not negative"),
        ("optimizer.learning_rate", -1e-3, "0 or more"),
        ("optimizer.learning_rate", math.inf, "0 or more"),
        ("optimizer.learning_rate", math.nan, "0 or more"),
        ("optimizer.clip", -1.0, "0 (none) or more"),
        ("optimizer.weight_decay", -0.1, "0 or more"),
        ("optimizer.final", 1.5, "0 to 1"),
        ("optimizer.b1", 1.0, "0 to 1"),
        ("optimizer.b2", -0.1, "0 to 1"),
        ("ema", 1.0, "0 to 1"),
        ("seed", -1, "0 to 2^32 - 1"),
        ("seed", 2**32, "0 to 2^32 - 1"),
        ("batch_size", 0, "1 or more"),
        ("accumulate", 0, "1 or more"),
        ("accumulate", 5, "does not divide batch_size 32"),
    ],
)
def test_rules(key, value, allowed):
    made = config()
    configs.override(made, {key: value})
    with pytest.raises(ValueError) as error:
        configs.validate(made)
    told = str(error.value)
    assert key.split(".")[0] in told and str(value) in told and allowed in told and "\n" not in told


def test_pmap_spreads_over_data_alone():
    made = config()
    configs.override(made, {"parallel.mode": "pmap"})
    configs.validate(made)
    configs.override(made, {"parallel.fsdp": 2})
    with pytest.raises(ValueError, match=r"pmap.*\[2, 1\]"):
        configs.validate(made)


# -- config.json -------------------------------------------------------------------------------------


def test_json_there_and_back(tmp_path):
    made = config(data={"path": "ä/b.txt", "parts": (("train", 0.9), ("test", 0.1))})
    configs.write_json(made, tmp_path / "config.json")
    back = configs.read_json(tmp_path / "config.json")
    assert back.to_dict() == made.to_dict()
    assert back.data.parts == (("train", 0.9), ("test", 0.1)) and back.model.features == (16, 8)
    assert json.loads((tmp_path / "config.json").read_text())["data"]["path"] == "ä/b.txt"
    with pytest.raises((AttributeError, KeyError)):
        back.model.widht = 3  # locked
    assert configs.difference(made, back) == {}


def test_difference_names_every_leaf_that_differs():
    old, new = config(), config(data={"path": "a"})
    configs.override(new, {"seed": 5, "model.features": (1,)})
    expected = {"seed": (0, 5), "model.features": ((16, 8), (1,)), "data.path": (None, "a")}
    assert configs.difference(old, new) == expected
    assert configs.difference(new, old) == {key: (b, a) for key, (a, b) in expected.items()}


def test_what_a_resumed_run_may_change():
    for key in ("duration", "log_every", "checkpoint.every", "checkpoint.keep", "parallel.mode", "data.path"):
        assert configs.may_change(key), key
    for key in (
        "seed",
        "batch_size",
        "precision",
        "optimizer.learning_rate",
        "data.paths",
        "data",
        "model.width",
    ):
        assert not configs.may_change(key), key


# -- loading -----------------------------------------------------------------------------------------


def test_load_gives_a_locked_and_checked_config(tmp_path):
    path = tmp_path / "paper.py"
    path.write_text(
        "from lmlab import config\n"
        "VARIANTS = {'demo': 'small', 'wide': 'wider'}\n"
        "def get_config(variant=''):\n"
        "    made = config.base(model={'width': 8})\n"
        "    made.model.width *= 4 if 'wide' in variant.split(',') else 1\n"
        "    return made\n"
        "def build(config, assets): ...\n"
    )
    made, module = configs.load(f"{path}:wide,demo", {"seed": 4})
    assert made.model.width == 32 and made.seed == 4 and made.is_locked
    assert isinstance(made, ml_collections.ConfigDict) and module.VARIANTS["wide"] == "wider"
    with pytest.raises(ValueError, match=r"unknown variant 'deep'; allowed: demo, wide"):
        configs.load(f"{path}:deep")
    with pytest.raises(ValueError, match="batch_size: received -1"):
        configs.load(str(path), {"batch_size": -1})


# -- a view with arrays ------------------------------------------------------------------------------


def test_a_view_reads_like_the_config_with_other_leaves():
    made = config()
    view = configs.View(made, {"seed": "an array", "model.width": "another"})
    assert (view.seed, view["seed"], view.model.width) == ("an array", "an array", "another")
    assert view.optimizer.b1 == view["optimizer"]["b1"] == made.optimizer.b1
    assert dict(**view.model) == {**made.model.to_dict(), "width": "another"}
    assert list(view) == list(made) and len(view) == len(made) and "beta" not in view
    assert dict(configs.leaves(view)) == {
        **dict(configs.leaves(made)),
        "seed": "an array",
        "model.width": "another",
    }
    assert made.seed == 0 and made.model.width == 8


def test_a_view_is_read_alone_and_knows_its_keys():
    view = configs.View(config(), {})
    with pytest.raises(AttributeError, match=r"config\.seed cannot be set here"):
        view.seed = 1
    with pytest.raises(AttributeError, match=r"config has no 'widht'; it has .*width"):
        _ = view.model.widht
    with pytest.raises(TypeError):
        view["seed"] = 1
