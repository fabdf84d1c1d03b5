"""Questions of mathematics: answers by SymPy from the text, splits that are apart, ranges, limits, files."""

import collections
import gzip
import itertools
import random
import re
import string
from fractions import Fraction

import pytest

from lmlab.data import reasoning

FAMILIES, SPLITS = list(reasoning.FAMILIES), reasoning.SPLITS
BOTH = [(family, split) for family in FAMILIES for split in ("train", "extrapolate")]
SMALL = pytest.mark.parametrize("small", [False, True], ids=["usual", "small"])
SIZE = {  # what extrapolation enlarges, read from the question and the answer
    "composition": lambda question, answer: question.count("="),
    "linear_system": lambda question, answer: abs(int(answer)),
    "arithmetic": lambda question, answer: [
        len(n.split(".")[0]) for n in re.findall(r"\d[\d.]*\b", question)
    ],
    "evaluation": lambda question, answer: question.count("="),
    "factors": lambda question, answer: int(re.search(r"Is (\d+) a", question)[1]),
    "derivative": lambda question, answer: question.count("="),
    "probability": lambda question, answer: len(question.split()[-1]) - 1,
}


def sizes(family, pairs):
    found = [SIZE[family](*pair) for pair in pairs]
    return list(itertools.chain(*found)) if isinstance(found[0], list) else found


def answered_by_sympy(family, question):
    """The answer as SymPy writes it, powers in falling order, from nothing but the text."""
    sympy = pytest.importorskip("sympy", reason="answers are compared with SymPy's")
    known = {name: sympy.Symbol(name) for name in string.ascii_letters}

    def parsed(text):
        return sympy.sympify(text, locals=known, rational=True)

    definitions = re.findall(r"\b([a-z])\(([a-z])\) = (.+?)(?=[.?]|, [a-z]\()", question)
    while definitions:  # in whatever order: one that names only what is defined already
        for definition in definitions:
            name, variable, body = definition
            called = set(re.findall(r"([a-z])\(", body))
            if not called & {other for other, _, _ in definitions}:
                known[name] = sympy.Lambda(sympy.Symbol(variable), parsed(body))
                definitions.remove(definition)
                break
    if family == "linear_system":
        *equations, name = re.fullmatch(r"Solve (.+) and (.+) for (.)\.", question).groups()
        sides = [parsed(left) - parsed(right) for left, right in (each.split("=") for each in equations)]
        [solution] = sympy.solve(sides, dict=True)
        return str(solution[known[name]])
    if family == "factors":
        divisor, *numbers = re.search(r"Is (.+) a factor of both (.+) and (.+)\?", question).groups()
        return str(all(parsed(number) % int(divisor) == 0 for number in numbers))
    if family == "derivative":
        asked = re.search(r"derivative of (.+)\?", question)[1]
        return sympy.sstr(sympy.expand(sympy.diff(parsed(asked), known[asked[2]])), order="lex")
    asked = re.match(r"What is (\S+),|.*Calculate (.+)\.", question)
    return sympy.sstr(sympy.expand(parsed(asked[1] or asked[2])), order="lex")


@SMALL
@pytest.mark.parametrize(("family", "split"), BOTH)
def test_answers_are_those_of_sympy(family, split, small):
    for question, answer in reasoning.generate(family, 40, 1, split, small):
        if family == "probability":  # by counting every way to pick
            many, letters, asked = re.fullmatch(
                r"(\w+) letters picked without replacement from (\w+)\. Give prob of sequence (\w+)\.",
                question,
            ).groups()
            assert len(asked) == {"Two": 2, "Three": 3, "Four": 4}[many]
            ways = list(itertools.permutations(letters, len(asked)))
            assert answer == str(Fraction(ways.count(tuple(asked)), len(ways))), question
        elif family == "arithmetic":
            assert Fraction(answer) == Fraction(answered_by_sympy(family, question)), question
            assert re.fullmatch(r"-?(0|[1-9]\d*)(\.\d*[1-9])?", answer) and answer != "-0"
        else:
            assert answer == answered_by_sympy(family, question), question


def renamed(question):
    """The question with its letters named in the order in which they come."""
    names = {}
    return re.sub(
        r"\b[a-z]\b|(?<=from )[a-z]+|(?<=sequence )[a-z]+",
        lambda found: "".join(names.setdefault(letter, chr(65 + len(names))) for letter in found[0]),
        question.replace(" a factor", ""),
    )


@SMALL
@pytest.mark.parametrize("family", FAMILIES)
def test_splits_have_no_question_in_common_whatever_its_letters(family, small):
    seen = [
        {renamed(question) for question, _ in reasoning.generate(family, 300, 0, split, small)}
        for split in SPLITS
    ]
    assert all(not first & second for first, second in itertools.combinations(seen, 2))


def test_what_is_held_out_is_never_trained_on(monkeypatch):
    """A family of 100 questions, which have many letters: all are drawn, and each in one split."""
    monkeypatch.setitem(
        reasoning.FAMILIES, "tiny", lambda rng, _: (f"Is α more than {rng.randrange(100)}?", "α")
    )
    train, held_out = (
        {renamed(question) for question, _ in reasoning.generate("tiny", count, 0, split)}
        for split, count in (("train", 1500), ("interpolate", 400))
    )
    assert not train & held_out
    assert len(train | held_out) == 100 and 10 < len(held_out) < 30


@SMALL
@pytest.mark.parametrize("family", FAMILIES)
def test_extrapolation_begins_where_training_ends(family, small):
    train, interpolate, extrapolate = (
        sizes(family, reasoning.generate(family, 300, 0, split, small)) for split in SPLITS
    )
    assert set(interpolate) == set(train)
    assert max(train) < min(extrapolate)
    if small:  # and goes no further than usual questions do
        assert max(extrapolate) <= max(sizes(family, reasoning.generate(family, 300)))


@pytest.mark.parametrize(("family", "split"), BOTH)
def test_there_are_200_000_questions_and_more_not_counting_letters(family, split):
    """Of n draws from at least s kinds, n (n - 1) / 2 s pairs at most are expected to be equal."""
    rng, count = random.Random(0), 4000
    ranges = reasoning.Ranges(beyond=split == "extrapolate")
    drawn = [reasoning.FAMILIES[family](rng, ranges)[0] for _ in range(count)]
    equal = sum(k * (k - 1) // 2 for k in collections.Counter(drawn).values())
    expected = count * (count - 1) / 2 / 200_000
    assert equal + 3 * expected**0.5 < expected


@pytest.mark.parametrize(("family", "split"), list(itertools.product(FAMILIES, SPLITS)))
def test_a_split_is_given_by_its_seed_and_keeps_its_limits(family, split):
    pairs = reasoning.generate(family, 300, 3, split)
    assert pairs[:100] == reasoning.generate(family, 100, 3, split)
    assert pairs[:100] != reasoning.generate(family, 100, 4, split)
    assert len({question for question, _ in pairs}) == len(pairs) == 300
    assert max(len(question) for question, _ in pairs) <= reasoning.QUESTION
    assert max(len(answer) for _, answer in pairs) <= reasoning.ANSWER
    assert set("".join(itertools.chain(*pairs))) <= set(reasoning.ALPHABET)


def test_the_draws_stay_what_they_are():
    assert reasoning.generate("arithmetic", 2) == [
        ("Calculate -2661.56 - -2.8.", "-2658.76"),
        ("Calculate 615444.9 + 8525.443.", "623970.343"),
    ]


def test_half_of_the_factors_are_factors_and_neither_number_alone_tells():
    pairs = reasoning.generate("factors", 2000)
    assert 0.47 < sum(answer == "True" for _, answer in pairs) / len(pairs) < 0.53
    false = [question for question, answer in pairs if answer == "False"]
    numbers = [[int(n) for n in re.findall(r"-?\d+", question)] for question in false]
    second = sum(last % divisor == 0 for *_, divisor, _, last in numbers) / len(numbers)
    assert 0.28 < second < 0.39


def test_majority():
    assert reasoning.majority([("a", "1"), ("b", "2"), ("c", "2"), ("d", "3")]) == ("2", 0.5)
    with pytest.raises(ValueError, match="at least 1 pair of question and answer is needed, received none"):
        reasoning.majority([])


def test_mistakes_of_generate_are_one_line():
    with pytest.raises(ValueError, match=r"family must be one of composition, .*; received 'sums'"):
        reasoning.generate("sums", 1)
    with pytest.raises(
        ValueError, match="split must be one of train, interpolate, extrapolate; received 'test'"
    ):
        reasoning.generate("factors", 1, split="test")
    with pytest.raises(ValueError, match="count must be at least 1, received 0"):
        reasoning.generate("factors", 0)


def test_a_family_that_has_no_more_questions_says_so(monkeypatch):
    monkeypatch.setitem(reasoning.FAMILIES, "tiny", lambda rng, _: (f"{rng.randrange(10)}?", "1"))
    monkeypatch.setattr(reasoning, "TRIES", 1000)
    with pytest.raises(
        ValueError, match=r"tiny has some 10 questions for train; received count 11, which is more"
    ):
        reasoning.generate("tiny", 11)


def test_files_are_read_plain_or_packed(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "sums.txt").write_text("1 + 1?\r\n2\r\n3 - 4?\r\n-1")
    with gzip.open(tmp_path / "train" / "gcd.txt.gz", "wt") as file:
        file.write("Gcd of 4 and 6?\n2\n")
    files = reasoning.modules(tmp_path, "train")
    assert list(files) == ["gcd", "sums"]
    assert reasoning.read(files["sums"]) == [("1 + 1?", "2"), ("3 - 4?", "-1")]
    assert reasoning.read(files["gcd"]) == [("Gcd of 4 and 6?", "2")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1 + 1?\n2\n3?\n", r"has 3 lines: the last question has no answer"),
        (b"", r"is empty; a text file with at least one character is needed"),
        (b"1 + 1?\n\n2\n", r"line 2 of .* is empty; questions and answers take turns"),
        ("1 + 1?\n2\n3 × 4?\n12\n".encode(), r"line 3 of .* has '×', which is not printable ASCII"),
        (
            "1 + 1?\n2\n3 × 4?\n12\n".encode("latin1"),
            r"line 3, is not UTF-8: byte 0xd7 at offset 11; .* -f LATIN1",
        ),
    ],
)
def test_bad_files_are_one_line_that_names_file_and_place(tmp_path, data, message):
    path = tmp_path / "sums.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        reasoning.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no text file '.*/train-easy'"):
        reasoning.modules(tmp_path, "train-easy")


def test_the_mathematics(data_folder, monkeypatch):
    monkeypatch.setenv("LMLAB_DATA", str(data_folder))
    files = {split: reasoning.modules("mathematics", split) for split in SPLITS}
    assert list(files["train"]) == list(files["interpolate"]) and len(files["train"]) == 8
    assert list(files["extrapolate"]) == ["arithmetic__add_or_sub_big", "numbers__place_value_big"]
    pairs = {split: [reasoning.read(path) for path in files[split].values()] for split in SPLITS}
    assert {split: {len(each) for each in pairs[split]} for split in SPLITS} == {
        "train": {6000},
        "interpolate": {600},
        "extrapolate": {600},
    }
    for question, answer in itertools.chain(*itertools.chain(*pairs.values())):
        assert len(question) <= reasoning.QUESTION and len(answer) <= reasoning.ANSWER
    assert pairs["interpolate"][1][1] == ("131373.7482 - -34", "131407.7482")
