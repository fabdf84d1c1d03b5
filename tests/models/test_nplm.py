"""The network of Bengio et al. 2003 against NumPy, and against the sizes of makemore's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.models.nplm import NPLM
from lmlab.tasks import LastToken

TOKENS = np.random.default_rng(0).integers(0, 11, (7, 4)).astype(np.int32)


def made(**options):
    model = NPLM(11, d_embed=5, hidden=6, **options)
    return model, nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.asarray(TOKENS[:, :-1])))


@pytest.mark.parametrize("direct", [False, True])
def test_the_equation_written_out(direct):
    model, variables = made(direct=direct)
    p = jax.device_get(variables["params"])
    x = p["embed"]["embedding"][TOKENS[:, :-1]].reshape(7, -1)
    h = np.tanh(x @ p["inward"]["kernel"] + p["inward"]["bias"])
    expected = h @ p["outward"]["kernel"] + p["outward"]["bias"]
    if direct:
        expected += x @ p["direct"]["kernel"]
    np.testing.assert_allclose(
        model.apply(variables, jnp.asarray(TOKENS[:, :-1])), expected, rtol=1e-4, atol=1e-6
    )


def test_it_has_as_many_parameters_as_makemores():
    model = NPLM(27)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 11_897


def test_the_loss_is_that_of_the_last_token_and_padding_has_no_voice():
    model, variables = made()
    task = LastToken(model)
    mask = np.array([1, 1, 0, 1, 0, 1, 1], np.float32)
    loss, _, _ = task.loss(
        variables["params"], {}, {"tokens": jnp.asarray(TOKENS), "mask": jnp.asarray(mask)}, None, False
    )
    p = jax.nn.softmax(model.apply(variables, jnp.asarray(TOKENS[:, :-1])))
    own = -np.log(np.asarray(p)[np.arange(7), TOKENS[:, -1]])
    np.testing.assert_allclose(loss.value, own[mask > 0].mean(), rtol=1e-5)


def test_normalized_it_is_independent_of_the_scale_before_it():
    """And its running averages move in training alone."""
    model, variables = made(normalize=True)
    tokens = jnp.asarray(TOKENS[:, :-1])
    logits, new = model.apply(variables, tokens, train=True, mutable=["batch_stats"])
    scaled = jax.tree.map(lambda leaf: leaf, variables)
    scaled["params"]["inward"] = {"kernel": 10 * variables["params"]["inward"]["kernel"]}
    again, _ = model.apply(scaled, tokens, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(again, logits, rtol=1e-3, atol=1e-5)
    moved = jax.tree.leaves(
        jax.tree.map(lambda a, b: np.abs(a - b).max(), new["batch_stats"], variables["batch_stats"])
    )
    assert min(moved) > 0


def test_it_begins_near_an_even_guess_unless_it_is_naive():
    rows = jnp.asarray(np.random.default_rng(1).integers(0, 27, (500, 4)), jnp.int32)

    def first_loss(**options):
        task = LastToken(NPLM(27, **options))
        params, collections = nn.unbox(task.init(jax.random.key(0), {"tokens": rows}))
        return float(task.loss(params, collections, {"tokens": rows}, None, False)[0].value)

    assert abs(first_loss() - np.log(27)) < 0.05
    assert first_loss(naive=True) > 10


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="hidden must be at least 1, received 0"):
        NPLM(27, hidden=0)
    with pytest.raises(ValueError, match="a context is 3 tokens, received 2"):
        jax.eval_shape(NPLM(27).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
