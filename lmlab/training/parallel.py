"""How a step is spread over devices: jit over a mesh of (data, fsdp, tensor), or pmap over data.

Parameters carry logical axis names; RULES is the one table that maps them to mesh axes. A dimension
that its mesh axis does not divide stays whole.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import flax.jax_utils
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lmlab import compiled, cpu
from lmlab.config import PRECISIONS
from lmlab.sources import Resident, Source
from lmlab.training.state import State
from lmlab.training.step import CARRY

BATCH = ("data", "fsdp")
RULES = (("batch", BATCH), ("embed", "fsdp"), ("vocab", "tensor"), ("heads", "tensor"), ("mlp", "tensor"))


def prepare(precision: str) -> None:
    """Settings of the process that must stand before JAX looks for devices; call first, and again at will.

    Many virtual CPU devices on few cores wait for each other for ever unless XLA's thread pool,
    sized by NPROC, holds two threads for each.
    """
    cpu.keep_memory()
    compiled.keep_programs()
    count = max(jax.config.jax_num_cpu_devices, 1)
    for flag in os.environ.get("XLA_FLAGS", "").split():
        name, _, value = flag.partition("=")
        if name == "--xla_force_host_platform_device_count" and value.isdigit():
            count = max(count, int(value))
    if count > 1:
        os.environ.setdefault("NPROC", str(max(16, 2 * count, os.cpu_count() or 1)))
    jax.config.update("jax_default_matmul_precision", PRECISIONS[precision])


@dataclasses.dataclass(frozen=True)
class Layout:
    """Places state and batches on devices and compiles the step for them. See `layout`."""

    mode: str
    mesh: Mesh | AbstractMesh

    @property
    def num_devices(self) -> int:
        return self.mesh.size

    @property
    def devices(self) -> list:
        return list(self.mesh.devices.flat)

    @property
    def block(self) -> bool:
        """Virtual CPU devices wait for each other unless each dispatch ends before the next."""
        return self.num_devices > 1 and self.mesh.devices.flat[0].platform == "cpu"

    @property
    def axis_name(self) -> str | None:
        return "data" if self.mode == "pmap" else None

    def check(self, batch_size: int, accumulate: int) -> None:
        shards = (
            self.num_devices if self.mode == "pmap" else self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        )
        if batch_size % (shards * accumulate):
            raise ValueError(
                f"batch_size {batch_size} does not divide over {shards} devices of the batch"
                + (f" times {accumulate} microbatches" if accumulate > 1 else "")
                + f"; allowed: a multiple of {shards * accumulate}"
            )

    # -- state -------------------------------------------------------------------------------------

    def create(self, make: Callable[[], State]) -> State:
        """The state that `make` describes, born on its devices."""
        if self.mode == "pmap":
            return self.load(jax.jit(lambda: nn.unbox(make()))())
        return jax.jit(lambda: nn.unbox(make()), out_shardings=self.shardings(make))()

    def shardings(self, make: Callable[[], State]):
        """A NamedSharding for each array of the state, by the logical names of its axes."""
        boxed = jax.eval_shape(make)

        def place(spec, leaf):
            spec = (
                nn.logical_to_mesh_axes(spec, RULES) if isinstance(spec, PartitionSpec) else PartitionSpec()
            )
            axes = list(spec)[: leaf.ndim] + [None] * (leaf.ndim - len(spec))
            return NamedSharding(
                self.mesh, PartitionSpec(*[self._fits(a, n) for a, n in zip(axes, leaf.shape, strict=True)])
            )

        placed = jax.tree.map(
            place,
            nn.get_partition_spec(boxed),
            nn.unbox(boxed),
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )
        carry = jax.tree.map(lambda _: self.batch_sharding, placed.collections.get(CARRY))
        return placed if carry is None else placed.replace(collections={**placed.collections, CARRY: carry})

    def _fits(self, axis, length: int):
        names = (axis,) if isinstance(axis, str) else tuple(axis or ())
        size = 1
        for name in names:
            size *= self.mesh.shape[name]
        return axis if size > 1 and length % size == 0 else None

    def shapes(self, make: Callable[[], State]) -> State:
        """Shapes and types of the saved state."""
        return jax.eval_shape(lambda: nn.unbox(make()))

    def abstract(self, make: Callable[[], State]) -> State:
        """Shapes, types and placement of the saved state, for restoring."""
        shapes = self.shapes(make)
        if self.mode == "pmap":
            return shapes
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.shardings(make),
        )

    def load(self, saved: State) -> State:
        """The state on its devices, from the form in which it is saved (one copy of each array)."""
        if self.mode != "pmap":
            return saved
        carry = saved.collections.get(CARRY)
        state = flax.jax_utils.replicate(saved, self.devices)
        if carry is None:
            return state
        n = self.num_devices
        carry = jax.tree.map(lambda leaf: leaf.reshape(n, leaf.shape[0] // n, *leaf.shape[1:]), carry)
        return state.replace(collections={**state.collections, CARRY: carry})

    def save(self, state: State) -> State:
        """The inverse of `load`."""
        if self.mode != "pmap":
            return state
        carry = state.collections.get(CARRY)
        saved = flax.jax_utils.unreplicate(state)
        if carry is None:
            return saved
        carry = jax.tree.map(lambda leaf: jnp.asarray(leaf).reshape(-1, *leaf.shape[2:]), carry)
        return saved.replace(collections={**saved.collections, CARRY: carry})

    # -- batches and steps -------------------------------------------------------------------------

    @property
    def batch_sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(BATCH))

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def example(self, source: Source) -> Any:
        """Shapes, types and placement of a batch, as the step is given it."""
        if isinstance(source, Resident):
            batch = jax.eval_shape(source.example)
        else:
            batch = source.example()
        sharding = None if self.mode == "pmap" else self.batch_sharding
        kind = jax.dtypes.canonicalize_dtype
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, kind(leaf.dtype), sharding=sharding), batch
        )

    def share(self, batch_size: int) -> tuple[int, int]:
        """(i, n): this process reads the i-th of n equal parts of each batch, those rows that its devices hold.

        (0, 1), the whole, where the batch is not split over processes or not in such parts.
        """
        held = self.batch_sharding.addressable_devices_indices_map((batch_size,)).values()
        parts = sorted({index.indices(batch_size)[:2] for (index,) in held})
        first, rows = parts[0][0], sum(stop - start for start, stop in parts)
        whole = parts[-1][1] - first != rows or first % rows or batch_size % rows
        return (0, 1) if whole else (first // rows, batch_size // rows)

    def place(self, batch, shards: int = 1) -> Any:
        """A batch on its devices, split along the first axis, from the part that this process read of `shards`."""
        if self.mode == "pmap":
            n = self.num_devices
            return jax.tree.map(lambda leaf: leaf.reshape(n, leaf.shape[0] // n, *leaf.shape[1:]), batch)
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(
                self.batch_sharding, leaf, (leaf.shape[0] * shards, *leaf.shape[1:])
            ),
            batch,
        )

    def everywhere(self, data) -> Any:
        """Arrays given whole to every device."""
        if self.mode == "pmap":
            return flax.jax_utils.replicate(data, self.devices)
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(self.replicated, leaf, leaf.shape), data
        )

    def local(self, tree) -> Any:
        """Arrays as this process can use them alone: gathered whole, where they lie with several processes."""
        if jax.process_count() == 1:
            return tree
        whole = jax.jit(_same, out_shardings=self.replicated)(tree)
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)

    def fetch(self, sums) -> Any:
        """Small replicated arrays, on the host."""
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)).reshape(-1)[0], sums)

    def is_finite(self, state: State) -> bool:
        """Whether every parameter is a number."""
        return bool(_all_finite(state.params))

    def spread(self, step: Callable, rows: int) -> Callable:
        """The step, in which each Flax module's output for a microbatch of `rows` examples lies as the batch does.

        Where fsdp splits parameters along the batch's devices, XLA would else gather the activations of the
        whole batch on each device rather than the parameters. Not beside tensor, where XLA (of jax 0.10.2) makes
        a wrong program of outputs whose other axes are left to it.
        """
        if self.mode == "pmap" or self.mesh.shape["fsdp"] == 1 or self.mesh.shape["tensor"] > 1:
            return step

        def constrain(leaf):
            if jnp.ndim(leaf) < 2 or leaf.shape[0] != rows:
                return leaf
            spec = PartitionSpec(BATCH, *[PartitionSpec.UNCONSTRAINED] * (leaf.ndim - 1))
            return jax.lax.with_sharding_constraint(leaf, NamedSharding(self.mesh, spec))

        def constrained(call, args, kwargs, _):
            return jax.tree.map(constrain, call(*args, **kwargs))

        def spread(state, batch):
            with nn.intercept_methods(constrained):
                return step(state, batch)

        return spread

    def compile(self, step, source: Source, make: Callable[[], State]):
        """`run(state, totals, data, n) -> (state, totals)`: n steps in one dispatch, metrics added to totals.

        For a Resident source `data` are its arrays and the steps pick their rows; n may be any number at
        no new compilation. For a stream `data` is the batch and n is 1.
        """
        resident = isinstance(source, Resident)
        shards = self.num_devices if self.mode == "pmap" else 1

        def one(state, totals, data):
            shard = jax.lax.axis_index(self.axis_name) if self.axis_name else 0
            batch = source.batch(data, state.step, shard, shards) if resident else data
            if self.mode == "jit" and self.num_devices > 1:
                batch = jax.lax.with_sharding_constraint(batch, self.batch_sharding)
            state, metrics = step(state, batch)
            return state, jax.tree.map(jnp.add, totals, metrics)

        def run(state, totals, data, n):
            if not resident:
                return one(state, totals, data)
            return jax.lax.fori_loop(0, n, lambda _, both: one(*both, data), (state, totals))

        if self.mode == "pmap":
            axes = (0, 0, 0, None)
            return jax.pmap(run, self.axis_name, in_axes=axes, donate_argnums=(0, 1), devices=self.devices)
        return jax.jit(run, donate_argnums=(0, 1), out_shardings=(self.shardings(make), self.replicated))


def _same(tree):
    """Has a name of its own so that it is compiled once."""
    return tree


@jax.jit
def _all_finite(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    largest = [
        jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves
    ]  # NaN if one is; read faster than by isfinite
    return jnp.isfinite(jnp.stack(largest)).all() if leaves else jnp.array(True)


def layout(mode: str, data: int, fsdp: int, tensor: int, devices=None) -> Layout:
    """The mesh asked for by `config.parallel`; -1 stands for the devices that remain."""
    devices = list(devices if devices is not None else jax.devices())
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    known = 1
    for size in sizes.values():
        known *= size if size != -1 else 1
    if -1 in sizes.values():
        if len(devices) % known:
            raise ValueError(f"parallel {sizes}: {known} does not divide the {len(devices)} devices")
        sizes = {axis: len(devices) // known if size == -1 else size for axis, size in sizes.items()}
    elif known > len(devices):
        raise ValueError(f"parallel {sizes} asks for {known} devices; there are {len(devices)}")
    else:
        devices = devices[:known]
    if jax.process_count() > 1 and (mode == "pmap" or len(devices) < jax.device_count()):
        raise ValueError(
            f"parallel: received mode {mode!r} on {len(devices)} devices; allowed with {jax.process_count()}"
            f" processes: 'jit' on all of their {jax.device_count()} devices"
        )
    mesh = jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3, devices=devices
    )
    return Layout(mode, mesh)
