"""Each cell has as many parameters; the experiment's figures say which is ahead."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lmlab import config as configs
from lmlab.models.recurrent_lm import RecurrentLM

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "cells.py"
MODULE = configs.load(str(EXPERIMENT))[1]


@pytest.mark.parametrize("cell", list(MODULE.NAMES))
@pytest.mark.parametrize("vocab_size", [65, 101])
def test_cells_have_equal_parameters_within_one_percent(cell, vocab_size):
    sizes = MODULE.get_config(cell).model
    assert sizes.cell == cell
    features = MODULE.units(cell, sizes.parameters, vocab_size, sizes.d_embed)

    def count(features):
        model = RecurrentLM(vocab_size, cell, d_model=features, d_embed=sizes.d_embed)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    off = abs(count(features) - sizes.parameters)
    assert off < 0.01 * sizes.parameters
    assert off <= min(abs(count(features + step) - sizes.parameters) for step in (-1, 1))


def test_too_few_parameters_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"model\.parameters: received 4,000; allowed: 4,489"):
        MODULE.units("gru", 4_000, 65, 64)
    with pytest.raises(ValueError, match="unknown cell 'GRU'"):
        MODULE.units("GRU", 110_000, 65, 64)


def test_the_sweep_gives_each_cell_the_same_rates_and_seeds():
    runs = [(*run["variant"].split(","), run["seed"]) for run in MODULE.sweep()]
    of = {cell: {(rate, seed) for found, rate, seed in runs if found == cell} for cell in MODULE.NAMES}
    rates = {MODULE.get_config(f"rnn,{rate}").optimizer.learning_rate for rate, _ in of["rnn"]}
    assert rates == {3e-3, 1e-2, 3e-2, 1e-1}
    assert len(runs) == 48 and all(len(grid) == 12 and grid == of["rnn"] for grid in of.values())
