"""Rows, the table of peaks, the bar that is quiet, the trace."""

import dataclasses
import json
import math
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

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


def events(path):
    """What a file says to TensorBoard: records of a length, its checksum, so many bytes and theirs."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_tensorboard_is_told_the_same_and_from_where_it_was_told_in_vain(tmp_path):
    for begin in (0, 1):  # of a run that was cut in step 2
        writers = metrics.Writers(tmp_path, begin)
        for step in (begin + 1, begin + 2):
            writers.write({"step": step, "seconds": 3.0, "train/loss": 1 / step})
        writers.close()
        (path,) = (tmp_path / "tensorboard").iterdir()
        version, *told = events(path)
        assert version.file_version == "brain.Event:2"
        if begin:
            start = told.pop(0)
            assert start.step == 2 and start.session_log.status == SessionLog.START
        found = [(event.step, *[(v.tag, v.simple_value) for v in event.summary.value]) for event in told]
        assert found == [(n, ("train/loss", pytest.approx(1 / n))) for n in (begin + 1, begin + 2)]
        path.unlink()  # the next might be made in the same second


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
