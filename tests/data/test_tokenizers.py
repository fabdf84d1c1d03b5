import json

import numpy as np
import pytest

from lmlab.data.tokenizers import ByteTokenizer, CharTokenizer, tokenizer_from_json, tokenizer_hash

TEXTS = ["hello\n", "naïve café — «π» 漢字", "😀 beyond the BMP 𝔘\t\r\n\x00", "é é"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [CharTokenizer.train, lambda text: ByteTokenizer()], ids=["char", "byte"])
def test_round_trip_also_through_json(make, text):
    tokenizer = make(text)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1 and ids.min() >= 0 and ids.max() < tokenizer.vocab_size
    again = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again.decode(ids) == tokenizer.decode(ids) == tokenizer.decode(list(ids)) == text
    np.testing.assert_array_equal(again.encode(text), ids)
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer)


def test_characters_against_a_dict():
    text = "".join(TEXTS)
    vocabulary = sorted(set(text))
    ids = {character: i for i, character in enumerate(vocabulary)}
    tokenizer = CharTokenizer.train(text)
    assert tokenizer.vocab_size == len(vocabulary)
    assert tokenizer.encode(text).tolist() == [ids[character] for character in text]


def test_bytes_are_utf8():
    assert ByteTokenizer().encode("aé漢").tolist() == list("aé漢".encode())
    assert ByteTokenizer().vocab_size == 256
    assert ByteTokenizer().decode([0xE6, 0x41]) == "\ufffdA"


def test_empty():
    for tokenizer in (CharTokenizer("ab"), ByteTokenizer()):
        assert tokenizer.encode("").shape == (0,)
        assert tokenizer.decode([]) == ""


@pytest.mark.parametrize(
    "text, shown", [("abéd", "'é' (U+00E9, at position 2)"), ("z", "'z'"), ("a\n", r"'\n'")]
)
def test_unknown_character(text, shown):
    with pytest.raises(ValueError) as error:
        CharTokenizer("abd").encode(text)
    message = str(error.value)
    assert shown in message and "'abd'" in message and "\n" not in message


def test_unknown_character_below_the_first_and_long_vocabularies():
    with pytest.raises(ValueError, match="U\\+0061"):
        CharTokenizer("xyz").encode("a")  # a code point inside the table, with no id
    many = "".join(chr(0x4E00 + i) for i in range(5000))
    with pytest.raises(ValueError) as error:
        CharTokenizer(many).encode("a")
    assert len(str(error.value)) < 400


def test_wrong_ids_and_vocabularies():
    for ids in ([3], [-1]):
        with pytest.raises(ValueError, match=r"ids must be in 0\.\.2"):
            CharTokenizer("abc").decode(ids)
    with pytest.raises(ValueError, match="one axis"):
        CharTokenizer("abc").decode([[0]])
    with pytest.raises(ValueError, match="sorted"):
        CharTokenizer("ba")
    with pytest.raises(ValueError, match="at least one"):
        CharTokenizer.train("")
    with pytest.raises(ValueError, match="'word'; allowed: char, byte"):
        tokenizer_from_json({"kind": "word"})


def test_hash_tells_vocabularies_apart():
    assert len({tokenizer_hash(t) for t in (CharTokenizer("ab"), CharTokenizer("abc"), ByteTokenizer())}) == 3
