"""What a traced program costs, from shapes alone: bytes held, bytes kept for the gradient, operations."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend as jex


def size(tree) -> int:
    """Bytes of a tree of arrays or shapes, each counted once."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def share(tree) -> int:
    """Bytes that one device holds of a tree of placed shapes; what has no placement is whole everywhere."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape)
        * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def shapes(tree):
    """Shapes and types alone, of arrays, tracers or the variables of a program."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


@dataclasses.dataclass(frozen=True)
class Kept:
    """Bytes kept from a loss to its gradient.

    arrays: {type and shape: (how many, bytes of all)} of what depends on the batch. casts: what is made of
    parameters alone. again: the largest part that is thrown away and made again (`jax.checkpoint`).
    """

    arrays: dict[str, tuple[int, int]]
    casts: int
    again: int

    @property
    def activations(self) -> int:
        return sum(held for _, held in self.arrays.values())


def kept(loss: Callable, weights, rest) -> Kept:
    """The residuals of the vjp of `loss(weights, rest)` by its weights, less those that are arguments."""
    jaxpr = jax.make_jaxpr(lambda weights, rest: jax.vjp(lambda w: loss(w, rest), weights)[1])(
        weights, rest
    ).jaxpr
    number = len(jax.tree.leaves(weights))
    of_weights, of_rest = set(jaxpr.invars[:number]), set(jaxpr.invars[number:])
    for eqn in jaxpr.eqns:
        used = {v for v in eqn.invars if isinstance(v, jex.core.Var)}
        (of_weights if used & of_weights and not used & of_rest else of_rest).update(eqn.outvars)
    residuals = _residuals(jaxpr)
    arrays = collections.defaultdict(list)
    for v in residuals - of_weights:
        arrays[v.aval.str_short(short_dtypes=True)].append(size(v.aval))
    return Kept(
        {name: (len(sizes), sum(sizes)) for name, sizes in arrays.items()},
        sum(size(v.aval) for v in residuals & of_weights),
        max(map(_made_again, _regions(jax.make_jaxpr(loss)(weights, rest).jaxpr)), default=0),
    )


def _residuals(jaxpr) -> set:
    """The variables that a vjp's function holds, but for its arguments."""
    return {v for v in jaxpr.outvars if isinstance(v, jex.core.Var)} - set(jaxpr.invars)


def _regions(jaxpr) -> Iterator:
    """The outermost `jax.checkpoint` regions of a program, those in its loops among them."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "remat2":
            yield from jex.core.jaxprs_in_params(eqn.params)
        else:
            for inner in jex.core.jaxprs_in_params(eqn.params):
                yield from _regions(inner)


def _made_again(region) -> int:
    """Bytes kept while a region is gone through backwards: its own residuals, and those of one within it."""
    function = jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(region, ()))
    inputs = [shapes(v.aval) for v in region.invars]
    jaxpr = jax.make_jaxpr(lambda *inputs: jax.vjp(function, *inputs)[1])(*inputs).jaxpr
    return sum(size(v.aval) for v in _residuals(jaxpr)) + max(map(_made_again, _regions(region)), default=0)


def flops(program) -> float:
    """Operations of a closed jaxpr by XLA's count, with every pass of its scans."""
    return _flops(program)[1]


def _flops(program) -> tuple[float, float]:
    """(XLA's count, which takes a loop for one pass of its body; that with every pass of the scans).

    A loop whose length only its run tells stays at one pass.
    """
    inputs = [shapes(v.aval) for v in program.jaxpr.invars]
    lowered = jax.jit(jex.core.jaxpr_as_fun(program)).lower(*inputs)
    once = every = lowered.cost_analysis().get("flops", 0.0)
    for scan in _scans(program.jaxpr):
        length, unroll = scan["length"], scan["unroll"] or scan["length"]
        body_once, body = _flops(jex.core.ClosedJaxpr(*jex.core.jaxprs_in_params(scan), ()))
        every += length * body - min(length, unroll + length % unroll) * body_once
    return once, every


def _scans(jaxpr) -> Iterator[dict[str, Any]]:
    """The parameters of a program's outermost scans."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield eqn.params
        else:
            for inner in jex.core.jaxprs_in_params(eqn.params):
                yield from _scans(inner)
