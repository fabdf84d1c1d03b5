import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import protocol, scaling
from lmlab.figures import table
from lmlab.models.gpt import GPT

ROOT = Path(__file__).parents[2]
SMALL = {"num_layers": 2, "d_model": 64, "context": 32, "batch_size": 8}


@pytest.fixture
def checkout(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def test_exponent_of_a_power_law():
    """Of the larger half alone: small sizes have costs that do not grow."""
    sizes = [1, 2, 4, 8, 16]
    values = [3 * size**1.7 for size in sizes]
    slope, intercept = scaling.exponent(sizes, [100.0, 100.0, *values[2:]])
    assert slope == pytest.approx(1.7) and math.exp(intercept) == pytest.approx(3)


def test_counts_by_hand():
    """12 * 2 * 64^2 + 65 * 64 = 102,464 weights; 256 tokens; attention 12 * 2 * 64 * 32 = 49,152 a token."""
    assert scaling.weights(2, 64) == 102_464
    assert scaling.flops(**SMALL) == 256 * (6 * 102_464 + 49_152)
    assert scaling.floats(**SMALL) == 4 * 102_464 + 256 * (2 * (16 * 64 + 2 * 32) + 2 * 65)


def test_weights_are_those_of_the_model():
    """All but positions and the scales of normalization, which multiply no matrix."""
    model = GPT(scaling.VOCAB, context=32, num_layers=2, num_heads=2, d_model=64, bias=False)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32), jnp.int32))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count == scaling.weights(2, 64) + 32 * 64 + 5 * 64


@pytest.mark.parametrize("name", scaling.AXES)
def test_counts_grow_as_their_limits_say(name):
    axis = scaling.AXES[name]
    far = [{**scaling.BASE, axis.size: 2**power} for power in (20, 21)]
    for count, limit in ((scaling.flops, axis.time), (scaling.floats, axis.memory)):
        slope, _ = scaling.exponent([2**20, 2**21], [count(**sizes) for sizes in far])
        assert slope == pytest.approx(limit, abs=0.01)


def test_memory_is_what_was_predicted(checkout):
    """Temporaries are most of it here: left out of the prediction, the ratio would be above 2."""
    memory = scaling.check(json.dumps({**SMALL, "context": 128, "batch_size": 32}))
    if memory["measured_mb"] is None:
        pytest.skip("this system does not tell the highest resident memory since a moment")
    assert memory["predicted_mb"] > 40
    assert 0.8 < memory["ratio"] < 1.4


@pytest.fixture
def quick(checkout, tmp_path, monkeypatch):
    """One axis of two small sizes, with no process for its memory; the arguments of main."""
    monkeypatch.setattr(scaling, "BASE", SMALL)
    monkeypatch.setattr(scaling, "AXES", {"batch": scaling.Axis("batch_size", (8, 16), "batch", 1, 1)})
    monkeypatch.setattr(scaling, "SECONDS", 0.01)
    taken = {"predicted_mb": 4.0, "measured_mb": 5.0, "ratio": 1.25}
    monkeypatch.setattr(scaling, "check", lambda sizes: {"sizes": json.loads(sizes), **taken})
    monkeypatch.setattr(protocol, "other_load", lambda: 0.0)
    monkeypatch.setattr("lmlab.cpu.keep_memory", lambda: False)  # this process goes on
    precision = jax.config.jax_default_matmul_precision
    yield ["--output", str(tmp_path / "speed" / "scaling.json"), "--figures", str(tmp_path / "figures")]
    jax.config.update("jax_default_matmul_precision", precision)


def test_record_and_figure(quick, tmp_path, capsys):
    assert scaling.main(quick) == 0
    path = tmp_path / "speed" / "scaling.json"
    record = json.loads(path.read_text())
    batch = record["batch"]
    assert [row["sizes"] for row in batch["points"]] == [SMALL, {**SMALL, "batch_size": 16}]
    assert all(row["wall_ms"]["median"] > 0 and row["predicted_mb"] > 1 for row in batch["points"])
    assert batch["time"]["counted"] == pytest.approx(1) and batch["time"]["limit"] == 1
    times = [row["wall_ms"]["median"] for row in batch["points"]]
    assert batch["time"]["measured"] == pytest.approx(math.log2(times[1] / times[0]), abs=1e-3)
    assert batch["checks"][1]["sizes"]["batch_size"] == 16 and batch["load_before"] == 0
    assert (tmp_path / "figures" / "scaling.png").stat().st_size > 0
    assert "exponent" in capsys.readouterr().out

    path.write_text(json.dumps({"width": "kept", "batch": "old"}))
    kept = {**batch, "size": "batch_size"}
    path.write_text(json.dumps({"batch": {**kept, "label": "old"}}))
    assert scaling.main([*quick, "batch"]) == 0
    assert json.loads(path.read_text())["batch"]["label"] == "batch"


def test_figure_shows_points_fit_count_and_check():
    def fit(slope, counted):
        return {"measured": slope, "log_at_1": 0.0, "counted": counted, "counts": [1.0, 2.0, 4.0], "limit": 2}

    def point(width):
        return {"sizes": {"d_model": width}, "wall_ms": {"median": 10.0 * width}, "predicted_mb": 5.0 * width}

    check = {"sizes": {"d_model": 4}, "measured_mb": 21.0, "predicted_mb": 20.0, "ratio": 1.05}
    record = {"size": "d_model", "label": "width", "points": [point(w) for w in (1, 2, 4)], "checks": [check]}
    figure = scaling.draw({"width": {**record, "time": fit(1.5, 2.0), "memory": fit(1.0, 1.25)}})
    above, below = figure.axes
    assert (above.get_ylabel(), below.get_ylabel()) == ("step time (ms)", "peak memory (MB)")
    assert above.get_xlabel() == "width"
    told = [text.get_text() for text in below.get_legend().get_texts()]
    assert told == ["predicted", "fit, slope 1.00", "floats, slope 1.25", "measured"]
    rows = table.rows(figure)
    assert ("time against width", "line", "measured", 4, 40.0, "", "", "") in rows
    assert ("time against width", "line", "fit, slope 1.50", 4, 8.0, "", "", "") in rows, "4^1.5"
    assert ("time against width", "line", "FLOPs, slope 2.00", 1, 2.0, "", "", "") in rows, "8 * 1 / 4"
    assert ("memory against width", "line", "measured", 4, 21.0, "", "", "") in rows


def test_unknown_axis_is_one_line(capsys):
    with pytest.raises(SystemExit):
        scaling.main(["height"])
    assert "unknown height; allowed: width, depth" in capsys.readouterr().err.splitlines()[-1]
