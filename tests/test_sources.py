"""Batches of neighbours: each a run of numbers, all in an order of the epoch's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.sources import Resident, Stream


def grouped(count=23, batch_size=5, seed=0):
    return Resident(
        data=jnp.arange(count), num_examples=count, batch_size=batch_size, seed=seed, grouped=True
    )


def epoch(source, number):
    """(steps, B): the examples of an epoch."""
    first = number * source.steps_per_epoch
    return np.stack([source.indices(first + i, xp=np)[1] for i in range(source.steps_per_epoch)])


@pytest.mark.parametrize(("count", "batch_size"), [(23, 5), (20, 5), (7, 7), (9, 1)])
def test_a_batch_is_a_run_and_an_epoch_has_each_example_once(count, batch_size):
    for number in range(4):
        batches = epoch(grouped(count, batch_size), number)
        assert (np.diff(batches, axis=1) == 1).all() and len(set(batches.ravel())) == batches.size
        assert batches.min() >= 0 and batches.max() < count


def test_what_is_left_out_changes_and_so_does_the_order():
    batches = [epoch(grouped(), number) for number in range(8)]
    assert sorted({each.min() for each in batches[:4]}) == [0, 1, 2, 3]
    assert len({tuple(each[:, 0] - each.min()) for each in batches}) > 4
    assert set(np.concatenate(batches).ravel()) == set(range(23))
    assert not np.array_equal(batches[0], epoch(grouped(seed=1), 0))


def test_shards_share_a_batch_and_the_device_picks_the_same():
    source = grouped(50, 6)
    pick = jax.jit(lambda step: source.batch(source.data, step))
    for step in (0, 1, 9, 20):
        _, whole = source.indices(step, xp=np)
        shares = [source.indices(step, shard, 3, np)[1] for shard in range(3)]
        np.testing.assert_array_equal(np.concatenate(shares), whole)
        np.testing.assert_array_equal(pick(step), whole)


def test_a_stream_reads_the_same_batches():
    options = {"num_examples": 23, "batch_size": 5, "seed": 3, "grouped": True}
    stream = Stream(load=lambda indices, epoch: indices, **options).open()
    resident = grouped(seed=3)
    for step in range(9):
        np.testing.assert_array_equal(next(stream), resident.indices(step, xp=np)[1])


def test_a_source_is_ordered_or_grouped():
    with pytest.raises(ValueError, match="a source is ordered or grouped; received both"):
        Resident(data=np.arange(9), num_examples=9, batch_size=3, seed=0, ordered=True, grouped=True)
