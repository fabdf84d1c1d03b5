import gzip
import hashlib

import jax
import numpy as np
import pytest

from lmlab.data import text
from lmlab.data.tokenizers import ByteTokenizer, CharTokenizer


def test_line_ends_kept_and_byte_order_mark_dropped(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert text.read(tmp_path / "a.txt") == "one\r\ntwo\rthree\n"


def test_gzip_equals_plain_and_files_join_in_order(tmp_path):
    (tmp_path / "b.txt").write_text("βeta\n", "utf-8")
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as file:
        file.write("αlpha\n")
    assert text.read(tmp_path) == "αlpha\nβeta\n"
    assert text.read(f"{tmp_path / 'b.txt'},{tmp_path / 'a.txt.gz'}") == "βeta\nαlpha\n"


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1 << 22])
def test_characters_across_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(text, "CHUNK", chunk)
    (tmp_path / "a.txt").write_bytes("\ufeffaé漢😀\n".encode())
    assert text.read(tmp_path / "a.txt") == "aé漢😀\n"


@pytest.mark.parametrize("chunk", [1, 2, 3, 1 << 22])
@pytest.mark.parametrize("start, bad", [("é漢 ", b"\xe9t"), ("ab", b"\xff"), ("é漢 ", b"\xe6\xbc")])
def test_not_utf8_names_file_offset_and_byte(tmp_path, monkeypatch, chunk, start, bad):
    monkeypatch.setattr(text, "CHUNK", chunk)
    path = tmp_path / "latin.txt"
    path.write_bytes(start.encode() + bad)
    with pytest.raises(ValueError) as error:
        text.read(path)
    message = str(error.value)
    assert "latin.txt" in message and "\n" not in message
    assert f"byte 0x{bad[0]:02x} at offset {len(start.encode())};" in message


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    empty, broken, cut = tmp_path / "empty.txt", tmp_path / "broken.txt.gz", tmp_path / "cut.txt.gz"
    empty.write_bytes(b"")
    broken.write_bytes(b"not gzip")
    cut.write_bytes(gzip.compress(b"some text" * 100)[:-9])
    for path, said in ((empty, "is empty"), (broken, "gzip"), (cut, "gzip")):
        with pytest.raises(ValueError, match=said) as error:
            text.read(path)
        assert path.name in str(error.value) and "\n" not in str(error.value)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(text.Path, "open", refuse)
    with pytest.raises(ValueError, match=r"no permission to read .*empty"):
        text.read(empty)


def test_python_reference_and_fingerprint():
    reference = text.python_reference()
    assert len(reference) > 200_000 and "yield" in reference
    assert text.python_reference() == reference
    facts = text.fingerprint("né", "a test")
    assert facts == {"sha256": hashlib.sha256("né".encode()).hexdigest(), "characters": 2, "source": "a test"}
    assert "Python 3." in text.python_reference_source()


@pytest.mark.parametrize("size", [0, 9, 10, 101, 1_115_394])
def test_split_is_nanogpts(size):
    data = np.arange(size)
    train, validation = text.split(data)
    np.testing.assert_array_equal(train, data[: int(size * 0.9)])
    np.testing.assert_array_equal(validation, data[int(size * 0.9) :])
    parts = text.split(data, (0.8, 0.1, 0.1))
    np.testing.assert_array_equal(np.concatenate(parts), data)


@pytest.mark.parametrize("fractions", [(0.9, 0.2), (0.5,), (1.5, -0.5)])
def test_split_refuses(fractions):
    with pytest.raises(ValueError, match="fractions"):
        text.split("text", fractions)


def epochs_of_tokens(source, epochs):
    """All batches of the first epochs, in order: [epochs, steps, B, T + 1]."""
    steps = np.arange(epochs * source.steps_per_epoch)
    batches = jax.jit(lambda data, steps: jax.lax.map(lambda step: source.batch(data, step), steps))
    tokens = np.asarray(batches(source.data, steps)["tokens"])
    return tokens.reshape(epochs, source.steps_per_epoch, *tokens.shape[1:])


@pytest.mark.parametrize("size, context", [(97, 8), (96, 8), (103, 8), (50, 1), (64, 16)])
def test_an_epoch_predicts_every_token_once_but_at_the_ends(size, context):
    """The ids are the positions, so that a batch says what it covers."""
    source = text.windows(np.arange(size, dtype=np.int32), context, 1, seed=3)
    assert source.num_examples == size // context - 1
    spare = size - 1 - source.num_examples * context
    assert context - 1 <= spare <= 2 * context - 2
    shifts = []
    for tokens in epochs_of_tokens(source, spare + 1):
        tokens = tokens.reshape(-1, context + 1)
        assert (np.diff(tokens, axis=1) == 1).all()
        predicted = np.sort(tokens[:, 1:].ravel())
        shift = predicted[0] - 1
        np.testing.assert_array_equal(
            predicted, np.arange(shift + 1, shift + 1 + source.num_examples * context)
        )
        shifts.append(int(shift))
    assert sorted(shifts) == list(range(spare + 1))  # each shift once before any comes again


def test_order_differs_by_epoch_and_seed_and_repeats_for_the_same():
    ids = np.arange(1000, dtype=np.int32)
    one, same, other = (text.windows(ids, 8, 4, seed) for seed in (0, 0, 1))
    (first, second), (again, _), (elsewhere, _) = (
        epochs_of_tokens(source, 2) for source in (one, same, other)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()
    assert (first != elsewhere).any()
    starts = first.reshape(-1, 9)[:, 0]
    assert (np.diff(starts) < 0).any()  # not in the order of the text


def test_batches_are_int32_whatever_the_ids_are():
    batch = text.windows(np.arange(200, dtype=np.uint16), 8, 4, 0).example()
    assert batch["tokens"].shape == (4, 9) and batch["tokens"].dtype == np.int32


def test_stream_gives_the_batches_of_resident(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line {i} of the text\n" for i in range(40)))
    tokenizer = CharTokenizer.train(text.read(path))
    ids = tokenizer.encode(text.read(path))
    resident = text.windows(ids, 16, 4, seed=5)
    stream = text.stream_windows(text.encode_file(path, tokenizer, tmp_path / "ids"), 16, 4, seed=5)
    assert stream.num_examples == resident.num_examples
    iterator = stream.open()
    expected = np.concatenate(epochs_of_tokens(resident, 3))
    for tokens in expected:
        got = next(iterator)["tokens"]
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, tokens)
    first = text.stream_windows(ids, 16, 4, seed=5).example()
    np.testing.assert_array_equal(first["tokens"], expected[0])


@pytest.mark.parametrize("make", [text.windows, text.stream_windows])
def test_a_short_text_and_a_wrong_context(make):
    ids = np.zeros(79, np.int32)
    with pytest.raises(ValueError) as error:
        make(ids, 16, 4, 0)
    message = str(error.value)
    for part in ("79 tokens", "3 windows", "context 16", "batch_size 4", "80 tokens"):
        assert part in message
    assert "\n" not in message
    assert make(np.zeros(80, np.int32), 16, 4, 0).num_examples == 4
    with pytest.raises(ValueError, match="context must be at least 1, received 0"):
        make(ids, 0, 4, 0)
    with pytest.raises(ValueError, match="0 windows"):
        make(ids[:3], 16, 4, 0)


@pytest.mark.parametrize("size, context", [(2, 5), (17, 4), (18, 4), (16, 4), (100, 1), (5, 100)])
def test_evaluation_predicts_every_token_after_the_first_once(size, context):
    out = text.evaluation_windows(np.arange(1, size + 1), context)
    tokens, mask = out["tokens"], out["mask"]
    assert (
        tokens.dtype == np.int32 and tokens.shape == (mask.shape[0], context + 1) and mask.shape[1] == context
    )
    assert mask.sum() == size - 1
    np.testing.assert_array_equal(tokens[:, 1:][mask], np.arange(2, size + 1))
    np.testing.assert_array_equal(tokens[:, :-1][mask], np.arange(1, size))
    assert (tokens[:, 1:][~mask] == 0).all()
    assert mask.any(axis=1).all()  # no window of padding alone


def test_evaluation_refuses():
    with pytest.raises(ValueError, match="at least 2 tokens, received 1"):
        text.evaluation_windows(np.zeros(1, np.int32), 4)
    with pytest.raises(ValueError, match="context must be at least 1"):
        text.evaluation_windows(np.zeros(9, np.int32), 0)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 22])
def test_encode_file_equals_encode(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(text, "CHUNK", chunk)
    (tmp_path / "a.txt").write_text("one\ntwo é\nno end", "utf-8")
    (tmp_path / "b.txt").write_text("\n\nlast", "utf-8")
    tokenizer = ByteTokenizer()
    path = text.encode_file(tmp_path, tokenizer, tmp_path / "ids")
    ids = text.open_ids(path)
    assert ids.dtype == np.uint16 and isinstance(ids, np.memmap)
    np.testing.assert_array_equal(ids, tokenizer.encode(text.read(tmp_path)))


def test_encoded_file_is_used_again_until_something_changes(tmp_path):
    source, out = tmp_path / "a.txt", tmp_path / "ids"
    source.write_text("abcabc")
    path = text.encode_file(source, CharTokenizer("abc"), out)
    made = path.stat().st_mtime_ns
    assert text.encode_file(source, CharTokenizer("abc"), out) == path
    assert path.stat().st_mtime_ns == made
    assert text.encode_file(source, CharTokenizer("abcd"), out) != path
    source.write_text("abcabcabc")
    longer = text.encode_file(source, CharTokenizer("abc"), out)
    assert longer != path and len(text.open_ids(longer)) == 9
    longer.write_bytes(b"\0")  # cut short
    with pytest.raises(ValueError, match="not a whole file"):
        text.open_ids(longer)
    text.encode_file(source, CharTokenizer("abc"), out)
    assert len(text.open_ids(longer)) == 9
    assert not list(out.glob("*.partial"))


def test_a_failed_encoding_leaves_no_ids(tmp_path):
    (tmp_path / "a.txt").write_text("abcx")
    with pytest.raises(ValueError, match="'x'"):
        text.encode_file(tmp_path / "a.txt", CharTokenizer("abc"), tmp_path / "ids")
    assert list((tmp_path / "ids").iterdir()) == []


def test_show_text():
    tokenizer = CharTokenizer("\nab")
    assert text.show_text(tokenizer)({"tokens": np.array([[1, 0, 2], [2, 2, 0]])}).texts == ["a⏎b", "bb⏎"]


def test_streams_lie_side_by_side_and_each_token_is_predicted_once_an_epoch():
    ids = np.arange(100, 162).astype(np.int32)  # 62: three streams of 20, the last two tokens left out
    source = text.streams(ids, 6, 3, 0)
    assert source.steps_per_epoch == 4
    rows = [[] for _ in range(3)]
    for step in range(4):
        batch = jax.tree.map(np.asarray, source.batch(source.data, step))
        assert (batch["begins"] == (step == 0)).all()
        assert batch["mask"].sum() == 3 * (6 if step < 3 else 1)
        for row, tokens, mask in zip(rows, batch["tokens"], batch["mask"], strict=True):
            row += tokens[1:][mask].tolist()
    assert rows == [list(range(101 + 20 * b, 120 + 20 * b)) for b in range(3)]
    again, half = source.batch(source.data, 5), source.batch(source.data, 5, shard=2, num_shards=3)
    np.testing.assert_array_equal(again["tokens"], source.batch(source.data, 1)["tokens"])
    np.testing.assert_array_equal(half["tokens"], again["tokens"][2:])


@pytest.mark.parametrize(
    ("size", "context", "message"),
    [(62, 0, "context must be at least 1"), (3, 6, "a text of 3 tokens is too short for 3 streams")],
)
def test_streams_that_cannot_be_are_refused(size, context, message):
    with pytest.raises(ValueError, match=message):
        text.streams(np.arange(size), context, 3, 0)
