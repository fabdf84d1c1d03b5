import itertools

import numpy as np
import pytest

from lmlab.data.lines import Lines
from lmlab.experiment import Assets

NAMES = ["ada", "bea", "cy", "dan", "eva", "fay", "gus", "hal", "ida", "jo", "ada", "bea"]


@pytest.fixture
def path(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join([*NAMES[:5], "", *NAMES[5:]]) + "\n")
    return str(tmp_path / "names.txt")


def test_lines_end_and_nothing_else_is_in_them(path):
    lines = Lines(path, Assets(), "all")
    assert lines.lines == NAMES and lines.dropped == 1
    assert lines.parts["train"] == lines.parts["test"] == NAMES
    ids = lines.sequences("train")[0]
    assert ids[-1] == 0 and lines.tokenizer.decode(ids) == "ada<end>"


def test_the_published_split_may_repeat_and_the_other_not(path):
    published, apart = (Lines(path, Assets(), split).parts for split in ("published", "apart"))
    assert [len(part) for part in published.values()] == [9, 1, 2]
    assert sorted(itertools.chain(*published.values())) == sorted(NAMES)
    parts = [set(part) for part in apart.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 10


def test_the_words_of_the_reference_stand_in():
    lines = Lines("", Assets())
    assert len(lines.lines) > 2000 and len(set(lines.lines)) == len(lines.lines)
    assert lines.tokenizer.vocab_size == 27
    assert np.concatenate(lines.sequences("validation")).max() == 26


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="split: received 'half'; allowed: all, published, apart"):
        Lines("", Assets(), "half")
    (tmp_path / "few.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="has 2 lines that hold something; at least 10 are needed"):
        Lines(str(tmp_path / "few.txt"), Assets()).parts  # noqa: B018
