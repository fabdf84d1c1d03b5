import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.layers.dropout import Dropout, keep, mix

N = 1 << 20


def mask(seed, probability=0.5, shape=(N,)):
    return np.asarray(keep(jax.random.key(seed), probability, shape))


def correlation(left, right):
    """In deviations of what independent draws give."""
    left, right = left - left.mean(), right - right.mean()
    return (left * right).mean() / (left.std() * right.std()) * np.sqrt(left.size)


@pytest.mark.parametrize("probability", [0.8, 0.5, 0.01, 1 / 3])
def test_kept_with_the_probability_asked_for(probability):
    kept = np.mean([mask(seed, probability).mean() for seed in range(4)])
    deviation = np.sqrt(probability * (1 - probability) / (4 * N))
    assert abs(kept - probability) < 4 * deviation


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 64, 128, 256, 1024, 4096])
def test_entries_at_any_distance_are_independent(lag):
    kept = mask(0)
    assert abs(correlation(kept[lag:], kept[:-lag])) < 4.5


def test_keys_near_and_far_give_independent_masks():
    key = jax.random.key(0)
    others = [mask(1), mask(2), np.asarray(keep(jax.random.fold_in(key, 1), 0.5, (N,)))]
    for other in others:
        assert abs(correlation(mask(0), other)) < 4.5
    first = np.asarray(keep(jax.random.fold_in(key, 0), 0.5, (N,)))
    for lag in (0, 1, 7):  # not one mask moved along, either
        assert abs(correlation(first[lag:], others[2][: N - lag])) < 4.5


def test_sums_of_blocks_scatter_as_those_of_independent_draws():
    blocks = mask(3).reshape(-1, 64).sum(1)
    expected = 64 / 4
    assert abs(blocks.var() / expected - 1) < 5 * np.sqrt(2 / len(blocks))


def test_the_mask_is_a_function_of_key_and_shape():
    np.testing.assert_array_equal(mask(0, shape=(4, 8)), mask(0, shape=(32,)).reshape(4, 8))


def test_mix_is_a_bijection_that_spreads_each_bit():
    words = jnp.asarray(np.random.default_rng(0).integers(0, 2**32, 4096, np.uint32))
    assert len(np.unique(mix(jnp.arange(1 << 16, dtype=jnp.uint32)))) == 1 << 16
    for bit in range(32):
        changed = np.asarray(mix(words) ^ mix(words ^ jnp.uint32(1 << bit)))
        flips = np.array([(changed >> b & 1).mean() for b in range(32)])
        assert flips.min() > 0.4 and flips.max() < 0.6


@pytest.mark.parametrize("rate", [0.1, 0.37, 1 / 3])
def test_a_number_and_an_array_of_it_are_the_same_rate(rate):
    """To the last bit, under jit and vmap as well: a run of a sweep is that run alone."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 1000)), jnp.float32)

    def dropped(rate):
        return Dropout(rate).apply({}, x, True, rngs={"dropout": jax.random.key(0)})

    plain = jax.jit(lambda: dropped(rate))()
    np.testing.assert_array_equal(jax.jit(dropped)(jnp.asarray(rate)), plain)
    np.testing.assert_array_equal(jax.jit(jax.vmap(dropped))(jnp.asarray([0.5, rate]))[1], plain)


def test_the_mask_is_the_same_in_float64():
    plain = mask(0)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(mask(0), plain)
