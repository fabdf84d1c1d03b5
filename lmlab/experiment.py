"""The contract: what an experiment file gives, and what the rest of lmlab makes of it.

A paper is one file, `experiments/<name>.py`:

    '''One line.  The command, its cost, the published number and ours.'''
    FAMILY, PAPER = "transformer", "Vaswani et al. 2017"
    VARIANTS = {"demo": "2 minutes on any laptop", "cpu": "...", ...}
    def get_config(variant=""): ...        # ConfigDict of plain leaves: numbers, strings, booleans, tuples
    def build(config, assets): ...         # real objects: an Experiment
    def figures(runs): ...                 # optional: {name: matplotlib Figure}
    def sweep(): ...                       # optional: yields override dicts
    TARGETS = {"cpu": [Target(...)]}       # optional: published numbers and the bars set against them

Nothing here names a model: the spine knows a task, an optimizer, a source of batches and a list
of evaluations, and that is all it knows.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

PyTree = Any
"""Nested dicts, tuples or lists of arrays."""


class Mean(NamedTuple):
    """A mean kept as a pair, so that it can be added over microbatches, devices and steps.

    The value is `total / count`; adding totals and counts and dividing once makes an accumulated
    gradient equal the large batch's and leaves padded examples (weight 0) without a voice.
    """

    total: Any
    count: Any

    @classmethod
    def of(cls, values, mask=None) -> Mean:
        """The mean of `values` where `mask` (same shape, or broadcast from the left) is not 0."""
        import jax.numpy as jnp

        if mask is None:
            return cls(jnp.sum(values), jnp.asarray(values.size, values.dtype))
        mask = jnp.asarray(mask, values.dtype)
        mask = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape)
        return cls(jnp.sum(values * mask), jnp.sum(mask))

    @property
    def value(self):
        """total / count; 0 / 0 gives 0, so that a batch of padding alone does not poison a sum."""
        import jax.numpy as jnp

        return self.total / jnp.where(self.count == 0, 1, self.count)


class Task(Protocol):
    """An objective over a model: how parameters begin, and what a batch costs.

    `collections` holds what is not trained by gradient, by name: `batch_stats`, `codebook` (averaged
    over shards and microbatches), `carry` (split like the batch). It is `{}` for most tasks.
    """

    def init(self, key, batch) -> tuple[PyTree, dict[str, PyTree]]:
        """(params, collections) for batches shaped like `batch`."""

    def loss(
        self, params, collections, batch, key, train: bool
    ) -> tuple[Mean, dict[str, Mean], dict[str, PyTree]]:
        """(what to minimise, what to log, the new collections)."""


class Evaluation(Protocol):
    """Scores variables on data of its own, over a whole split, every example once.

    `held_out`: read by `lmlab evaluate` alone, never while training (test splits).
    """

    held_out: bool

    def __call__(self, variables: dict[str, PyTree], key) -> tuple[dict[str, Any], dict[str, Any]]:
        """(scalars logged as `name/scalar`, arrays kept in evaluations/<step>/<name>.npz)."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a model drew, or what a batch looks like: texts, images (N, H, W) or (N, H, W, 3), arrays.

    frames: the images on their way, (moments, N, H, W), which become an animation. tables: rows by name, each of
    which becomes a .tsv. figures: of matplotlib, by name.
    """

    texts: Sequence[str] = ()
    images: Any = None
    arrays: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    frames: Any = None
    tables: Mapping[str, Sequence[Sequence[Any]]] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Target:
    """A published number and the bar we set against it.

    metric: a name as `lmlab evaluate` prints it (`validation/loss`). bar: what the mean over seeds must
    not exceed (or fall below, with `higher_is_better`). published: the number in print, 0 for none.
    """

    metric: str
    bar: float
    published: float = float("nan")
    source: str = ""
    higher_is_better: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything a run is made of. Data are opened on first use: sampling reads no training text.

    task             the objective (None only with `fit`)
    optimizer        Clock -> optax transformation, or -> {part of params: transformation}
    train_data       opens a `Resident` or a `Stream`
    evaluations      {name: Evaluation}
    sample           `sample(variables, key, *, prompt="", temperature=1.0, ...) -> Samples`; the keyword
                     names, defaults and docstring become the flags of `lmlab sample`
    step             `step(state, batch, key, update) -> (state, metrics)` where
                     `update(loss, part, state, batch, key) -> (state, metrics)`; None: one update of the task
    batch_fn         `batch_fn(variables, raw, key) -> batch` on the host, before the step (rollouts)
    fit              `fit(source, key) -> params`: closed forms (counts, naive Bayes), in place of task and optimizer
    init_from        `init_from(params) -> params`, on a fresh start only (fine-tuning)
    show             `show(batch) -> Samples`: a batch as a person would read it, for `lmlab data`
    flops            floating point operations of one training example, forward and backward, given
                     the number of parameters; the progress bar's MFU comes from it
    tokens           tokens of one example, when speed is better told in tokens
    dynamic          config leaves that a vmapped sweep may vary inside one program, beside the seed: numbers that
                     the task, the optimizer and the step compute with, and nothing else (no data, no `if`)
    """

    task: Task | None = None
    optimizer: Callable[[Any], Any] | None = None
    train_data: Callable[[], Any] | None = None
    evaluations: Mapping[str, Evaluation] = dataclasses.field(default_factory=dict)
    sample: Callable[..., Samples] | None = None
    step: Callable[..., tuple[Any, dict[str, Mean]]] | None = None
    batch_fn: Callable[..., PyTree] | None = None
    fit: Callable[[Any, Any], PyTree] | None = None
    init_from: Callable[[PyTree], PyTree] | None = None
    show: Callable[[PyTree], Samples] | None = None
    flops: Callable[[int], float] | None = None
    tokens: int = 0
    dynamic: tuple[str, ...] = ()


class Assets:
    """Small JSON facts that a run keeps: a tokenizer, the hash of its text.

    `assets.get("tokenizer.json", make)` returns the run's saved copy, or `make()` on a fresh start; so
    a run in its second year still decodes with the vocabulary it was trained with.
    """

    def __init__(self, folder: Path | None = None):
        """folder: where an existing run keeps them; None: a fresh start."""
        self.folder = folder
        self.values: dict[str, Any] = {}

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.values:
            self.values[name] = make() if self.folder is None else read_json(self.folder / name)
        return self.values[name]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in self.values.items():
            (folder / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


# -- experiment files -------------------------------------------------------------------------------


def split_spec(spec: str) -> tuple[Path, str]:
    """ "experiments/gpt_char.py:demo,cpu" -> (path, "demo,cpu"); no colon: the default variant."""
    path, _, variant = str(spec).partition(":")
    return Path(path), variant


def load_module(path: Path) -> ModuleType:
    """Imports an experiment file by path. Errors are one line: missing, or lacking part of the contract."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no experiment file {str(path)!r}; `lmlab list` shows those in ./experiments"
        )
    name = f"lmlab_experiment_{path.stem}_{sha256(path)[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ValueError(f"{str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[name]
        raise ValueError(f"{path}:{error.lineno}: {error.msg}") from error
    except BaseException:
        del sys.modules[name]
        raise
    for part in ("get_config", "build"):
        if not callable(getattr(module, part, None)):
            del sys.modules[name]
            raise ValueError(
                f"{str(path)!r} has no {part}(): an experiment gives VARIANTS, get_config and build"
            )
    return module


def check_variant(module: ModuleType, variant: str) -> list[str]:
    """The variant's parts, each of them known to the file."""
    known = getattr(module, "VARIANTS", {})
    parts = [part for part in variant.split(",") if part]
    for part in parts:
        if part not in known:
            raise ValueError(
                f"unknown variant {part!r}; allowed: {', '.join(known) or 'none'} (combine by comma)"
            )
    return parts


def read_json(path: Path) -> Any:
    """The value in a file of a run; ValueError where it is damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}, which the run was made with, is not there") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def describe(path: Path) -> dict[str, Any]:
    """Docstring, FAMILY, PAPER and VARIANTS of an experiment file, read without running it."""
    tree = ast.parse(path.read_text())
    facts: dict[str, Any] = {"doc": ast.get_docstring(tree) or "", "FAMILY": "", "PAPER": "", "VARIANTS": {}}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets = node.targets[0]
            pairs = (
                zip(targets.elts, node.value.elts, strict=True)
                if isinstance(targets, ast.Tuple) and isinstance(node.value, ast.Tuple)
                else [(targets, node.value)]
            )
            for target, value in pairs:
                if isinstance(target, ast.Name) and target.id in facts:
                    facts[target.id] = ast.literal_eval(value)
    return facts
