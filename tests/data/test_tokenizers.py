import json

import numpy as np
import pytest

from lmlab.data.tokenizers import (
    SPECIALS,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    WordTokenizer,
    special,
    tokenizer_from_json,
    tokenizer_hash,
)

TEXTS = ["hello\n", "naïve café — «π» 漢字", "😀 beyond the BMP 𝔘\t\r\n\x00", "é é"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "make",
    [
        CharTokenizer.train,
        lambda text: ByteTokenizer(),
        lambda text: BPETokenizer.train(text, 300),
        lambda text: CharTokenizer.train(text, SPECIALS),
        lambda text: ByteTokenizer(SPECIALS),
        lambda text: BPETokenizer.train(text, 300, SPECIALS),
    ],
    ids=["char", "byte", "bpe", "char+", "byte+", "bpe+"],
)
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
    with pytest.raises(ValueError, match="'syllable'; allowed: char, byte, word, bpe"):
        tokenizer_from_json({"kind": "syllable"})


def test_hash_tells_vocabularies_apart():
    assert len({tokenizer_hash(t) for t in (CharTokenizer("ab"), CharTokenizer("abc"), ByteTokenizer())}) == 3


# -- specials ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokenizer",
    [
        CharTokenizer("<>adehinprstu", SPECIALS),
        ByteTokenizer(SPECIALS),
        BPETokenizer.train("hides the hides <start> <start>" * 9, 270, SPECIALS),
    ],
    ids=["char", "byte", "bpe"],
)
def test_specials_are_the_first_ids_and_no_text_spells_them(tokenizer):
    assert [special(tokenizer, name) for name in SPECIALS] == [0, 1, 2, 3, 4]
    text = "<start>hides<pad>"
    ids = tokenizer.encode(text)
    assert ids.min() >= 5 and tokenizer.decode(ids) == text
    marked = np.concatenate([[1], tokenizer.encode("he"), [2, 0], tokenizer.encode("is")])
    assert tokenizer.decode(marked) == "<start>he<end><pad>is"
    assert tokenizer_hash(tokenizer) != tokenizer_hash(ByteTokenizer())


def test_an_unknown_character_is_unk_where_there_is_one():
    tokenizer = CharTokenizer("ab", ("<end>", "<unk>"))
    assert tokenizer.encode("aéb").tolist() == [2, 1, 3] and tokenizer.vocab_size == 4


def test_specials_that_are_not_there_are_told():
    with pytest.raises(ValueError, match=r"no special <mask>; it has: <end>"):
        special(ByteTokenizer(("<end>",)), "<mask>")
    for specials in (("<eos>",), ("<end>", "<end>")):
        with pytest.raises(ValueError, match=r"specials must be of <pad>, <start>"):
            ByteTokenizer(specials)


# -- words and pairs of bytes ------------------------------------------------------------------------


def test_words_by_frequency_then_by_the_alphabet():
    tokenizer = WordTokenizer.train("b a b <unk> c a\nd  b\n", 5, ("<unk>", "<end>"))
    assert tokenizer.words == ("b", "a", "c")  # b 3, a 2, and c before d
    ids = tokenizer.encode("a  d\n\nb <unk>")
    assert ids.tolist() == [3, 0, 1, 1, 2, 0]
    assert tokenizer.decode(ids) == "a <unk>\n\nb <unk>"
    again = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again.encode("c\n").tolist() == [4, 1] and tokenizer_hash(again) == tokenizer_hash(tokenizer)
    assert WordTokenizer.train("b a b").encode("a\nb").tolist() == [2, 1], "without <end> lines do not end"


def test_words_that_cannot_be():
    with pytest.raises(ValueError, match="without white space"):
        WordTokenizer(["a b"])
    with pytest.raises(ValueError, match="needs the special <unk>"):
        WordTokenizer(["a"], ())
    with pytest.raises(ValueError, match="vocab_size must be above 1"):
        WordTokenizer.train("a b", 1)


def test_bpe_joins_nothing_over_the_end_of_a_line():
    text = "one two\n\n\n" * 20
    tokenizer = BPETokenizer.train(text, 400)
    assert all(
        token.endswith("\n") or "\n" not in token for token in map(tokenizer.decode, np.arange(256)[:, None])
    )
    whole = tokenizer.encode(text)
    parts = [tokenizer.encode(line) for line in text.splitlines(keepends=True)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert len(whole) == 20 * 5, "one, two, and an end of a line three times"


def test_bpe_needs_the_bytes():
    with pytest.raises(ValueError, match=r"at least 257, the bytes and 1 specials, received 256"):
        BPETokenizer.train("text", 256, ("<end>",))
