import functools
import gzip

import numpy as np
import pytest

from lmlab.data.corpus import Corpus
from lmlab.data.tokenizers import ByteTokenizer, WordTokenizer
from lmlab.experiment import Assets


@pytest.fixture
def path(tmp_path, tiny_text):
    (tmp_path / "a.txt").write_text(tiny_text)
    return tmp_path / "a.txt"


def test_parts_join_to_the_text(path, tiny_text):
    corpus = Corpus(str(path), Assets(), (("train", 0.8), ("validation", 0.1), ("test", 0.1)))
    assert list(corpus.ids) == ["train", "validation", "test"]
    assert corpus.tokenizer.decode(np.concatenate(list(corpus.ids.values()))) == tiny_text
    assert len(corpus.ids["train"]) == int(len(tiny_text) * 0.8)
    assert corpus.windows("test", 16)()["mask"].sum() == len(corpus.ids["test"]) - 1


def test_a_saved_run_decodes_without_its_text(path, tmp_path):
    assets = Assets()
    tokenizer = Corpus(str(path), assets).tokenizer
    assets.save(tmp_path / "run")
    again = Corpus("no such file", Assets(tmp_path / "run"))
    assert again.tokenizer.characters == tokenizer.characters
    with pytest.raises(FileNotFoundError, match="no such file"):
        again.ids  # noqa: B018


def test_another_text_is_refused(path, tmp_path):
    assets = Assets()
    Corpus(str(path), assets).ids  # noqa: B018
    assets.save(tmp_path / "run")
    path.write_text(path.read_text() + "!")
    with pytest.raises(ValueError, match="is not the one of this run") as error:
        Corpus(str(path), Assets(tmp_path / "run")).text  # noqa: B018
    assert "\n" not in str(error.value)


def test_a_folder_of_parts(tmp_path):
    """The parts are its files, and the tokenizer learns from the one that it is told to learn from."""
    (tmp_path / "train.txt").write_text("a b\na b\n")
    (tmp_path / "valid.txt.gz").write_bytes(gzip.compress(b"a c\n"))
    (tmp_path / "test.txt").write_text("b\n")
    make = functools.partial(WordTokenizer.train, specials=("<unk>", "<end>"))
    parts = [("train", 1.0), ("validation", 0.0), ("test", 0.0)]
    corpus = Corpus(str(tmp_path), Assets(), parts, make, learn="train")
    ids = {name: ids.tolist() for name, ids in corpus.ids.items()}
    assert ids == {"train": [2, 3, 1, 2, 3, 1], "validation": [2, 0, 1], "test": [3, 1]}
    assert Corpus(str(tmp_path), Assets(), parts, make).tokenizer.vocab_size == 5, "c is learned from all"
    (tmp_path / "test.txt").unlink()
    whole = Corpus(str(tmp_path), Assets(), (("train", 0.5), ("validation", 0.5)))
    assert set(whole.files) == {"train", "validation"} and whole.pieces["validation"] == "a c\n"


def test_several_files_are_one_text(tmp_path):
    """Named by a pattern or by commas, or all of a folder in which none is named after a part."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name} line\n" * 5)
    both = "a line\n" * 5 + "b line\n" * 5
    for path in (f"{tmp_path}/*.txt", f"{tmp_path}/a.txt,{tmp_path}/b.txt", str(tmp_path)):
        corpus = Corpus(path, Assets())
        assert corpus.text == both and list(corpus.pieces) == ["train", "validation"]


def test_no_path_is_the_python_reference():
    corpus = Corpus("", Assets(), train_tokenizer=lambda text: ByteTokenizer())
    assert "yield" in corpus.text and corpus.tokenizer.vocab_size == 256
    assert corpus.assets.values["text.json"]["source"].startswith("pydoc_data.topics of Python 3.")
