"""Word vectors from a text to their neighbours, their tables and a classifier that begins from them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmlab
from lmlab import config as configs
from lmlab.__main__ import main
from lmlab.data.reviews import BAD, GOOD, Reviews, grammar
from lmlab.data.tokenizers import WordTokenizer
from lmlab.evaluation.words import place_of
from lmlab.experiment import Assets, load_module
from lmlab.models.sentence_classifier import SentenceClassifier

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

SHORT = {
    "duration": "3 steps",
    "batch_size": 4,
    "evaluate_every": "0",
    "checkpoint.every": "3",
    "parallel.data": 1,
}
VECTORS, SENTIMENT = "experiments/word_vectors.py:demo", "experiments/sentiment.py:demo"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Vectors of words of the grammar of reviews, in a text with a name for case."""
    folder = tmp_path_factory.mktemp("vectors")
    sentences = [sentence for sentence, _ in grammar(400, 1)]
    (folder / "text.txt").write_text("\n".join(sentences).replace("film", "Film") + "\nrare words\n")
    (folder / "pairs.txt").write_text("good great 9\nfilm dull 2\nplot script 8\ngood zebra 1\n")
    wanted = {"data.path": str(folder / "text.txt"), "data.similarity": str(folder / "pairs.txt")}
    return lmlab.train(VECTORS, folder / "run", SHORT | wanted | {"model.d_model": 6, "data.context": 16})


def test_the_vocabulary_and_its_counts_are_those_of_the_train_part(run):
    words = json.loads((run.folder / "assets/tokenizer.json").read_text())["words"]
    counts = json.loads((run.folder / "assets/counts.json").read_text())
    text = Path(run.config.data.path).read_text()
    train = text[: int(0.9 * len(text))].split()
    assert "rare" not in words and "Film" in words
    assert counts == [0, 0, *(train.count(word) for word in words)]
    assert counts[2:] == sorted(counts[2:], reverse=True) and min(counts[2:]) >= 5


def test_evaluate_tells_the_correlation_and_the_coverage(run):
    scores = run.evaluate()
    assert scores["similarity/pairs"] == 3 and -1 <= scores["similarity/spearman"] <= 1
    assert np.isfinite(scores["validation/loss"])


def test_sample_gives_neighbours_and_tables_for_the_projector(run, capsys):
    assert main(["sample", f"--workdir={run.folder}", "--word=FILM", "--num_neighbours=3", "--table=7"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "Film" and len([line for line in lines if line]) == 4
    words = json.loads((run.folder / "assets/tokenizer.json").read_text())["words"]
    rows = (run.folder / "samples/seed-0-embeddings.tsv").read_text().splitlines()
    table = np.array([row.split("\t") for row in rows], np.float32)
    kept = np.asarray(run.variables["params"]["input"]["embedding"])
    np.testing.assert_array_equal(table, kept[2:9])
    assert (run.folder / "samples/seed-0-metadata.tsv").read_text().split("\n")[:-1] == words[:7]


def test_a_classifier_begins_from_the_vectors_of_the_words_it_shares(run, tmp_path):
    wanted = {"data.vectors": str(run.folder), "model.d_embed": 6, "optimizer.learning_rate": 0.0}
    begun = lmlab.train(SENTIMENT, tmp_path / "run", SHORT | wanted)
    table = np.asarray(begun.variables["params"]["embed"]["embedding"])
    vectors = np.asarray(run.variables["params"]["input"]["embedding"])
    tokenizers = [json.loads((each.folder / "assets/tokenizer.json").read_text()) for each in (begun, run)]
    here, there = ({word.lower(): i + 2 for i, word in enumerate(each["words"])} for each in tokenizers)
    shared = set(here) & set(there)
    assert "film" in shared and len(shared) > 20
    for word in shared:
        np.testing.assert_array_equal(table[here[word]], vectors[there[word]])
    kept = json.loads((begun.folder / "assets/vectors.json").read_text())
    assert kept["known"] == len(shared) and kept["words"] == len(here)
    assert 0 < kept["known_of_training_text"] <= 1


@pytest.mark.parametrize(
    ("folder", "said"), [("nowhere", "holds no run"), ("line", "no word vectors"), ("", "6 features")]
)
def test_a_run_without_such_vectors_is_named(run, tmp_path, folder, said, capsys):
    if folder == "line":
        lmlab.train("tests/papers/line.py", tmp_path / folder, {"duration": "1 steps", "parallel.data": 1})
    named = tmp_path / folder if folder else run.folder
    flags = [f"--config.{key}={value}" for key, value in (SHORT | {"data.vectors": named}).items()]
    assert main(["train", f"--config={SENTIMENT}", f"--workdir={tmp_path / 'run'}", *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data.min_count", 10**6, "min_count 1,000,000 leaves no word: the most frequent of"),
        ("data.min_count", 0, "min_count must be at least 1, received 0"),
        ("model.d_model", 0, "d_model must be at least 1, received 0"),
        ("model.window", 0, "window must be at least 1, received 0"),
        ("data.context", 0, "context must be at least 1, received 0"),
        ("data.path", "empty.txt", "is empty; a text file with at least one character is needed"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, key, value, said):
    (tmp_path / "empty.txt").write_text("")
    value = tmp_path / value if key == "data.path" else value
    argv = ["train", f"--config={VECTORS}", f"--workdir={tmp_path / 'run'}", f"--config.{key}={value}"]
    assert main(argv) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (tmp_path / "run").exists()


def test_a_word_that_is_not_there(run):
    with pytest.raises(ValueError, match="word: received 'zebra', which is not in the vocabulary"):
        run.sample(word="zebra")


def test_a_word_is_found_as_it_is_spelt_before_it_is_found_in_another_case():
    words = ["River", "river", "Film"]
    assert [place_of(word, words) for word in ("River", "river", "RIVER", "film", "sea")] == [
        0,
        1,
        0,
        2,
        None,
    ]


def test_min_count_is_of_the_text():
    tokenizer = WordTokenizer.train("a b a c b a", min_count=2)
    assert tokenizer.words == ("a", "b") and tokenizer.encode("c a").tolist() == [0, 1]


def test_only_plain_gradient_descent_moves_rows_alone():
    module = load_module(Path("experiments/word_vectors.py"))
    for key, value, rows in (("seed", 1, True), ("accumulate", 2, False), ("optimizer.b1", 0.9, False)):
        config, _ = configs.load(VECTORS, {key: value})
        assert (module.build(config, Assets()).step is not None) == rows


# -- reviews -----------------------------------------------------------------------------------------


def test_the_grammar_agrees_with_its_labels():
    for sentence, label in grammar(200, 0):
        for clause in sentence.removesuffix(" .").split(" and "):
            words = clause.split()
            praises = (words[-1] in GOOD) != ("not" in words)
            assert words[-1] in GOOD + BAD and praises == bool(label)


def test_parts_are_disjoint_whole_and_the_same_every_time():
    parts = Reviews("", Assets()).parts
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [1600, 200, 200]
    assert sorted(line for part in parts.values() for line in part) == sorted(grammar(2000, 0))
    assert Reviews("", Assets()).parts == parts != Reviews("", Assets(), split_seed=1).parts


def test_arrays_are_the_sentences_padded():
    reviews = Reviews("", Assets(), length=9)
    arrays = reviews.arrays("validation")
    assert arrays["tokens"].shape == (200, 9)
    for row, label, (sentence, wanted) in zip(*arrays.values(), reviews.parts["validation"], strict=True):
        assert reviews.tokenizer.decode(row[row > 0]) == " ".join(sentence.split()[:9]) and label == wanted


def test_reviews_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no rt-polarity.neg or rt-polarity.neg.gz in"):
        _ = Reviews(str(tmp_path), Assets()).parts
    with pytest.raises(ValueError, match="length must be at least 1, received 0"):
        Reviews("", Assets(), length=0)


def test_the_real_sentences(data_folder):
    reviews = Reviews(str(data_folder / "sentiment"), Assets())
    assert [len(part) for part in reviews.parts.values()] == [8529, 1066, 1067]
    assert sum(label for part in reviews.parts.values() for _, label in part) == 5331


def test_padding_does_not_change_what_a_sentence_is_taken_for():
    model = SentenceClassifier(20, d_embed=4, d_model=5)
    tokens = jnp.array([[3, 7, 2]])
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    longer = jnp.pad(tokens, ((0, 0), (0, 4)))
    np.testing.assert_allclose(model.apply(variables, longer), model.apply(variables, tokens), atol=1e-6)
