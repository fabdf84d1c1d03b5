"""The direction of imports, the size and names of files, and what no tracked file may hold."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "lmlab").rglob("*.py"))
FORBIDDEN = {  # part: the parts it may not import
    "data": {"models", "layers", "tasks", "training"},
    "decoding": {"models", "tasks", "training", "data", "figures"},
    "evaluation": {"models"},
    "experiment": {"models", "tasks", "layers", "data", "training"},
    "figures": {"models", "training", "tasks", "layers", "decoding"},
    "models": {"training", "data", "figures", "sweeps"},
    "sources": {"models", "tasks", "layers", "training"},
    "tasks": {"models", "training", "data", "figures"},
    "training": {"models", "tasks", "data", "layers", "decoding"},
}
ALLOWED = {"layers": {"layers"}}
LINES = 400
LONG: dict[str, str] = {}  # file of more than LINES lines: the reason
DRAWERS = {"utils", "util", "helpers", "common", "misc", "registry"}


def imports(path: Path) -> set[str]:
    """The modules that a file of this checkout imports, at the top or inside a function."""
    found = set()
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def parts(path: Path) -> set[str]:
    """The parts of lmlab (`models`, `training`, ...) that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("lmlab.")}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_reader_sees_every_kind_of_import(monkeypatch, tmp_path):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "lmlab" / "layers" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import lmlab.models.gpt\nfrom lmlab import tasks\nfrom ..data import text\ndef f(): import jax"
    )
    assert imports(path) == {"lmlab.models.gpt", "lmlab.tasks", "lmlab.data.text", "jax"}
    assert parts(path) == {"models", "tasks", "data"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_direction(path):
    part = path.relative_to(ROOT / "lmlab").with_suffix("").parts[0]
    wrong = parts(path) & FORBIDDEN.get(part, set())
    if part in ALLOWED:
        wrong |= parts(path) - ALLOWED[part]
    assert not wrong, f"{name_of(path)} may not import lmlab.{', lmlab.'.join(sorted(wrong))}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_imports_the_command_line_or_an_experiment(path):
    found = imports(path)
    assert not any(name.startswith("lmlab.__main__") for name in found), (
        "lmlab.__main__ is imported by nobody"
    )
    assert not any(name.split(".")[0] == "experiments" for name in found), (
        "experiments are read, not imported"
    )
    if path.name != "__main__.py":
        assert not re.search(r"\bFLAGS\b", path.read_text()), "absl FLAGS are read in __main__ alone"


def test_no_circle():
    """Modules can be read in one order: each after what it imports."""
    modules = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in SOURCES
    }
    waiting = {}
    for module, path in modules.items():
        named = imports(path)
        wanted = {n if n in modules else n.rpartition(".")[0] for n in named if n.startswith("lmlab.")}
        waiting[module] = {n for n in wanted if n in modules and n != module}
    while ready := {module for module, wanted in waiting.items() if not wanted & waiting.keys()}:
        waiting = {module: wanted for module, wanted in waiting.items() if module not in ready}
    assert not waiting, f"a circle of imports runs through {', '.join(sorted(waiting))}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_size_and_name(path):
    count = len(path.read_text().splitlines())
    assert count <= LINES or name_of(path) in LONG, f"{name_of(path)} has {count} lines: split it, or say why"
    assert not DRAWERS & set(path.relative_to(ROOT).with_suffix("").parts), "name a module by what it holds"


def tracked() -> list[Path]:
    """Files in git or about to be; in a plain copy of the tree, everything but builds and caches."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        made = {".venv", "runs", "sweeps", "build", "__pycache__", "lmlab.egg-info"}
        made |= {".git", ".pytest_cache", ".ruff_cache"}
        paths = [p for p in ROOT.rglob("*") if not made & set(p.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file()]


MACHINE = re.compile(r"(?<![\w.~$}-])/(?:home|work|root|opt|Users|mnt)/\w[\w/.-]*")
INDEX = re.compile(r"(?:pypi\.org|pythonhosted\.org|pytorch\.org/whl|testpypi)\S*|://\S+/simple\b")


def places(text: str) -> list[str]:
    """Paths of one machine and addresses of package indexes in a text."""
    return [found.group() for pattern in (MACHINE, INDEX) for found in pattern.finditer(text)]


def test_places_are_found():
    for bad in (
        "/home" + "/ann/x",
        "see '/work" + "/main'",
        "https://pypi" + ".org/simple",
        "file:///srv/a/simple",
    ):
        assert places(bad), bad
    for good in ("a/home/b", "https://x.org/work/main", "$HOME/opt/x", "/tmp/x", "~/work/x"):
        assert not places(good), good


def test_no_machine_path_and_no_index_address():
    held = {}
    for path in tracked():
        if path == Path(__file__).resolve():
            continue
        try:
            found = places(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
        if found:
            held[name_of(path)] = found
    assert not held
