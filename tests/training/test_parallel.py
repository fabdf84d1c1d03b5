"""Eight virtual devices against one: the mesh, pmap, accumulation and FSDP are one computation."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lmlab import config as configs
from lmlab.experiment import Assets
from lmlab.training import parallel
from lmlab.training.loop import Trainer
from tests.training import toys

ROOT = Path(__file__).parents[2]
LAYOUTS = {
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "tensor": {"data": 1, "tensor": 8},
    "mixed": {"data": 2, "fsdp": 2, "tensor": 2},
    "the rest": {"data": -1, "fsdp": 4},
}


def trained(tmp_path, kind, steps=5, **leaves):
    """The final state of a toy under a layout, as NumPy arrays."""
    config = toys.config(checkpoint={"every": "0"}, **leaves)
    config.duration = f"{steps} steps"
    state = Trainer(toys.KINDS[kind](config), config).run(tmp_path)
    return jax.device_get((state.params, state.collections))


def close(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("kind", "name"), [("dropout", name) for name in LAYOUTS] + [("stream", "mixed")])
def test_the_mesh_equals_one_device(tmp_path, name, kind):
    alone = trained(tmp_path / "one", kind)
    spread = trained(tmp_path / "eight", kind, parallel=LAYOUTS[name])
    close(alone, spread, 1e-6)


@pytest.mark.parametrize(
    "kind", ["plain", "dropout", "batch_statistics", "stream", "adversarial", "carrying"]
)
def test_pmap_equals_microbatches_on_one_device(tmp_path, kind):
    """Keys included: shard d of n draws what microbatch d of n draws."""
    parts = trained(tmp_path / "one", kind, accumulate=4)
    spread = trained(tmp_path / "four", kind, parallel={"mode": "pmap", "data": 4})
    close(parts, spread, 1e-6)


def test_pmap_of_microbatches_equals_more_microbatches(tmp_path):
    parts = trained(tmp_path / "one", "dropout", accumulate=4)
    spread = trained(tmp_path / "two", "dropout", accumulate=2, parallel={"mode": "pmap", "data": 2})
    close(parts, spread, 1e-6)


@pytest.mark.parametrize("layout", [{"data": 2, "fsdp": 2, "tensor": 2}, {"mode": "pmap", "data": 8}])
def test_a_hundred_steps_agree_in_float64(tmp_path, layout):
    """Float32 drifts apart by rounding; in float64 a difference of meaning would show."""
    with jax.enable_x64(True):
        accumulate = 8 if layout.get("mode") == "pmap" else 1
        alone = trained(tmp_path / "one", "plain64", 100, accumulate=accumulate)
        spread = trained(tmp_path / "eight", "plain64", 100, parallel=layout)
    assert jax.tree.leaves(alone)[0].dtype == np.float64
    close(alone, spread, 1e-9)


def test_fsdp_holds_an_eighth_of_each_large_array():
    config = toys.config(parallel={"data": 1, "fsdp": 8})
    trainer = Trainer(toys.regression(config), config)
    state = trainer.layout.create(trainer.make)
    kernel = state.params["Dense_0"]["kernel"]
    moment = state.opt_state[0].mu["Dense_0"]["kernel"]
    for array in (kernel, moment):
        assert len(array.addressable_shards) == 8
        assert all(shard.data.size == array.size // 8 for shard in array.addressable_shards)


def test_an_axis_that_does_not_divide_stays_whole():
    layout = parallel.layout("jit", 1, 8, 1)
    assert layout._fits("fsdp", 16) == "fsdp" and layout._fits("fsdp", 12) is None


def test_the_state_keeps_its_placement_over_steps(tmp_path):
    config = toys.config(parallel={"data": 2, "fsdp": 4})
    trainer = Trainer(toys.regression(config), config)
    state = trainer.run(tmp_path)
    expected = trainer.layout.shardings(trainer.make)
    for array, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert isinstance(array.sharding, NamedSharding)
        assert array.sharding.is_equivalent_to(sharding, array.ndim)


@pytest.mark.parametrize(
    ("leaves", "text"),
    [
        ({"data": 3}, "does not divide over 3 devices"),
        ({"data": 16}, "asks for 16 devices; there are 8"),
        ({"data": -1, "fsdp": 3}, "3 does not divide the 8 devices"),
        ({"mode": "pmap", "data": 5}, "allowed: a multiple of 5"),
    ],
)
def test_a_layout_that_cannot_be(leaves, text):
    config = toys.config(parallel=leaves)
    with pytest.raises(ValueError, match=text):
        Trainer(toys.regression(config), config)


def test_the_thread_pool_is_widened_for_virtual_devices(monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    parallel.prepare("float32")
    import os

    assert int(os.environ["NPROC"]) >= 16  # two threads for each of the eight devices


def test_precision_is_what_the_config_says():
    x = jnp.ones((4, 4))
    for name, expected in (("float32", "HIGHEST"), ("tf32", "HIGH"), ("bf16", "DEFAULT")):
        parallel.prepare(name)
        assert f"precision=(Precision.{expected}" in str(jax.make_jaxpr(jnp.dot)(x, x)) or expected in str(
            jax.make_jaxpr(jnp.dot)(x, x)
        )
    parallel.prepare("float32")


def test_fsdp_gathers_parameters_and_no_activations():
    leaves = {
        "batch_size": 16,
        "model.num_layers": 1,
        "model.context": 24,
        "parallel.fsdp": 8,
        "parallel.data": 1,
    }
    config, module = configs.load(f"{ROOT}/experiments/gpt_char.py:demo", leaves)
    trainer = Trainer(module.build(config, Assets()), config)
    placed = trainer.layout.abstract(trainer.make), trainer.example
    kept = trainer.layout.shardings(trainer.make), trainer.layout.replicated
    program = jax.jit(trainer.step, out_shardings=kept).lower(*placed).compile().as_text()
    gathered = re.findall(r"= f32\[([\d,]*)\]\S* (?:all-gather|all-to-all)\(", program)
    parameters = {tuple(sorted(leaf.shape)) for leaf in jax.tree.leaves(placed[0].params)}
    assert gathered and {tuple(sorted(map(int, shape.split(",")))) for shape in gathered} <= parameters
