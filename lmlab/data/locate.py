"""Where data files are: as given, or in the folder that the environment variable LMLAB_DATA names."""

import glob
import os
from pathlib import Path

PathLike = str | os.PathLike


def text_file(path: PathLike) -> Path:
    """`path` as given when it is there, else the same path inside LMLAB_DATA; a file or a folder."""
    for place in _places(path):
        if place.exists():
            return place
    raise FileNotFoundError(_missing(path))


def text_folder(path: PathLike) -> Path | None:
    """The folder that `path` names, there or inside LMLAB_DATA; None where it names a file, several, or nothing."""
    found = next((place for place in _places(path) if place.exists()), None)
    return found if found is not None and found.is_dir() else None


def text_files(spec: PathLike) -> list[Path]:
    """The files of `spec`: paths, globs and folders (their *.txt and *.txt.gz), joined by comma.

    What commas join stays in the order given; a glob or a folder is read in sorted order.
    """
    spec = os.fspath(spec)
    whole = any(place.exists() for place in _places(spec))  # a name may itself hold a comma or a bracket
    files: list[Path] = []
    for part in [spec] if whole else [part.strip() for part in spec.split(",")]:
        magic = glob.has_magic(part) and not whole
        for path in _matches(part) if magic else [text_file(part)]:
            files.extend(_texts_in(path) if path.is_dir() else [path])
    return files


def tfds_folder(tfds_dir: PathLike | None = None) -> Path:
    """The folder of prepared data sets: as given, else $LMLAB_DATA/tfds, else ~/tensorflow_datasets."""
    if tfds_dir:
        return Path(tfds_dir).expanduser()
    folder = _data_folder()
    if folder is not None and (folder / "tfds").is_dir():
        return folder / "tfds"
    return Path.home() / "tensorflow_datasets"


def _data_folder() -> Path | None:
    folder = os.environ.get("LMLAB_DATA", "")
    return Path(folder).expanduser() if folder else None


def _places(path: PathLike) -> list[Path]:
    if not os.fspath(path):
        raise ValueError("no text file was named; set --config.data.path=FILE or use the variant demo")
    given, folder = Path(path).expanduser(), _data_folder()
    return [given] if folder is None or given.is_absolute() else [given, folder / given]


def _matches(pattern: str) -> list[Path]:
    for place in _places(pattern):
        if found := sorted(glob.glob(str(place))):
            return [Path(name) for name in found]
    raise FileNotFoundError(_missing(pattern))


def _texts_in(folder: Path) -> list[Path]:
    files = sorted(
        path for path in folder.iterdir() if path.name.endswith((".txt", ".txt.gz")) and path.is_file()
    )
    if not files:
        raise FileNotFoundError(f"the folder {str(folder)!r} holds no *.txt or *.txt.gz file")
    return files


def _missing(path: PathLike) -> str:
    looked = " and ".join(repr(str(place.absolute())) for place in _places(path))
    hint = "" if _data_folder() else " (LMLAB_DATA is not set)"
    return (
        f"no text file {os.fspath(path)!r}: looked for {looked}{hint}; set --config.data.path=FILE, or"
        " LMLAB_DATA to the folder of the data; the variant demo needs no file"
    )
