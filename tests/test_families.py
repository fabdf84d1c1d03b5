"""Every experiment is one computation, however its steps are spread over eight devices.

Eight microbatches on one device are what pmap makes of eight devices, and what any mesh makes of as many
microbatches. Files are found by themselves: each one's demo, made small, for five steps in float32. The quick
tests take one file of each family that compiles in seconds, over a mesh of all three axes and by pmap.
"""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from lmlab import config as configs
from lmlab.experiment import Assets, describe
from lmlab.training.loop import Loop, Trace, Trainer
from lmlab.training.metrics import Progress
from lmlab.training.record import Record
from lmlab.training.signals import Signals
from tests.test_experiments import FILES, small

LAYOUTS = {
    "one device": {"data": 1},
    "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
    "pmap": {"data": 8, "mode": "pmap"},
    "data": {"data": 8},
    "fsdp": {"data": 2, "fsdp": 4},
    "tensor": {"data": 4, "tensor": 2},
}
LEAVES = {"batch_size": 64, "duration": "5 steps", "log_every": "1"}
WHOLE = ("backprop_by_hand",)
"""Those whose step, written out, takes a batch whole, and refuses parts of one."""
LARGE = ("captioner", "classifier", "diffusion", "gan", "segmentation", "vae", "vanishing_gradients", "vqvae")
"""Those whose program takes long to compile: another of their family stands for them, or none."""
FIRST = {describe(path)["FAMILY"]: path for path in reversed(FILES) if path.stem not in LARGE + WHOLE}
TOLERANCE = 1e-6


@pytest.fixture(autouse=True, scope="module")
def compiled_in_half_the_time():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class Rows(Record):
    """What each step logged, kept here and not in files."""

    def __init__(self):
        self.rows = []

    def log(self, interval):
        self.rows.append({name: mean.total / mean.count for name, mean in interval.sums.items()})
        return {}

    def settle(self, *_, **__):
        return {}


@functools.cache
def trained(path: Path, layout: str) -> list[dict]:
    leaves = small(path, "demo") | LEAVES | {"accumulate": 1 if layout == "pmap" else 8}
    leaves |= {f"parallel.{key}": value for key, value in LAYOUTS[layout].items()}
    config, module = configs.load(f"{path}:demo", leaves)
    experiment = module.build(config, Assets())
    if experiment.fit is not None:
        pytest.skip("fitted in one call: it has no steps to spread")
    trainer, record = Trainer(experiment, config), Rows()
    with Signals() as signals:
        Loop(trainer, trainer.create(), 0, {}, record, Progress(5, 0), Trace(None)).run(signals)
    return record.rows


@pytest.mark.parametrize(
    ("path", "layout"),
    [
        pytest.param(path, layout, id=f"{path.stem}-{layout}", marks=[] if quick else pytest.mark.slow)
        for path in FILES
        if path.stem not in WHOLE
        for layout in LAYOUTS
        if layout != "one device"
        for quick in [path in FIRST.values() and layout in ("mesh", "pmap")]
    ],
)
def test_eight_devices_equal_one(path, layout):
    one, eight = trained(path, "one device"), trained(path, layout)
    assert len(one) == len(eight) == 5 and one[0]["loss"] != one[4]["loss"]
    for step, (a, b) in enumerate(zip(one, eight, strict=True)):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=TOLERANCE, err_msg=f"{name} of step {step}")
