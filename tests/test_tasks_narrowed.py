import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.experiment import Mean
from lmlab.models.seq2seq import Seq2Seq
from lmlab.tasks import Narrowed, NextTargetToken

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def test_a_batch_without_its_empty_columns_costs_the_same():
    """Loss and gradient, whichever width holds it."""
    task = NextTargetToken(Seq2Seq(9, 9, "gru", d_model=8, d_embed=4, score="dot"))
    narrow = Narrowed(task, ("source", "target"), (3, 5))
    draw = np.random.default_rng(0)
    rows = jnp.asarray(draw.integers(3, 9, (4, 8)))
    params = nn.meta.unbox(task.init(jax.random.key(0), {"source": rows, "target": rows})[0])

    def gradient(task):
        return jax.jit(
            jax.value_and_grad(
                lambda params, batch: task.loss(params, {}, batch, jax.random.key(0), False)[0].value
            )
        )

    plain, cut = gradient(task), gradient(narrow)
    for longest in (2, 3, 4, 6, 8):
        batch = {
            "source": rows * (jnp.arange(8)[None] < longest - 1),
            "target": rows * (jnp.arange(8)[None] < longest),
        }
        one, other = plain(params, batch), cut(params, batch)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


def test_the_width_is_the_least_that_holds_the_batch():
    class Widths:
        def loss(self, params, collections, batch, key, train):
            return Mean(jnp.float32(batch["target"].shape[1]), jnp.ones(())), {}, {}

    narrow = Narrowed(Widths(), ("source", "target"), (3, 5, 20))
    for source, target, width in ((1, 2, 3), (3, 1, 3), (2, 4, 5), (5, 5, 5), (6, 2, 8), (0, 0, 3)):
        batch = {"source": jnp.arange(8)[None] < source, "target": jnp.arange(8)[None] < target}
        batch = {name: array.astype(int) for name, array in batch.items()}
        assert float(narrow.loss({}, {}, batch, None, True)[0].total) == width
