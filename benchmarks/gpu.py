"""Speed on a GPU: GPT-2 124M and smaller models against PyTorch on the same card, in turns, in one run.

    python -m benchmarks gpu                      # all parts, the most important first, within 9 minutes
    python -m benchmarks gpu gpt2 profile         # some
    python -m benchmarks gpu --profile runs/trace # keeps the trace, for TensorBoard or ui.perfetto.dev

One JSON: tokens/s, share of the card's peak (MFU), device memory, and the ratio to the best way of
PyTorch. A part that could not run says why (out of memory, out of time, no torch). Without a GPU one part
of each kind runs in tiny sizes, which says nothing about speed and keeps the script alive. Both sides hold
memory of the card at the same time, so JAX is kept from taking it all at the start.

    python -m benchmarks.gpu BUILDER SIDE OPTIONS # one arm, started by protocol.Worker
"""

import argparse
import collections
import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import protocol
from benchmarks.protocol import Arm
from benchmarks.workloads import DECODING, RECURRENT, SMALL

PRECISION = "bf16"
GPT2 = {"num_layers": 12, "num_heads": 12, "d_model": 768, "context": 1024, "vocab_size": 50304}
BATCH = 4
"""The base batch of GPT-2; the sides are compared at 4 times it."""
TINY = {"num_layers": 1, "num_heads": 2, "d_model": 16, "context": 16, "vocab_size": 64, "num_tokens": 16}
"""The most of each size where there is no GPU."""
ON_CPU = ("gpt2", "sampling", "gru", "profile")
"""What runs there unless parts are named: one of each kind."""
SPEED_BAR, MFU_BAR = 1.1, 0.5
TITLE = f"GPT-2 124M, context 1,024, batch {4 * BATCH}, bf16"
ROUNDS, CPU_ROUNDS = 10, 2
RECORD = "results/speed/gpu.json"
CPU = "cpu (tiny sizes, only to keep the script alive)"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")


@dataclasses.dataclass(frozen=True)
class Part:
    """What is measured: its arms take turns, ours is the first."""

    builder: str
    sizes: dict
    arms: tuple[Arm, ...]


def parts(gpu: bool, environment: dict[str, str], trace: str) -> dict[str, Part]:
    """All parts, the most important first. trace: the folder of the profile."""

    def torch(name: str, mode: str = "") -> Arm:
        if not gpu:  # compiling would take longer than all the rest
            return Arm(name.replace(".compile", ""), "peers", {"device": "cpu"}, environment)
        return Arm(name, "peers", {"device": "cuda"} | ({"mode": mode} if mode else {}), environment)

    ours, compiled = Arm("lmlab", "ours", {}, environment), torch("torch.compile", "default")
    graphs, eager = torch("torch.compile, CUDA graphs", "reduce-overhead"), torch("torch")
    larger = (8, 16, 1)

    def gpt2(times: int, *arms: Arm) -> Part:
        return Part("gpt", {**GPT2, "batch_size": times * BATCH}, arms)

    def sampling(batch: int) -> Part:
        return Part("sampling", {**DECODING, "batch_size": batch}, (ours, torch("transformers")))

    small, gru = {**SMALL, "vocab_size": 65}, {**RECURRENT, "cell": "gru"}
    chosen = {
        "gpt2": gpt2(4, ours, compiled),
        **{f"gpt2_batch_{times * BATCH}": gpt2(times, ours) for times in larger},
        "gpt_small": Part("gpt", small, (ours, compiled, graphs) if gpu else (ours, eager)),
        "sampling": sampling(1),
        "sampling_16": sampling(16),
        "gru": Part("recurrent", gru, (ours, compiled, eager) if gpu else (ours, eager)),
        "profile": gpt2(4, dataclasses.replace(ours, options={"profile": trace})),
        **{f"gpt2_batch_{times * BATCH}_torch": gpt2(times, compiled) for times in larger},
    }
    if not gpu:
        for name, part in chosen.items():
            sizes = {key: min(value, TINY.get(key, value)) for key, value in part.sizes.items()}
            chosen[name] = dataclasses.replace(part, sizes=sizes)
    return chosen


# -- one arm, in a process of its own ----------------------------------------------------------------


def ours_gpt(*, vocab_size, context, batch_size, precision, **sizes):
    import numpy as np

    from benchmarks import ours
    from lmlab.data import text
    from lmlab.models.gpt import GPT
    from lmlab.tasks import NextToken

    ids = np.random.default_rng(0).integers(0, vocab_size, ours.TOKENS).astype(np.int32)
    task = NextToken(GPT(vocab_size, context=context, bias=False, **sizes))
    source = text.windows(ids, context, batch_size, 0)
    return ours.training(task, source, precision, batch_size, b2=0.99, weight_decay=0.1, clip=1.0)


def build_ours(builder: str, *, profile: str = "", **sizes):
    """(run, facts), `device_memory_mb` among them: the most that arrays and temporaries took."""
    import jax

    from benchmarks import ours

    build = ours_gpt if builder == "gpt" else getattr(ours, builder)
    run, facts = build(precision=PRECISION, **sizes)
    if profile:
        facts["profile"] = traced(run, Path(profile))

    def watched(steps: int) -> None:
        run(steps)
        memory = jax.devices()[0].memory_stats()
        if memory:  # CPUs do not tell
            facts["device_memory_mb"] = round(memory["peak_bytes_in_use"] / 2**20)

    return watched, facts


def peers_training(builder, *, device, mode, context, batch_size, vocab_size=65, **sizes):
    """Bfloat16 by autocast. `mode` of torch.compile, "" for none. The text lies on the card, as ours does."""
    import torch

    from benchmarks import peers

    torch.set_float32_matmul_precision("high")
    options = {}
    if builder == "gpt":
        model = peers.GPT(context=context, dropout=0.0, vocab_size=vocab_size, **sizes).to(device)
        options = {"betas": (0.9, 0.99), "weight_decay": 0.1}
    else:
        model = peers.Recurrent(**sizes).to(device)
    text = torch.randint(0, vocab_size, (peers.TOKENS,), device=device)
    offsets = torch.arange(context + 1, device=device)

    def batches():
        while True:
            yield text[torch.randint(0, len(text) - context - 1, (batch_size, 1), device=device) + offsets]

    def loss(batch):
        with torch.autocast(device, torch.bfloat16):
            return peers.next_token_loss(model, batch)

    compiled = torch.compile(loss, mode=mode) if mode else loss
    return peers.training(compiled, model.parameters(), batches(), "float32", clip=1.0, **options)


def build_peers(builder: str, *, device: str, mode: str = "", **sizes):
    """(run, facts); sampling is transformers' generate with its cache, all in bfloat16."""
    import torch

    from benchmarks import peers

    if builder == "sampling":
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            run, facts = peers.sampling(**sizes)
    else:
        run, facts = peers_training(builder, device=device, mode=mode, **sizes)

    def watched(steps: int) -> None:
        run(steps)
        if device == "cuda":
            torch.cuda.synchronize()
            facts["device_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)

    return watched, facts


def work(builder: str, side: str, options: str) -> None:
    """The worker. `seconds` of the options: how long it may live, whatever it is doing then."""
    from lmlab import cpu

    arguments = json.loads(options)
    signal.alarm(max(1, math.ceil(arguments.pop("seconds"))))
    cpu.keep_memory()  # both sides get the same settings of malloc
    build = {"ours": build_ours, "peers": build_peers}[side]
    protocol.serve(lambda: build(builder, **arguments))


# -- the profile -------------------------------------------------------------------------------------

KINDS = {  # of kernels, by what their names hold; the first that fits
    "attention": ("sdpa", "flash", "fmha"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "xmma"),
    "copies": ("memcpy", "memset", "copy", "transpose"),
    "others": ("",),
}


def traced(run: Callable[[int], None], folder: Path, steps: int = 4) -> dict:
    """A trace of some steps in `folder`, by jax.profiler, and where the card's time went."""
    import jax

    run(2)
    with jax.profiler.trace(folder):
        run(steps)
    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    planes = jax.profiler.ProfileData.from_file(str(newest)).planes
    lines = [line for plane in planes if plane.name.startswith("/device:GPU") for line in plane.lines]
    streams = [line for line in lines if line.name.startswith("Stream")]
    return summary([(event.name, event.duration_ns) for line in streams for event in line.events], steps)


def summary(kernels: Sequence[tuple[str, float]], steps: int) -> dict:
    """Milliseconds a step of (name, nanoseconds): in all, by kind, and of the ten longest names."""
    names, kinds = collections.Counter(), collections.Counter()
    for name, duration in kernels:
        kind = next(k for k, held in KINDS.items() if any(part in name.lower() for part in held))
        names[name] += duration / steps / 1e6
        kinds[kind] += duration / steps / 1e6
    if not names:
        return {"not_run": "the trace holds no GPU"}
    return {
        "kernel_ms": round(names.total(), 4),
        "kinds_ms": {kind: round(value, 4) for kind, value in kinds.most_common()},
        "longest_ms": {name: round(value, 4) for name, value in names.most_common(10)},
    }


# -- all parts ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Budget:
    """The time that all parts share, and what is said meanwhile."""

    seconds: float
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)

    def say(self, text: str) -> None:
        print(f"{self.seconds - self.left:6.1f} s  {text}", flush=True)

    def reason(self, error: Exception) -> str:
        """Why an arm did not run."""
        text = str(error)
        if self.left <= 0:
            return "out of time"
        full = "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
        return f"out of memory: {text}" if full else text


def measure(part: Part, budget: Budget, rounds: int) -> dict[str, dict]:
    """{arm: times and facts; or `not_run` and why}."""
    rows = {}
    with contextlib.ExitStack() as stack:
        workers = []
        for arm in part.arms:
            budget.say(f"  starting {arm.name}")
            limited = {**part.sizes, **arm.options, "seconds": budget.left}
            try:
                arm = dataclasses.replace(arm, options=limited)
                workers.append(protocol.Worker(part.builder, arm, "benchmarks.gpu"))
                stack.callback(workers[-1].kill)
            except RuntimeError as error:
                rows[arm.name] = {"not_run": budget.reason(error)}
        try:
            rows |= protocol.take_turns(workers, rounds)
        except (RuntimeError, OSError) as error:  # one ended in its turn
            rows |= {worker.arm.name: {"not_run": budget.reason(error)} for worker in workers}
    return rows


def judged(part: Part, rows: dict[str, dict], peak: float) -> dict:
    """The record of a part: tokens/s and MFU of each arm, the ratio of ours to the best peer."""
    from lmlab.models.gpt import flops_per_token

    sizes, record = part.sizes, {"sizes": part.sizes, "arms": rows}
    tokens = sizes["batch_size"] * sizes.get("num_tokens", sizes.get("context"))  # of a step or call
    ran = {name: row for name, row in rows.items() if "not_run" not in row}
    shape = [sizes.get(name) for name in ("num_layers", "d_model", "context")]
    for row in ran.values():
        speed = tokens / (row["wall_ms"]["median"] / 1e3)
        row["tokens_per_second"] = round(speed)
        if part.builder == "gpt" and math.isfinite(peak):
            row["mfu"] = round(speed * flops_per_token(row["parameters"], *shape) / peak, 4)
    ours, *peers = [arm.name for arm in part.arms]
    peers = [name for name in peers if name in ran]
    if ours in ran and peers:
        best = min(peers, key=lambda name: ran[name]["wall_ms"]["median"])
        record |= {"peer": best, "ratio": protocol.ratio(ran[ours], ran[best])}
    for row in ran.values():
        del row["rounds_wall_ms"]
    return record


def rows(done: dict[str, dict], gpu: bool) -> list[dict]:
    """What README's table shows of GPT-2 124M: the ratio, and the MFU of the best batch. Only of a GPU."""
    told, part = [], done.get("gpt2", {})
    if gpu and "ratio" in part:
        facts = {"unit": "step", "ours": "lmlab", "bar": SPEED_BAR}
        facts |= {key: part[key] for key in ("peer", "ratio")}
        told.append({"title": TITLE, **facts, "met": part["ratio"]["median"] >= SPEED_BAR})
    arms = {name: each.get("arms", {}).get("lmlab", {}) for name, each in done.items()}
    shares = {name: arm["mfu"] for name, arm in arms.items() if name.startswith("gpt2") and "mfu" in arm}
    if shares:
        best = max(shares, key=shares.get)
        title = f"GPT-2 124M, share of the card's peak (MFU), batch {done[best]['sizes']['batch_size']}"
        facts = {"unit": "of the peak", "ours": shares[best], "bar": MFU_BAR, "at_least": True}
        told.append({"title": title, **facts, "met": shares[best] >= MFU_BAR})
    return told


def probe(environment: dict[str, str]) -> tuple[bool, str]:
    """(whether JAX sees a GPU, what it calls its device), asked of a process that ends at once."""
    program = "import jax; device = jax.devices()[0]; print(device.platform, device.device_kind, sep='|')"
    environment = {**os.environ, **environment}
    answer = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(f"JAX found no device: {answer.stderr.strip().splitlines()[-1]}")
    platform, _, kind = answer.stdout.strip().splitlines()[-1].partition("|")
    return platform == "gpu", kind


def told(name: str, row: dict) -> str:
    """A line of an arm."""
    if "not_run" in row:
        return f"  {name}: not run: {row['not_run']}"
    line = "  {}: {:,} tokens/s, {median:.2f} ms a step ({p25:.2f} to {p75:.2f})"
    line = line.format(name, row["tokens_per_second"], **row["wall_ms"])
    line += f", MFU {row['mfu']:.1%}" if "mfu" in row else ""
    return line + (f", {row['device_memory_mb']:,} MB" if "device_memory_mb" in row else "")


def run(names: Sequence[str], budget: Budget, trace: str, output: Path | None) -> dict:
    """The record, written anew after each part: what was measured stays, whatever comes."""
    from lmlab.training.metrics import peak_flops

    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
    }
    gpu, kind = probe(environment)
    budget.say(kind if gpu else CPU)
    chosen, done, rounds = parts(gpu, environment, trace), {}, ROUNDS if gpu else CPU_ROUNDS
    record = {"device": kind if gpu else CPU, "precision": PRECISION, "rounds": rounds}
    found = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    record |= {"versions": {name: found[name] for name in PACKAGES if name in found}, **protocol.machine()}
    if gpu:
        record["machine"]["devices"] = f"1 x {kind}"
    output = output or Path(RECORD if gpu else "build/gpu.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    for name, part in chosen.items():
        why = "" if budget.left > 1 else "out of time"
        if name not in (names or (chosen if gpu else ON_CPU)):
            why = "not asked for" if names else "no GPU"
        done[name] = {"not_run": why}
        if not why:
            budget.say(name)
            done[name] = judged(part, measure(part, budget, rounds), peak_flops(kind, PRECISION))
            for arm, row in done[name]["arms"].items():
                budget.say(told(arm, row))
        record |= {"rows": rows(done, gpu), "seconds": round(budget.seconds - budget.left, 1), "parts": done}
        output.write_text(json.dumps(record, indent=1) + "\n")
    budget.say(f"written to {output}")
    return record


def main(argv: Sequence[str] | None = None) -> int:
    known = list(parts(gpu=True, environment={}, trace=""))
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks gpu", description=__doc__, formatter_class=raw)
    parser.add_argument("name", nargs="*", help=f"parts: {', '.join(known)}; all if none is named")
    parser.add_argument("--minutes", type=float, default=9.0, help="what is not done by then is not run (9)")
    parser.add_argument(
        "--profile", type=Path, help="folder that keeps the trace, else only its summary stays"
    )
    parser.add_argument("--output", type=Path, help=f"the record; {RECORD}, without a GPU build/gpu.json")
    options = parser.parse_args(argv)
    unknown = set(options.name) - set(known)
    if unknown:
        parser.error(f"unknown {', '.join(sorted(unknown))}; allowed: {', '.join(known)}")
    with tempfile.TemporaryDirectory() as folder:
        trace = str(options.profile or Path(folder) / "trace")
        budget = Budget(60 * options.minutes)
        try:
            record = run(options.name, budget, trace, options.output)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    if not record["rows"]:
        budget.say(f"{TITLE}: not run, bar {SPEED_BAR:g}")
    for row in record["rows"]:
        value = row["ratio"]["median"] if "ratio" in row else row["ours"]
        budget.say(f"{row['title']}: {value:.3f}, bar {row['bar']:g}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("the command is: python -m benchmarks gpu")
    work(*sys.argv[1:])
