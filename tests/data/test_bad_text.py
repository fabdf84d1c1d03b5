"""Text that cannot be used, by the command that trains: each ends in one line, and nothing is written."""

from pathlib import Path

import pytest

from lmlab.__main__ import main
from lmlab.data import tokenizers
from lmlab.data.tokenizers import BPETokenizer, tokenizer_from_json

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def told(tmp_path, capsys):
    """Trains, which must fail; the line."""

    def run(spec, *leaves):
        argv = [f"--config={EXPERIMENTS / spec}", f"--workdir={tmp_path / 'run'}"]
        assert main(["train", *argv, *(f"--config.{leaf}" for leaf in leaves)]) == 2
        line = capsys.readouterr().err.strip()
        assert "\n" not in line and line.startswith("lmlab train: ")
        assert not (tmp_path / "run").exists()
        return line

    return run


@pytest.fixture
def file(tmp_path):
    """Writes bytes; data.path=FILE."""

    def make(content):
        (tmp_path / "a.txt").write_bytes(content)
        return f"data.path={tmp_path / 'a.txt'}"

    return make


TEXTS = ["recurrent_lm.py:gru,cpu", "tokenization.py:bpe512,cpu", "state_space_baselines.py:hmm,cpu"]
LINES = ["ngram.py:cpu", "nplm.py:cpu", "backprop_by_hand.py:cpu"]


@pytest.mark.parametrize("spec", TEXTS + LINES)
def test_an_empty_file(spec, told, file):
    assert "is empty; a text file with at least one character is needed" in told(spec, file(b""))


@pytest.mark.parametrize("spec", TEXTS + LINES)
def test_a_file_of_one_character(spec, told, file):
    line = told(spec, file(b"a"))
    assert any(
        said in line
        for said in ("lines that hold something; at least 10", "gives 0 windows", "allowed: from 2")
    )


@pytest.mark.parametrize(
    ("encoding", "where", "hint"),
    [("latin-1", "byte 0xe9 at offset 3", "LATIN1"), ("utf-16", "byte 0xff at offset 0", "UTF-16")],
)
def test_another_encoding_is_told_by_byte_and_place(encoding, where, hint, told, file):
    line = told("recurrent_lm.py:gru,cpu", file("café\n".encode(encoding) * 100))
    assert where in line and f"iconv -f {hint} -t UTF-8" in line


def test_a_vocabulary_without_room_for_the_bytes(told, file):
    line = told("tokenization.py:bpe512,cpu", file(b"some text\n" * 100), "data.vocab_size=100")
    assert "vocab_size must be at least 256, the bytes and 0 specials, received 100" in line


def test_a_tokenizer_that_there_is_not(told):
    line = told("tokenization.py:demo", "data.tokenizer=syllables")
    assert "data.tokenizer: received 'syllables'; allowed: characters, bytes, bpe" in line


@pytest.mark.parametrize("spec", ["ngram.py:cpu", "ngram.py:network,cpu", "ngram.py:kneser_ney,cpu"])
def test_n_grams_of_nothing(spec, told, file):
    line = told(spec, file(b"one\ntwo\n" * 20), "model.order=0")
    assert "order" in line and "received 0" in line


def test_lines_in_one_line(told, file):
    assert "has 1 lines that hold something" in told("nplm.py:cpu", file(b"word " * 10_000_000))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1, 2], "unknown kind of tokenizer None"),
        ({"version": "1.0", "model": {"type": "BPE"}}, "unknown kind of tokenizer None"),  # another library's
        ({"kind": "bpe", "characters": "ab"}, "a tokenizer of kind 'bpe' has 'model', which is not there"),
        ({"kind": "char"}, "a tokenizer of kind 'char' has 'characters', which is not there"),
        ({"kind": "bpe", "model": {"type": "none"}}, "not the JSON of a tokenizer of the tokenizers library"),
    ],
)
def test_tokenizer_files_of_another_kind(value, said):
    with pytest.raises(ValueError, match=said) as error:
        tokenizer_from_json(value)
    assert "\n" not in str(error.value)


def test_one_long_line_is_cut_into_pairs_and_one_long_word_refused_at_once(monkeypatch):
    monkeypatch.setattr(tokenizers, "LONGEST", 1000)
    tokenizer = BPETokenizer.train("word " * 1000, 300)
    assert tokenizer.decode(tokenizer.encode("a word " * 1000)) == "a word " * 1000
    for use in (tokenizer.encode, lambda text: BPETokenizer.train(text, 300)):
        with pytest.raises(
            ValueError, match="a word of 1,001 characters, from 'xxxxxxxxxxxxxxxxxxxx'"
        ) as error:
            use("a line\n " + "x" * 1001)
        assert "allowed for pairs of bytes: up to 1,000 without white space" in str(error.value)


@pytest.mark.slow
def test_a_tokenizer_of_another_size_beside_a_run(file, tmp_path, capsys):
    """Put there by hand: nothing is resumed, scored or drawn with it."""
    small = ["duration=2 steps", "batch_size=2", "model.d_model=8", "data.context=8", "parallel.data=1"]
    leaves = [f"--config.{leaf}" for leaf in (file(b"some text\n" * 50), *small)]
    spec, folder = EXPERIMENTS / "recurrent_lm.py:gru,demo", tmp_path / "made"
    assert main(["train", f"--config={spec}", f"--workdir={folder}", *leaves]) == 0
    (folder / "assets" / "tokenizer.json").write_text('{"kind": "byte"}')
    capsys.readouterr()
    for command, code in (("train", 1), ("evaluate", 2), ("sample", 2)):
        assert main([command, f"--workdir={folder}"]) == code
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith(f"lmlab {command}: ") and "256" in line and "shape" in line
