"""What a process sets for speed: memory that is kept, programs that are kept, and their switches."""

import os
import subprocess
import sys
from pathlib import Path

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


def test_programs_unused_for_longest_go_first(tmp_path):
    for number in range(4):
        path = tmp_path / str(number)
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + number, 1000 + number))
    compiled.trim(tmp_path, 400)
    assert len(list(tmp_path.iterdir())) == 4  # not more than is allowed
    compiled.trim(tmp_path, 399)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3"]


def test_a_processor_has_a_folder_of_its_own():
    assert compiled.machine() == compiled.machine() and "/" not in compiled.machine()
