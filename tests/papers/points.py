"""The toys of the tests of training, as an experiment file, over all devices of all processes.

    lmlab train --config=tests/papers/points.py:stream --workdir=runs/points

Seconds.
"""

import dataclasses
import functools
import time

from tests.training import toys

FAMILY, PAPER = "regression", "Gauss 1809"
KINDS = toys.KINDS | {
    "stream64": functools.partial(toys.regression, source=toys.stream, double=True),
    "closed_form": toys.closed_form,
}
VARIANTS = {"demo": "dropout"} | {kind: f"toys.KINDS[{kind!r}]" for kind in KINDS}


def get_config(variant=""):
    kind = variant if variant in KINDS else "dropout"
    config = toys.config(duration="5 steps", log_every="1", kind=kind, delay=0.0)
    config.parallel.data = -1
    return config


def build(config, assets):
    experiment = KINDS[config.kind](config)
    if config.delay:
        return dataclasses.replace(experiment, train_data=lambda: slow(experiment.train_data(), config.delay))
    return experiment


def slow(stream, seconds):
    """The stream, with so long a wait for each batch."""

    def load(indices, epoch):
        time.sleep(seconds)
        return stream.load(indices, epoch)

    return dataclasses.replace(stream, load=load)
