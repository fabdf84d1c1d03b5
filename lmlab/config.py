"""Configuration: the leaves every experiment shares, durations with a unit, overrides, config.json.

A config is an `ml_collections.ConfigDict` of plain leaves. An experiment's `get_config` starts from
`base(...)`, so that it reads as a difference from what is usual, and the whole is visible in config.json.
"""

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from lmlab import experiment

PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16"}
"""config.precision -> JAX's default matmul precision. float32 means float32: JAX's own default is TF32
on recent GPUs and bfloat16 on TPUs."""

MODES = ("jit", "pmap")
SCHEDULES = ("constant", "cosine", "linear", "rsqrt")
OPTIMIZERS = ("adamw", "adam", "sgd")
MAY_CHANGE = (
    "duration",
    "log_every",
    "evaluate_every",
    "checkpoint",
    "parallel",
    "data.path",
    "data.tfds_dir",
)
"""What a resumed run may set anew (noted in run.json); any other difference is refused."""


def base(**leaves) -> ml_collections.ConfigDict:
    """The leaves that every experiment has; `leaves` replaces or adds some (nested dicts are merged)."""
    config = ml_collections.ConfigDict(
        {
            "seed": 0,
            "duration": "1000 steps",  # also "5 epochs", "1e6 examples"; a bare number means steps
            "batch_size": 32,  # examples a step, over all devices and microbatches
            "accumulate": 1,  # microbatches a step: the same update with less memory
            "precision": "float32",  # float32, tf32 or bf16, of products with weights
            "ema": 0.0,  # decay of the averaged parameters; 0: none
            "log_every": "1 %",
            "evaluate_every": "10 %",
            "checkpoint": {
                "every": "10 %",
                "keep": 2,  # the newest ones
                "best": "",  # a metric such as validation/loss: its lowest is kept as well
            },
            "parallel": {
                "mode": "jit",  # jit over a mesh, or pmap over data
                "data": -1,  # devices along each axis; -1: those that remain
                "fsdp": 1,
                "tensor": 1,
            },
            "optimizer": {
                "name": "adamw",  # adamw, adam or sgd
                "learning_rate": 1e-3,  # the peak
                "schedule": "constant",  # constant, cosine, linear or rsqrt, after the warm-up
                "warmup": "0 steps",
                "final": 0.0,  # where cosine and linear end, as a part of the peak
                "b1": 0.9,  # also the momentum of sgd
                "b2": 0.999,
                "eps": 1e-8,
                "weight_decay": 0.0,  # of matrices alone: not of biases, nor of normalization
                "clip": 0.0,  # of the global norm of the gradient; 0: none
            },
        }
    )
    for key, value in leaves.items():
        if isinstance(value, Mapping) and key in config:
            config[key].update(value)
        else:
            config[key] = ml_collections.ConfigDict(value) if isinstance(value, Mapping) else value
    return config


# -- durations ---------------------------------------------------------------------------------------

_DURATION = re.compile(r"([+-]?[\d.]+(?:e[+-]?\d+)?)\s*(steps?|epochs?|examples?|%)?")


@dataclasses.dataclass(frozen=True)
class Clock:
    """Turns durations into steps: "2000 steps", "5 epochs", "1e6 examples", and "10 %" of the whole run."""

    duration: str | int | float
    batch_size: int
    num_examples: int

    @classmethod
    def of(cls, config, source) -> "Clock":
        """That of a run: `source` tells the size of its batches and of its epochs."""
        return cls(config.duration, source.batch_size, source.num_examples)

    @property
    def total(self) -> int:
        return max(1, self.steps(self.duration, "duration"))

    def steps(self, duration, name: str = "interval") -> int:
        number, unit = parse_duration(duration, name)
        if unit == "%":
            if name == "duration":
                raise ValueError(f"{name} cannot be a percentage of itself, received {duration!r}")
            return round(self.total * number / 100)
        if unit == "epoch":
            return round(number * (self.num_examples // self.batch_size))
        if unit == "example":
            return math.ceil(number / self.batch_size)
        return round(number)

    def every(self, duration, name: str) -> int:
        """An interval: at least one step; 0 means never."""
        number, _ = parse_duration(duration, name)
        return max(1, self.steps(duration, name)) if number else 0


def parse_duration(duration, name: str = "duration") -> tuple[float, str]:
    """(number, "step" | "epoch" | "example" | "%")."""
    match = _DURATION.fullmatch(str(duration).strip())
    try:
        number = float(match.group(1)) if match else math.nan
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(
            f"{name}: received {duration!r}; allowed: a number that is not negative with a unit, "
            '"2000 steps", "5 epochs", "1e6 examples" or (for intervals and warm-up) "10 %"'
        )
    return number, (match.group(2) or "step").rstrip("s")


# -- loading and overriding -------------------------------------------------------------------------


def load(spec: str, overrides: Mapping[str, Any] | None = None):
    """(config, module) of "experiments/gpt_char.py:cpu", with overrides by dotted key, locked and checked."""
    path, variant = experiment.split_spec(spec)
    module = experiment.load_module(path)
    experiment.check_variant(module, variant)
    config = module.get_config(variant)
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(f"{path}: get_config returned {type(config).__name__}, not a ConfigDict")
    config.lock()
    override(config, overrides or {})
    validate(config)
    return config, module


def override(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets leaves by dotted key, in place; the key must exist and the type must fit."""
    for key, value in values.items():
        check_key(config, key)
        parent, _, leaf = key.rpartition(".")
        node = get(config, parent) if parent else config
        try:
            if value is None or isinstance(value, bool) != isinstance(node[leaf], bool):
                raise TypeError
            if isinstance(node[leaf], str) and isinstance(value, int | float):
                value = str(value)  # a duration of 500 means "500"
            node[leaf] = _items(value, node[leaf]) if isinstance(node[leaf], tuple) else value
        except (TypeError, ValueError):
            kind = _kind(node[leaf])
            raise ValueError(f"config.{key}: received {value!r}; allowed: a value of type {kind}") from None


def _items(values, old: tuple) -> tuple:
    """A list or tuple as a tuple whose items are of the type of the old ones; an int passes for a float."""
    kinds = {type(item) for item in old}
    fit = len(kinds) != 1 or all(type(v) in kinds or (kinds == {float} and type(v) is int) for v in values)
    if not isinstance(values, list | tuple) or not fit:
        raise TypeError
    return tuple(float(v) for v in values) if kinds == {float} else tuple(values)


def _kind(value) -> str:
    """ "int"; "tuple of int" for a tuple of one type, "tuple" for any other."""
    kinds = {type(item).__name__ for item in value} if isinstance(value, tuple) else set()
    return f"tuple of {kinds.pop()}" if len(kinds) == 1 else type(value).__name__


def check_key(config: ml_collections.ConfigDict, key: str) -> None:
    """A ValueError naming the nearest known key, unless `key` is a leaf of the config."""
    node = config
    for part in key.split("."):
        if not isinstance(node, ml_collections.ConfigDict) or part not in node:
            known = [name for name, _ in leaves(config)]
            near = difflib.get_close_matches(key, known, 1, 0.5)
            near = near or [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
            hint = f"did you mean config.{near[0]}?" if near else f"known keys: {', '.join(known)}"
            raise ValueError(f"config.{key}: no such key; {hint}")
        node = node[part]
    if isinstance(node, ml_collections.ConfigDict):
        raise ValueError(f"config.{key} is a group; set one of its leaves: {', '.join(node)}")


def leaves(
    config: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of each leaf, in order."""
    for key in config:
        if isinstance(config[key], Mapping | ml_collections.ConfigDict):
            yield from leaves(config[key], f"{prefix}{key}.")
        else:
            yield prefix + key, config[key]


def get(config: Mapping[str, Any] | ml_collections.ConfigDict, key: str) -> Any:
    """The leaf, or the group, at a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


class View(Mapping):
    """A config to be read alone, with arrays for some leaves (by dotted key), which a ConfigDict would refuse."""

    def __init__(self, config: ml_collections.ConfigDict, arrays: Mapping[str, Any], prefix: str = ""):
        items = {}
        for key, value in config.items():
            if isinstance(value, ml_collections.ConfigDict):
                items[key] = View(value, arrays, f"{prefix}{key}.")
            else:
                items[key] = arrays.get(prefix + key, value)
        vars(self)["_items"] = items

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __getattr__(self, name: str) -> Any:
        if name not in self._items:
            raise AttributeError(f"config has no {name!r}; it has {', '.join(self._items)}")
        return self._items[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"config.{name} cannot be set here: this config is to be read alone")

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def validate(config: ml_collections.ConfigDict) -> None:
    """The rules of the shared leaves, before anything is compiled. Models check their own."""
    for key in ("duration", "log_every", "evaluate_every", "checkpoint.every", "optimizer.warmup"):
        number, unit = parse_duration(get(config, key), key)
        if key == "duration" and (number == 0 or unit == "%"):
            raise ValueError(
                f"duration must be a positive number of steps, epochs or examples, received {config.duration!r}"
            )
    optimizer = config.optimizer
    _one_of("precision", config.precision, PRECISIONS)
    _one_of("parallel.mode", config.parallel.mode, MODES)
    _one_of("optimizer.schedule", optimizer.schedule, SCHEDULES)
    _one_of("optimizer.name", optimizer.name, OPTIMIZERS)
    _rule("seed", config.seed, 0 <= config.seed < 2**32, "0 to 2^32 - 1")
    _rule("batch_size", config.batch_size, config.batch_size >= 1, "1 or more")
    _rule("accumulate", config.accumulate, config.accumulate >= 1, "1 or more")
    if config.batch_size % config.accumulate:
        raise ValueError(f"accumulate {config.accumulate} does not divide batch_size {config.batch_size}")
    _rule("ema", config.ema, 0 <= config.ema < 1, "0 to 1, 1 not included")
    _rule("checkpoint.keep", config.checkpoint.keep, config.checkpoint.keep >= 1, "1 or more")
    _rule(
        "optimizer.learning_rate",
        optimizer.learning_rate,
        0 <= optimizer.learning_rate < math.inf,
        "0 or more",
    )
    _rule("optimizer.clip", optimizer.clip, optimizer.clip >= 0, "0 (none) or more")
    _rule("optimizer.weight_decay", optimizer.weight_decay, optimizer.weight_decay >= 0, "0 or more")
    _rule("optimizer.final", optimizer.final, 0 <= optimizer.final <= 1, "0 to 1")
    for name in ("b1", "b2"):
        _rule(f"optimizer.{name}", optimizer[name], 0 <= optimizer[name] < 1, "0 to 1, 1 not included")
    axes = [config.parallel[axis] for axis in ("data", "fsdp", "tensor")]
    for axis, size in zip(("data", "fsdp", "tensor"), axes, strict=True):
        _rule(
            f"parallel.{axis}", size, size == -1 or size >= 1, "1 or more, or -1 for the devices that remain"
        )
    if axes.count(-1) > 1:
        raise ValueError(f"parallel: only one axis may be -1, received data, fsdp, tensor = {axes}")
    if config.parallel.mode == "pmap" and axes[1:] != [1, 1]:
        raise ValueError(f"parallel.mode 'pmap' spreads over data alone; received fsdp, tensor = {axes[1:]}")
    for key, value in leaves(config):
        _rule(key, value, value == value, "a number")  # which NaN is not, nor is it equal to itself


def _one_of(name: str, value, allowed) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: received {value!r}; allowed: {', '.join(allowed)}")


def _rule(name: str, value, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name}: received {value}; allowed: {allowed}")


# -- config.json ------------------------------------------------------------------------------------


def write_json(value: Mapping[str, Any] | ml_collections.ConfigDict, path: Path) -> None:
    """Written whole or not at all, whatever happens meanwhile."""
    plain = value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(plain, indent=2, default=list) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> ml_collections.ConfigDict:
    """The config of a run, as it was; locked."""
    config = ml_collections.ConfigDict(tuples(experiment.read_json(path)))
    config.lock()
    return config


def tuples(value):
    """What JSON gives back as lists were tuples."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def difference(
    old: Mapping[str, Any] | ml_collections.ConfigDict, new: Mapping[str, Any] | ml_collections.ConfigDict
) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (old, new)} of the leaves that differ; a missing one is None."""
    before, after = dict(leaves(old)), dict(leaves(new))
    keys = list(before) + [key for key in after if key not in before]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def may_change(key: str) -> bool:
    return any(key == allowed or key.startswith(allowed + ".") for allowed in MAY_CHANGE)
