"""Where and when something was made: what run.json and the records of benchmarks say of it."""

import datetime
import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ml-collections")


def surroundings(folder: Path) -> dict[str, Any]:
    """Of this process; folder: where the experiment is."""
    import jax

    devices = jax.devices()
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "host": {"cores": os.cpu_count(), "processor": processor(), "system": platform.system()},
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git_commit": git_commit(folder),
        "command": shlex.join(["lmlab", *sys.argv[1:]]) if sys.argv and "lmlab" in sys.argv[0] else "",
        "when": now(),
    }


def git_commit(folder: Path) -> str:
    """The commit of the code, with "+changes" if the tree differs from it; empty outside git."""
    try:
        run = functools.partial(
            subprocess.run, cwd=folder, capture_output=True, text=True, check=True, timeout=10
        )
        commit = run(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        return commit + (
            "+changes"
            if run(["git", "status", "--porcelain", "-uno", "--", ":(top,exclude)results"]).stdout.strip()
            else ""
        )
    except (OSError, subprocess.SubprocessError):
        return ""


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def now() -> str:
    """The time, for people and for sorting."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
