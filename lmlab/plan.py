"""What a run would cost: memory, placement, operations and time, from shapes alone.

All is traced abstractly, on a mesh without devices, and as an accelerator would be given it: the tricks
for the CPU are off. What the sheet marks with ~ is an estimate; its last lines say how it is made.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, AxisType

from lmlab import config as config_lib
from lmlab.cost import Kept, flops, kept, share, size
from lmlab.experiment import Assets, Experiment
from lmlab.flags import Flags, UsageError
from lmlab.layers import tricks
from lmlab.sources import Resident
from lmlab.tasks import Narrowed
from lmlab.training import parallel
from lmlab.training.loop import Trainer
from lmlab.training.metrics import peak_flops
from lmlab.training.step import create

AXES = ("data", "fsdp", "tensor")
CARDS = {  # name in metrics.PEAK_FLOPS, bytes of memory: both from the makers' data sheets
    "H100": ("H100", 80e9),
    "H200": ("H200", 141e9),
    "TPU v5e": ("TPU v5 lite", 16e9),
}
LARGE, LISTED = 0.01, 6
"""The part of all parameters from which on an array is listed; how many kinds of activations are."""
BATCH_FN = "The batches are made while training: what a step keeps and computes is not known before.\n"
NOTES = """~ estimated. Activations: what the gradient of one microbatch keeps by jax.vjp, traced on a CPU: before XLA
fuses, whole on each device of the tensor axis, with what fused kernels of a GPU would not keep. Made again: the
largest part under jax.checkpoint. The gradient lies like its parameters; the total has all of these at once.
Not counted: XLA's scratch, what it gathers over fsdp and tensor, evaluations.
Time: FLOPs (the formula's, where there is one) / (peak x MFU {mfu:g} x devices), the input and evaluations aside.
Fewest: how many of a card hold the total, all along {axis}, activations in proportion to a device's examples.
Peaks and memories are the makers' (1 GB = 10^9 B)."""


def main(argv: list[str]) -> int:
    """What a run would cost: memory, placement, operations and time, with no device touched.

        lmlab plan --config=experiments/gpt_char.py
        lmlab plan --config=experiments/gpt_char.py --config.batch_size=1024 --mesh=data:8,fsdp:32 --mfu=0.4

    The mesh may be of any size. Shapes come from the experiment, which opens its data. The sheet says what
    is estimated; evaluations and sampling are not counted.
    """
    fv = Flags(main.__doc__)
    options = fv.options(plan)
    spec, overrides = fv.config(argv, required=True)
    print(f"{spec}\n{plan(spec, overrides, **{name: getattr(fv, name) for name in options})}")
    return 0


def plan(
    spec: str, overrides: Mapping[str, Any] | None = None, *, mesh: str = "", mfu: float = 0.4
) -> "Plan":
    """The plan of an experiment.

    mesh: devices along each axis, such as data:8,fsdp:32 (data, fsdp, tensor); config.parallel's, -1 as 1, if not given
    mfu: model FLOPs utilization: the part of the peak that is reached
    """
    if not 0 < mfu <= 1:
        raise UsageError(f"--mfu: received {mfu:g}; allowed: above 0, up to 1")
    axes = parse_mesh(mesh) if mesh else {}
    jax.config.update("jax_platforms", "cpu")  # a GPU may be at work, and would not tell costs uncompiled
    config, module = config_lib.load(spec, {**(overrides or {}), **axes})
    parallel.prepare(config.precision)
    with tricks.without("all"):
        return Plan(module.build(config, Assets()), config, mfu)


def parse_mesh(text: str) -> dict[str, int]:
    """ "data:8,fsdp:32" as leaves of a configuration; an axis that is not named has size 1."""
    named = re.findall(r"(\w+):(\d+)", text)
    sizes = {axis: int(length) for axis, length in named}
    whole = ",".join(f"{axis}:{length}" for axis, length in named) == text
    if not whole or len(sizes) < len(named) or set(sizes) - set(AXES) or 0 in sizes.values():
        raise UsageError(
            f"--mesh: received {text!r}; allowed: AXIS:SIZE by comma, each of {', '.join(AXES)} at most once,"
            " sizes from 1, such as data:8,fsdp:32"
        )
    return {f"parallel.{axis}": sizes.get(axis, 1) for axis in AXES}


def abstract(data: int, fsdp: int, tensor: int) -> parallel.Layout:
    """A layout over devices that need not be there."""
    return parallel.Layout("jit", AbstractMesh((data, fsdp, tensor), AXES, (AxisType.Auto,) * 3))


# -- the plan ----------------------------------------------------------------------------------------


class Plan:
    """What `str` writes out as a sheet.

    state, example: placed shapes. memory: {what: (bytes in all, bytes on one device)}. operations: FLOPs a
    step as XLA counts them; formula: by the experiment's formula; fewest: {card: how many of them it takes}.
    updates: (part of the parameters, what is kept) of each update in a step, for a microbatch on one device.
    """

    def __init__(self, experiment: Experiment, config, mfu: float = 0.4):
        if experiment.fit is not None:
            raise ValueError("this experiment is fitted in closed form: there is no training step to plan")
        self.experiment, self.config, self.mfu = experiment, config, mfu
        self.layout = abstract(**{axis: max(1, config.parallel[axis]) for axis in AXES})
        self.trainer = Trainer(experiment, config, self.layout)
        self.state = self.layout.abstract(self.trainer.make)
        self.example = self.trainer.example
        self.modules: dict[str, str] = {}
        self.updates = [] if experiment.batch_fn else self._updates(self.examples(self.layout))
        self.memory = self.measure(self.layout)
        self.count = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        self.formula = config.batch_size * experiment.flops(self.count) if experiment.flops else math.nan
        self.operations = math.nan
        if experiment.batch_fn is None:
            self.operations = flops(jax.make_jaxpr(self.trainer.alone)(self.state, self.example))
        self.fewest = {card: self._fewest(memory) for card, (_, memory) in CARDS.items()}

    def measure(self, layout: parallel.Layout) -> dict[str, tuple[int, int]]:
        """{what: (bytes in all, bytes on one device)} under a layout."""
        state, source = layout.abstract(self.trainer.make), self.trainer.source
        rows = {
            "parameters": state.params,
            "optimizer state": state.opt_state,
            "averaged parameters": state.ema,
            "collections": state.collections,
            "training data": source.data if isinstance(source, Resident) else layout.example(source),
        }
        rows = {name: (size(tree), share(tree)) for name, tree in rows.items()}
        if self.updates:
            parts = [state.params if part is None else state.params[part] for part, _ in self.updates]
            most = [max(getattr(one, name) for _, one in self.updates) for name in ("activations", "again")]
            scale = self.examples(layout) / self.examples(self.layout)
            activations, again = (round(scale * held) for held in most)
            casts = max(one.casts for _, one in self.updates)
            rows |= {
                "~ gradient": max((size(part), share(part)) for part in parts),
                "~ parameters, cast": (casts, casts * share(state.params) // size(state.params)),
                "~ activations": (activations * layout.num_devices, activations),
                "~ activations made again": (again * layout.num_devices, again),
            }
        return {name: row for name, row in rows.items() if row[0]}

    def examples(self, layout: parallel.Layout) -> int:
        """Of a microbatch on one device."""
        shards = layout.mesh.shape["data"] * layout.mesh.shape["fsdp"]
        return self.config.batch_size // (shards * self.config.accumulate)

    def step_seconds(self, card: str) -> float:
        """At the MFU; nan where the card's peak at this precision is not known."""
        peak = peak_flops(CARDS[card][0], self.config.precision) * self.layout.num_devices
        return (self.operations if math.isnan(self.formula) else self.formula) / (peak * self.mfu)

    def _fewest(self, memory: float) -> int | None:
        """The least number of devices, all along one axis, on which state and activations fit."""
        batch = self.config.batch_size // self.config.accumulate
        for number in (n for n in range(1, batch + 1) if batch % n == 0 and size(self.state) <= n * memory):
            rows = self.measure(abstract(**{**dict.fromkeys(AXES, 1), self._axis: number}))
            if total(rows)[1] <= memory:
                return number
        return None

    @property
    def _axis(self) -> str:
        return "data" if self.config.parallel.mode == "pmap" else "fsdp"

    def _updates(self, examples: int) -> list[tuple[str | None, Kept]]:
        """What `updates` holds, of a microbatch of `examples`."""
        experiment, key, found = self.experiment, jax.random.key(0), []
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((examples, *leaf.shape[1:]), leaf.dtype), self.example
        )

        def update(loss, part, state, batch, key):
            """In the place of `make_update`'s: notes what would be kept, and moves nothing."""

            def total(weights, rest):
                state, batch, key = rest
                params = weights if part is None else {**state.params, part: weights}
                return loss(params, state.collections, batch, key, True)[0].total

            weights = state.params if part is None else state.params[part]
            found.append((part, kept(total, weights, (state, batch, key))))
            mean, metrics, new = loss(state.params, state.collections, batch, key, True)
            metrics = {"loss": mean, **metrics, "grad_norm": mean}
            return state.replace(collections={**state.collections, **new}), metrics

        def step(batch):
            optimizer = experiment.optimizer(self.trainer.clock)
            state = nn.unbox(create(experiment, optimizer, key, batch, False))
            if experiment.step is None:
                task = experiment.task.task if isinstance(experiment.task, Narrowed) else experiment.task
                return update(task.loss, None, state, batch, key)
            return experiment.step(state, batch, key, update)

        with nn.intercept_methods(self._note):
            jax.eval_shape(step, batch)
        return found

    def _note(self, call, args, kwargs, context):
        """Keeps the shapes that go in and out of each Flax module."""
        out = call(*args, **kwargs)
        if context.method_name == "__call__":
            first = [
                next((str(list(leaf.shape)) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")), "-")
                for tree in ((args, kwargs), out)
            ]
            self.modules.setdefault("/".join(context.module.path), " -> ".join(first))
        return out

    def __str__(self) -> str:
        parts = [
            self._head,
            self._cards,
            self._memory,
            self._activations,
            self._arrays,
            self._layers,
            self._notes,
        ]
        return "\n\n".join(text for text in (part() for part in parts) if text)

    def _head(self) -> str:
        config, axes = self.config, self.layout.mesh.shape
        tokens = f", {config.batch_size * self.experiment.tokens:,} tokens" if self.experiment.tokens else ""
        lines = [
            f"{self.layout.num_devices:,} devices ({', '.join(f'{axis} {n}' for axis, n in axes.items())})",
            f"a step: {config.batch_size:,} examples{tokens}; {self.examples(self.layout):,} examples a device"
            + (f" in each of {config.accumulate} microbatches" if config.accumulate > 1 else ""),
            f"the run: {self.trainer.clock.total:,} steps, precision {config.precision}",
        ]
        known = {"as XLA counts the program": self.operations, "by the experiment's formula": self.formula}
        counts = [f"{si(count, 'FLOP')} {how}" for how, count in known.items() if not math.isnan(count)]
        if len(counts) == 2:
            counts[1] += f" (ratio {self.operations / self.formula:.3f})"
        return "\n".join([*lines, "a step: " + ", ".join(counts or ["FLOPs not known"])])

    def _memory(self) -> str:
        rows = [[name, si(whole, "B"), si(device, "B")] for name, (whole, device) in self.memory.items()]
        rows[0][0] = f"parameters ({self.count:,})"
        last = ["~ total", *(si(number, "B") for number in total(self.memory))]
        return columns([["memory", "in all", "a device"], *rows, last])

    def _activations(self) -> str:
        if not self.updates:
            return ""
        arrays = max((one for _, one in self.updates), key=lambda one: one.activations).arrays
        largest = sorted(arrays.items(), key=lambda array: -array[1][1])[:LISTED]
        rows = [[name, f"{count:,}", si(held, "B")] for name, (count, held) in largest]
        return columns([["~ activations kept", "arrays", "a device"], *rows])

    def _arrays(self) -> str:
        rows, rest = [], []
        for label, _, times, leaf in walk(nested(self.state.params)):
            if isinstance(leaf, dict):
                continue
            if times * size(leaf) >= LARGE * size(self.state.params):
                spec = ", ".join(str(axis or "-") for axis in leaf.sharding.spec)
                rows.append(
                    ["/".join(label), str(list(leaf.shape)), f"({spec})", si(times * share(leaf), "B")]
                )
            else:
                rest.append(times * share(leaf))
        if rest:
            rows.append([f"{len(rest)} smaller", "", "", si(sum(rest), "B")])
        return columns([["array", "shape", "placement", "a device"], *rows])

    def _layers(self) -> str:
        rows, plain = [], set()
        for label, path, times, node in walk(nested(self.state.params)):
            if path[:-1] in plain:
                continue
            if isinstance(node, dict) and not any(isinstance(value, dict) for value in node.values()):
                plain.add(path)
            count = times * sum(leaf.size for leaf in jax.tree.leaves(node))
            shapes = self.modules.get("/".join(path), "")
            rows.append(
                ["  " * (len(label) - 1) + label[-1], shapes, f"{count:,}", f"{count / self.count:.1%}"]
            )
        return columns([["module", "in -> out", "parameters", "share"], *rows])

    def _cards(self) -> str:
        rows = []
        needed = total(self.memory)[1]
        for card, (kind, memory) in CARDS.items():
            seconds = self.step_seconds(card)
            fits = f"{'yes' if needed <= memory else 'no'}, {needed / memory:.0%}"
            peak = peak_flops(kind, self.config.precision)
            fewest = "none" if self.fewest[card] is None else f"{self.fewest[card]:,}"
            times = [duration(seconds), duration(seconds * self.trainer.clock.total)]
            rows.append([f"{card}, {si(memory, 'B')}", si(peak, "FLOP/s"), fits, fewest, *times])
        title = ["card", f"peak, {self.config.precision}", "fits", "fewest", "~ a step", "~ the run"]
        return columns([title, *rows])

    def _notes(self) -> str:
        batch_fn = "" if self.experiment.batch_fn is None else BATCH_FN
        return batch_fn + NOTES.format(mfu=self.mfu, axis=self._axis)


# -- text --------------------------------------------------------------------------------------------


def nested(tree) -> dict[str, Any]:
    """A tree as dicts of dicts, by the names in its paths."""
    root: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *above, name = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        node = root
        for part in above:
            node = node.setdefault(part, {})
        node[name] = leaf
    return root


def walk(tree: dict[str, Any], label=(), path=(), times: int = 1) -> Iterator[tuple[tuple, tuple, int, Any]]:
    """(labels, path, how often it is there, entry) of each entry of nested dicts, from the top.

    Neighbours alike in all but the number at the end of their name are one entry, "blocks_0 ... blocks_11 (x12)".
    """

    def stem(name):
        return re.sub(r"\d+$", "", name)

    def alike(name):
        kind = str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree[name]))
        return (stem(name), kind) if stem(name) != name else (name,)

    names = sorted(tree, key=lambda name: (stem(name), int(name[len(stem(name)) :] or -1)))
    for _, group in itertools.groupby(names, alike):
        first, *others = group
        name = f"{first} ... {others[-1]} (x{len(others) + 1})" if others else first
        entry = ((*label, name), (*path, first), times * (len(others) + 1), tree[first])
        yield entry
        if isinstance(tree[first], dict):
            yield from walk(tree[first], *entry[:3])


def total(rows: dict[str, tuple[int, int]]) -> tuple[int, int]:
    return sum(whole for whole, _ in rows.values()), sum(device for _, device in rows.values())


def columns(rows: list[list[str]]) -> str:
    """Rows as text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def si(number: float, unit: str = "") -> str:
    """ "26.6 GB"."""
    if math.isnan(number):
        return "-"
    power = min(6, int(math.log10(max(number, 1)) // 3))
    return f"{number / 1000**power:.4g} {' kMGTPE'[power].strip()}{unit}".rstrip()


def duration(seconds: float) -> str:
    """ "1.4 h"."""
    if math.isnan(seconds):
        return "-"
    units = (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))
    unit, length = next(((u, n) for u, n in units if seconds >= n), ("ms", 1e-3))
    return f"{seconds / length:.3g} {unit}"
