"""The cells of a sweep: what is asked for by flags becomes a list of runs, each with a directory and a status.

sweep.json in the sweep's directory holds them: {"spec", "overrides" (common to all), "axes" {key: values},
"launcher", "options" (of the launcher), "cells", "command", "when"}.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
import random as random_lib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab import config as config_lib
from lmlab import experiment, run
from lmlab.flags import Flags, UsageError

NAME_LENGTH = 120


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run to be, in WORKDIR/name.

    spec: its experiment and variant. overrides: all it is started with, by dotted key. varies: what sets it
    apart from the others of its sweep, "variant" among the keys; its name is made of it.
    """

    name: str
    spec: str
    overrides: dict[str, Any]
    varies: dict[str, Any] = dataclasses.field(default_factory=dict)


def cells(
    spec: str,
    overrides: Mapping[str, Any],
    *,
    grid: Sequence[str] = (),
    zip: Sequence[str] = (),
    random: Sequence[str] = (),
    num_random: int = 0,
    random_seed: int = 0,
    seeds: int = 0,
    max_runs: int = 200,
) -> list[Cell]:
    """What flags ask for, each cell checked; without any axis, the experiment's own sweep()."""
    if seeds < 0:
        raise UsageError(f"--seeds: received {seeds}; allowed: 1 or more")
    if max_runs < 1:
        raise UsageError(f"--max_runs: received {max_runs}; allowed: 1 or more")
    _check_count(max(seeds, num_random), max_runs)  # before as many are made
    flags = [_asked("grid", grid), _asked("zip", zip), _asked("random", random)]
    axes = [[{key: text} for text in split(values)] for key, values in flags[0]]
    axes += _together(flags[1])
    axes += _draws(flags[2], num_random, random_seed)
    if seeds:
        axes.append([{"seed": str(seed)} for seed in range(seeds)])
    path, variant = experiment.split_spec(spec)
    if axes:
        keys = [key for asked in flags for key, _ in asked] + ["seed"] * bool(seeds)
        rows = (_merge(row) for row in itertools.product(*axes))
        count = math.prod(len(axis) for axis in axes)
    else:
        rows = list(_own(path, max_runs + 1))
        keys = list(_merge(rows))
        count = len(rows)
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(f"{key} is swept twice; allowed: once")
        if key in overrides:
            raise UsageError(f"--config.{key} is given, and {key} is swept; allowed: one of them")
    if not count:
        raise UsageError(f"0 runs: sweep() of {path} yields none; give --grid, --zip, --random or --seeds")
    _check_count(count, max_runs, "" if axes else f"more than {max_runs:,}")
    made, leaves = [], set()
    for row in rows:
        parts = ",".join(part for part in (variant, row.get("variant", "")) if part).split(",")
        joined = ",".join(dict.fromkeys(parts))  # one that both name is said once
        own = f"{path}:{joined}" if joined else str(path)
        varies = {key: value if key == "variant" else _typed(own, key, value) for key, value in row.items()}
        cell = Cell("", own, {**overrides, **varies}, varies)
        cell.overrides.pop("variant", None)
        leaves |= {key for key, _ in config_lib.leaves(config_lib.load(own, cell.overrides)[0])}
        made.append(cell)
    last = Counter(key.rpartition(".")[2] for key in leaves)
    made = [dataclasses.replace(cell, name=_name(cell.varies, last)) for cell in made]
    twice = [name for name, times in Counter(cell.name for cell in made).items() if times > 1]
    if twice:
        raise UsageError(
            f"two runs would be {twice[0]!r}; allowed: values that differ, by more than '_' for ' ' and '+' for ','"
        )
    return made


def _check_count(count: int, most: int, told: str = "") -> None:
    if count > most:
        raise UsageError(f"{told or f'{count:,}'} runs; allowed: {most:,}, or as many as --max_runs=N says")


# -- axes ---------------------------------------------------------------------------------------------


def split(text: str) -> list[str]:
    """The values of an axis: at ";" if there is one (one may also end it), else at commas outside brackets."""
    parts = text.removesuffix(";").split(";") if ";" in text else re.split(r",(?![^(]*\))", text)
    return [part.strip() for part in parts]


def _asked(flag: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    """(key, values) of KEY=VALUES."""
    pairs = [text.partition("=") for text in texts]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise UsageError(f"--{flag}: received {key!r}; allowed: KEY=VALUES")
    return [(key.strip(), values) for key, _, values in pairs]


def _together(asked: list[tuple[str, str]]) -> list[list[dict[str, str]]]:
    """The one axis along which the keys of --zip advance."""
    columns = [[{key: text} for text in split(values)] for key, values in asked]
    if len({len(column) for column in columns}) > 1:
        told = ", ".join(f"{next(iter(column[0]))} has {len(column)}" for column in columns)
        raise UsageError(f"--zip: {told}; allowed: as many values for each")
    return [[_merge(row) for row in zip(*columns, strict=True)]] if columns else []


DRAWS = {  # of a number u, uniform in [0, 1)
    "uniform": lambda u, a, b: a + u * (b - a),
    "log_uniform": lambda u, a, b: a * (b / a) ** u,
    "int_uniform": lambda u, a, b: math.floor(a + u * (b - a + 1)),
}


def _draws(asked: list[tuple[str, str]], number: int, seed: int) -> list[list[dict[str, str]]]:
    """The one axis of random values; what is drawn twice is there once.

    Each key has numbers of its own: more draws leave the first as they were.
    """
    if bool(asked) != (number > 0):
        raise UsageError(
            f"--random and --num_random=N (above 0) go together; received {len(asked)}, {number}"
        )
    columns = []
    for key, text in asked:
        numbers = random_lib.Random(f"{seed} {key}")
        draw = _distribution(key, text)
        columns.append([draw(numbers.random()) for _ in range(number)])
    keys = [key for key, _ in asked]
    rows = dict.fromkeys(zip(*columns, strict=True))
    return [[dict(zip(keys, row, strict=True)) for row in rows]] if columns else []


def _distribution(key: str, text: str):
    """u -> a value, as text: four digits of a real number, so that what is read is what was used."""
    match = re.fullmatch(r"(\w+)\((.*)\)", text.strip())
    kind = match.group(1) if match else ""
    if kind == "choice":
        values = split(match.group(2))
        return lambda u: values[int(u * len(values))]
    try:
        low, high = (float(bound) for bound in match.group(2).split(","))
        whole = kind != "int_uniform" or (low.is_integer() and high.is_integer())
        if not -math.inf < low <= high < math.inf or not whole or (kind == "log_uniform" and low <= 0):
            raise ValueError
        draw = DRAWS[kind]
    except (AttributeError, KeyError, ValueError):
        raise UsageError(
            f"--random={key}: received {text!r}; allowed: log_uniform(1e-4,1e-2) with bounds above 0,"
            " uniform(0,0.5), int_uniform(1,8), choice(a,b,c)"
        ) from None
    if kind == "int_uniform":
        return lambda u: str(draw(u, low, high))
    return lambda u: f"{min(max(float(f'{draw(u, low, high):.4g}'), low), high):g}"


def _own(path: Path, most: int) -> Iterable[dict[str, Any]]:
    """The first rows of the experiment's sweep()."""
    module = experiment.load_module(path)
    if not hasattr(module, "sweep"):
        raise UsageError(f"0 runs: {path} has no sweep(); give --grid, --zip, --random or --seeds")
    return itertools.islice(module.sweep(), most)


def _merge(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for row in rows for key, value in row.items()}


@functools.cache
def _parsed(spec: str, key: str, text: str) -> Any:
    """A value as `lmlab train` would read it from --config.KEY=TEXT."""
    return Flags("").config([f"--config={spec}", f"--config.{key}={text}"])[1][key]


def _typed(spec: str, key: str, value: Any) -> Any:
    return _parsed(spec, key, value) if isinstance(value, str) else value


# -- names --------------------------------------------------------------------------------------------


def _name(varies: Mapping[str, Any], last: Mapping[str, int]) -> str:
    """ "learning_rate=0.001,seed=0": keys by their last part, where only one leaf of the config ends so."""
    short = {key: key.rpartition(".")[2] for key in varies}
    pairs = [
        f"{short[key] if last[short[key]] < 2 else key}={_readable(value)}" for key, value in varies.items()
    ]
    name = ",".join(pairs)
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 9]}-{_hash(name)}"


def _readable(value: Any) -> str:
    """A value as part of a file's name; what cannot stand there is replaced, and a hash tells which it was."""
    if isinstance(value, tuple):
        return "x".join(map(_readable, value)) or "()"
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    plain = text.replace(" ", "_").replace(",", "+")
    safe = re.sub(r"[^\w.+-]", "-", plain, flags=re.ASCII)
    return safe if safe == plain else f"{safe}-{_hash(text)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# -- on disk ------------------------------------------------------------------------------------------


def read(workdir: Path) -> dict[str, Any]:
    """sweep.json, its "cells" as `Cell`s, or FileNotFoundError."""
    if not (workdir / "sweep.json").is_file():
        raise FileNotFoundError(f"{str(workdir)!r} holds no sweep (no sweep.json); `lmlab sweep` makes one")
    record = config_lib.tuples(experiment.read_json(workdir / "sweep.json"))
    try:
        return record | {"cells": [Cell(**cell) for cell in record["cells"]]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{workdir / 'sweep.json'} is damaged: {error}") from None


def write(workdir: Path, record: Mapping[str, Any]) -> None:
    """sweep.json of a record with `Cell`s, its axes those of the cells."""
    axes: dict[str, list[Any]] = {}
    for cell in record["cells"]:
        for key, value in cell.varies.items():
            if value not in axes.setdefault(key, []):
                axes[key].append(value)
    plain = [dataclasses.asdict(cell) for cell in record["cells"]]
    config_lib.write_json({**record, "axes": axes, "cells": plain}, workdir / "sweep.json")


def join(workdir: Path, old: Sequence[Cell], new: Sequence[Cell]) -> list[Cell]:
    """The cells of a sweep, and what is asked of it now; one of the same name must be the same run."""
    joined = {cell.name: cell for cell in old}
    for cell in new:
        before = joined.get(cell.name, cell)
        changed = config_lib.difference(before.overrides, cell.overrides)
        if before.spec != cell.spec or not all(map(config_lib.may_change, changed)):
            raise UsageError(f"{workdir} holds another run {cell.name!r}; name another --workdir")
        joined[cell.name] = cell
    return list(joined.values())


def status(workdir: Path, cell: Cell) -> str:
    """new, running (its lock is held), done, failed, or cut: begun, and neither ended nor failed."""
    folder = workdir / cell.name
    if run.is_locked(folder):
        return "running"
    begun = (folder / "run.json").exists()
    if begun:
        record = experiment.read_json(folder / "run.json")
        duration = cell.overrides.get("duration")  # asked to go on for longer, it is not done
        if "done" in record and duration in (None, record["overrides"].get("duration")):
            return "done"
    if (folder / "failure.json").exists():
        return "failed"
    return "cut" if begun else "new"
