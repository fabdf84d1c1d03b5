"""The record of results: results/<experiment>-<variant>.json, and README's tables made of them.

python -m lmlab.evaluation.results          # writes README.md anew; --check only compares
"""

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.config import difference
from lmlab.evaluation import frechet
from lmlab.experiment import Target, describe

FREE = ("seed", "data.path", "data.tfds_dir")
"""Leaves in which the runs of one record may differ from their variant: a data set is a variant of its own."""

TOLD = ("bleu", "exact", "modes", "parzen", "bits_per_dim", "squared_error", "accuracy", "loss")
"""Of a record without a bar, the metrics of test and translation that README shows: the first two that there are."""

BEGIN, END = "<!-- {}: made by `make results` -->", "<!-- end of {} -->"


def score(run, checkpoint: int | str | None = None) -> dict[str, float]:
    """All evaluations of a run, and the logged values its targets ask for: `train/loss@3 epochs`, `...@best`."""
    scores = run.evaluate(checkpoint)
    for target in targets(run):
        name, _, when = target.metric.partition("@")
        if when:
            table = run.metrics().set_index("step")
            step = table[name].idxmin() if when == "best" else run.clock.steps(when)
            if step in table.index and name in table:
                scores[target.metric] = float(table.loc[step, name])
    return scores


def targets(run) -> list[Target]:
    """The published numbers and bars that the experiment sets for the run's variant."""
    return getattr(run.module, "TARGETS", {}).get(run.variant, [])


def summary(runs, scores: Sequence[Mapping[str, float]]) -> str:
    """Mean and deviation over the runs, beside bars and published numbers."""
    known = {target.metric: target for target in targets(runs[0])}
    lines = [f"{runs[0].spec}, {len(runs)} run" + "s" * (len(runs) > 1)]
    for name in scores[0]:
        values = [each[name] for each in scores if name in each]
        line = f"  {name}: {_spread(values)}"
        if name in known:
            line += f"  bar {known[name].bar:g}: " + (
                "met" if _met(known[name], statistics.fmean(values)) else "MISSED"
            )
            line += f"; published {known[name].published:g}" if math.isfinite(known[name].published) else ""
        lines.append(line)
    return "\n".join(lines)


def record(runs, scores: Sequence[Mapping[str, float]], folder: Path, join: bool = False) -> Path:
    """Writes the results of runs that differ in their seed alone; returns the file.

    join: beside the seeds that the file holds already, as where one machine does not last for all of them.
    ValueError: runs of several variants, a leaf other than FREE set by hand, or one seed twice.
    """
    first = runs[0]
    for run in runs:
        if run.spec != first.spec:
            raise ValueError(
                f"--record wants runs of one experiment and variant; received {first.spec} and {run.spec}"
            )
        plain = run.module.get_config(run.variant)
        changed = [key for key in difference(plain, run.config) if key not in FREE]
        if not run.finished:
            raise ValueError(f"--record refuses {run.folder}: it is not finished; go on with lmlab train")
        if changed:
            raise ValueError(
                f"--record refuses {run.folder}: {', '.join(changed)} differ from {run.spec}; make that a variant"
            )
    seeds = [run.config.seed for run in runs]
    names = [first.path.stem, *filter(None, first.variant.split(","))]
    path = folder / ("-".join(names) + ".json")
    old = json.loads(path.read_text()) if join and path.exists() else {}
    seeds = old.get("seeds", []) + seeds
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--record wants one run a seed; received seeds {seeds}")
    rows = {}
    for name in scores[0]:
        values = [each[name] for each in scores if name in each]
        values = old.get("metrics", {}).get(name, {}).get("values", []) + values
        rows[name] = {"mean": statistics.fmean(values), "deviation": _deviation(values), "values": values}
    for target in targets(first):
        if target.metric in rows:
            mean = rows[target.metric]["mean"]
            published = target.published if math.isfinite(target.published) else None
            rows[target.metric] |= {
                "bar": target.bar,
                "met": _met(target, mean),
                "published": published,
                "source": target.source,
            }
    seconds = [round(float(run.metrics()["seconds"].iloc[-1]), 1) for run in runs]
    value = {
        "experiment": first.path.name,
        "variant": first.variant,
        "command": f"lmlab train --config=experiments/{first.path.name}"
        + (f":{first.variant}" if first.variant else "")
        + " --config.seed=SEED",
        "git_commit": first.record["git_commit"],
        "versions": first.record["versions"],
        "hardware": {"devices": first.record["devices"], **first.record["host"]},
        "precision": first.record["precision"],
        "seeds": seeds,
        "training_seconds": old.get("training_seconds", []) + seconds,
        "metrics": rows,
    }
    if old:
        told = ("git_commit", "versions", "hardware", "seeds")
        earlier = {name: old[name] for name in told}
        value["earlier"] = [*old.get("earlier", []), earlier]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
    return path


def table(folder: Path) -> str:
    """The results table in Markdown: a row a metric with a bar; without one, a row of two of TOLD, or of each loss."""
    head = "| experiment | metric | ours, mean ± deviation (seeds) | bar | published | hardware |"
    lines = [head, "| --- | --- | --- | --- | --- | --- |"]
    for path in sorted(folder.glob("*.json")):
        value = json.loads(path.read_text())
        if "metrics" not in value:
            continue
        name = value["experiment"].removesuffix(".py") + (f":{value['variant']}" if value["variant"] else "")
        metrics = value["metrics"]
        told = [[key] for key in metrics if "bar" in metrics[key]]
        held_out = [f"{part}/{name}" for name in TOLD for part in ("test", "translation")]
        held_out = [key for key in held_out if key in metrics][:2]
        told = told or [held_out or [key for key in metrics if key.endswith("/loss")]]
        machine = hardware(value["hardware"])
        for keys in filter(None, told):
            row = metrics[keys[0]]
            bar = f"{row['bar']:g}, {'met' if row['met'] else 'missed'}" if "bar" in row else ""
            published = f"{row['published']:g} ({row['source']})" if row.get("published") else ""
            ours = ", ".join(_spread(metrics[key]["values"]) for key in keys)
            lines.append(
                f"| [`{name}`](results/{path.name}) | {', '.join(keys)} | {ours} ({len(value['seeds'])}) "
                f"| {bar} | {published} | {machine} |"
            )
    return "\n".join(lines)


def speed_table(folder: Path) -> str:
    """What `python -m benchmarks` recorded, in Markdown: a row a comparison, or a cost that stands alone."""
    lines = ["| workload | ours | beside the peer | bar | machine |", "| --- | --- | --- | --- | --- |"]
    for path in sorted(folder.glob("*.json")):
        value = json.loads(path.read_text())
        for row in value.get("rows", []):
            lines.append(
                "| " + " | ".join(_speed(row, f"results/speed/{path.name}", value["machine"])) + " |"
            )
    return "\n".join(lines)


def _speed(row: Mapping[str, Any], path: str, machine: Mapping[str, Any]) -> tuple[str, ...]:
    title, verdict = f"[{row['title']}]({path})", "met" if row["met"] else "missed"
    told = hardware({"devices": "cpu", **machine})
    if isinstance(row.get("ratio"), Mapping):
        ratio = row["ratio"]
        beside = (
            f"{ratio['median']:.2f} × as fast ({ratio['p25']:.2f} to {ratio['p75']:.2f}) as {row['peer']}"
        )
        return title, row["ours"], beside, f"≥ {row['bar']:g}, {verdict}", told
    peer = f"{row['ratio']:.2f} × the time of the peer" if row.get("ratio") else ""
    sign = "≥" if row.get("at_least") else "≤"
    return title, f"{row['ours']:.3g} {row['unit']}", peer, f"{sign} {row['bar']:g}, {verdict}", told


def catalogue(folder: Path) -> str:
    """The experiments of a folder in Markdown, by family: what each is of, whose paper, which variants."""
    lines = ["| family | experiment | what | after | variants |", "| --- | --- | --- | --- | --- |"]
    found = [(describe(path), path.name) for path in sorted(folder.glob("*.py"))]
    for facts, name in sorted(found, key=lambda pair: (pair[0]["FAMILY"], pair[1])):
        what, variants = facts["doc"].split("\n\n")[0].replace("\n", " "), ", ".join(facts["VARIANTS"])
        link = f"[`{name}`](experiments/{name})"
        lines.append(f"| {facts['FAMILY']} | {link} | {what} | {facts['PAPER']} | {variants} |")
    return "\n".join(lines)


def generators(folder: Path) -> str:
    """What `python -m lmlab.evaluation.frechet` recorded, in Markdown: a table a data set."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("frechet-*.json"))]
    return "\n\n".join(
        f"Against {record['reference']}:\n\n{frechet.table(record).strip()}" for record in records
    )


def readme(text: str, root: Path) -> str:
    """README with its tables made anew. root: the folder that holds experiments/ and results/."""
    results = root / "results"
    tables = {
        "experiments": catalogue(root / "experiments"),
        "results": table(results),
        "generators": generators(results),
        "speed": speed_table(results / "speed"),
    }
    for name, made in tables.items():
        begin, end = BEGIN.format(name), END.format(name)
        if begin not in text or end not in text:
            raise ValueError(f"README lacks the lines {begin!r} and {end!r}")
        before, rest = text.split(begin, 1)
        text = before + begin + "\n" + made + "\n" + end + rest.split(end, 1)[1]
    return text


def _met(target: Target, value: float) -> bool:
    return value >= target.bar if target.higher_is_better else value <= target.bar


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _spread(values: Sequence[float]) -> str:
    """ "0.0873 ± 0.0008"; of one run no deviation."""
    deviation = f" ± {_deviation(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def hardware(facts: Mapping[str, Any]) -> str:
    """ "1 x NVIDIA H100 80GB HBM3", or the cores of a processor: `facts` of run.json's devices and host."""
    if facts["devices"].endswith("cpu"):
        return f"{facts['cores']} cores of {facts['processor'].removesuffix(' Processor')}"
    return facts["devices"]


def main(argv: Sequence[str]) -> int:
    path = Path("README.md")
    old = path.read_text()
    new = readme(old, Path())
    if "--check" in argv:
        print("README's tables are " + ("current" if new == old else "stale: make results"))
        return int(new != old)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
