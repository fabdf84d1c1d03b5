"""Runs that differ in numbers alone, as one program: they begin and take each step together, by `jax.vmap`.

What varies are the seed and the leaves that the experiment calls dynamic. `build` is called where the step is
traced, with a view of the config in which what varies is an array of one number (weakly typed, as a Python number
would be): so the program serves any values. Seeds enter by the keys and the order of the data, which are there once.

All else is a run's own, as if it had run alone: directory, rows, evaluations, checkpoints, and the way it ends.
"""

import contextlib
import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmlab import config as config_lib
from lmlab.provenance import now, surroundings
from lmlab.run import Start
from lmlab.sources import Resident
from lmlab.training import parallel
from lmlab.training.checkpoint import Checkpoints
from lmlab.training.loop import Keys, Loop, Trace, Trainer
from lmlab.training.metrics import Progress
from lmlab.training.record import Evaluator, Interval, NotFinite, Record
from lmlab.training.signals import Signals
from lmlab.training.state import State

Numbers = tuple[dict[str, Any], Keys]
"""What sets a run apart: its leaves that vary, by dotted key, and its keys. With a leading axis: of several runs."""


class Group(Trainer):
    """Runs that differ in the seed and in dynamic leaves alone, and what they share.

    make(numbers), step(numbers, state, batch): how one of them begins, and its update.
    """

    def __init__(self, starts: Sequence[Start]):
        first = starts[0]
        self.starts, self.assets = starts, first.assets
        changes = [config_lib.difference(first.config, start.config) for start in starts]
        self.varying = list(dict.fromkeys(key for change in changes for key in change if key != "seed"))
        self.numbers = stacked([start.config for start in starts], self.varying)
        layout = parallel.layout("jit", 1, 1, 1, jax.devices()[:1])
        try:
            super().__init__(self.built(), first.config, layout)
        except jax.errors.JAXTypeError as error:
            raise self.refusal(error) from error
        self.lanes = [Lane(self, start, number) for number, start in enumerate(starts)]

    def build(self, values: dict[str, Any]):
        """The experiment of a run, from what varies."""
        return self.starts[0].module.build(config_lib.View(self.starts[0].config, values), self.assets)

    def built(self):
        """The experiment with its data, which are opened here once.

        It is built under vmap, which leaves alone what does not depend on what varies, the data among it;
        whatever does is a tracer, and asked for outside of the step an error, not one run's value for all.
        """
        made = []

        def build(values):
            experiment = self.build(values)
            source = experiment.train_data()
            plain = experiment.fit is None and experiment.batch_fn is None
            spec, mode = self.starts[0].spec, self.starts[0].config.parallel.mode
            if not (plain and isinstance(source, Resident)):
                kind = type(source).__name__ if plain else "fit" if experiment.fit else "batch_fn"
                raise ValueError(
                    f"{spec}: its data are not picked within the step ({kind}); allowed: --launcher=local"
                )
            if mode != "jit":
                raise ValueError(f"parallel.mode: received {mode!r}; allowed: 'jit', or --launcher=local")
            sizes = (source.num_examples, source.batch_size)
            if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((source.data, sizes))):
                what = ", ".join(values)
                raise ValueError(
                    f"{spec}: its training data depend on what varies ({what}); allowed: --launcher=local"
                )
            made.append((experiment, dataclasses.replace(source, seed=0)))
            return values

        try:
            jax.vmap(build)(self.numbers[0])
        except TypeError as error:  # NumPy's, for one, where it is given a tracer
            raise self.refusal(error) from error
        experiment, source = made[0]
        return dataclasses.replace(experiment, train_data=lambda: source)

    def refusal(self, error: TypeError) -> ValueError:
        """That something asked for the value of what has many."""
        what, why = ", ".join(["seed", *self.varying]), str(error).splitlines()[0][:100]
        return ValueError(
            f"{self.starts[0].spec}: {what} cannot vary within a program, since a value is asked for outside of the"
            f" step ({why}); allowed: --launcher=local"
        )

    def trace(self) -> None:
        def make(numbers: Numbers) -> State:
            values, keys = numbers
            return self.parts(self.build(values), keys)[0]()

        def step(numbers: Numbers, state: State, batch):
            values, keys = numbers
            return self.parts(self.build(values), keys)[1](state, batch)

        self.make, self.step = jax.jit(make, inline=True), jax.jit(step, inline=True)
        self.one = jax.tree.map(lambda leaf: leaf[0], self.numbers)
        state = self.layout.abstract(self.make_one)
        self.metric_shapes = jax.eval_shape(self.step, self.one, state, self.example)[1]

    def make_one(self) -> State:
        """The state of any of them, for its shapes."""
        return self.make(self.one)

    @functools.cached_property
    def born(self) -> State:
        """The states of all before the first step: one after the other, a program that is sooner compiled."""

        @jax.jit
        def make(numbers):
            return jax.lax.map(lambda one: nn.unbox(self.make(one)), numbers)

        return jax.device_get(make(self.numbers))

    def train(self) -> None:
        """Trains each to its end. Those that do not stand at the same step are programs of their own."""
        path = Path(self.starts[0].module.__file__)
        where, places = surroundings(path.resolve().parent), {}
        with contextlib.ExitStack() as stack:
            for lane in self.lanes:
                stack.enter_context(lane.start.begun(lane, where))
                (lane.start.folder / "failure.json").unlink(missing_ok=True)
                places.setdefault(lane.open(), []).append(lane)
            for (done, _), lanes in places.items():
                if done < self.total:
                    Program(self, lanes).train(done)
                else:
                    for lane in lanes:
                        lane.saves.close()
                        lane.start.ended()


def stacked(configs: Sequence[Any], varying: Sequence[str]) -> Numbers:
    """The numbers of several runs, side by side."""
    values = {
        key: jnp.stack([jnp.asarray(config_lib.get(config, key)) for config in configs]) for key in varying
    }
    values["seed"] = jnp.asarray([config.seed for config in configs], jnp.uint32)
    keys = jax.vmap(lambda seed: Keys.of(config_lib.View(configs[0], {"seed": seed})))(values["seed"])
    return values, keys


class Lane(Trainer):
    """One run of a group: all that surrounds its steps."""

    def __init__(self, group: Group, start: Start, number: int):
        self.group, self.start, self.number = group, start, number
        start.assets = group.assets
        super().__init__(group.experiment, start.config, group.layout)

    def trace(self) -> None:
        self.make = self.group.make_one  # which is asked for shapes alone

    def create(self) -> State:
        own = jax.tree.map(lambda leaf: leaf[self.number], self.group.born)
        return jax.device_put(own, self.layout.replicated)

    def open(self) -> tuple[int, int]:
        """Opens its checkpoints: where it stands, (updates done, those of them not in the log yet)."""
        self.saves: Checkpoints = self.checkpoints(self.start.folder)
        self.state, self.kept = self.begin(self.saves)
        return int(self.state.step), int(self.kept.get("unlogged", 0))

    def evaluator(self, folder: Path) -> Evaluator:
        return Shared(self.evaluations, self.keys.evaluation, folder / "evaluations", self.own_evaluations)

    def own_evaluations(self) -> dict[str, Any]:
        experiment = self.start.module.build(self.config, self.start.assets)
        return {name: e for name, e in experiment.evaluations.items() if not e.held_out}


@dataclasses.dataclass
class Shared(Evaluator):
    """Evaluations that runs have in common, until they are found to depend on what varies; then the run's `own`."""

    own: Callable[[], dict[str, Any]]

    def __call__(self, variables, step: int) -> dict[str, float]:
        try:
            return super().__call__(variables, step)
        except jax.errors.JAXTypeError:
            self.evaluations = self.own()
            return super().__call__(variables, step)


class Program(Trainer):
    """Runs of a group that stand at the same step, side by side: an axis leads in all that they step through."""

    def __init__(self, group: Group, lanes: Sequence[Lane]):
        self.group, self.lanes = group, lanes
        self.numbers = stacked([lane.config for lane in lanes], group.varying)
        super().__init__(group.experiment, group.config, Spread.over(len(lanes)))
        source = self.source
        fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(Resident)}
        self.source = SideBySide(**fields | {"data": (source.data, self.numbers)}, one=source)

    def trace(self) -> None:
        group, count = self.group, len(self.lanes)

        def step(state, batch):
            return jax.vmap(group.step)(batch[1], state, batch[0])

        self.step = step
        self.make = lambda: jax.vmap(lambda numbers: nn.unbox(group.make(numbers)))(self.numbers)
        self.metric_shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), group.metric_shapes
        )

    def train(self, done: int) -> None:
        names = self.metric_shapes
        sums = {name: [lane.kept.get("sums", {}).get(name, (0, 0)) for lane in self.lanes] for name in names}
        kept = {**self.lanes[0].kept, "sums": {name: np.transpose(pairs) for name, pairs in sums.items()}}
        states = [jax.device_get(lane.state) for lane in self.lanes]
        state = jax.device_put(
            jax.tree.map(lambda *leaves: np.stack(leaves), *states), self.layout.shardings(self.make)
        )
        with contextlib.ExitStack() as stack:
            signals = stack.enter_context(Signals())
            progress = stack.enter_context(contextlib.closing(Progress(self.total, done, self.unit)))
            records = [
                stack.enter_context(Record(lane, lane.saves, lane.start.folder, done)) for lane in self.lanes
            ]
            fleet = Fleet(self, state, done, kept, records, progress)
            fleet.run(signals)
        for number in fleet.left:
            self.lanes[number].start.ended()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SideBySide(Resident):
    """The batches of several runs, each in its own order of the data, and the runs' numbers. one: its own source."""

    one: Resident

    def batch(self, data, step, shard: Any = 0, num_shards: int = 1):
        arrays, numbers = data

        def batch(seed, step):
            return dataclasses.replace(self.one, seed=seed).batch(arrays, step)

        return jax.vmap(batch)(numbers[0]["seed"], step), numbers


class Spread(parallel.Layout):
    """Whole runs dealt out to devices, as many of these as share them evenly."""

    @classmethod
    def over(cls, runs: int) -> "Spread":
        count = math.gcd(runs, jax.device_count())
        return cls("jit", parallel.layout("jit", count, 1, 1, jax.devices()[:count]).mesh)

    def check(self, batch_size: int, accumulate: int) -> None:
        """A batch is not split."""

    def shardings(self, make: Callable[[], State]):
        return jax.tree.map(lambda _: self.batch_sharding, self.shapes(make))

    def everywhere(self, data) -> Any:
        return jax.device_put(data, self.replicated)

    def fetch(self, sums) -> Any:
        return jax.device_get(sums)


class Fleet(Loop):
    """The loop of a program. What is due is done for each run that is `left`: one that diverges ends alone."""

    def __init__(
        self, program: Program, state, done: int, kept, records: Sequence[Record], progress: Progress
    ):
        super().__init__(program, state, done, kept, None, progress, Trace(None))
        self.lanes, self.records, self.left = program.lanes, records, list(range(len(records)))
        self.pick = jax.jit(lambda states, number: jax.tree.map(lambda leaf: leaf[number], states))

    def log(self, interval: Interval) -> None:
        rows = self.each(lambda number: self.records[number].log(of(interval, number)))
        if rows:
            speed, loss = f"speed/{self.trainer.unit}_per_second", "train/loss"
            shown = {speed: sum(row[speed] for row in rows)}
            if loss in rows[0]:
                shown[loss] = statistics.median(row[loss] for row in rows)
            self.progress.show(shown)

    def settle(self, interval: Interval, evaluate: bool, save: bool) -> None:
        def settle(number: int):
            state = jax.device_put(self.pick(self.state, number), self.lanes[number].layout.replicated)
            return self.records[number].settle(state, of(interval, number), evaluate, save)

        scalars = self.each(settle)
        if any(scalars):
            values = {key: [each[key] for each in scalars] for key in scalars[0]}
            ends = {
                key: dict.fromkeys(f"{end(each):.4f}" for end in (min, max)) for key, each in values.items()
            }
            told = [f"{key} {' to '.join(each)}" for key, each in ends.items()]
            self.progress.say(f"step {self.done:,}, runs: {len(scalars)}: {', '.join(told)}")

    def each(self, act: Callable[[int], Any]) -> list[Any]:
        """What `act` gives for each run that is left."""
        given = []
        for number in list(self.left):
            try:
                given.append(act(number))
            except NotFinite as error:
                self.left.remove(number)
                folder = self.lanes[number].start.folder
                failure = {"code": 1, "line": f"lmlab train: {error}", "when": now()}
                config_lib.write_json(failure, folder / "failure.json")
                self.progress.say(f"{folder.name} failed: {error}")
        if not self.left:
            self.total = 0  # nothing to go on for
        return given


def of(interval: Interval, number: int) -> Interval:
    """What one of the runs has summed."""
    return interval._replace(sums=jax.tree.map(lambda leaf: leaf[number], interval.sums))
