"""One update of the parameters: the only place with gradient, accumulation, reduction and averaging."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmlab.experiment import Experiment, Mean
from lmlab.training.state import State

CARRY = "carry"
"""The collection that is split like the batch; all others are averaged over shards and microbatches."""


def create(experiment: Experiment, optimizer, key, batch, ema: bool) -> State:
    """The state before the first step. `optimizer`: a transformation, or a dict of them by part of params."""
    params, collections = experiment.task.init(key, batch)
    if isinstance(optimizer, dict):
        missing = set(optimizer) ^ set(params)
        if missing:
            raise ValueError(f"optimizers for {sorted(optimizer)} but parameters in parts {sorted(params)}")
        opt_state = {part: optimizer[part].init(params[part]) for part in optimizer}
    else:
        opt_state = optimizer.init(params)
    copy = jax.tree.map(jnp.copy, params) if ema else None
    return State(jnp.zeros((), jnp.int32), params, opt_state, collections, copy)


def make_step(
    experiment: Experiment,
    optimizer,
    root,
    *,
    accumulate: int = 1,
    ema: float = 0.0,
    axis_name: str | None = None,
) -> Callable[[State, Any], tuple[State, dict[str, Mean]]]:
    """`step(state, batch) -> (state, metrics)`, to be jitted or, with `axis_name`, pmapped.

    The key of microbatch i of shard d of step s is fold_in(fold_in(root, s), d * accumulate + i), so
    n shards see what n microbatches on one device would.
    """
    update = make_update(optimizer, accumulate, axis_name)
    inner = experiment.step or (
        lambda state, batch, key, update: update(experiment.task.loss, None, state, batch, key)
    )

    def step(state: State, batch):
        new, metrics = inner(state, batch, jax.random.fold_in(root, state.step), update)
        if state.ema is not None:
            new = new.replace(
                ema=jax.tree.map(lambda old, now: ema * old + (1 - ema) * now, state.ema, new.params)
            )
        return new.replace(step=state.step + 1), metrics

    return step


def make_update(optimizer, accumulate: int, axis_name: str | None):
    """`update(loss, part, state, batch, key) -> (state, metrics)`, one step of gradient descent.

    loss: `loss(params, collections, batch, key, train) -> (Mean, metrics, collections)`. part: the key of
    params (and of the dict of optimizers) that moves, None for all. The gradient is that of the total,
    added up over microbatches and shards and divided once by the count. The metrics gain `loss`
    and `grad_norm` (before clipping).
    """

    def update(loss, part: str | None, state: State, batch, key):
        trainable = state.params if part is None else state.params[part]
        kept = {name: value for name, value in state.collections.items() if name != CARRY}
        shard = 0 if axis_name is None else jax.lax.axis_index(axis_name)

        def total(trainable, batch, carry, index):
            params = trainable if part is None else {**state.params, part: trainable}
            collections = {**kept, CARRY: carry} if carry is not None else kept
            mean, metrics, new = loss(params, collections, batch, jax.random.fold_in(key, index), True)
            new = dict(new)
            carry = new.pop(CARRY, None)
            return mean.total, ((mean, metrics, new), carry)

        gradient = jax.grad(total, has_aux=True)
        carry = state.collections.get(CARRY)
        if accumulate == 1:
            grads, (sums, carry) = gradient(trainable, batch, carry, shard)
        else:
            split, merge = _split(accumulate), lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
            batches, carries = jax.tree.map(split, batch), jax.tree.map(split, carry)

            def body(total_so_far, inputs):
                grads, (sums, carry) = gradient(trainable, *inputs)
                return jax.tree.map(jnp.add, total_so_far, (grads, sums)), carry

            inputs = (batches, carries, shard * accumulate + jnp.arange(accumulate))
            shapes = jax.eval_shape(
                lambda inputs: gradient(trainable, *jax.tree.map(lambda x: x[0], inputs)), inputs
            )
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[1][0]))
            (grads, sums), carry = jax.lax.scan(body, zeros, inputs)
            carry = jax.tree.map(merge, carry)

        parts = accumulate
        if axis_name is not None:
            grads, sums = jax.lax.psum((grads, sums), axis_name)
            parts = accumulate * jax.lax.axis_size(axis_name)
        mean, metrics, collections = sums
        if parts != 1:
            collections = jax.tree.map(lambda leaf: (leaf / parts).astype(leaf.dtype), collections)
        grads = jax.tree.map(lambda leaf: leaf / mean.count, grads)
        if carry is not None:
            collections[CARRY] = carry

        transform = optimizer if part is None else optimizer[part]
        opt_state = state.opt_state if part is None else state.opt_state[part]
        changes, opt_state = transform.update(grads, opt_state, trainable)
        trainable = optax.apply_updates(trainable, changes)
        metrics = {"loss": mean, **metrics, "grad_norm": Mean(optax.tree.norm(grads), jnp.ones(()))}
        return state.replace(
            params=trainable if part is None else {**state.params, part: trainable},
            opt_state=opt_state if part is None else {**state.opt_state, part: opt_state},
            collections={**state.collections, **collections},
        ), metrics

    return update


def _split(parts: int):
    def split(leaf):
        return leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:])

    return split
