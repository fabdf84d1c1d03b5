"""Optax, assembled from the leaves of `config.optimizer`."""

import jax
import jax.numpy as jnp
import optax

from lmlab.config import Clock


def build(
    clock: Clock,
    *,
    name: str,
    learning_rate,
    schedule: str,
    warmup: str,
    final: float,
    b1: float,
    b2: float,
    eps: float,
    weight_decay,
    clip: float,
) -> optax.GradientTransformation:
    """Clip, precondition, decay the weights (Loshchilov and Hutter 2019), scale by the scheduled rate.

    `learning_rate` and `weight_decay` may be traced arrays: the schedule is a shape in [0, 1] that
    multiplies the peak, so many rates can share one compiled program.
    """
    shape = schedule_shape(schedule, clock.steps(warmup, "optimizer.warmup"), clock.total, final)
    parts = [optax.clip_by_global_norm(clip)] if clip else []
    if name in ("adamw", "adam"):
        parts.append(optax.scale_by_adam(b1=b1, b2=b2, eps=eps))
    elif b1:
        parts.append(optax.trace(decay=b1))
    if not (isinstance(weight_decay, float) and weight_decay == 0.0):
        if name == "adam":
            raise ValueError("optimizer.weight_decay needs optimizer.name 'adamw' or 'sgd', received 'adam'")
        parts.append(optax.add_decayed_weights(weight_decay, mask=matrices))
    parts.append(optax.scale_by_learning_rate(lambda count: learning_rate * shape(count)))
    return optax.chain(*parts)


def matrices(params):
    """True for arrays of two axes and more: biases and the scales of normalization are not decayed."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def schedule_shape(kind: str, warmup: int, total: int, final: float):
    """The learning rate as a part of its peak, a function of the number of updates done.

    Linear warm-up, (s + 1) / (warmup + 1), then: constant; cosine or linear to `final` at `total`; or
    rsqrt, sqrt(warmup / s), the schedule of Vaswani et al. 2017 scaled to a peak of 1.
    """

    def shape(count):
        count = jnp.asarray(count, jnp.float32)
        rise = (count + 1) / (warmup + 1)
        along = jnp.clip((count - warmup) / max(1, total - warmup), 0, 1)
        if kind == "cosine":
            rest = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * along))
        elif kind == "linear":
            rest = 1 - (1 - final) * along
        elif kind == "rsqrt":
            rest = jnp.sqrt((warmup + 1) / jnp.maximum(count + 1, warmup + 1))
        else:
            rest = jnp.ones_like(count)
        return jnp.where(count < warmup, rise, rest)

    return shape
