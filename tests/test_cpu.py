"""What a process sets for speed: memory that is kept, programs that are kept, and their switches."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from lmlab import compiled

ROOT = Path(__file__).parents[1]
GLIBC = sys.platform == "linux" and "glibc" in os.confstr("CS_GNU_LIBC_VERSION")
HELD = """
import numpy as np
from lmlab import cpu
print(cpu.keep_memory())
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
held = np.ones(25_000_000)
del held
print(resident() - before > 150e6)
"""


@pytest.mark.skipif(not GLIBC, reason="keep_memory sets glibc's malloc")
@pytest.mark.parametrize(("switch", "expected"), [("", ["True", "True"]), ("0", ["False", "False"])])
def test_what_is_freed_is_kept_unless_switched_off(switch, expected):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LMLAB_KEEP_MEMORY": switch}
    done = subprocess.run([sys.executable, "-c", HELD], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == expected, done.stderr


REUSED = """
import ctypes, resource, threading
from lmlab import cpu
cpu.keep_memory()
libc, size = ctypes.CDLL(None), 100 << 20
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def use():
    at = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(at, 1, size)
    libc.free(at)
def faults(before=0):
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def thread():
    use()
    before = faults()
    use()
    print(faults(before) < 1000)
other = threading.Thread(target=thread)
other.start()
other.join()
"""


@pytest.mark.skipif(not GLIBC, reason="keep_memory sets glibc's malloc")
@pytest.mark.parametrize(("switch", "expected"), [("", "True"), ("0", "False")])
def test_a_thread_is_given_again_what_it_freed(switch, expected):
    """100 MB are more than malloc has in an arena of a thread's own: it would map and fault them in anew."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LMLAB_KEEP_MEMORY": switch}
    done = subprocess.run([sys.executable, "-c", REUSED], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr


KEPT = """
import jax
from lmlab import compiled
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
folder = compiled.keep_programs()
value = jax.jit(lambda x: jax.numpy.sin(x) @ jax.numpy.cos(x))(jax.numpy.linspace(0, 1, 999))
print(folder, hits.count("/jax/compilation_cache/cache_hits"), float(value).hex())
"""


def compute(**environment) -> tuple[str, int, str]:
    """(folder of the programs, how many came from it, a result to the last bit) of a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = {**kept, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", KEPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    folder, hits, value = done.stdout.split()
    return folder, int(hits), value


def test_programs_are_kept_for_the_next_process_and_compute_the_same(tmp_path):
    fresh, again = compute(XDG_CACHE_HOME=str(tmp_path)), compute(XDG_CACHE_HOME=str(tmp_path))
    assert fresh[0] == again[0] == str(tmp_path / "lmlab" / "programs" / compiled.machine())
    assert fresh[1] == 0 and again[1] > 0
    off = compute(XDG_CACHE_HOME=str(tmp_path / "other"), JAX_ENABLE_COMPILATION_CACHE="false")
    assert off[:2] == ("None", 0) and not (tmp_path / "other").exists()
    assert fresh[2] == again[2] == off[2]


def test_a_folder_that_is_named_is_left_as_it_is(tmp_path):
    folder, _, _ = compute(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"), XDG_CACHE_HOME=str(tmp_path))
    assert folder == str(tmp_path / "mine") and not (tmp_path / "lmlab").exists()


def test_where_nothing_can_be_kept_nothing_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    assert compute(XDG_CACHE_HOME=str(tmp_path / "file"))[:2] == ("None", 0)


@pytest.fixture
def unset():
    """No folder of compiled programs is named yet."""
    named = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", named)


@pytest.mark.parametrize("lacking", ["room", "permission"])
def test_a_folder_without_room_or_permission_is_not_used(lacking, tmp_path, monkeypatch, unset):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if lacking == "room":
        monkeypatch.setattr(compiled, "ROOM", 1 << 80)
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert compiled.keep_programs() is None and not jax.config.jax_compilation_cache_dir


def test_programs_unused_for_longest_go_first(tmp_path):
    for number in range(4):
        path = tmp_path / str(number)
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + number, 1000 + number))
    compiled.trim(tmp_path, 400)
    assert len(list(tmp_path.iterdir())) == 4  # not more than is allowed
    compiled.trim(tmp_path, 399)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3"]


def test_a_processor_has_a_folder_of_its_own(monkeypatch):
    def machine(text):
        monkeypatch.setattr(Path, "read_text", lambda path: text)
        return compiled.machine()

    one = "processor : 0\nmodel name : A\ncpu MHz : 2000\nflags : fpu sse\n\nprocessor : 1\nmodel name : A\n"
    assert "/" not in machine(one)
    assert machine(one) == machine(one.replace("2000", "3000"))
    assert len({machine(text) for text in (one, one.replace("sse", "avx"), one.replace("A", "B"))}) == 3
