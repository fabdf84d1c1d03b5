"""Rows, the table of peaks, the bar that is quiet, the trace."""

import dataclasses
import json
import math

import pytest

from lmlab.training import metrics, record
from lmlab.training.loop import Trainer
from tests.training import toys


def test_the_table_of_peaks_takes_the_longest_name():
    assert metrics.peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert metrics.peak_flops("TPU v5 lite", "bf16") == 197e12
    assert metrics.peak_flops("TPU v5", "bf16") == 459e12
    assert math.isnan(metrics.peak_flops("cpu", "float32"))
    assert math.isnan(metrics.peak_flops("TPU v4", "float32"))


def test_rows_cut_short_by_a_crash_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "seconds": 1.0}\n{"step": 2, "seconds": 2.0}\n{"step": 3, "sec')
    assert [row["step"] for row in metrics.read(path)] == [1, 2]
    writers = metrics.Writers(tmp_path, step=1)
    assert writers.seconds == 1.0  # training time goes on from there
    writers.write({"step": 2, "seconds": 3.0, "train/loss": 0.5})
    writers.close()
    assert [json.loads(line)["seconds"] for line in path.read_text().splitlines()] == [1.0, 3.0]
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_mfu_is_the_models_flops_over_the_peak(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "peak_flops", lambda kind, precision: 1e9)
    config = toys.config()
    experiment = dataclasses.replace(toys.regression(config), flops=lambda count: 6.0 * count)
    Trainer(experiment, config).run(tmp_path)
    row = metrics.read(tmp_path / "metrics.jsonl")[0]
    count = 16 * 32 + 32 + 32 * 4 + 4
    expected = row["speed/examples_per_second"] * 6 * count / 1e9
    assert row["speed/mfu"] == pytest.approx(expected, rel=0.01, abs=1e-4)


def test_it_is_quiet_when_not_a_terminal(tmp_path, capfd):
    config = toys.config()
    Trainer(toys.regression(config), config).run(tmp_path)
    told = capfd.readouterr()
    assert told.err == ""
    assert [line.split(":")[0] for line in told.out.splitlines()] == ["step 3", "step 6"]


def test_a_profile_is_written_when_asked_for(tmp_path):
    config = toys.config(duration="10 steps", log_every="1 step", checkpoint={"every": "0"})
    Trainer(toys.regression(config), config).run(tmp_path, profile=True)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
