"""Images of one size with a label each: MNIST and Fashion-MNIST as prepared by TFDS, and digits that ship."""

import contextlib
import functools
import hashlib
import importlib.util
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lmlab.data import locate
from lmlab.experiment import Samples
from lmlab.sources import Resident, rows, shuffled

SIZES = {"mnist": (28, 28), "fashion_mnist": (28, 28)}
PARTS = {"train": "train[:55000]", "validation": "train[55000:]", "test": "test"}
DIGITS = {"train": slice(0, 1437), "validation": slice(1437, 1617), "test": slice(1617, 1797)}
SPLIT = re.compile(r"(\w+?)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


def load(name: str, split: str, tfds_dir: locate.PathLike | None = None) -> dict[str, np.ndarray]:
    """{"image": uint8 [N, H, W], "label": int32 [N]} of a split such as "train", "train[:55000]", "test".

    The order is that of the TFDS files, which is fixed: TFDS shuffled them once, by a hash of each
    example's key. So "train[:55000]" is the same set of examples everywhere, but not the first 55,000
    of the original files. Decoded images are kept in the user's cache folder for the next start.
    """
    if name not in SIZES:
        raise ValueError(f"unknown image data set {name!r}; allowed: {', '.join(SIZES)}")
    part, start, stop = _parse(split)
    folder, files = _prepared(name, part, locate.tfds_folder(tfds_dir))
    cached = _cache_file(name, folder.name, part, files)
    images = _read_cache(cached)
    if images is None:
        images = _decode(name, part, folder)
        _write_cache(cached, images)
    size = len(images["label"])
    chosen = slice(_position(start, 0, size), _position(stop, size, size))
    if not len(range(*chosen.indices(size))):
        raise ValueError(f"the split {split!r} is empty: {part} has {size:,} examples")
    return {key: values[chosen] for key, values in images.items()}


def digits(split: str) -> dict[str, np.ndarray]:
    """The 1,797 digits of 8 x 8 that scikit-learn carries, their values 0..16 spread over 0..255.

    A fixed shuffle (`sources.shuffled`, seed 0) gives 1,437 to train, 180 to validation, 180 to test.
    """
    if split not in DIGITS:
        raise ValueError(f"unknown split {split!r} of digits; allowed: {', '.join(DIGITS)}")
    # The file is read where it lies: importing sklearn.datasets takes seconds.
    sklearn = importlib.util.find_spec("sklearn")
    table = np.loadtxt(Path(sklearn.origin).parent / "datasets/data/digits.csv.gz", np.int32, delimiter=",")
    table = table[shuffled(np.arange(1797), 1797, 0, 0, np)[DIGITS[split]]]
    image = np.rint(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return {"image": image, "label": table[:, 64]}


def shape(name: str) -> tuple[int, int]:
    """Height and width of a data set's images: mnist, fashion_mnist or digits."""
    known = {**SIZES, "digits": (8, 8)}
    if name not in known:
        raise ValueError(f"unknown image data set {name!r}; allowed: {', '.join(known)}")
    return known[name]


def parts(name: str, tfds_dir: locate.PathLike | None = None) -> Callable[[str], dict[str, np.ndarray]]:
    """`read(part)` for train, validation and test of a data set, each read once, on first use.

    Of MNIST and Fashion-MNIST the last 5,000 training images are for validation, so that nothing is
    chosen on the test images.
    """
    shape(name)

    @functools.cache
    def read(part: str) -> dict[str, np.ndarray]:
        return digits(part) if name == "digits" else load(name, PARTS[part], tfds_dir)

    return read


def binarized(images: dict[str, np.ndarray], *seed: int) -> dict[str, np.ndarray]:
    """Each pixel 255 with probability grey / 255, else 0: drawn once, the same for the same seed."""
    grey = images["image"]
    drawn = np.random.default_rng(seed).random(grey.shape, np.float32) * 255 < grey
    return {**images, "image": drawn.astype(np.uint8) * 255}


def with_noise(images: dict[str, np.ndarray], deviation: float, *seed: int) -> dict[str, np.ndarray]:
    """With "noisy" images beside: noise of N(0, deviation^2) added once to greys in [0, 1], cut, kept as bytes."""
    noise = np.random.default_rng(seed).standard_normal(images["image"].shape, np.float32)
    noisy = np.clip(images["image"] + 255 * np.float32(deviation) * noise, 0, 255)
    return {**images, "noisy": np.rint(noisy).astype(np.uint8)}


def halved(images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Half as high and wide: each byte the rounded mean of a square of four."""
    count, high, wide = images["image"].shape
    squares = images["image"].reshape(count, high // 2, 2, wide // 2, 2)
    return {**images, "image": np.rint(squares.mean((2, 4), dtype=np.float32)).astype(np.uint8)}


def labels_in_turn(label: int, count: int, num_classes: int = 10) -> np.ndarray:
    """`count` labels: the one that was asked for, or with -1 each class in turn."""
    if not -1 <= label < num_classes:
        raise ValueError(
            f"label must be from 0 to {num_classes - 1}, or -1 for each in turn; received {label}"
        )
    return np.arange(count, dtype=np.int32) % num_classes if label == -1 else np.full(count, label, np.int32)


def scaled(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with its uint8 images ("image", "noisy") as float32 in [0, 1]."""
    pictures = {name: batch[name] for name in ("image", "noisy") if name in batch}
    return {**batch, **{name: picture.astype(jnp.float32) / 255 for name, picture in pictures.items()}}


def resident(images: dict[str, np.ndarray], batch_size: int, seed: Any) -> Resident:
    """Training batches {"image": float32 [B, H, W] in [0, 1], "label": int32 [B]}; bytes on the device."""
    data = {key: jnp.asarray(values) for key, values in images.items()}

    def take(data, indices, epoch, seed):
        return scaled(rows(data, indices, epoch))

    return Resident(data=data, num_examples=len(images["label"]), batch_size=batch_size, seed=seed, take=take)


def show_images(batch: dict[str, Any]) -> Samples:
    """A batch as images and the text of their labels."""
    return Samples(
        images=np.asarray(batch["image"]), texts=[str(label) for label in np.asarray(batch["label"])]
    )


def _parse(split: str) -> tuple[str, str | None, str | None]:
    match = SPLIT.fullmatch(split)
    if match is None or match[1] not in ("train", "test"):
        raise ValueError(
            f"unknown split {split!r}; allowed: train, test, and slices such as train[:55000], test[:10%]"
        )
    return match[1], match[2], match[3]


def _position(text: str | None, default: int, size: int) -> int:
    if text is None:
        return default
    place = round(int(text[:-1]) * size / 100) if text.endswith("%") else int(text)
    return min(max(place + size if place < 0 else place, 0), size)


def _prepared(name: str, split: str, tfds_dir: Path) -> tuple[Path, list[Path]]:
    """The newest version's folder and the split's files. Looked at before tfds is asked, which would
    try to download for minutes and leave empty folders behind."""
    versions = [path.parent for path in (tfds_dir / name).glob("*.*.*/dataset_info.json")]
    versions.sort(key=lambda path: [int(part) if part.isdigit() else -1 for part in path.name.split(".")])
    files = sorted(versions[-1].glob(f"{name}-{split}.array_record-*")) if versions else []
    if not files:
        raise FileNotFoundError(
            f"no {name} prepared as array_record in {str(tfds_dir / name)!r}; set LMLAB_DATA to the folder"
            " that holds tfds/, or use the variant demo, which needs no file, or prepare it once: pip install"
            f" 'lmlab[prepare]' && python -c \"import tensorflow_datasets as t; t.builder('{name}',"
            f" data_dir='{tfds_dir}', file_format='array_record').download_and_prepare()\""
        )
    return versions[-1], files


def _decode(name: str, split: str, folder: Path) -> dict[str, np.ndarray]:
    import tensorflow_datasets as tfds
    from PIL import Image

    size = SIZES[name]
    try:
        builder = tfds.builder_from_directory(folder)
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        examples = source.__getitems__(range(len(source)))
    except Exception as error:  # what a damaged folder raises depends on the reader's version
        raise ValueError(
            f"{split} of {str(folder)!r} cannot be read: {_one_line(error)}; prepare it anew"
        ) from error
    image = np.empty((len(examples), *size), np.uint8)
    for i, example in enumerate(examples):  # threads were tried: slower, images this small hold the lock
        try:
            pixels = np.asarray(Image.open(io.BytesIO(example["image"]), formats=("PNG",)))
        except (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error) as error:
            raise ValueError(f"image {i} of {name} {split} is damaged: {_one_line(error)}") from error
        if pixels.shape != size or pixels.dtype != np.uint8:
            raise ValueError(
                f"image {i} of {name} {split} is {pixels.shape} of {pixels.dtype}; it must be {size} of uint8"
            )
        image[i] = pixels
    return {"image": image, "label": np.array([example["label"] for example in examples], np.int32)}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _cache_file(name: str, version: str, split: str, files: list[Path]) -> Path:
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "lmlab" / f"{name}-{version}-{split}-{digest}.npz"


def _read_cache(path: Path) -> dict[str, np.ndarray] | None:
    try:
        with path.open("rb") as file, np.load(file) as saved:
            return {"image": saved["image"], "label": saved["label"]}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_cache(path: Path, images: dict[str, np.ndarray]) -> None:
    """Written beside and renamed: no reader sees half a file. A cache that cannot be written is no error."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, **images)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
