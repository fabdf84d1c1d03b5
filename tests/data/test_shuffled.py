"""The order of examples: properties of `lmlab.sources.shuffled`."""

from collections import Counter

import jax
import numpy as np
import pytest

from lmlab.sources import shuffled


def order(size, seed=0, epoch=0):
    return shuffled(np.arange(size), size, seed, epoch, np)


def test_a_permutation_of_any_size():
    for size in [*range(1, 201), 10**5]:
        np.testing.assert_array_equal(np.sort(order(size, 7, 3)), np.arange(size))


def test_numpy_and_jax_agree():
    for size in (1, 2, 97, 10**5):
        traced = jax.jit(lambda index, seed, epoch, size=size: shuffled(index, size, seed, epoch))
        for seed, epoch in ((0, 0), (1, 0), (0, 5), (2**31 - 1, 2**30)):
            np.testing.assert_array_equal(traced(np.arange(size), seed, epoch), order(size, seed, epoch))


def test_one_index_at_a_time():
    whole = order(97, 1, 2)
    assert [int(shuffled(i, 97, 1, 2, np)) for i in range(97)] == whole.tolist()
    assert int(shuffled(5, 97, 1, 2)) == whole[5]


def test_differs_by_seed_and_epoch():
    orders = [tuple(order(100, seed, epoch)) for seed in range(20) for epoch in range(20)]
    assert len(set(orders)) == 400


def chi_square(counts, expected):
    counts = np.asarray(counts, np.float64)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("vary", ["seed", "epoch"])
@pytest.mark.parametrize("size", [7, 16])
def test_where_pairs_of_examples_go_is_uniform(size, vary):
    """Over many orders the positions (i, j) of two neighbours are uniform over the size (size - 1) pairs.

    Chi-square with size (size - 1) - 1 degrees of freedom, mean k and deviation sqrt(2 k): 6 deviations
    are passed by chance less often than once in ten thousand.
    """
    draws = 4000
    many = np.arange(draws)[:, None]
    seed, epoch = (many, 0) if vary == "seed" else (0, many)
    pairs = Counter(map(tuple, shuffled(np.array([[0, 1]]), size, seed, epoch, np).tolist()))
    cells = size * (size - 1)
    assert all(i != j for i, j in pairs)
    counts = [*pairs.values(), *[0] * (cells - len(pairs))]
    k = cells - 1
    assert abs(chi_square(counts, draws / cells) - k) < 6 * np.sqrt(2 * k)


def test_orders_of_three_are_uniform():
    draws = 6000
    orders = shuffled(np.arange(3)[None], 3, 0, np.arange(draws)[:, None], np)
    counts = Counter(map(tuple, orders.tolist()))
    assert len(counts) == 6
    assert chi_square(list(counts.values()), draws / 6) < 5 + 6 * np.sqrt(10)


def test_neighbours_are_parted():
    """In a shuffled order, steps of +1 or -1 are as rare as chance makes them: about 2 in all."""
    steps = np.abs(np.diff(order(10**5, 0, 0)))
    assert (steps == 1).sum() < 15


def test_one_order_tells_nothing_of_the_next():
    first, second = order(10**5, 0, 0), order(10**5, 0, 1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 6 / np.sqrt(10**5)
    assert (first == second).sum() < 15
    assert abs(np.corrcoef(first, np.arange(10**5))[0, 1]) < 6 / np.sqrt(10**5)
