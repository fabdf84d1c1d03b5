import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.layers import scores
from lmlab.layers.scores import SCORES, Attention, attend

B, T, S, K, W = 2, 3, 5, 4, 6
RNG = np.random.default_rng(0)
Q, KEYS, VALUES = (
    jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((B, T, K), (B, S, K), (B, S, W))
)
MASK = jnp.arange(S)[None] < jnp.array([[5], [3]])


pytestmark = pytest.mark.usefixtures("compiled_in_haste")


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def written_out(score, variables, q, keys):
    """a(q, k) of each pair, one by one, in float64."""
    p = {
        name: {k: np.asarray(v, np.float64) for k, v in part.items()}
        if isinstance(part, dict)
        else np.asarray(part)
        for name, part in variables.get("params", {}).items()
    }
    found = np.zeros((B, T, S))
    for b, t, s in np.ndindex(B, T, S):
        one, other = np.asarray(q[b, t], np.float64), np.asarray(keys[b, s], np.float64)
        if score in ("dot", "scaled"):
            found[b, t, s] = one @ other / (np.sqrt(K) if score == "scaled" else 1)
        else:
            one, other = one @ p["of_query"]["kernel"], other @ p["of_key"]["kernel"]
            if score == "bilinear":
                found[b, t, s] = one @ other
            else:
                found[b, t, s] = p["v"] @ np.tanh(one + p["of_query"]["bias"] + other)
    return found


def softmax(scores):
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def made(score):
    model = Attention(score, 7)

    def whole(model, q, memory, values, mask):
        return model(q, model.keys(memory), values, mask)

    variables = nn.meta.unbox(model.init(jax.random.key(0), Q, KEYS, VALUES, MASK, method=whole))
    return lambda *inputs: model.apply(variables, *inputs, method=whole), variables


@pytest.mark.parametrize("score", SCORES)
def test_attention_is_its_definition(score):
    apply, variables = made(score)
    context, weights = apply(Q, KEYS, VALUES, MASK)
    expected = written_out(score, variables, Q, KEYS)
    expected[1, :, 3:] = -np.inf
    expected = softmax(expected)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    np.testing.assert_allclose(context, expected @ np.asarray(VALUES, np.float64), atol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_attention_does_not_know_the_order_of_its_keys(score):
    apply, _ = made(score)
    context, weights = apply(Q, KEYS, VALUES, None)
    order = np.array([3, 0, 4, 1, 2])
    turned, turned_weights = apply(Q, KEYS[:, order], VALUES[:, order], None)
    np.testing.assert_allclose(turned, context, atol=1e-6)
    np.testing.assert_allclose(turned_weights, weights[..., order], atol=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_what_is_masked_has_no_voice(score):
    apply, _ = made(score)
    context, weights = apply(Q, KEYS, VALUES, MASK)
    other = apply(Q, KEYS.at[1, 3:].set(9.0), VALUES.at[1, 3:].set(-9.0), MASK)[0]
    np.testing.assert_array_equal(context, other)
    assert not weights[1, :, 3:].any()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


def test_nadaraya_watson_is_attention_with_a_gaussian_score():
    """The weighted mean of y by a kernel, written out; and at fixed norm the scores of dot / h^2."""
    x, y, at = RNG.normal(size=(1, S, 1)), RNG.normal(size=(1, S, 1)), RNG.normal(size=(1, T, 1))
    h = 0.4
    kernel = np.exp(-((at[0] - x[0].T) ** 2) / (2 * h**2))
    expected = (kernel @ y[0]) / kernel.sum(1, keepdims=True)
    found, _ = attend(
        scores.gaussian(*(jnp.asarray(a, jnp.float32) for a in (at, x)), h), jnp.asarray(y, jnp.float32)
    )
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    q, k = (a / jnp.linalg.norm(a, axis=-1, keepdims=True) for a in (Q, KEYS))
    one, other = (attend(s, VALUES)[1] for s in (scores.gaussian(q, k, h), scores.dot(q, k) / h**2))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_scaling_keeps_the_variance():
    for d in (4, 64, 1024):
        q, k = (jax.random.normal(key, (1, 300, d)) for key in jax.random.split(jax.random.key(d)))
        assert abs(float(scores.scaled(q, k).var()) - 1) < 0.1
        assert abs(float(scores.dot(q, k).var()) / d - 1) < 0.1


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match="unknown score 'cosine'; allowed: dot, scaled, bilinear, additive"):
        Attention("cosine")
    with pytest.raises(ValueError, match="features must be at least 1, received 0"):
        Attention("additive", 0)
    with pytest.raises(ValueError, match="'dot' wants queries and keys of one width, received 4 and 3"):
        Attention("dot").apply({}, Q, KEYS[..., :3], VALUES)
