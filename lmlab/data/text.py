"""Text: read it, split it, cut it into windows for a language model.

How an epoch of text is made. Of n tokens, N = n // T - 1 windows of T predictions are used, side by
side, starting at a shift of its own: a window is T + 1 tokens, its last token being the first of the next
one, so that each token is predicted once. The shift is one of 0..S with S = n - 1 - N T the tokens to
spare (T - 1 <= S <= 2 T - 2): an epoch leaves `shift` predictions out at the start of the text and
S - shift at its end. Shifts come in a shuffled order, all of them once before any comes again. The
windows then come in an order of the epoch's own (`sources.shuffled`), cut to whole batches.

Where a recurrent state is carried from batch to batch (`streams`), the text lies as B streams side by side, which are
read from their beginning in each epoch.
"""

import codecs
import gzip
import hashlib
import json
import os
import platform
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmlab.data import locate
from lmlab.data.tokenizers import Tokenizer, tokenizer_hash
from lmlab.experiment import Assets, Samples
from lmlab.sources import Resident, Stream, shuffled

CHUNK = 1 << 22  # bytes read at a time


def read(path: locate.PathLike) -> str:
    """The text of one or several files (see `locate.text_files`), one after the other as they are.

    UTF-8, plain or .gz; a leading byte order mark is dropped, line ends are kept.
    """
    return "".join(chunk for file in locate.text_files(path) for chunk in _chunks(file))


def python_reference() -> str:
    """The Python language reference as every Python carries it: some 450,000 characters of English."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def python_reference_source() -> str:
    """Names that text, for `fingerprint`: it differs between versions of Python."""
    return f"pydoc_data.topics of Python {platform.python_version()}"


def fingerprint(text: str, source: str) -> dict[str, Any]:
    """What a run keeps of its text: the sha256 of its UTF-8, its length, where it came from."""
    return {
        "sha256": hashlib.sha256(text.encode("utf-8")).hexdigest(),
        "characters": len(text),
        "source": source,
    }


def check_same(assets: Assets, found: dict[str, Any]) -> None:
    """Keeps a `fingerprint` with a run; a ValueError where the run has that of another text."""
    kept = assets.get("text.json", lambda: found)
    if kept["sha256"] != found["sha256"]:
        raise ValueError(
            f"the text {found['source']!r} ({found['characters']:,} characters,"
            f" sha256 {found['sha256'][:12]}) is not the one of this run,"
            f" {kept['source']!r} ({kept['characters']:,}, {kept['sha256'][:12]})"
        )


def split(text: Sequence | np.ndarray, fractions: Sequence[float] = (0.9, 0.1)) -> list:
    """Contiguous parts, in order: the first int(n * fractions[0]) of a text or an array, and so on."""
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions must be at least 0 and sum to 1, received {tuple(fractions)}")
    ends = [int(len(text) * sum(fractions[: i + 1])) for i in range(len(fractions) - 1)]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


def windows(ids: np.ndarray, context: int, batch_size: int, seed: Any) -> Resident:
    """Training batches {"tokens": int32 [B, context + 1]} from ids kept on the device."""
    spare, count = _count_windows(len(ids), context, batch_size)

    def take(data, indices, epoch, seed):
        starts = _shift(spare, seed, epoch, jnp) + indices * context
        cut = jax.vmap(lambda start: jax.lax.dynamic_slice(data["tokens"], (start,), (context + 1,)))
        return {"tokens": cut(starts).astype(jnp.int32)}

    return Resident(
        data={"tokens": jnp.asarray(ids)}, num_examples=count, batch_size=batch_size, seed=seed, take=take
    )


def stream_windows(ids: np.ndarray | locate.PathLike, context: int, batch_size: int, seed: int) -> Stream:
    """The batches of `windows`, in the same order, cut by the host from a file that `encode_file` made."""
    tokens = ids if isinstance(ids, np.ndarray) else open_ids(ids)
    spare, count = _count_windows(len(tokens), context, batch_size)

    def load(indices, epoch):
        starts = int(_shift(spare, seed, epoch, np)) + indices.astype(np.int64) * context
        return {"tokens": tokens[starts[:, None] + np.arange(context + 1)].astype(np.int32)}

    return Stream(load=load, num_examples=count, batch_size=batch_size, seed=seed)


def streams(ids: np.ndarray, context: int, batch_size: int, seed: Any) -> Resident:
    """Training batches of a text read in order, for truncated backpropagation (Mikolov et al. 2010).

    Row b of each batch is of stream b, the ids b L to (b + 1) L - 1 with L = n // B; the last n - B L are left
    out. Window i holds the tokens i T to (i + 1) T of each: {"tokens": int32 [B, T + 1], "mask": bool [B, T], False
    past the end of the last window, "begins": bool [B], True in the first}.
    """
    if context < 1:
        raise ValueError(f"context must be at least 1, received {context}")
    length = len(ids) // batch_size if batch_size > 0 else 2  # Resident tells of the size
    if length < 2:
        raise ValueError(
            f"a text of {len(ids):,} tokens is too short for {batch_size:,} streams: they need 2 tokens each"
        )
    count = -(-(length - 1) // context)

    def take(data, indices, epoch, seed):
        del epoch, seed
        window, stream = indices // batch_size, indices % batch_size
        places = window[:, None] * context + jnp.arange(context + 1)[None]
        within = places < length
        tokens = data["tokens"][jnp.where(within, stream[:, None] * length + places, 0)]
        tokens = jnp.where(within, tokens, 0).astype(jnp.int32)
        return {"tokens": tokens, "mask": within[:, 1:], "begins": window == 0}

    return Resident(
        data={"tokens": jnp.asarray(ids)},
        num_examples=count * batch_size,
        batch_size=batch_size,
        seed=seed,
        take=take,
        ordered=True,
    )


def evaluation_windows(ids: np.ndarray, context: int) -> dict[str, np.ndarray]:
    """{"tokens": int32 [N, T+1], "mask": bool [N, T]}: every token but the first is predicted exactly once.

    Windows lie side by side from the start; the last one is padded with id 0 where the mask is False.
    """
    if context < 1:
        raise ValueError(f"context must be at least 1, received {context}")
    predictions = len(ids) - 1
    if predictions < 1:
        raise ValueError(f"a text to evaluate needs at least 2 tokens, received {len(ids)}")
    count = -(-predictions // context)
    padded = np.zeros(count * context + 1, np.int32)
    padded[: len(ids)] = ids
    tokens = np.lib.stride_tricks.sliding_window_view(padded, context + 1)[::context].copy()
    return {"tokens": tokens, "mask": (np.arange(count * context) < predictions).reshape(count, context)}


def encode_file(path: locate.PathLike, tokenizer: Tokenizer, out_dir: locate.PathLike) -> Path:
    """Encodes text larger than memory once: a .bin file of ids with a .json that says what they are.

    Reads some megabytes at a time, cut after a line end, so the tokenizer must not join over line ends.
    The file is used again while the tokenizer and the text files (path, size, time) stay the same.
    """
    files = locate.text_files(path)
    stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    about = {
        "tokenizer": tokenizer_hash(tokenizer),
        "dtype": "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32",
        "files": [{"path": name, "bytes": size, "mtime_ns": time} for name, size, time in stats],
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    ids_path = Path(out_dir) / f"{files[0].name.split('.')[0]}-{digest}.bin"
    if not _is_whole(ids_path):
        ids_path.parent.mkdir(parents=True, exist_ok=True)
        partial = ids_path.with_suffix(f".{os.getpid()}.partial")
        count = 0
        try:
            with partial.open("wb") as out:
                for line_chunk in _whole_lines(files):
                    ids = tokenizer.encode(line_chunk)
                    out.write(ids.astype(about["dtype"]).tobytes())
                    count += len(ids)
            ids_path.with_suffix(".json").write_text(json.dumps({**about, "tokens": count}, indent=1) + "\n")
            partial.replace(ids_path)
        finally:
            partial.unlink(missing_ok=True)
    return ids_path


def open_ids(path: locate.PathLike) -> np.ndarray:
    """The ids of a file that `encode_file` made, mapped into memory."""
    path = Path(path)
    if not _is_whole(path):
        raise ValueError(
            f"{str(path)!r} is not a whole file of token ids with its .json beside it; make it anew"
        )
    return np.memmap(path, _about(path)["dtype"], mode="r")


def show_text(tokenizer: Tokenizer) -> Callable[[Any], Samples]:
    """`show(batch)`: the windows of a batch as text, one line each, with a sign for a line end."""
    return lambda batch: Samples(
        texts=[tokenizer.decode(row).replace("\n", "⏎") for row in np.asarray(batch["tokens"])]
    )


def _shift(spare: int, seed, epoch, xp):
    return shuffled(epoch % (spare + 1), spare + 1, seed, epoch // (spare + 1), xp)


def _count_windows(num_tokens: int, context: int, batch_size: int) -> tuple[int, int]:
    """(tokens to spare, windows in an epoch)."""
    if context < 1:
        raise ValueError(f"context must be at least 1, received {context}")
    count = max(num_tokens // context - 1, 0)
    if count < batch_size:
        raise ValueError(
            f"a text of {num_tokens:,} tokens gives {count:,} windows of context {context:,}, fewer than"
            f" batch_size {batch_size:,}: it needs (batch_size + 1) * context ="
            f" {(batch_size + 1) * context:,} tokens"
        )
    return num_tokens - 1 - count * context, count


def _chunks(path: Path) -> Iterator[str]:
    """The text of one file, some megabytes at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line, begun, empty = 0, 1, False, True
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
            while True:
                data = file.read(CHUNK)
                text = decoder.decode(data, final=not data)
                if text and not begun:
                    begun, text = True, text.removeprefix("\ufeff")
                if text:
                    empty = False
                    yield text
                if not data:
                    break
                offset, line = offset + len(data), line + data.count(b"\n")
    except UnicodeDecodeError as error:
        start = offset - (len(error.object) - len(data)) + error.start
        line += error.object[: error.start].count(b"\n")
        marked = start == 0 and error.object[:1] in (b"\xff", b"\xfe")  # its mark of the order of bytes
        raise ValueError(
            f"{str(path)!r}, line {line:,}, is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {start:,};"
            f" convert it, for example with iconv -f {'UTF-16' if marked else 'LATIN1'} -t UTF-8"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{str(path)!r} is not a whole gzip file: {error}") from None
    except PermissionError:
        raise ValueError(f"no permission to read {str(path)!r}") from None
    if empty:
        raise ValueError(f"{str(path)!r} is empty; a text file with at least one character is needed")


def _whole_lines(files: list[Path]) -> Iterator[str]:
    rest = ""
    for file in files:
        for chunk in _chunks(file):
            head, newline, tail = chunk.rpartition("\n")
            if newline:
                yield rest + head + newline
                rest = tail
            else:
                rest += chunk
    if rest:
        yield rest


def _about(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text())


def _is_whole(path: Path) -> bool:
    try:
        about = _about(path)
        return path.stat().st_size == about["tokens"] * np.dtype(about["dtype"]).itemsize
    except (OSError, ValueError, KeyError):
        return False
