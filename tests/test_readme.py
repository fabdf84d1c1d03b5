"""README keeps its word: its experiment trains, its snippets run, its commands parse."""

import re
import shlex
from pathlib import Path

import pytest

from lmlab.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README.replace("\\\n", ""), re.DOTALL)


def test_the_experiment_in_the_page_trains_evaluates_and_draws(tmp_path, monkeypatch, capsys):
    """A newcomer saves it under the name given and runs the command in its first lines."""
    source = next(text for language, text in BLOCKS if language == "python" and "def get_config" in text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/digits.py").write_text(source)
    command = shlex.split(re.search(r"^ +lmlab (train .*)$", source, re.MULTILINE).group(1))
    assert main([*command, "--config.parallel.data=1"]) == 0
    assert main(["evaluate", "--workdir=runs/digits"]) == 0
    assert main(["figures", "--workdir=runs/digits"]) == 0
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    error = float(re.search(r"test/error ([\d.]+)", printed).group(1))
    assert error < 0.1  # chance is 0.9
    assert (tmp_path / "runs/digits/figures/loss.png").exists()
    assert "[classifier]" in printed


def test_the_snippet_for_notebooks(tmp_path, monkeypatch):
    source = next(text for language, text in BLOCKS if language == "python" and "lmlab.train(" in text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    short = '"duration": "4 steps", "parallel.data": 1, "seed": 0'
    exec(source.replace('"seed": 0', short), {})  # README's own text


@pytest.mark.parametrize(
    "line", [line for _, text in BLOCKS for line in text.splitlines() if line.startswith("lmlab ")]
)
def test_its_commands_are_commands_and_their_files_are_there(line):
    command, *arguments = shlex.split(line, comments=True)[1:]
    assert command in COMMANDS
    for argument in arguments:
        if argument.startswith("--config="):
            assert (ROOT / argument.split("=", 1)[1].split(":")[0]).is_file()


def test_files_it_names_are_there():
    for name in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"`(lmlab/[\w/]+\.py)`", README):
        if "://" not in name:
            assert (ROOT / name).exists(), name
