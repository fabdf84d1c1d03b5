"""Points read from a file, fitted by a small network: what the tests kill, starve and deprive of its data.

    lmlab train --config=tests/papers/survivor.py:stream --config.data.path=points.npy --workdir=runs/survivor

It saves at every step, so that nearly every moment is one in the middle of a save.
"""

import functools

import jax.numpy as jnp
import numpy as np

from lmlab.sources import Resident, Stream
from tests.training import toys

FAMILY, PAPER = "regression", "Gauss 1809"
VARIANTS = {"resident": "read once, kept on the device; the default", "stream": "read anew for every batch"}


def get_config(variant=""):
    config = toys.config(
        duration="160 steps",
        log_every="5",
        evaluate_every="20",
        checkpoint={"every": "1", "keep": 2},
        data={"path": ""},
    )
    config.stream = variant == "stream"
    return config


def split(table):
    """Rows of 16 inputs and 4 outputs."""
    return {"x": table[..., :16], "y": table[..., 16:]}


def build(config, assets):
    def train_data():
        table = np.load(config.data.path, mmap_mode="r")
        facts = {"num_examples": len(table), "batch_size": config.batch_size, "seed": config.seed}
        if config.stream:
            read = functools.partial(np.load, config.data.path, mmap_mode="r")
            return Stream(load=lambda indices, epoch: split(read()[indices]), **facts)
        return Resident(data=split(jnp.asarray(table)), **facts)

    return toys.regression(config, source=lambda config: train_data(), dropout=0.5)
