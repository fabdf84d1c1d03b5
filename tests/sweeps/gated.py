"""The line of tests/papers, read slowly until a file is there, and not at all while another is.

    lmlab train --config=tests/sweeps/gated.py --workdir=runs/gated

What a sweep needs that is to be killed half way, and to go on quickly; and a run that fails until it is mended.
"""

import dataclasses
import time
from pathlib import Path

import numpy as np

from lmlab import experiment
from lmlab.sources import Stream

line = experiment.load_module(Path(__file__).parents[1] / "papers" / "line.py")

FAMILY, PAPER = line.FAMILY, line.PAPER
VARIANTS = {"demo": "all there is", "steep": "a slope of 5"}
SECONDS = 0.1  # a batch, while the gate is shut


def get_config(variant=""):
    config = line.get_config(variant)
    config.data.update(gate="", broken="")
    return config


def build(config, assets):
    if config.data.broken and Path(config.data.broken).exists():
        raise ValueError(f"[red] {Path(config.data.broken).name} is there")
    built = line.build(config, assets)
    points = {name: np.asarray(values) for name, values in built.train_data().data.items()}

    def load(indices, epoch):
        if config.data.gate and not Path(config.data.gate).exists():
            time.sleep(SECONDS)
        return {name: values[indices] for name, values in points.items()}

    return dataclasses.replace(
        built,
        train_data=lambda: Stream(
            load=load, num_examples=32, batch_size=config.batch_size, seed=config.seed, buffer=1
        ),
    )


def sweep():
    for rate in (0.1, 0.05):
        yield {"optimizer.learning_rate": rate, "model.start": 1.0}
