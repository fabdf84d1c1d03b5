"""lmlab: sequence and generative models in JAX and Flax; a paper is one file.

    lmlab train    --config=experiments/gpt_char.py:demo --workdir=runs/demo
    lmlab train    --workdir=runs/demo                    # goes on where it stopped
    lmlab evaluate --workdir=runs/demo
    lmlab sample   --workdir=runs/demo --prompt="The " --temperature=0.8 --top_k=40
    lmlab figures  --workdir=runs/demo
    lmlab data     --config=experiments/autoencoder.py:demo
    lmlab compare  runs/a runs/b
    lmlab list

`lmlab COMMAND --help` explains a command. --config=FILE:VARIANT names an experiment (a Python file, which
is run); --config.KEY=VALUE sets a leaf of its configuration, e.g. --config.optimizer.learning_rate=3e-4.
Exit codes: 0 done, 1 failed, 2 wrong use, 75 stopped by SIGTERM with the state saved, 130 by Ctrl-C likewise.
"""

import difflib
import inspect
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import flags

STOPPED = {signal.SIGTERM: 75, signal.SIGINT: 130}


class UsageError(ValueError):
    """A command line that asks for something that is not there."""


def train(argv: list[str]) -> int:
    """Trains an experiment, or goes on with the run that --workdir holds.

        lmlab train --config=experiments/gpt_char.py:cpu --workdir=runs/gpt --config.optimizer.learning_rate=3e-4
        lmlab train --workdir=runs/gpt                              # resumes
        lmlab train --workdir=runs/gpt --config.duration="4000 steps"   # goes on for longer

    Durations: "2000 steps", "5 epochs", "1e6 examples"; intervals also "10 %"; a bare number means steps.
    """
    fv = _flags("train")
    flags.DEFINE_string("workdir", None, "directory of the run; made if it is not there", flag_values=fv)
    flags.DEFINE_string("wandb", "", "project to log to at Weights & Biases", flag_values=fv)
    flags.DEFINE_boolean("profile", False, "write a trace for TensorBoard or Perfetto to WORKDIR/profile", flag_values=fv)
    workdir = _value(argv, "workdir")
    if workdir and not _value(argv, "config") and (Path(workdir) / "run.json").exists():
        from lmlab.run import Run

        argv = [f"--config={Run(workdir).spec}", *argv]
        spec, overrides = "", _config(fv, argv, required=True)[1]
    else:
        spec, overrides = _config(fv, argv, required=False)
    _require(fv, "workdir")
    from lmlab import run
    from lmlab.training.loop import Stopped

    try:
        done = run.train(spec, fv.workdir, overrides, wandb=fv.wandb, profile=fv.profile)
    except Stopped as stopped:
        number, step = stopped.args
        print(f"stopped by {signal.Signals(number).name} after step {step}; saved. To go on: lmlab train --workdir={fv.workdir}")
        return STOPPED[number]
    print(f"done: {done.folder}  (lmlab evaluate, sample or figures --workdir={done.folder})")
    return 0


def evaluate(argv: list[str]) -> int:
    """All evaluations of a run, or of each run below a folder, test splits among them.

        lmlab evaluate --workdir=runs/gpt
        lmlab evaluate --workdir=runs/gpt --checkpoint=best
        lmlab evaluate --workdir=runs/gpt-seeds --record     # writes results/<experiment>-<variant>.json
    """
    fv = _flags("evaluate")
    flags.DEFINE_string("workdir", None, "a run, or a folder of runs that differ in their seed", flag_values=fv)
    flags.DEFINE_string("checkpoint", "", "a step, or best; the newest if not given", flag_values=fv)
    flags.DEFINE_boolean("record", False, "write results/<experiment>-<variant>.json", flag_values=fv)
    flags.DEFINE_string("results", "results", "folder of --record", flag_values=fv)
    _parse(fv, argv)
    _require(fv, "workdir")
    from lmlab import run
    from lmlab.evaluation import results

    runs = run.find(fv.workdir)
    scores = []
    for each in runs:
        scores.append(results.score(each, _checkpoint(fv.checkpoint)))
        print(f"{each.folder}: " + ", ".join(f"{key} {value:.5g}" for key, value in scores[-1].items()), flush=True)
    if len(runs) > 1 or fv.record:
        print(results.summary(runs, scores))
    if fv.record:
        print(f"recorded: {results.record(runs, scores, Path(fv.results))}")
    return 0


def sample(argv: list[str]) -> int:
    """Samples from a run; texts are printed, images written as a PNG grid, arrays as .npz.

        lmlab sample --workdir=runs/gpt --prompt="The " --temperature=0.8 --top_k=40 --max_tokens=200 --num_samples=3

    The flags below --seed are the experiment's own: with --workdir, --help shows those of its sampler.
    """
    fv = _flags("sample")
    flags.DEFINE_string("workdir", None, "directory of the run", flag_values=fv)
    flags.DEFINE_integer("seed", 0, "of the random draws", flag_values=fv)
    flags.DEFINE_string("checkpoint", "", "a step, or best; the newest if not given", flag_values=fv)
    workdir = _value(argv, "workdir")
    options: list[str] = []
    run = None
    if workdir:
        from lmlab.run import Run

        run = Run(workdir)
        if run.experiment.sample is None:
            raise UsageError(f"{run.path} cannot be sampled from: its experiment has no sampler")
        options = _define_options(fv, run.experiment.sample)
    _parse(fv, argv)
    _require(fv, "workdir")
    chosen = {name: fv[name].value for name in options}
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
    fv = _flags("figures")
    flags.DEFINE_string("workdir", None, "a run, or a folder of runs of one experiment", flag_values=fv)
    flags.DEFINE_string("output", "", "where to write; WORKDIR/figures if not given", flag_values=fv)
    _parse(fv, argv)
    _require(fv, "workdir")
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
    fv = _flags("list")
    flags.DEFINE_string("folder", "experiments", "where the experiment files are", flag_values=fv)
    _parse(fv, argv)
    from lmlab.experiment import describe

    files = sorted(Path(fv.folder).glob("*.py"))
    if not files:
        raise FileNotFoundError(f"no experiment files in {fv.folder!r}; run from the folder that has experiments/, or give --folder")
    for path in files:
        facts = describe(path)
        print(f"{path}  [{facts['FAMILY']}]  {facts['PAPER']}\n    {facts['doc'].splitlines()[0] if facts['doc'] else ''}")
        for name, line in facts["VARIANTS"].items():
            print(f"      :{name:<12} {line}")
    return 0


def data(argv: list[str]) -> int:
    """What a model is fed: sizes, shapes, and the first batch as a person would read it.

        lmlab data --config=experiments/gpt_char.py:demo
        lmlab data --config=experiments/autoencoder.py:demo --output=batch.png
    """
    fv = _flags("data")
    flags.DEFINE_string("output", "batch.png", "where an image grid is written", flag_values=fv)
    flags.DEFINE_integer("examples", 8, "how many examples of the batch to show", flag_values=fv)
    spec, overrides = _config(fv, argv, required=True)
    import jax
    import numpy as np

    from lmlab import config as config_lib
    from lmlab.experiment import Assets

    config, module = config_lib.load(spec, overrides)
    experiment = module.build(config, Assets())
    source = experiment.train_data()
    clock = config_lib.Clock(config.duration, source.batch_size, source.num_examples)
    print(f"training: {source.num_examples:,} examples, {source.steps_per_epoch:,} batches of {source.batch_size} an epoch")
    print(f"the run: {clock.total:,} steps, {clock.total / source.steps_per_epoch:.2f} epochs")
    for name, evaluation in experiment.evaluations.items():
        if hasattr(evaluation, "data"):
            arrays = evaluation.data()
            first = next(iter(arrays.values())) if isinstance(arrays, dict) else arrays
            print(f"{name}: {len(first):,} examples" + (" (held out)" if evaluation.held_out else ""))
    batch = source.example()
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        leaf = np.asarray(leaf)
        print(f"batch{jax.tree_util.keystr(path)}: {leaf.dtype}{list(leaf.shape)} from {leaf.min()} to {leaf.max()}")
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
    fv = _flags("compare")
    flags.DEFINE_string("output", "compare", "folder of the figure", flag_values=fv)
    folders = _parse(fv, argv, positional=True)
    if len(folders) < 2:
        raise UsageError(f"compare wants two runs or more, received {len(folders)}: lmlab compare runs/a runs/b")
    from lmlab import config as config_lib
    from lmlab.figures import curves, style
    from lmlab.run import Run

    runs = [Run(folder) for folder in folders]
    flat = [dict(config_lib.leaves(run.config)) for run in runs]
    keys = [key for key in dict.fromkeys(key for leaves in flat for key in leaves)]
    rows = [["experiment", *(run.spec for run in runs)]]
    rows += [[key, *(str(leaves.get(key, "-")) for leaves in flat)] for key in keys if len({repr(f.get(key)) for f in flat}) > 1]
    last = [run.metrics().ffill().iloc[-1].to_dict() for run in runs]
    names = [name for name in dict.fromkeys(name for row in last for name in row) if "/" in name or name in ("step", "seconds")]
    rows += [[name, *(f"{row[name]:.5g}" if name in row else "-" for row in last)] for name in names]
    widths = [max(len(row[i]) for row in [["", *map(str, folders)], *rows]) for i in range(len(runs) + 1)]
    for row in [["", *map(str, folders)], *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    figure = curves.loss(runs, label=lambda run: str(run.folder))
    style.save(figure, Path(fv.output), "loss")
    print(f"written: {Path(fv.output) / 'loss'}.png  .pdf  .csv")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "sample": sample,
    "figures": figures,
    "data": data,
    "compare": compare,
    "list": list_experiments,
}


def main(argv: list[str] | None = None) -> int:
    """The console script; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        return _fail("lmlab", f"unknown command {name!r}; " + (f"did you mean {near[0]}?" if near else f"allowed: {', '.join(COMMANDS)}"))
    _quiet()
    try:
        return COMMANDS[name](rest)
    except _Help:
        return 0
    except BrokenPipeError:
        return 1
    except (UsageError, flags.Error) as error:
        return _fail(f"lmlab {name}", error)
    except OSError as error:
        return _fail(f"lmlab {name}", _oserror(error), 1 if type(error).__name__ == "DiskFull" else 2)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        if not _ours(error):
            raise
        return _fail(f"lmlab {name}", error, 2 if isinstance(error, ValueError | TypeError) else 1)


# -- flags --------------------------------------------------------------------------------------------


class _Help(Exception):
    """--help was printed."""


def _flags(command: str) -> flags.FlagValues:
    fv = flags.FlagValues()
    fv.__dict__["__command"] = command
    flags.DEFINE_boolean("help", False, "show this", short_name="h", flag_values=fv)
    return fv


def _parse(fv: flags.FlagValues, argv: list[str], positional: bool = False) -> list[str]:
    if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(argv):
        _print_help(fv)
        raise _Help
    rest = fv(["lmlab", *argv])[1:]
    if rest and not positional:
        raise UsageError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    return rest


def _print_help(fv: flags.FlagValues) -> None:
    print(inspect.getdoc(COMMANDS[fv.__dict__["__command"]]) + "\n\nFlags:")
    for name in fv:
        flag = fv[name]
        if name not in ("help", "h"):
            default = "" if flag.default in (None, "") else f"  (default {flag.default_as_str})"
            print(f"  --{name}: {flag.help}{default}")


def _config(fv: flags.FlagValues, argv: list[str], required: bool) -> tuple[str, dict]:
    """(spec, overrides) of --config and --config.KEY; each key is looked up before ml_collections sees it."""
    from ml_collections import config_flags

    from lmlab import config as config_lib

    spec = _value(argv, "config")
    keys = [match.group(1) for match in (re.match(r"--?(?:no)?config\.([^=]+)", arg) for arg in argv) if match]
    asks = {"--help", "-h"} & set(argv)
    if spec:
        config, _ = config_lib.load(spec)
        for key in keys:
            config_lib.check_key(config, key)
        order = sorted(argv, key=lambda arg: not re.match(r"--?config(=|$)", arg))
        if "--config" not in argv and "-config" not in argv:
            argv = order  # --config first, wherever it was written
        config_flags.DEFINE_config_file("config", None, "experiment FILE[:VARIANT]", flag_values=fv, sys_argv=["lmlab", *argv])
        if asks:
            _print_help(fv)
            print(f"\nLeaves of {spec}:")
            for key, value in config_lib.leaves(config):
                print(f"  --config.{key}={value!r}")
            raise _Help
    else:
        flags.DEFINE_string("config", None, "experiment FILE[:VARIANT]; `lmlab list` shows them", flag_values=fv)
        if keys and not asks:
            raise UsageError(f"--config.{keys[0]} without --config=FILE[:VARIANT]")
        if required and not asks:
            raise UsageError("--config=FILE[:VARIANT] is needed; `lmlab list` shows what there is")
    _parse(fv, argv)
    return (spec, dict(config_flags.get_override_values(fv["config"]))) if spec else ("", {})


def _define_options(fv: flags.FlagValues, function: Callable) -> list[str]:
    """Flags from a sampler's keywords: their names, defaults, and the lines of its docstring."""
    doc = inspect.getdoc(function) or ""
    names = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        told = re.search(rf"^{name}: (.*)$", doc, re.MULTILINE)
        text, default = told.group(1) if told else "", parameter.default
        if isinstance(default, bool):
            flags.DEFINE_boolean(name, default, text, flag_values=fv)
        elif isinstance(default, int):
            flags.DEFINE_integer(name, default, text, flag_values=fv)
        elif isinstance(default, float):
            flags.DEFINE_float(name, default, text, flag_values=fv)
        elif "Sequence" in str(parameter.annotation):
            flags.DEFINE_multi_string(name, [default], text, flag_values=fv)
        else:
            flags.DEFINE_string(name, default, text, flag_values=fv)
        names.append(name)
    return names


def _value(argv: list[str], name: str) -> str:
    """The value of a flag, looked at before the flags are parsed."""
    for i, arg in enumerate(argv):
        match = re.fullmatch(rf"--?{name}(?:=(.*))?", arg, re.DOTALL)
        if match:
            return match.group(1) if match.group(1) is not None else (argv[i + 1] if i + 1 < len(argv) else "")
    return ""


def _require(fv: flags.FlagValues, name: str) -> None:
    if not fv[name].value:
        raise UsageError(f"--{name} is needed")


def _checkpoint(text: str) -> int | str | None:
    if text in ("", "best"):
        return text or None
    if not text.isdigit():
        raise UsageError(f"--checkpoint: received {text!r}; allowed: a step, or best")
    return int(text)


def _keep_samples(folder: Path, stem: str, drawn) -> list[Path]:
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    taken = {path.stem for path in folder.iterdir()}
    name = next(name for name in (stem, *(f"{stem}-{n}" for n in range(2, len(taken) + 3))) if name not in taken)
    written = []
    if drawn.texts:
        written.append(folder / f"{name}.txt")
        written[-1].write_text("\n---\n".join(drawn.texts) + "\n")
    if drawn.images is not None:
        from lmlab.figures import images

        written.append(folder / f"{name}.png")
        images.write_png(drawn.images, written[-1])
    arrays = dict(drawn.arrays) | ({} if drawn.images is None else {"images": drawn.images})
    if arrays:
        written.append(folder / f"{name}.npz")
        np.savez_compressed(written[-1], **{key: np.asarray(value) for key, value in arrays.items()})
    return written


# -- errors -------------------------------------------------------------------------------------------


def _fail(who: str, error, code: int = 2) -> int:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    print(f"{who}: {lines[0] if lines else type(error).__name__}", file=sys.stderr)
    return code


def _oserror(error: OSError) -> str:
    if error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return error.strerror or str(error)


def _ours(error: BaseException) -> bool:
    """Whether lmlab or the experiment raised it: such a message is for the user, others are faults to be seen."""
    frames = traceback.extract_tb(error.__traceback__)
    here = Path(__file__).resolve().parent
    last = Path(frames[-1].filename).resolve() if frames else here
    return here in last.parents or last.parent.name == "experiments" or "lmlab_experiment" in str(last)


def _quiet() -> None:
    """Settings of the process that must stand before JAX is imported; what the user has set stays."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmlab" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


if __name__ == "__main__":
    sys.exit(main())
