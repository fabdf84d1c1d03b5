"""`lmlab report`: a folder of runs as tables, pictures and one page of HTML."""

from __future__ import annotations

import csv
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.evaluation import results
from lmlab.figures import curves, settings, style
from lmlab.flags import Flags, UsageError
from lmlab.sweeps import page
from lmlab.sweeps.page import Cell
from lmlab.sweeps.ranking import Entry, Group, Ranking, standing

CURVES = 8
"""Settings whose curves are drawn: more lines are not told apart."""

SHOWN = 20
"""Settings that the terminal is shown; the files hold all."""

EXTREME = {"min": "lowest", "max": "highest"}


def main(argv: list[str]) -> int:
    """A sweep, or any folder of runs of one experiment, as tables, curves, a heat map and one page of HTML.

        lmlab report --workdir=sweeps/ae
        lmlab report --workdir=sweeps/ae --metric=validation/f1 --mode=max --axes=optimizer.learning_rate,model.code

    Runs that differ in their seed alone are one setting: mean and sample deviation are over its runs. Only runs
    that are done count; those that diverged, failed or are not done are listed. Settings are in order of the
    metric's last value. Written: index.html, which opens without a network; runs.csv and groups.csv; curves and
    heatmap (axis, where one leaf varies) as PNG, PDF and CSV.
    """
    fv = Flags(main.__doc__)
    fv.string("workdir", "", "directory of a sweep, or a folder of runs")
    fv.string("metric", "", "what is compared; if not given, a loss that all runs logged, validation first")
    fv.string("mode", "min", "which value is the best: min or max")
    fv.string("axes", "", "the two leaves of the heat map, or one; if not given, the first that vary")
    fv.string("output", "", "where to write; WORKDIR/report if not given")
    fv.parse(argv)
    workdir = Path(fv.require("workdir"))
    ranking = Ranking(workdir, fv.metric, fv.mode)
    axes = choose(ranking, fv.axes)
    folder = Path(fv.output or workdir / "report")
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(run_rows(ranking), folder / "runs.csv")
    write_csv(group_rows(ranking), folder / "groups.csv")
    pictures = draw(ranking, axes, folder)
    failed = [entry for entry in ranking.entries if entry.line]
    failures = [failures_table(failed)] if failed else []
    parts = [settings_table(ranking), *pictures, *failures, runs_table(ranking)]
    page.write(folder / "index.html", title(ranking), facts(ranking), parts)
    print("\n".join(summary(ranking)))
    names = ["runs.csv", "groups.csv", *(picture.path.name for picture in pictures)]
    print(f"written: {folder / 'index.html'}, and beside it {', '.join(names)}")
    return 0


def choose(ranking: Ranking, asked: str) -> list[str]:
    """The one or two leaves of the heat map; none where nothing varies but seeds."""
    keys = asked.split(",") if asked else ranking.settings[:2]
    for key in keys:
        if key not in ranking.settings:
            known = ", ".join(ranking.settings) or "nothing but seeds"
            raise UsageError(f"--axes: received {key!r}; what varies: {known}")
    if len(keys) > 2 or len(set(keys)) < len(keys):
        raise UsageError(f"--axes: received {asked!r}; allowed: one leaf, or two that differ")
    return keys


# -- CSV ------------------------------------------------------------------------------------------------


def run_rows(ranking: Ranking) -> list[dict[str, Any]]:
    """A row a run: what sets it apart, how it stands, the last, lowest and highest value of each metric."""
    rows = []
    for entry in ranking.entries:
        row = {"rank": entry.rank, "run": entry.name}
        row |= {key: entry.leaves.get(key) for key in ranking.keys}
        row |= {"status": entry.status, "step": entry.step, "seconds": entry.seconds}
        for metric in ranking.metrics:
            row[f"{metric} last"] = entry.last(metric)
            row |= {f"{metric} {best.__name__}": entry.extreme(metric, best) for best in (min, max)}
        rows.append(row | {"failure": entry.line})
    return rows


def group_rows(ranking: Ranking) -> list[dict[str, Any]]:
    """A row a setting: mean, sample deviation and number of its runs that are done, for each metric."""
    rows = []
    for group in ranking.groups:
        row = {"rank": group.rank, **group.leaves}
        row |= {"runs": len(group.entries), "diverged": group.undone["diverged"]}
        for metric in ranking.metrics:
            row |= _spread(metric, group.values(metric))
        best = group.values(ranking.metric, ranking.best)
        rows.append(row | _spread(f"{ranking.metric} {ranking.mode}", best))
    return rows


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {
        f"{name} mean": statistics.fmean(values) if values else None,
        f"{name} deviation": statistics.stdev(values) if len(values) > 1 else None,
        f"{name} n": len(values),
    }


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A line a row; what is not known is left empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow("" if isinstance(v, float) and math.isnan(v) else v for v in row.values())


# -- figures --------------------------------------------------------------------------------------------


def draw(ranking: Ranking, axes: Sequence[str], folder: Path) -> list[page.Picture]:
    """Curves of the best settings, and the metric over one axis or two; none of them where no run is done."""
    metric, pictures = ranking.metric, []
    compared = [group for group in ranking.groups if group.values(metric)]
    if not compared:
        return []

    def add(name: str, figure, heading: str, note: str) -> None:
        style.save(figure, folder, name)
        pictures.append(page.Picture(folder / f"{name}.png", heading, note))

    drawn = [
        (entry.run, label(group, ranking))
        for group in compared[:CURVES]
        for entry in group.entries
        if entry.status == "done" and metric in entry.logged
    ]
    names = {run.folder: name for run, name in drawn}
    runs = [run for run, _ in drawn]
    figure = curves.loss(runs, [metric], label=lambda run: names[run.folder], ylabel=metric, wide=True)
    few = f"The best {CURVES} of {len(compared)} settings" if len(compared) > CURVES else "Each setting"
    band = ", bands of one sample deviation" if len(runs) > len(compared[:CURVES]) else ""
    note = f"{few}, the best first: the mean over its runs that are done{band}."
    add("curves", figure, metric, note)
    if axes:
        met = [entry for entry in ranking.entries if entry.rank or entry.status == "diverged"]
        values = [entry.last(metric) if entry.rank else math.nan for entry in met]
        places = [[entry.leaves.get(key) for entry in met] for key in axes]
        others = " and ".join(key for key in ranking.keys if key not in axes)
        note = f"The last value, the mean over {others}." if others else "The last value of each run."
        if len(axes) == 1:
            add("axis", settings.along(*places, values, axes[0], metric), f"{metric} by {axes[0]}", note)
        else:
            figure = settings.over(*places, values, *axes, metric, ranking.best)
            add("heatmap", figure, f"{metric} by {axes[0]} and {axes[1]}", note)
    return pictures


# -- words and tables -----------------------------------------------------------------------------------


def number(value: float) -> str:
    """Five digits; a dash for NaN."""
    return f"{value:#.5g}".rstrip(".") if math.isfinite(value) else "–"


def mean(values: Sequence[float]) -> str:
    """ "0.087312 ± 0.00081"; of one run no deviation."""
    deviation = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return number(statistics.fmean(values)) + deviation if values else "–"


def short(keys: Sequence[str]) -> list[str]:
    """The last part of each key, where no other key has it."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return [key if last[key.rpartition(".")[2]] > 1 else key.rpartition(".")[2] for key in keys]


def label(group: Group, ranking: Ranking) -> str:
    pairs = zip(short(ranking.settings), group.leaves.values(), strict=True)
    return ", ".join(f"{name} {settings.written(leaf)}" for name, leaf in pairs)


def remarks(group: Group) -> str:
    """Why fewer runs count than there are."""
    return ", ".join(f"{count} {status}" for status, count in group.undone.items())


def title(ranking: Ranking) -> str:
    specs = {f"{run.path.stem}:{run.variant}".removesuffix(":") for run in ranking.runs}
    return specs.pop() if len(specs) == 1 else ranking.runs[0].path.stem


def facts(ranking: Ranking) -> dict[str, str | list[str]]:
    """What the page says before its tables and pictures."""
    records, sweep = [run.record for run in ranking.runs], ranking.sweep
    first = ranking.entries[0]
    begun = sorted(record["when"].replace("T", " ").replace("+00:00", " UTC") for record in records)
    devices = {results.hardware({"devices": record["devices"], **record["host"]}) for record in records}
    versions = {
        f"Python {r['python']}, jax {r['versions']['jax']}, flax {r['versions']['flax']}" for r in records
    }
    seconds = sum(entry.seconds for entry in ranking.entries)
    told = {
        "runs": standing(ranking.entries),
        "compared by": f"{ranking.metric}, its last value; the {EXTREME[ranking.mode]} is the best",
        "best run": f"{first.name}: {number(first.last(ranking.metric))}" if first.rank else "none is done",
        "varies": [f"{key}: {_values(ranking, key)}" for key in ranking.keys] or "nothing",
        "directory": str(ranking.workdir),
        "experiment": sorted({run.spec for run in ranking.runs}),
        "command": sweep.get("command") or sorted({record["command"] for record in records} - {""}),
        "when": " to ".join(dict.fromkeys(begun[:1] + begun[-1:])),
        "training": f"{seconds:,.0f} seconds in all",
        "hardware": sorted(devices),
        "software": sorted(versions),
        "commit": sorted({record["git_commit"] for record in records} - {""}),
    }
    return {name: value for name, value in told.items() if value}


def _values(ranking: Ranking, key: str) -> str:
    values = dict.fromkeys(entry.leaves.get(key) for entry in ranking.entries)
    if all(isinstance(value, int | float) for value in values):
        values = sorted(values)
    names = [settings.written(value) for value in values]
    return ", ".join(names) if len(names) <= 10 else f"{len(names)} values, {names[0]} to {names[-1]}"


def settings_table(ranking: Ranking) -> page.Table:
    """A row a setting."""
    rows = []
    for group in ranking.groups:
        last = group.values(ranking.metric)
        best = group.values(ranking.metric, ranking.best)
        spoilt = "diverged" if not last and group.undone["diverged"] else ""
        rows.append(
            [
                _cell(group.rank),
                *map(_cell, group.leaves.values()),
                Cell(spoilt or mean(last), statistics.fmean(last) if last else "", f"number {spoilt}"),
                Cell(mean(best), statistics.fmean(best) if best else "", "number"),
                _cell(len(last)),
                Cell(remarks(group), remarks(group)),
            ]
        )
    note = f"Mean ± sample deviation over the n runs that are done; {len(rows)} settings, the best first."
    extreme = f"{EXTREME[ranking.mode]}, mean"
    columns = ["rank", *short(ranking.settings), f"{ranking.metric}, last", extreme, "n", "not counted"]
    return page.Table("Settings", note, columns, rows, 0)


def runs_table(ranking: Ranking) -> page.Table:
    """A row a run."""
    values = [f"{ranking.metric}, last", EXTREME[ranking.mode]]
    columns = ["rank", *short(ranking.keys), "status", "step", *values, "seconds", "run"]
    rows = []
    for entry in ranking.entries:
        last, best = entry.last(ranking.metric), entry.extreme(ranking.metric, ranking.best)
        rows.append(
            [
                _cell(entry.rank),
                *(_cell(entry.leaves.get(key)) for key in ranking.keys),
                Cell(entry.status, entry.status, entry.status),
                _cell(entry.step),
                *(Cell(number(v), v if math.isfinite(v) else "", "number") for v in (last, best)),
                Cell(f"{entry.seconds:,.1f}", entry.seconds),
                Cell(entry.name, entry.name, "line"),
            ]
        )
    return page.Table("Runs", "Each run with its own directory; the best first.", columns, rows, 0)


def failures_table(failed: Sequence[Entry]) -> page.Table:
    """Why, in the words of the runs."""
    note = "The last line of each; log.txt in its directory holds the rest."
    rows = [
        [Cell(e.name, e.name, "line"), Cell(e.status, e.status, e.status), Cell(e.line, e.line, "line")]
        for e in failed
    ]
    return page.Table("What failed", note, ["run", "status", "last line"], rows)


def _cell(value: Any) -> Cell:
    """A leaf, a count, or nothing."""
    if value is None:
        return Cell("", "")
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(settings.written(value), value if plain else str(value))


def summary(ranking: Ranking) -> list[str]:
    """What the terminal is told: the settings, the best first, and what failed."""
    table = settings_table(ranking)
    rows = [table.columns, *([cell.text for cell in row] for row in table.rows[:SHOWN])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{title(ranking)} in {ranking.workdir}, {standing(ranking.entries)}", ""]
    lines += [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    if len(table.rows) > SHOWN:
        lines.append(f"... and {len(table.rows) - SHOWN} more, in groups.csv")
    lines.append("")
    if ranking.entries[0].rank:
        best = ranking.entries[0]
        lines.append(f"best run: {best.name}, {ranking.metric} {number(best.last(ranking.metric))}")
    failed = [entry for entry in ranking.entries if entry.line]
    lines += [f"{entry.status}: {entry.name}: {entry.line}" for entry in failed[:SHOWN]]
    return lines + [f"... and {len(failed) - SHOWN} more, in runs.csv"] * (len(failed) > SHOWN)
