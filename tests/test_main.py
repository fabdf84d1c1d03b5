"""The command line, called in this process: what it says to bad input, and what it leaves untouched."""

import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmlab.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))
GPT = f"--config={ROOT}/experiments/gpt_char.py:demo"
RNN = f"--config={ROOT}/experiments/recurrent_lm.py:demo"
ARMS = f"--config={ROOT}/experiments/gpt_or_rnn.py:demo"
IMAGES = f"--config={ROOT}/experiments/autoencoder.py:demo"
MNIST = f"--config={ROOT}/experiments/autoencoder.py"
LINE = f"--config={ROOT}/tests/papers/line.py:demo"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """Commands run in an empty folder, without a data folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LMLAB_DATA", raising=False)


@pytest.fixture
def refused(capsys, tmp_path):
    """`refused(argv, *told)`: one line that holds all of `told`, a code that is not 0, nothing written."""

    def refused(argv, *told, code=2):
        before = contents(tmp_path)
        capsys.readouterr()
        assert main([str(word) for word in argv]) == code
        printed, error = capsys.readouterr()
        assert error.count("\n") == 1 and error.startswith("lmlab"), error
        assert "Traceback" not in error and printed == ""
        for words in told:
            assert str(words) in error, error
        assert contents(tmp_path) == before
        return error

    return refused


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """line, silent (no sampler) and gpt (a tiny one): trained once, copied by those who change them."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "text.txt"
    text.write_text("the cat sees a dog.\n" * 60)
    assert main(["train", LINE, f"--workdir={folder / 'line'}"]) == 0
    silent = LINE.replace(":demo", ":silent")
    assert main(["train", silent, f"--workdir={folder / 'silent'}", "--config.duration=1"]) == 0
    tiny = {
        "model.num_layers": 1,
        "model.num_heads": 1,
        "model.d_model": 8,
        "model.context": 8,
        "batch_size": 8,
        "parallel.data": 1,
        "duration": 2,
        "data.path": text,
    }
    leaves = [f"--config.{key}={value}" for key, value in tiny.items()]
    assert main(["train", GPT, f"--workdir={folder / 'gpt'}", *leaves]) == 0
    return folder


@pytest.fixture
def copies(runs, tmp_path):
    return Path(shutil.copytree(runs, tmp_path / "runs"))


# -- a configuration that is wrong -------------------------------------------------------------------

NO_DURATION = '"2000 steps", "5 epochs", "1e6 examples"'
WRONG = [  # experiment, leaf, value, what is told
    (GPT, "model.layers", "2", ["config.model.layers", "did you mean config.model.num_layers?"]),
    (GPT, "learning_rate", "0.1", ["did you mean config.optimizer.learning_rate?"]),
    (GPT, "zzzz", "0.1", ["config.zzzz", "known keys: accumulate, batch_size"]),
    (GPT, "optimizer.name.x", "1", ["config.optimizer.name.x", "did you mean config.optimizer.name?"]),
    (GPT, "optimizer", "adam", ["config.optimizer is a group", "b1, b2, clip", "learning_rate"]),
    (GPT, "batch_size", "ten", ["batch_size", "'ten'", "int"]),
    (GPT, "batch_size", "0.5", ["batch_size", "'0.5'", "int"]),
    (GPT, "batch_size", "", ["batch_size", "''", "int"]),
    (GPT, "optimizer.learning_rate", "fast", ["optimizer.learning_rate", "'fast'", "float"]),
    (GPT, "model.bias", "maybe", ["model.bias", "'maybe'", "bool"]),
    (IMAGES, "model.features", "wide", ["model.features", "'wide'", "tuple of int"]),
    (IMAGES, "model.features", "(1, 'a')", ["model.features", "(1, 'a')", "tuple of int"]),
    (IMAGES, "model.features", "(0,)", ["0"]),
    (IMAGES, "model.code", "0", ["code must be at least 1, received 0"]),
    (GPT, "model.num_heads", "3", ["128", "num_heads 3", "multiple"]),
    (GPT, "model.num_layers", "-1", ["num_layers must be at least 1, received -1"]),
    (GPT, "model.context", "0", ["context must be at least 1, received 0"]),
    (GPT, "model.dropout", "1.5", ["dropout must be at least 0 and below 1, received 1.5"]),
    (RNN, "model.cell", "gruu", ["'gruu'", "rnn, gru, gru_inside, lstm"]),
    (ARMS, "arm", "gruu", ["'gruu'", "gpt, gru, lstm"]),
    (GPT, "batch_size", "12", ["batch_size 12", "8 devices", "a multiple of 8"]),
    (GPT, "batch_size", "1000000", ["418," if sys.version_info[:2] == (3, 11) else "tokens", "1,000,000"]),
    (GPT, "accumulate", "3", ["accumulate 3 does not divide batch_size 16"]),
    (GPT, "accumulate", "4", ["batch_size 16", "8 devices", "4 microbatches", "a multiple of 32"]),
    (GPT, "parallel.data", "3", ["batch_size 16", "3 devices", "a multiple of 3"]),
    (GPT, "parallel.data", "16", ["asks for 16 devices; there are 8"]),
    (GPT, "parallel.tensor", "3", ["3 does not divide the 8 devices"]),
    (GPT, "parallel.mode", "xmap", ["'xmap'", "jit, pmap"]),
    (GPT, "duration", "-5", ["duration", "'-5'", NO_DURATION]),
    (GPT, "duration", "5 fortnights", ["duration", "'5 fortnights'", NO_DURATION]),
    (GPT, "duration", "soon", ["duration", "'soon'", NO_DURATION]),
    (GPT, "duration", "0", ["duration", "'0'", "positive"]),
    (GPT, "duration", "10 %", ["duration", "'10 %'", "positive number of steps, epochs or examples"]),
    (GPT, "log_every", "1.2.3", ["log_every", "'1.2.3'", '"10 %"']),
    (GPT, "checkpoint.every", "-1", ["checkpoint.every", "'-1'", '"10 %"']),
    (GPT, "checkpoint.best", "loss", ["checkpoint.best", "'loss'", "validation/loss"]),
    (GPT, "precision", "fp8", ["precision", "'fp8'", "float32, tf32, bf16"]),
    (GPT, "optimizer.schedule", "cos", ["'cos'", "constant, cosine, linear, rsqrt"]),
    (GPT, "optimizer.name", "lion", ["'lion'", "adamw, adam, sgd"]),
    (GPT, "optimizer.name", "adam", ["weight_decay", "'adamw' or 'sgd'", "'adam'"]),
    (GPT, "optimizer.learning_rate", "-1", ["learning_rate", "-1", "0 or more"]),
    (GPT, "data.path", "nowhere.txt", ["'nowhere.txt'", "LMLAB_DATA", "--config.data.path=FILE"]),
    (IMAGES, "data.name", "mnits", ["'mnits'", "mnist, fashion_mnist"]),
]


@pytest.mark.parametrize(("spec", "leaf", "value", "told"), WRONG, ids=[f"{c[1]}={c[2]}" for c in WRONG])
def test_a_wrong_leaf(refused, spec, leaf, value, told):
    base = [] if spec == IMAGES or leaf == "batch_size" else ["--config.batch_size=16"]
    refused(["train", spec, "--workdir=run", *base, f"--config.{leaf}={value}"], *told)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty", b"", ["is empty", "at least one character"]),
        ("latin", "caf\u00e9 au lait".encode("latin-1") * 500, ["not UTF-8", "byte 0xe9 at offset 3"]),
        ("short", b"abc " * 20, ["windows of context 64", "batch_size 16", "tokens"]),
        ("broken.gz", b"\x1f\x8b\x08 and no more", ["not a whole gzip file"]),
    ],
)
def test_a_wrong_text(refused, tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    refused(["train", GPT, "--workdir=run", "--config.batch_size=16", f"--config.data.path={name}"], *told)


def test_missing_images_are_not_fetched(refused, monkeypatch, tmp_path):
    def connect(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", connect)
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    folder = tmp_path / "nowhere"
    told = ["no mnist prepared", str(folder), "variant demo", "LMLAB_DATA"]
    refused(["train", MNIST, "--workdir=run", f"--config.data.tfds_dir={folder}"], *told)
    monkeypatch.setenv("LMLAB_DATA", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    refused(["train", MNIST, "--workdir=run"], "no mnist prepared", str(tmp_path / "tensorflow_datasets"))


# -- a command line that is wrong --------------------------------------------------------------------

MISUSED = [
    (["trian"], ["unknown command 'trian'", "did you mean train?"]),
    (["xyzzy"], ["unknown command 'xyzzy'", ", ".join(COMMANDS)]),
    (["train"], ["--workdir is needed"]),
    (["train", LINE], ["--workdir is needed"]),
    (["train", "--workdir=run"], ["run holds no run", "--config=FILE[:VARIANT]"]),
    (["train", "--workdir=run", "--config.seed=1"], ["--config.seed without --config=FILE[:VARIANT]"]),
    (["train", LINE, "--wokdir=run"], ["'wokdir'", "Did you mean: workdir"]),
    (["train", LINE, "--workdir=run", "--confg.seed=1"], ["'confg.seed'", "--help"]),
    (["train", LINE, "--workdir=run", "faster"], ["unexpected argument 'faster'", "--name=value"]),
    (["train", LINE, "--workdir=run", "--profile=perhaps"], ["--profile", "'perhaps'", "bool"]),
    (["train", LINE, "--workdir=run", "--config.seed"], ["--config.seed"]),
    (["train", "--workdir=run", "--config"], ["--config"]),
    (["train", LINE.replace("demo", "dmo"), "--workdir=run"], ["variant 'dmo'", "demo, steep, silent"]),
    (["train", LINE + ",deep", "--workdir=run"], ["variant 'deep'", "demo, steep, silent"]),
    (["evaluate"], ["--workdir is needed"]),
    (["sample"], ["--workdir is needed"]),
    (["sample", "--prompt=a"], ["--workdir is needed"]),
    (["figures"], ["--workdir is needed"]),
    (["data"], ["--config=FILE[:VARIANT] is needed"]),
    (["data", LINE, "--examples=few"], ["--examples", "'few'", "int"]),
    (["compare"], ["two runs or more, received 0"]),
    (["compare", "a"], ["two runs or more, received 1"]),
    (["compare", "a", "b"], ["'a' holds no run"]),
    (["list", "--folder=nowhere"], ["no experiment files in 'nowhere'", "--folder"]),
    (["list", "demo"], ["unexpected argument 'demo'"]),
]


@pytest.mark.parametrize(
    ("argv", "told"), MISUSED, ids=[" ".join(c[0]).replace(str(ROOT), "") for c in MISUSED]
)
def test_misuse(refused, argv, told):
    refused(argv, *told)


@pytest.mark.parametrize("command", ["evaluate", "sample", "figures"])
def test_there_must_be_a_run(refused, command, tmp_path):
    refused([command, "--workdir=nowhere"], "'nowhere'")
    (tmp_path / "empty").mkdir()
    refused([command, "--workdir=empty"], "'empty' holds no run", "no run.json", "lmlab train")
    (tmp_path / "file").write_text("")
    refused([command, "--workdir=file"], "'file'")


def test_where_a_run_can_begin(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(["train", LINE, "--workdir=file"], "'file' is a file", "a directory, new, empty")
    refused(["train", LINE, "--workdir=file/run"], "'file/run' cannot be made", "'file' is not a writable")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    refused(["train", LINE, "--workdir=full"], "'full' is not empty and holds no run", "name another")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(refused, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(["train", LINE, "--workdir=locked/run"], "'locked/run' cannot be made", "writable")


# -- an experiment file that is wrong ----------------------------------------------------------------

FINE = "from lmlab import config\ndef get_config(variant=''):\n    return config.base()\n"
BUILD = "def build(config, assets): ...\n"
BROKEN = [
    ("no_get_config", BUILD, ["has no get_config()"]),
    ("no_build", FINE, ["has no build()", "VARIANTS, get_config and build"]),
    ("syntax", "def get_config(:\n", ["syntax.py:1:", "invalid syntax"]),
    (
        "dict",
        "def get_config(variant=''):\n    return {'a': 1}\n" + BUILD,
        ["returned dict, not a ConfigDict"],
    ),
]


@pytest.mark.parametrize(("name", "source", "told"), BROKEN, ids=[case[0] for case in BROKEN])
def test_a_broken_experiment_file(refused, tmp_path, name, source, told):
    (tmp_path / f"{name}.py").write_text(source)
    for command in (["train", "--workdir=run"], ["data"]):
        refused([*command, f"--config={name}.py"], f"{name}.py", *told)


def test_an_experiment_file_that_is_not_there(refused, tmp_path):
    refused(["train", "--config=nowhere.py:demo", "--workdir=run"], "'nowhere.py'", "lmlab list")
    refused(["train", "--config=.", "--workdir=run"], "no experiment file '.'")
    (tmp_path / "notes.txt").write_text("")
    refused(["train", "--config=notes.txt", "--workdir=run"], "'notes.txt' is not a Python file")


def test_an_experiment_without_variants(refused, tmp_path):
    (tmp_path / "plain.py").write_text(FINE + BUILD)
    refused(["train", "--config=plain.py:demo", "--workdir=run"], "unknown variant 'demo'", "none")


def test_a_rule_of_the_experiment_itself_is_one_line(refused, tmp_path):
    """Wherever the file lies: what it raises is for the user."""
    (tmp_path / "strict.py").write_text(
        FINE + "def build(config, assets):\n    raise ValueError('odd seeds only, received 0')\n"
    )
    error = refused(["train", "--config=strict.py", "--workdir=run"], "odd seeds only")
    assert error == "lmlab train: odd seeds only, received 0\n"


def test_a_fault_of_the_code_is_seen_whole(tmp_path):
    (tmp_path / "faulty.py").write_text(FINE + "def build(config, assets):\n    return {}['nothing']\n")
    with pytest.raises(KeyError):
        main(["train", "--config=faulty.py", "--workdir=run"])


def test_a_misspelt_key_of_the_model(tmp_path):
    """In a process of its own: here the checks of shapes would answer first."""
    source = (ROOT / "experiments" / "autoencoder.py").read_text()
    assert '"code": 32' in source
    (tmp_path / "misspelt.py").write_text(source.replace('"code": 32', '"code": 32, "fetures": 3'))
    argv = [sys.executable, "-m", "lmlab", "train", "--config=misspelt.py:demo", "--workdir=run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("lmlab train: ")
    assert "unexpected keyword argument 'fetures'" in done.stderr
    assert not (tmp_path / "run").exists()


# -- sampling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--prompt=the Жук", ["'Ж'", "U+0416", "position 4", "vocabulary of", "acdeghost"]),
        ("--temperature=-1", ["temperature must be at least 0", "-1"]),
        ("--temperature=inf", ["temperature", "finite", "inf"]),
        ("--temperature=hot", ["--temperature", "'hot'", "float"]),
        ("--top_p=0", ["top_p must be above 0 and at most 1", "0"]),
        ("--top_p=1.5", ["top_p must be above 0 and at most 1", "1.5"]),
        ("--top_k=-1", ["top_k must be at least 0", "-1"]),
        ("--min_p=2", ["min_p must be between 0 and 1", "2"]),
        ("--max_tokens=0", ["max_tokens must be at least 1, received 0"]),
        ("--num_samples=0", ["num_samples must be at least 1, received 0"]),
        ("--num_samples=1.5", ["--num_samples", "'1.5'", "int"]),
        ("--seed=now", ["--seed", "'now'", "int"]),
        ("--checkpoint=latest", ["--checkpoint", "'latest'", "a step, or best"]),
        ("--checkpoint=7", ["no checkpoint of step 7; it has [", "2]"]),
        ("--temperatur=1", ["'temperatur'", "temperature"]),
        ("--width=4", ["'width'", "--help"]),
    ],
)
def test_wrong_sampling_options(refused, runs, flag, told):
    before = contents(runs)
    refused(["sample", f"--workdir={runs / 'gpt'}", flag], *told)
    assert contents(runs) == before


def test_sampling_without_a_sampler(refused, runs):
    refused(["sample", f"--workdir={runs / 'silent'}"], "line.py", "has no sampler")


def test_best_without_a_best(refused, runs):
    told = "keeps no best checkpoint"
    refused(["evaluate", f"--workdir={runs / 'line'}", "--checkpoint=best"], told, "checkpoint.best is empty")


def test_samples_are_printed_and_kept(copies, capsys):
    argv = ["sample", f"--workdir={copies / 'gpt'}", "--prompt=the ", "--prompt=a", "--max_tokens=5"]
    assert main([*argv, "--num_samples=2", "--seed=3"]) == 0
    printed, told = capsys.readouterr()
    texts = re.split(r"--- \d of 4 ---\n", printed)[1:]
    assert [text[:1] for text in texts] == ["t", "t", "a", "a"]
    assert [len(text.removesuffix("\n")) for text in texts] == [9, 9, 6, 6]
    kept = copies / "gpt" / "samples" / "seed-3.txt"
    assert f"written: {kept}" in told
    assert kept.read_text() == "\n---\n".join(text.removesuffix("\n") for text in texts) + "\n"
    with np.load(kept.with_suffix(".npz")) as arrays:
        assert arrays["tokens"].shape[0] == 4
    assert main([*argv, "--num_samples=2", "--seed=3"]) == 0
    assert capsys.readouterr().out == printed
    assert kept.with_name("seed-3-2.txt").read_text() == kept.read_text(), "nothing is overwritten"


def test_the_flags_of_sample_are_those_of_the_sampler(runs, capsys):
    def flags(run):
        assert main(["sample", f"--workdir={runs / run}", "--help"]) == 0
        return re.findall(r"^  --(\w+): (.*)$", capsys.readouterr().out, re.MULTILINE)

    line = dict(flags("line"))
    assert set(line) == {"workdir", "seed", "checkpoint", "prompt", "count", "scale", "loud"}
    assert line["scale"] == "how far they lie  (default '1.0')"
    gpt = dict(flags("gpt"))
    assert {"prompt", "max_tokens", "temperature", "top_k", "top_p", "min_p", "num_samples"} < set(gpt)
    argv = ["sample", f"--workdir={runs / 'line'}", "--count=3", "--loud", "--prompt=z"]
    assert main(argv) == 0
    assert capsys.readouterr().out.count("Z = ") == 3


# -- going on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--config.seed=2"], ["seed: 0 there, 2 here", "name another --workdir"]),
        (["--config.model.power=3", "--config.seed=2"], ["model.power: 1 there, 3 here", "seed: 0 there"]),
        (["--config.duration=5 steps"], ["may only grow: '6 steps' there, '5 steps' here"]),
        (["--config.duraton=9"], ["config.duraton", "did you mean config.duration?"]),
        ([LINE.replace("demo", "steep")], ["data.slope: 2.0 there, 5.0 here"]),
        ([IMAGES], ["line.py:demo, not of", "autoencoder.py:demo", "name another --workdir"]),
    ],
)
def test_a_run_does_not_go_on_as_another(refused, copies, flags, told):
    refused(["train", f"--workdir={copies / 'line'}", *flags], *told)


def test_a_run_goes_on_with_what_may_change(copies, capsys):
    folder = copies / "line"
    argv = ["train", f"--workdir={folder}", "--config.duration=9", "--config.checkpoint.keep=1"]
    assert main([*argv, "--config.log_every=1"]) == 0
    assert f"done: {folder}" in capsys.readouterr().out
    record = json.loads((folder / "run.json").read_text())
    (change,) = record["changes"]
    assert change["duration"] == ["6 steps", "9"] and change["checkpoint.keep"] == [3, 1]
    assert change["log_every"] == ["2", "1"] and set(change) == {
        "when",
        "duration",
        "checkpoint.keep",
        "log_every",
    }
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [2, 3, 4, 6, 7, 8, 9]


def test_a_best_that_is_never_measured_ends_at_the_first_evaluation(tmp_path, capsys):
    argv = ["train", LINE, "--workdir=run", "--config.checkpoint.best=validation/los"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error == "lmlab train: checkpoint.best: received 'validation/los'; allowed: validation/loss\n"
    assert main(["train", "--workdir=run", "--config.checkpoint.best=validation/loss"]) == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [2, 3, 4, 6], "what was saved before is gone on with"


# -- what goes well ----------------------------------------------------------------------------------


def test_the_exit_codes_of_lmlab_alone(capsys):
    assert main([]) == 2
    bare = capsys.readouterr().out
    for ask in ("--help", "-h", "help"):
        assert main([ask]) == 0 and capsys.readouterr().out == bare
    assert all(re.search(rf"^    lmlab {name}\b", bare, re.MULTILINE) for name in COMMANDS)


ELSEWHERE = {"sweep": "lmlab.sweeps.command", "report": "lmlab.sweeps.report", "plan": "lmlab.plan"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    for ask in ("--help", "-h"):
        assert main([command, ask]) == 0
        printed, error = capsys.readouterr()
        doc = COMMANDS[command].__doc__ or importlib.import_module(ELSEWHERE[command]).main.__doc__
        assert printed.startswith(doc.splitlines()[0]) and error == ""
        assert re.search(r"^Flags:\n(  --\w+: .+\n)+", printed, re.MULTILINE)


@pytest.mark.parametrize("command", ["train", "data"])
def test_help_with_an_experiment_shows_its_leaves(command, capsys, tmp_path):
    assert main([command, LINE, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "  --config.optimizer.learning_rate=0.1\n" in printed
    assert "  --config.duration='6 steps'\n" in printed
    assert not list(tmp_path.iterdir())


def test_list_shows_every_experiment_and_imports_no_jax():
    program = (
        "import sys; from lmlab.__main__ import main; code = main(['list'])\n"
        "heavy = {'jax', 'flax', 'optax', 'ml_collections', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy - {'ml_collections'}, heavy\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in EXPERIMENTS:
        assert f"experiments/{path.name}  [" in done.stdout
    assert done.stdout.count(":demo ") == len(EXPERIMENTS)


def test_evaluate_one_run_and_a_folder_of_seeds(copies, capsys, tmp_path):
    folder = tmp_path / "seeds"
    folder.mkdir()
    (copies / "line").rename(folder / "seed-0")
    assert main(["train", LINE, f"--workdir={folder / 'seed-1'}", "--config.seed=1"]) == 0
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={folder / 'seed-0'}"]) == 0
    one = capsys.readouterr().out
    assert re.fullmatch(rf"{folder}/seed-0: validation/loss [\d.e-]+, test/loss [\d.e-]+\n", one)
    assert main(["evaluate", f"--workdir={folder}", "--record"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(one) and "2 runs\n" in printed
    value = json.loads((tmp_path / "results" / "line-demo.json").read_text())
    losses = value["metrics"]["test/loss"]
    assert value["seeds"] == [0, 1] and losses["values"][0] != losses["values"][1]
    np.testing.assert_allclose(losses["deviation"], np.std(losses["values"], ddof=1))
    assert f"{losses['mean']:.4f} ± {losses['deviation']:.4f}" in printed


def test_a_folder_of_several_variants_is_recorded_by_variant(copies, capsys, tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    (copies / "line").rename(folder / "demo")
    for seed in (0, 1):
        flags = [f"--workdir={folder / f'steep-{seed}'}", f"--config.seed={seed}"]
        assert main(["train", LINE.replace("demo", "steep"), *flags]) == 0
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={folder}", "--record"]) == 0
    printed = capsys.readouterr().out
    assert "line.py:demo, 1 run\n" in printed and "line.py:steep, 2 runs\n" in printed
    for name, seeds in (("line-demo", [0]), ("line-steep", [0, 1])):
        assert json.loads((tmp_path / "results" / f"{name}.json").read_text())["seeds"] == seeds


def test_a_result_with_a_leaf_set_by_hand_is_not_recorded(copies, capsys, tmp_path):
    assert main(["evaluate", f"--workdir={copies / 'silent'}", "--record"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "duration" in error and "make that a variant" in error
    assert not (tmp_path / "results").exists()


def test_figures_are_written_where_asked(copies, capsys, tmp_path):
    assert main(["figures", f"--workdir={copies / 'line'}"]) == 0
    assert main(["figures", f"--workdir={copies / 'line'}", "--output=drawn"]) == 0
    assert "drawn/loss.png  .pdf  .csv" in capsys.readouterr().out
    for folder in (copies / "line" / "figures", tmp_path / "drawn"):
        assert {path.name for path in folder.iterdir()} == {"loss.png", "loss.pdf", "loss.csv"}


def test_figures_of_several_experiments_are_refused(refused, runs):
    refused(["figures", f"--workdir={runs}"], "one experiment", "gpt_char.py", "line.py")


def test_data_shows_what_a_model_is_fed(capsys, tmp_path):
    assert main(["data", LINE]) == 0
    printed = capsys.readouterr().out
    assert "training: 32 examples, 4 batches of 8 an epoch" in printed and "6 steps, 1.50 epochs" in printed
    assert "batch['x']: float32[8]" in printed
    assert main(["data", IMAGES, "--examples=4", "--output=grid.png"]) == 0
    assert "test: 180 examples (held out)" in capsys.readouterr().out
    assert np.asarray(Image.open(tmp_path / "grid.png").convert("L")).std() > 10


def test_compare_names_the_leaves_that_differ(copies, capsys, tmp_path):
    other = copies / "other"
    steep = ["train", LINE.replace("demo", "steep"), f"--workdir={other}", "--config.seed=4"]
    assert main(steep) == 0
    capsys.readouterr()
    assert main(["compare", str(copies / "line"), str(other), "--output=both"]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    table = {row[0]: row[1:] for row in rows if len(row) == 3}
    assert table["data.slope"] == ["2.0", "5.0"] and table["seed"] == ["0", "4"]
    assert "batch_size" not in table and table["step"] == ["6", "6"]
    last = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        for folder in (copies / "line", other)
    ]
    assert table["validation/loss"] == [f"{row['validation/loss']:.5g}" for row in last]
    assert {path.suffix for path in (tmp_path / "both").iterdir()} == {".png", ".pdf", ".csv"}
