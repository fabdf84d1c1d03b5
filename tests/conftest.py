"""Set before JAX is imported: eight CPU devices, shapes checked at run time, warnings as errors."""

import os
import platform
import sys
import tempfile
import types
from pathlib import Path

# Eight virtual devices on two cores wait for one another in every collective: with fewer than two threads
# a device in the pool, some never get one and the process hangs or aborts.
os.environ["NPROC"] = str(max(16, int(os.environ.get("NPROC", 0))))
os.environ["MPLBACKEND"] = "Agg"

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception
from jaxtyping import install_import_hook


def check(function):
    """Checks annotations at every call; an int passes for a float, as everywhere in Python."""
    try:
        return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
    except BeartypeDecorHintPep3119Exception:  # names a Protocol that is not runtime_checkable
        return function


sys.modules["lmlab_checker"] = types.ModuleType("lmlab_checker")  # the hook wants a name that can be imported
sys.modules["lmlab_checker"].check = check
install_import_hook("lmlab", "lmlab_checker.check")


def cache_folder() -> Path:
    """Compiled programs of earlier test runs, by machine: another processor must not be given them."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "lmlab" / f"tests-{platform.node()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / "lmlab-tests"
    return folder


os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache_folder())  # here, and in what the tests start
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parents[1]


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in its own
def pytest_collection_modifyitems(items):
    """Which tests share a process of several: those of a file, and of test_experiments.py those of an experiment."""
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        each = params.get("demo", params.get("path")) if item.path.name == "test_experiments.py" else None
        item.add_marker(pytest.mark.xdist_group(f"{item.path.name} {getattr(each, 'stem', '')}"))


@pytest.fixture(scope="module")
def compiled_in_haste():
    """For programs that run for twenty steps: what XLA would spend on making them fast is half of the time and more."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def tiny_text() -> str:
    """A few thousand characters that a tiny model can learn: ten lines, over and over."""
    lines = [f"{first} sees {second}.\n" for first in ("the cat", "a dog") for second in "abcde"]
    return "".join(lines) * 25


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data: $LMLAB_DATA, or shared/data beside the checkout; without either the test skips."""
    given = os.environ.get("LMLAB_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if given and not folder.is_dir():
        raise FileNotFoundError(f"LMLAB_DATA names no folder: {given!r}")
    if not folder.is_dir():
        pytest.skip("needs real data: set LMLAB_DATA to their folder")
    return folder
