"""lmlab: sequence and generative models in JAX and Flax; a paper is one file.

    lmlab train    --config=experiments/gpt_char.py:demo --workdir=runs/demo
    lmlab train    --workdir=runs/demo                    # goes on where it stopped
    lmlab evaluate --workdir=runs/demo
    lmlab sample   --workdir=runs/demo --prompt="The " --temperature=0.8 --top_k=40
    lmlab figures  --workdir=runs/demo
    lmlab sweep    --config=experiments/gpt_char.py:demo --workdir=sweeps/lr --grid=optimizer.learning_rate=1e-3,3e-3
    lmlab report   --workdir=sweeps/lr
    lmlab plan     --config=experiments/gpt_char.py --mesh=data:8,fsdp:4
    lmlab data     --config=experiments/autoencoder.py:demo
    lmlab compare  runs/a runs/b
    lmlab list

`lmlab COMMAND --help` explains a command. --config=FILE:VARIANT names an experiment (a Python file, which
is run); --config.KEY=VALUE sets a leaf of its configuration, e.g. --config.optimizer.learning_rate=3e-4.
Exit codes: 0 done, 1 failed, 2 wrong use, 6 another process of the run is gone, 75 saved on SIGTERM, 130 on Ctrl-C.
"""

import difflib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from absl.flags import Error as FlagError

from lmlab import errors
from lmlab.flags import HELP, Flags, Helped, UsageError, value
from lmlab.training import hosts

STOPPED = {signal.SIGTERM: 75, signal.SIGINT: 130}


def train(argv: list[str]) -> int:
    """Trains an experiment, or goes on with the run that --workdir holds.

        lmlab train --config=experiments/gpt_char.py:cpu --workdir=runs/gpt --config.optimizer.learning_rate=3e-4
        lmlab train --workdir=runs/gpt                              # resumes
        lmlab train --workdir=runs/gpt --config.duration="4000 steps"   # goes on for longer

    Durations: "2000 steps", "5 epochs", "1e6 examples"; intervals also "10 %"; a bare number means steps.
    Several processes share a run and its workdir: under srun as it is, by hand each with --coordinator and the like.
    """
    hosts.join({name: value(argv, name) for name in hosts.OPTIONS})  # before the experiment is read
    fv = Flags(train.__doc__)
    for name, text in hosts.OPTIONS.items():
        fv.string(name, "", text)
    fv.string("workdir", "", "directory of the run; made if it is not there")
    fv.string("wandb", "", "project to log to at Weights & Biases")
    fv.boolean("profile", False, "write a trace for TensorBoard or Perfetto to WORKDIR/profile")
    workdir = value(argv, "workdir")
    if workdir and not value(argv, "config") and (Path(workdir) / "run.json").exists():
        from lmlab.run import Run

        argv = [f"--config={Run(workdir).spec}", *argv]
        spec, overrides = "", fv.config(argv, required=True)[1]
    else:
        spec, overrides = fv.config(argv)
    fv.require("workdir")
    from lmlab import run
    from lmlab.training.loop import Stopped

    try:
        done = run.train(spec, fv.workdir, overrides, wandb=fv.wandb, profile=fv.profile)
    except Stopped as stopped:
        number, step = stopped.args
        print(
            f"stopped by {signal.Signals(number).name} after step {step}; saved."
            f" To go on: lmlab train --workdir={fv.workdir}"
        )
        return STOPPED[number]
    except Exception as error:
        hosts.check_gone(error)
        raise
    print(f"done: {done.folder}  (lmlab evaluate, sample or figures --workdir={done.folder})")
    return 0


def evaluate(argv: list[str]) -> int:
    """All evaluations of a run, or of each run below a folder, test splits among them.

    lmlab evaluate --workdir=runs/gpt
    lmlab evaluate --workdir=runs/gpt --checkpoint=best
    lmlab evaluate --workdir=runs/gpt-seeds --record     # writes results/<experiment>-<variant>.json
    """
    fv = Flags(evaluate.__doc__)
    fv.string(
        "workdir", "", "a run, or a folder of runs, of which each variant is summed up and recorded apart"
    )
    fv.string("checkpoint", "", "a step, or best; the newest if not given")
    fv.boolean("record", False, "write results/<experiment>-<variant>.json")
    fv.boolean("join", False, "with --record: beside the seeds already recorded, not in their place")
    fv.string("results", "results", "folder of --record")
    fv.parse(argv)
    fv.require("workdir")
    if fv.record and fv.checkpoint:
        raise UsageError("--record takes the newest checkpoint; --checkpoint cannot be given with it")
    from lmlab import run
    from lmlab.evaluation import results

    variants = {}
    for each in run.find(fv.workdir):
        scores = results.score(each, _checkpoint(fv.checkpoint))
        variants.setdefault(each.spec, []).append((each, scores))
        print(f"{each.folder}:", ", ".join(f"{key} {value:.5g}" for key, value in scores.items()), flush=True)
    for found in variants.values():
        seeds, scores = zip(*found, strict=True)
        if max(len(seeds), len(variants)) > 1 or fv.record:
            print(results.summary(seeds, scores))
        if fv.record:
            print(f"recorded: {results.record(seeds, scores, Path(fv.results), fv.join)}")
    return 0


def sample(argv: list[str]) -> int:
    """Samples from a run; texts are printed, images written as a PNG grid, arrays as .npz, tables as .tsv.

        lmlab sample --workdir=runs/gpt --prompt="The " --temperature=0.8 --top_k=40 --max_tokens=200 --num_samples=3

    The flags below --seed are the experiment's own: with --workdir, --help shows those of its sampler.
    """
    fv = Flags(sample.__doc__)
    fv.string("workdir", "", "directory of the run")
    fv.integer("seed", 0, "of the random draws")
    fv.string("checkpoint", "", "a step, or best; the newest if not given")
    workdir = value(argv, "workdir")
    options, run = [], None
    if not workdir and not HELP & set(argv):
        raise UsageError("--workdir is needed")
    if workdir:
        from lmlab.run import Run

        run = Run(workdir)
        if run.experiment.sample is None:
            raise UsageError(f"{run.path} cannot be sampled from: its experiment has no sampler")
        options = fv.options(run.experiment.sample)
    fv.parse(argv)
    chosen = {name: getattr(fv, name) for name in options}
    drawn = run.sample(seed=fv.seed, checkpoint=_checkpoint(fv.checkpoint), **chosen)
    for number, text in enumerate(drawn.texts):
        print(f"--- {number + 1} of {len(drawn.texts)} ---\n{text}" if len(drawn.texts) > 1 else text)
    for path in _keep_samples(run.folder / "samples", f"seed-{fv.seed}", drawn):
        print(f"written: {path}", file=sys.stderr)
    return 0


def figures(argv: list[str]) -> int:
    """Draws the figures of a run, or of all runs below a folder: PNG, PDF and the CSV behind each.

    lmlab figures --workdir=runs/gpt
    """
    fv = Flags(figures.__doc__)
    fv.string("workdir", "", "a run, or a folder of runs of one experiment")
    fv.string("output", "", "where to write; WORKDIR/figures if not given")
    fv.parse(argv)
    fv.require("workdir")
    from lmlab import run
    from lmlab.figures import style

    runs = run.find(fv.workdir)
    folder = Path(fv.output or Path(fv.workdir) / "figures")
    for name, figure in run.figures(runs).items():
        style.save(figure, folder, name)
        print(f"{folder / name}.png  .pdf  .csv", flush=True)
    return 0


def list_experiments(argv: list[str]) -> int:
    """The experiments of a folder: family, paper, variants, one line each. Imports none of them."""
    fv = Flags(list_experiments.__doc__)
    fv.string("folder", "experiments", "where the experiment files are")
    fv.parse(argv)
    from lmlab.experiment import describe

    files = sorted(Path(fv.folder).glob("*.py"))
    if not files:
        raise FileNotFoundError(
            f"no experiment files in {fv.folder!r}; run from the folder that has experiments/, or give --folder"
        )
    for path in files:
        facts = describe(path)
        print(
            f"{path}  [{facts['FAMILY']}]  {facts['PAPER']}\n    {facts['doc'].splitlines()[0] if facts['doc'] else ''}"
        )
        for name, line in facts["VARIANTS"].items():
            print(f"      :{name:<12} {line}")
    return 0


def data(argv: list[str]) -> int:
    """What a model is fed: sizes, shapes, and the first batch as a person would read it.

    lmlab data --config=experiments/gpt_char.py:demo
    lmlab data --config=experiments/autoencoder.py:demo --output=batch.png
    """
    fv = Flags(data.__doc__)
    fv.string("output", "batch.png", "where an image grid is written")
    fv.integer("examples", 8, "how many examples of the batch to show")
    spec, overrides = fv.config(argv, required=True)
    import jax
    import numpy as np

    from lmlab import config as config_lib
    from lmlab.experiment import Assets
    from lmlab.training import parallel

    config, module = config_lib.load(spec, overrides)
    parallel.prepare(config.precision)
    experiment = module.build(config, Assets())
    source = experiment.train_data()
    clock = config_lib.Clock.of(config, source)
    print(
        f"training: {source.num_examples:,} examples,"
        f" {source.steps_per_epoch:,} batches of {source.batch_size} an epoch"
    )
    print(f"the run: {clock.total:,} steps, {clock.total / source.steps_per_epoch:.2f} epochs")
    for name, evaluation in experiment.evaluations.items():
        if hasattr(evaluation, "data"):
            arrays = evaluation.data()
            first = next(iter(arrays.values())) if isinstance(arrays, dict) else arrays
            print(f"{name}: {len(first):,} examples" + (" (held out)" if evaluation.held_out else ""))
    batch = source.example()
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        leaf = np.asarray(leaf)
        print(
            f"batch{jax.tree_util.keystr(path)}: {leaf.dtype}{list(leaf.shape)}"
            f" from {leaf.min():.4g} to {leaf.max():.4g}"
        )
    if experiment.show is not None:
        shown = experiment.show(jax.tree.map(lambda leaf: np.asarray(leaf)[: fv.examples], batch))
        for text in shown.texts:
            print(f"  {text}")
        if shown.images is not None:
            from lmlab.figures import images

            images.write_png(shown.images, fv.output)
            print(f"written: {fv.output}")
    return 0


def compare(argv: list[str]) -> int:
    """Runs side by side: the leaves in which they differ, final metrics, curves on one figure.

    lmlab compare runs/a runs/b --output=compare
    """
    fv = Flags(compare.__doc__)
    fv.string("output", "compare", "folder of the figure")
    folders = fv.parse(argv, positional=True)
    if len(folders) < 2:
        raise UsageError(
            f"compare wants two runs or more, received {len(folders)}: lmlab compare runs/a runs/b"
        )
    from lmlab import config as config_lib
    from lmlab.figures import curves, style
    from lmlab.run import Run

    runs = [Run(folder) for folder in folders]
    flat = [dict(config_lib.leaves(run.config)) for run in runs]
    keys = [key for key in dict.fromkeys(key for leaves in flat for key in leaves)]
    rows = [["experiment", *(run.spec for run in runs)]]
    rows += [
        [key, *(str(leaves.get(key, "-")) for leaves in flat)]
        for key in keys
        if len({repr(f.get(key)) for f in flat}) > 1
    ]
    last = [run.metrics().ffill().iloc[-1].to_dict() for run in runs]
    names = dict.fromkeys(name for row in last for name in row)
    names = [name for name in names if "/" in name or name in ("step", "seconds")]
    rows += [[name, *(f"{row[name]:.5g}" if name in row else "-" for row in last)] for name in names]
    widths = [max(len(row[i]) for row in [["", *map(str, folders)], *rows]) for i in range(len(runs) + 1)]
    for row in [["", *map(str, folders)], *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    above = os.path.commonpath([run.folder.absolute().parent for run in runs])
    drawn = [run for run in runs if set(curves.LOSSES) & set(run.metrics())]
    for run in runs:
        if run not in drawn:
            print(f"not drawn: {run.folder} logged none of {', '.join(curves.LOSSES)}")
    if drawn:
        figure = curves.loss(drawn, label=lambda run: os.path.relpath(run.folder.absolute(), above))
        style.save(figure, Path(fv.output), "loss")
        print(f"written: {Path(fv.output) / 'loss'}.png  .pdf  .csv")
    return 0


def sweep(argv: list[str]) -> int:
    from lmlab.sweeps import command

    return command.main(argv)


def report(argv: list[str]) -> int:
    from lmlab.sweeps import report

    return report.main(argv)


def plan(argv: list[str]) -> int:
    from lmlab import plan

    return plan.main(argv)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "sample": sample,
    "figures": figures,
    "sweep": sweep,
    "report": report,
    "plan": plan,
    "data": data,
    "compare": compare,
    "list": list_experiments,
}


def main(argv: list[str] | None = None) -> int:
    """The console script; returns the exit code."""
    code = command(list(sys.argv[1:] if argv is None else argv))
    hosts.leave(code)
    return code


def command(argv: list[str]) -> int:
    """Runs a command; what is wrong with it, or with what it does, is told in one line."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        return errors.fail(
            "lmlab",
            f"unknown command {name!r}; "
            + (f"did you mean {near[0]}?" if near else f"allowed: {', '.join(COMMANDS)}"),
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before JAX is imported
    try:
        return COMMANDS[name](rest)
    except Helped:
        return 0
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        errors.fail(f"lmlab {name}", "interrupted; nothing was saved since the last checkpoint")
        os._exit(130)  # sys.exit would wait for the threads that save; half a save is not yet a checkpoint
    except (UsageError, FlagError) as error:
        return errors.fail(f"lmlab {name}", error)
    except OSError as error:
        code = 1 if type(error).__name__ == "DiskFull" else 2
        return errors.fail(f"lmlab {name}", errors.of_system(error), code)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        if not errors.ours(error):
            raise
        return errors.fail(f"lmlab {name}", error, 2 if isinstance(error, ValueError | TypeError) else 1)


def _checkpoint(text: str) -> int | str | None:
    if text in ("", "best"):
        return text or None
    if not text.isdigit():
        raise UsageError(f"--checkpoint: received {text!r}; allowed: a step, or best")
    return int(text)


def _keep_samples(folder: Path, stem: str, drawn) -> list[Path]:
    import numpy as np

    from lmlab.figures import images, style

    folder.mkdir(parents=True, exist_ok=True)
    taken = {path.stem for path in folder.iterdir()}
    names = (stem, *(f"{stem}-{n}" for n in range(2, len(taken) + 3)))
    name = next(name for name in names if name not in taken)
    written = []
    if drawn.texts:
        written.append(folder / f"{name}.txt")
        written[-1].write_text("\n---\n".join(drawn.texts) + "\n")
    if drawn.images is not None:
        written.append(folder / f"{name}.png")
        images.write_png(drawn.images, written[-1])
    if drawn.frames is not None:
        written.append(folder / f"{name}.gif")
        images.write_gif(drawn.frames, written[-1])
    for table, rows in drawn.tables.items():
        written.append(folder / f"{name}-{table}.tsv")
        written[-1].write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    for picture, figure in drawn.figures.items():
        written += style.save(figure, folder, f"{name}-{picture}", ("png",))
    arrays = dict(drawn.arrays) | ({} if drawn.images is None else {"images": drawn.images})
    if arrays:
        written.append(folder / f"{name}.npz")
        np.savez_compressed(written[-1], **{key: np.asarray(value) for key, value in arrays.items()})
    return written


if __name__ == "__main__":
    sys.exit(main())
