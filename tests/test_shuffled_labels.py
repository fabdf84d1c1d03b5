"""Targets permuted over the examples: what a model then knows of an example that it has not seen is a leak.

Beside each, the same updates on the true targets, after which it knows much.
"""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from lmlab.data import images
from lmlab.data.rearranged import Rearranged
from lmlab.data.scenes import Scenes
from lmlab.experiment import Assets
from lmlab.models.captioner import Caption, Captioner
from lmlab.models.seq2seq import Seq2Seq
from lmlab.tasks import NextTargetToken


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def trained(task, data, steps, rate):
    """The parameters after so many updates of Adam on batches of 32."""
    adam, count = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)), len(jax.tree.leaves(data)[0])

    def update(carry, key):
        params, state = carry
        batch = jax.tree.map(lambda array: array[jax.random.randint(key, (32,), 0, count)], data)
        slope = jax.grad(lambda p: task.loss(p, {}, batch, key, True)[0].value)(params)
        changes, state = adam.update(slope, state, params)
        return (optax.apply_updates(params, changes), state), None

    params = nn.meta.unbox(task.init(jax.random.key(0), jax.tree.map(lambda array: array[:2], data))[0])
    return jax.lax.scan(update, (params, adam.init(params)), jax.random.split(jax.random.key(1), steps))[0][0]


def permuted(data, name):
    return data | {name: np.random.default_rng(0).permutation(data[name])}


def test_a_seq2seq():
    """Letters of three-letter words, from last to first: without the source each is one of 24 or more."""
    words = Rearranged("reversing", 3, 3, count=4000)
    size = words.tokenizers[0].vocab_size
    task = NextTargetToken(Seq2Seq(size, size, d_model=48, d_embed=32))
    data, test = words.arrays("train"), words.arrays("test")

    def found(data):
        params = trained(task, data, 200, 1e-2)
        logits = jax.jit(task.model.apply)({"params": params}, test["source"], test["target"][:, :-1])
        return (logits.argmax(-1) == test["target"][:, 1:])[:, :3].mean()

    assert found(data) > 0.9
    assert found(permuted(data, "target")) < 0.06


@pytest.mark.slow
def test_a_captioner():
    """The digits of scenes of one, but for eights, which "an" tells of: without the image each is one of nine."""
    scenes = Scenes("digits", Assets(), canvas=36, count=8000)
    eight = scenes.tokenizer.encode("eight")[0]

    def chosen(part):
        arrays = scenes.arrays(part)
        word = np.take_along_axis(arrays["tokens"], arrays["named"], 1)[:, 0]
        rows = (arrays["named"][:, 1] == 0) & (word != eight)
        batch = {"image": arrays["image"][rows], "tokens": arrays["tokens"][rows, :5]}
        return images.scaled(batch), arrays["named"][rows, :1]

    (data, _), (test, place) = chosen("train"), chosen("test")
    model = Captioner(scenes.tokenizer.vocab_size, (36, 36), (8, 16, 32), 2, 16, 32, 16)
    task = Caption(model, 0.0)

    def found(data):
        params = trained(task, data, 300, 1e-2)
        logits, _ = jax.jit(model.apply)({"params": params}, test["image"], test["tokens"][:, :-1])
        right = logits.argmax(-1) == test["tokens"][:, 1:]
        return np.take_along_axis(np.asarray(right), place - 1, 1).mean()

    assert found(data) > 0.4
    assert found(permuted(data, "tokens")) < 0.2
