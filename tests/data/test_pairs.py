"""Pairs: what is kept and why the rest is not, parts that share no sentence, ids, and the nearest neighbour."""

import gzip
import itertools
import random
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from lmlab.data import pairs
from lmlab.data.pairs import Pairs, normalize
from lmlab.experiment import Assets

LINES = [
    "Go.\tVa\u202f!\tCC-BY",
    "Go.\tVas-y\u00a0!\tCC-BY",
    "a line without any",
    "Hi.\tSalut !\tCC-BY",
    "",
    "Hi.\t \tCC-BY",
    "one two three four five\tun deux trois quatre\tCC-BY",
    "Go.\tVa !\tCC-BY",
    "Bye.\tC’est\u2009fini\u2026\tCC-BY\r",
]
KEPT = [("Va!", "Go."), ("Vas-y!", "Go."), ("Salut!", "Hi."), ("C'est fini...", "Bye.")]


@pytest.fixture
def write(tmp_path):
    def make(name, content):
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(tmp_path / name)

    return make


def drawn(count, seed=0, words=6):
    """Pairs of sentences from few words, so that many have one sentence in common."""
    draw = random.Random(seed)

    def sentence(letters):
        return " ".join(draw.choices(letters, k=draw.randint(1, words)))

    return [(sentence("abcde"), sentence("vwxyz")) for _ in range(count)]


def written(found):
    return "".join(f"{source}\t{target}\n" for source, target in found)


# -- reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tsv", "a.txt.gz"])
def test_what_is_kept_and_what_is_dropped(name, write):
    data = Pairs(write(name, "\n".join(LINES)), Assets(), columns=(1, 0), max_words=4)
    assert data.pairs == KEPT
    assert data.dropped == {"too few tabs": (1, 3), "empty": (2, 5), "too long": (1, 7), "repeated": (1, 8)}
    assert data.report == (
        "4 pairs of 9 lines; dropped: 1 too few tabs (the first: line 3), 2 empty (the first: line 5),"
        " 1 too long (the first: line 7), 1 repeated (the first: line 8)"
    )
    assert len(Pairs(data.path, Assets(), columns=(1, 0)).pairs) == 5
    assert Pairs(data.path, Assets(), columns=(1, 0), lower=True).pairs[0] == ("va!", "go.")


def test_two_parallel_files_are_the_same_pairs(write):
    kept = [line.split("\t")[:2] for line in LINES if line.count("\t") == 2]
    english, french = (
        write(f"a.{n}", "\n".join(side) + "\n") for n, side in enumerate(zip(*kept, strict=True))
    )
    assert Pairs(f"{french},{english}", Assets(), max_words=4).pairs == KEPT
    data = Pairs(f"{english},{french}", Assets(), columns=(1, 0), max_words=4)
    assert data.pairs == KEPT and data.dropped["empty"] == (1, 4)


def test_one_spelling_for_what_is_typed_in_several():
    same = ["«\u00a0L’été, dit-il\u202f: 50 %\u2009?\u00a0»", '"L\'e\u0301te\u0301,  dit-il: 50% ? "']
    assert normalize(same[0]) == normalize(same[1].replace(' "', '"')) == '"L\'été, dit-il: 50%?"'
    assert normalize("Co\u00adop…\u200b", lower=True) == "coop..."
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("aé«»“’…!?:;% \u00a0\u202f\u200b\u0301e.", k=12))
        once = normalize(text)
        assert normalize(once) == once == unicodedata.normalize("NFC", once).strip()
        assert not re.search(r"\s[!?:;%\s]|[«»’…]", once)


# -- parts -------------------------------------------------------------------------------------------


def flooded(found):
    """Components by hand: a set of sentences grows while a pair has one of them."""
    whole, rest = [], set(found)
    while rest:
        group = {rest.pop()}
        while more := {p for p in rest if any(p[0] == q[0] or p[1] == q[1] for q in group)}:
            group, rest = group | more, rest - more
        whole.append(frozenset(group))
    return set(whole)


def test_components_are_those_of_the_graph_of_pairs():
    found = list(dict.fromkeys(drawn(120, words=4)))
    labels = pairs.components(found)
    by_label = {frozenset(p for p, other in zip(found, labels, strict=True) if other == n) for n in labels}
    assert by_label == flooded(found) and 5 < len(by_label) < 100


def test_case_and_punctuation_do_not_part_and_a_source_is_not_a_target():
    found = [("Va!", "Go."), ("va", "Go on."), ("Non.", "No."), ("no", "nope"), ("!", "?"), ("?", "!")]
    labels = pairs.components(found)
    assert labels[0] == labels[1] and len(set(labels)) == 5


def test_parts_share_no_sentence_and_lose_no_pair(write):
    path = write("a.tsv", written(drawn(3000)))
    data = Pairs(path, Assets(), fractions=(0.8, 0.1, 0.1))
    parts = data.parts
    assert sorted(itertools.chain(*parts.values())) == sorted(data.pairs)
    for one, other in itertools.permutations(parts.values(), 2):
        assert not {s for s, _ in one} & {s for s, _ in other} and not {t for _, t in one} & {
            t for _, t in other
        }
    share = len(data.pairs) / 10
    assert all(0.8 * share < len(parts[part]) < 1.2 * share for part in ("validation", "test"))
    assert parts == Pairs(path, Assets(), fractions=(0.8, 0.1, 0.1)).parts
    assert parts != Pairs(path, Assets(), fractions=(0.8, 0.1, 0.1), split_seed=1).parts
    assert data.references("test") == {
        source: [t for s, t in parts["test"] if s == source] for source, _ in parts["test"]
    }


def test_a_huge_component_is_trained_on(write):
    huge = [("same", f"t{i}") for i in range(40)]
    path = write("a.tsv", written([*huge, *[(f"s{i}", f"u{i}") for i in range(60)]]))
    for seed in range(5):
        data = Pairs(path, Assets(), fractions=(0.6, 0.2, 0.2), split_seed=seed)
        assert set(huge) <= set(data.parts["train"])
        assert [len(part) for part in data.parts.values()] == [60, 20, 20]


def test_a_run_keeps_its_split_and_its_counts_and_refuses_another(write, tmp_path):
    path, assets = write("a.tsv", written(drawn(500)) + "no tab\n"), Assets()
    data = Pairs(path, assets)
    sizes = {name: len(part) for name, part in data.parts.items()}
    kept = assets.values["pairs.json"]
    assert kept["pairs"] == sizes and kept["dropped"]["too few tabs"] == {"lines": 1, "first": 501}
    assert kept["components"] == len(set(pairs.components(data.pairs)))
    assert len(assets.values["text.json"]["sha256"]) == 64
    assets.save(tmp_path / "assets")
    assert Pairs(path, Assets(tmp_path / "assets")).parts == data.parts
    with pytest.raises(ValueError, match="is not the one of this run"):
        _ = Pairs(path, Assets(tmp_path / "assets"), split_seed=1).parts


def test_joined_pairs_are_of_their_part(write):
    path = write("a.tsv", written((f"s{i} a b c d e", f"t{i} v w x y") for i in range(400)))
    data = Pairs(path, Assets(), join=50)
    plain, joined = data.examples("train")[:360], data.examples("train")[360:]
    assert plain == data.parts["train"] and len(joined) == 50 and data.examples("test") == data.parts["test"]
    assert joined == Pairs(path, Assets(), join=50).examples("train")[360:]
    tests = data.stratified("test", 3, (0, 6, 12, 18, 24, 30))
    for part, count, found in (("train", range(2, 6), joined), ("test", range(1, 6), tests)):
        known = dict(data.parts[part])
        for source, target in found:
            pieces = [" ".join(source.split()[i : i + 6]) for i in range(0, len(source.split()), 6)]
            assert len(pieces) in count and " ".join(known[piece] for piece in pieces) == target
            assert max(len(source.split()), len(target.split())) <= 60


def test_a_stratified_set_has_as_many_of_every_length(write):
    data = Pairs(write("a.tsv", written((f"s{i}" + " a" * (i % 20), f"t{i}") for i in range(400))), Assets())
    for each, edges in ((4, (0, 10, 20, 30, 40, 50, 60)), (2, (3, 6, 30))):
        lengths = [len(source.split()) for source, _ in data.stratified("test", each, edges)]
        groups = zip(np.repeat(edges[:-1], each), lengths, np.repeat(edges[1:], each), strict=True)
        assert all(above < length <= to for above, length, to in groups)


# -- ids ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_ids_stand_for_their_sentences(shared):
    assets = Assets()
    data = Pairs("", assets, vocab_size=300, shared=shared)
    names = {"tokenizer.json"} if shared else {"source_tokenizer.json", "target_tokenizer.json"}
    source, target = data.tokenizers
    assert {name for name in assets.values if "tokenizer" in name} == names and (source is target) == shared
    assert source.specials == pairs.SPECIALS
    arrays = data.arrays("test")
    rows = zip(arrays["source"], arrays["target"], data.examples("test"), strict=True)
    for ids, translated, (french, english) in rows:
        assert re.sub("(<pad>)*$", "", source.decode(ids)) == f"{french}<end>"
        assert re.sub("(<pad>)*$", "", target.decode(translated)) == f"<start>{english}<end>"
    assert all(ids.dtype == np.int32 and (ids[:, -1] > 0).any() for ids in arrays.values())
    again = data.encode_sources([f"  {french} " for french, _ in data.examples("test")])
    np.testing.assert_array_equal(again, arrays["source"])


def test_the_tokenizer_is_learnt_from_the_training_part(write):
    path = write("a.tsv", written((f"word{i}", f"mot{i}") for i in range(200)))
    data = Pairs(path, Assets(), vocab_size=270)
    other = [(s.replace("word", "#"), t) if (s, t) in data.parts["test"] else (s, t) for s, t in data.pairs]
    changed = Pairs(write("b.tsv", written(other)), Assets(), vocab_size=270)
    assert changed.parts["train"] == data.parts["train"] != changed.parts["test"]
    assert changed.tokenizers[0].to_json() == data.tokenizers[0].to_json()


def test_by_length_neighbours_are_of_like_length(write):
    data = Pairs(write("a.tsv", written(drawn(400))), Assets(), vocab_size=260)
    plain, sorted_ = data.arrays("train"), data.arrays("train", by_length=True)
    lengths = [(sorted_[side] > 0).sum(1).tolist() for side in ("source", "target")]
    both = list(zip(*lengths, strict=True))
    assert both == sorted(both)
    rows = [sorted(map(bytes, np.hstack(list(arrays.values())))) for arrays in (plain, sorted_)]
    assert rows[0] == rows[1]


# -- the nearest neighbour ---------------------------------------------------------------------------


def test_the_nearest_source_answers():
    train, sources = drawn(200, 1), [source for source, _ in drawn(50, 2)] + ["unheard of", "A, b!"]
    answers, likeness = pairs.nearest(train, sources)
    for source, answer, like in zip(sources, answers, likeness, strict=True):
        words = set(re.findall(r"\w+", source.lower()))
        index = [len(words & set(s.split())) / len(words | set(s.split())) for s, _ in train]
        assert like == pytest.approx(max(index)) and answer == train[int(np.argmax(index))][1]
    assert likeness[-2] == 0 and likeness[-1] == 1
    assert pairs.nearest([("a b c d", "x")], ["a b c e", "a b e"])[1].tolist() == [pairs.NEAR, 0.4]


# -- bad input ---------------------------------------------------------------------------------------


def test_bad_files_are_one_line(write, tmp_path):
    def told(path, **options):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            _ = Pairs(path, Assets(), **options).parts
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "byte 0xe9 at offset 11" in told(write("latin.tsv", "a\tb\nGo.\tall\xe9\n".encode("latin-1")))
    assert "byte 0xff at offset 0; convert it, for example with iconv -f UTF-16" in told(
        write("utf16.tsv", "a\tb\n".encode("utf-16"))
    )
    cut = Path(write("cut.tsv.gz", "a\tb\n" * 99)).read_bytes()[:-9]
    Path(write("cut.tsv.gz", "")).write_bytes(cut)
    assert "cut.tsv.gz' is not a whole gzip file" in told(str(tmp_path / "cut.tsv.gz"))
    assert "has no pair that can be used; dropped: 2 too few tabs (the first: line 1), 1 empty" in told(
        write("none.tsv", "a b\nc d\n\n")
    )
    short, long = write("a.fr", "a\nb\n"), write("a.en", "a\nb\nc\n")
    assert "parallel files must have as many lines, received 2 lines (" in told(f"{short},{long}")
    assert "names 3 files; allowed: one of columns, or two parallel ones" in told(f"{short},{long},{long}")
    assert "no text file" in told(f"{short},{short}er")
    assert "columns must be (0, 1) or (1, 0) of two files, received (0, 2)" in told(
        f"{short},{short}", columns=(0, 2)
    )
    assert "is empty" in told(write("empty.tsv", b""))
    few = write("few.tsv", written([("a", "x"), ("a", "y"), ("a", "z")]))
    assert "0.05 of 3 pairs in 1 components, the largest of 3, leaves validation none" in told(few)


def test_bad_leaves_are_one_line(write):
    for options, line in (
        ({"columns": (1, 1)}, r"columns must be two that differ, counted from 0; received \(1, 1\)"),
        ({"columns": (0, -1)}, "columns must be two that differ"),
        ({"max_words": -1}, "max_words and join must be at least 0, received -1 and 0"),
        ({"fractions": (0.9, 0.2, 0.1)}, r"sum to 1; received \(0.9, 0.2, 0.1\)"),
        ({"fractions": (0.9, 0.1)}, "fractions must be 3"),
    ):
        with pytest.raises(ValueError, match=line):
            Pairs("", Assets(), **options)
    with pytest.raises(ValueError, match="vocab_size must be at least 260"):
        _ = Pairs("", Assets(), vocab_size=100).tokenizers
    long = written((f"s{i}" + " a" * 40, f"t{i}") for i in range(100))
    data = Pairs(write("long.tsv", long), Assets(), join=3)
    with pytest.raises(
        ValueError, match="join: received 3; 300 draws of 2 to 5 pairs gave 0 of at most 60 words"
    ):
        data.examples("train")
    with pytest.raises(ValueError, match="0 examples of 1 to 10 words were drawn from test, 2 are needed"):
        data.stratified("test", 2)
    with pytest.raises(ValueError, match=r"increase from 0 to 60 at most; received 2 and \(0, 61\)"):
        data.stratified("test", 2, (0, 61))


# -- the real files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "kept", "components", "largest"),
    [(30_000, 29_903, 16_633, 82), pytest.param(167_130, 166_927, 109_350, 96, marks=pytest.mark.slow)],
)
def test_tatoeba(lines, kept, components, largest, data_folder, write):
    path = data_folder / "translation" / "fra-eng.txt.gz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    text = gzip.decompress(path.read_bytes()).split(b"\n")[:lines]
    data = Pairs(write("fra-eng.txt", b"\n".join(text)), Assets(), columns=(1, 0))
    assert len(data.pairs) == kept and data.dropped.keys() == {"repeated"}
    assert data.pairs[0] == ("Va!", "Go.")
    sizes = [len(part) for part in data.parts.values()]
    assert sum(sizes) == kept and all(abs(size - 0.05 * kept) < 0.005 * kept for size in sizes[1:])
    counts = data.assets.values["pairs.json"]
    assert (counts["components"], counts["largest"]) == (components, largest)
    bare = {
        name: [{re.sub(r"\W+", " ", s.lower()).strip() for s in side} for side in zip(*part, strict=True)]
        for name, part in data.parts.items()
    }
    for one, other in itertools.permutations(bare.values(), 2):
        assert not any(held & seen for held, seen in zip(one, other, strict=True))
    assert max(map(len, data.references("test").values())) > 3
