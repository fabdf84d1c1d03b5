"""Texts by topic: parts that are apart, what an example is made of, equations that hold."""

import fractions
import itertools
import re

import numpy as np
import pytest

from lmlab.data import topics
from lmlab.data.topics import Topics
from lmlab.experiment import Assets


@pytest.fixture
def folder(tmp_path):
    """Two topics of 60 examples, and a test part of 40."""
    for part, first, count in (("train", 0, 60), ("test", 100, 40)):
        (tmp_path / part).mkdir()
        for name in ("sum", "name_of"):
            lines = [f"{name} {first + i}?\n{i}\n" for i in range(count)]
            (tmp_path / part / f"{name}.txt").write_text("".join(lines))
    return tmp_path


def made(folder, **options):
    return Topics(str(folder / "train"), Assets(), **options)


def test_parts_are_apart_and_lose_nothing(folder):
    data = made(folder)
    for name in ("sum", "name_of"):
        parts = [data.parts[part][name] for part in topics.PARTS]
        assert sorted(itertools.chain(*parts)) == sorted(data.texts[name]) and [
            len(part) for part in parts
        ] == [
            56,
            2,
            2,
        ]
    tested = made(folder, test=str(folder / "test")).parts
    assert len(tested["test"]["sum"]) == 40 and len(tested["train"]["sum"]) == 58
    assert not set(tested["test"]["sum"]) & set(tested["train"]["sum"])


def test_examples_that_repeat_are_kept_once(folder):
    file = folder / "train" / "sum.txt"
    file.write_text(2 * file.read_text())
    assert len(made(folder).texts["sum"]) == 60


def test_an_example_stands_between_ends_and_the_mask_covers_it(folder):
    data = made(folder)
    arrays = data.arrays("validation")
    assert data.names == ["name_of", "sum"] and arrays["topic"].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    for tokens, mask, example in zip(
        arrays["tokens"], arrays["mask"], itertools.chain(*data.parts["validation"].values()), strict=True
    ):
        assert data.tokenizer.decode(tokens[:1]) == "<end>"
        counted = tokens[1:][mask > 0]
        assert data.tokenizer.decode(counted) == example + "<end>"
        assert (tokens[1:][mask == 0] == 0).all() and mask.sum() == len(example) + 1
    alone = data.arrays("validation", ["sum"])
    np.testing.assert_array_equal(alone["tokens"], arrays["tokens"][2:])


def test_another_text_is_refused(folder):
    assets = Assets()
    assert len(Topics(str(folder / "train"), assets).parts["train"]) == 2
    with pytest.raises(ValueError, match="is not the one of this run"):
        _ = Topics(str(folder / "test"), assets).parts


def test_equations_hold():
    made = topics.equations(200)
    numbers = {
        name: [[int(n) for n in re.findall(r"\d+|-\d+", text)] for text in made[name]] for name in made
    }
    assert all(a + b == c for a, b, c in numbers["sums"])
    assert all(fractions.Fraction(a, b) == fractions.Fraction(c, d) for a, b, c, d in numbers["fractions"])
    assert all((a * n, n - 1) == (b, m) for a, n, b, m in numbers["derivatives"])
    assert all((a, n + 1) == (b * m, m) for a, n, b, m in numbers["integrals"])
    for text in made["determinants"]:
        a, b, c, d, e = (int(n) for n in re.findall(r"-?\d+", text))
        assert a * d - b * c == e
    assert all(
        len(set(texts)) == len(texts) and all(t.endswith("\n") for t in texts) for texts in made.values()
    )


def test_mistakes_are_one_line(folder, tmp_path):
    with pytest.raises(ValueError, match="lines must be at least 1, received 0"):
        made(folder, lines=0)
    with (folder / "train" / "sum.txt").open("a") as file:
        file.write("more\n")
    with pytest.raises(ValueError, match="has 121 lines, which are no examples of 2"):
        _ = made(folder).parts
    with pytest.raises(ValueError, match="has 120 lines; at least 150 are needed"):
        _ = made(folder, lines=5).parts
    (folder / "train" / "sum.txt").write_text("1 + 1?\n2\n" * 30)
    (folder / "test" / "sum.txt").rename(folder / "test" / "total.txt")
    with pytest.raises(ValueError, match=r"must have the topics of .*: name_of, sum; it has: name_of, total"):
        _ = made(folder, test=str(folder / "test")).parts
    with pytest.raises(ValueError, match="at least 2 topics are needed"):
        _ = Topics(str(folder / "test" / "total.txt"), Assets()).parts


def test_the_mathematics(data_folder, monkeypatch):
    monkeypatch.setenv("LMLAB_DATA", str(data_folder))
    data = Topics("mathematics/train", Assets(), "mathematics/interpolate")
    assert len(data.names) == 8 and data.names[4] == "numbers__gcd"
    assert [len(data.parts[part]["numbers__gcd"]) for part in topics.PARTS] == [5798, 200, 600]
    for name in data.names:
        assert not set(data.parts["test"][name]) & {
            *data.parts["train"][name],
            *data.parts["validation"][name],
        }
