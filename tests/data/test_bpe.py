import doctest
from collections import Counter

import pytest
from tokenizers import pre_tokenizers

from lmlab.data import bpe, text
from lmlab.data.tokenizers import BPETokenizer


def test_the_example_of_the_docstring():
    assert doctest.testmod(bpe).attempted == 2 and doctest.testmod(bpe).failed == 0


def test_ties_go_to_the_older_symbols():
    """ab and cd stand there twice each; then abcd is all that is left."""
    assert bpe.learn({tuple("cdabx"): 1, tuple("cdaby"): 1}, 9) == [
        ("a", "b"),
        ("c", "d"),
        ("cd", "ab"),
    ]


def test_a_pair_that_stands_there_once_is_not_merged():
    assert bpe.learn({tuple("abc"): 1}, 5) == [] and bpe.learn({}, 5) == []


def test_merging_goes_from_left_to_right():
    assert bpe.merge("aaaaa", ("a", "a")) == ("aa", "aa", "a")
    assert bpe.encode("banana", [("a", "n"), ("an", "an")]) == ("b", "anan", "a")


@pytest.mark.parametrize("length", [30_000])
def test_it_learns_what_the_library_learns(length):
    """On English, of which each line's words are parted as the library does it. Three seconds."""
    words, sample = Counter(), text.python_reference()[:length]
    parted = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for line in sample.splitlines(keepends=True):
        words.update(tuple(word) for word, _ in parted.pre_tokenize_str(line))
    tokenizer = BPETokenizer.train(sample, 256 + 150)
    merges = [tuple(pair) for pair in tokenizer.to_json()["model"]["model"]["merges"]]
    assert len(merges) == 150 and bpe.learn(words, 150) == merges
    word = max(words, key=len)
    ids = tokenizer.encode("".join(word))
    assert "".join(bpe.encode(word, merges)) == "".join(word) and len(bpe.encode(word, merges)) == len(ids)
