import json
import os
from pathlib import Path

import pytest

from benchmarks import gpu, protocol
from benchmarks.protocol import Arm

ROOT = Path(__file__).parents[2]
GPT = {"num_layers": 2, "num_heads": 2, "d_model": 16, "context": 8, "batch_size": 4, "vocab_size": 64}


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Workers start in the checkout, without torch."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "torch.py").write_text("raise ImportError('torch is hidden')\n")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(hidden), str(ROOT))))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.mark.slow
def test_tiny_run_writes_its_record(workers, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(protocol, "SECONDS", 0.05)
    output, trace = tmp_path / "speed" / "gpu.json", tmp_path / "trace"
    assert gpu.main(["--output", str(output), "--profile", str(trace)]) == 0
    record = json.loads(output.read_text())
    assert record["device"] == gpu.CPU and "tiny sizes" in capsys.readouterr().out
    assert list(record["parts"]) == list(gpu.parts(True, {}, ""))
    for name, part in record["parts"].items():
        if name not in gpu.ON_CPU:
            assert part == {"not_run": "no GPU"}
            continue
        arms = dict(part["arms"])
        ours = arms.pop("lmlab")
        assert "not_run" not in ours, ours
        assert ours["tokens_per_second"] > 0 and ours["wall_ms"]["median"] > 0 and "mfu" not in ours
        assert all("torch is hidden" in arm["not_run"] for arm in arms.values())
        assert "ratio" not in part and part["sizes"]["d_model"] == 16
    assert record["parts"]["profile"]["arms"]["lmlab"]["profile"] == {"not_run": "the trace holds no GPU"}
    assert list(trace.rglob("*.xplane.pb"))
    assert record["rows"] == []  # a CPU says nothing about a GPU


def test_no_time_is_told(workers, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert gpu.main(["gru", "sampling", "--minutes", "0"]) == 0
    assert not Path(gpu.RECORD).exists()  # which is a GPU's
    parts = json.loads(Path("build/gpu.json").read_text())["parts"]
    late = [name for name, part in parts.items() if part == {"not_run": "out of time"}]
    assert late == ["sampling", "gru"] and parts["gpt2"] == {"not_run": "not asked for"}
    assert "not run, bar 1.1" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failing_arm_leaves_the_others(workers, monkeypatch):
    monkeypatch.setattr(protocol, "SECONDS", 0.05)
    wrong = Arm("wrong", "ours", {"precission": 1})
    rows = gpu.measure(gpu.Part("gpt", GPT, (wrong, Arm("right", "ours"))), gpu.Budget(200), 2)
    assert rows["right"].get("parameters", 0) > 0, rows["right"]
    assert "TypeError" in rows["wrong"]["not_run"] and "precission" in rows["wrong"]["not_run"]


def test_an_arm_ends_with_the_budget(workers):
    rows = gpu.measure(gpu.Part("gpt", GPT, (Arm("late", "ours"),)), gpu.Budget(0.5), 1000)
    assert rows == {"late": {"not_run": "out of time"}}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("failed: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes", "out of memory: failed: RESOURCE"),
        ("failed: OutOfMemoryError: CUDA out of memory. Tried", "out of memory: failed: OutOfMemoryError"),
        ("failed: ModuleNotFoundError: No module named 'torch'", "failed: ModuleNotFoundError"),
    ],
)
def test_reasons(message, told):
    assert gpu.Budget(60).reason(RuntimeError(message)).startswith(told)
    assert gpu.Budget(0).reason(RuntimeError(message)) == "out of time"


def row(milliseconds, parameters=1000):
    times = [milliseconds] * 3
    return {"wall_ms": protocol.spread(times), "rounds_wall_ms": times, "parameters": parameters}


def test_speed_share_and_ratio():
    """2 layers of width 16, context 8: 6 * 1000 + 12 * 2 * 16 * 8 = 9,072 FLOPs a token; 32 tokens a step."""
    arms = (Arm("lmlab", "ours"), Arm("a", "peers"), Arm("b", "peers"), Arm("c", "peers"))
    rows = {"lmlab": row(10.0), "a": row(15.0), "b": row(12.0), "c": {"not_run": "out of memory"}}
    record = gpu.judged(gpu.Part("gpt", GPT, arms), rows, peak=1e9)
    assert record["arms"]["lmlab"]["tokens_per_second"] == 3200
    assert record["arms"]["lmlab"]["mfu"] == pytest.approx(9072 * 3200 / 1e9, abs=1e-4)
    assert record["peer"] == "b" and record["ratio"]["median"] == pytest.approx(1.2)
    assert record["arms"]["c"] == {"not_run": "out of memory"}


def test_rows_of_the_table():
    part = {"sizes": {"batch_size": 16}, "arms": {"lmlab": {"mfu": 0.4}}}
    part |= {"peer": "torch.compile", "ratio": {"median": 1.09}}
    larger = {"sizes": {"batch_size": 32}, "arms": {"lmlab": {"mfu": 0.5}}}
    done = {"gpt2": part, "gpt2_batch_32": larger, "gru": {"not_run": "out of time"}}
    speed, share = gpu.rows(done, gpu=True)
    assert (speed["ratio"]["median"], speed["peer"], speed["met"]) == (1.09, "torch.compile", False)
    assert (share["ours"], share["met"]) == (0.5, True) and "batch 32" in share["title"]
    assert not any("ratio" in row for row in gpu.rows(done, gpu=False))
    assert gpu.rows({"gpt2": {"not_run": "out of time"}}, gpu=True) == []


def test_summary_of_a_trace():
    kernels = [("nvjet_tst_128", 3e6), ("loop_fusion_2", 1e6), ("nvjet_tst_128", 3e6), ("MemcpyD2D", 5e5)]
    found = gpu.summary([*kernels, ("cudnn_sdpa_flash_fprop", 2.5e6)], steps=2)
    assert found["kernel_ms"] == 5.0
    assert found["kinds_ms"] == {"products": 3.0, "attention": 1.25, "others": 0.5, "copies": 0.25}
    assert next(iter(found["longest_ms"].items())) == ("nvjet_tst_128", 3.0)


def test_unknown_part_is_one_line(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["gpt3"])
    assert "unknown gpt3; allowed: gpt2, " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("builder", ["gpt", "recurrent"])
def test_the_peers_train(builder):
    torch = pytest.importorskip("torch")
    sizes = GPT if builder == "gpt" else {"cell": "gru", "d_model": 16, "context": 8, "batch_size": 4}
    precision = torch.get_float32_matmul_precision()
    try:
        run, facts = gpu.build_peers(builder, device="cpu", **sizes)
        run(2)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert facts["parameters"] > 0 and "device_memory_mb" not in facts
