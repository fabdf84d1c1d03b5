import gzip

import numpy as np
import pytest

from lmlab.data.problems import Problems
from lmlab.data.reasoning import ANSWER, FAMILIES, QUESTION


@pytest.fixture(scope="module")
def problems():
    return Problems(count=30, held_out=10)


def test_parts_share_no_question(problems):
    questions = {
        part: {q for q, _ in problems.examples(part)}
        for part in ("train", "validation", "test", "extrapolate")
    }
    assert [len(found) for found in questions.values()] == [30 * len(FAMILIES)] + [10 * len(FAMILIES)] * 3
    assert len(set.union(*questions.values())) == 60 * len(FAMILIES)


def test_rows_hold_what_was_asked(problems):
    decode, pairs = (
        problems.tokenizer.decode,
        sorted(problems.examples("test"), key=lambda pair: len(pair[0])),
    )
    arrays, joined = problems.arrays("test"), problems.joined("test")
    assert arrays["source"].shape == (len(pairs), QUESTION + 1) and arrays["target"].shape[1] == ANSWER + 2
    for (question, answer), x, y in zip(pairs, arrays["source"], arrays["target"], strict=True):
        assert decode(x[x > 0]) == f"{question}<end>" and decode(y[y > 0]) == f"<start>{answer}<end>"
    whole = [decode(tokens[tokens > 0]) for tokens in joined["tokens"]]
    assert sorted(whole) == sorted(f"{question}<start>{answer}<end>" for question, answer in pairs)
    assert (np.diff((joined["tokens"] > 0).sum(1)) >= 0).all()


def test_a_folder_of_files_is_families_by_module(tmp_path):
    for split in ("train", "interpolate", "extrapolate"):
        folder = tmp_path / split
        folder.mkdir()
        for module in ("add", "sort"):
            lines = "".join(f"{split} {module} {i}?\n{i}\n" for i in range(8))
            with gzip.open(folder / f"{module}.txt.gz", "wt") as file:
                file.write(lines)
    problems = Problems(str(tmp_path), 6, 4)
    assert {module: len(pairs) for module, pairs in problems.part("train").items()} == {"add": 6, "sort": 6}
    validation, test = (set(problems.examples(part)) for part in ("validation", "test"))
    assert len(validation) == len(test) == 8 and not validation & test
    assert all(question.startswith("interpolate") for question, _ in validation | test)
    with pytest.raises(ValueError, match="has 8 questions; held_out 8 leaves test none"):
        Problems(str(tmp_path), 6, 8).part("test")


def test_bad_input_is_one_line(problems):
    with pytest.raises(ValueError, match="count must be at least 1, received 0"):
        Problems(count=0)
    with pytest.raises(ValueError, match="is too long; questions have up to 160 characters"):
        problems.sources(["1 + " * 50])
    assert np.array(problems.sources(["1 + 1?"])).shape == (1, QUESTION + 1)
