"""Where compiled programs are kept from one process to the next; nothing here changes a result."""

import contextlib
import hashlib
import os
import platform
import shutil
import warnings
from pathlib import Path

LIMIT, ROOM = 2 << 30, 100 << 20
"""Bytes: the most that is kept; the least that must be free on the disk for any to be kept."""


def keep_programs() -> Path | None:
    """Lets JAX keep what it compiles in the user's cache: the folder, or None where there is none.

    JAX_COMPILATION_CACHE_DIR names another folder, which is then left as it is;
    JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    import jax

    if not jax.config.jax_enable_compilation_cache:
        return None
    if jax.config.jax_compilation_cache_dir:
        return Path(jax.config.jax_compilation_cache_dir)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "lmlab" / "programs" / machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trim(folder, LIMIT)
        if not os.access(folder, os.W_OK) or shutil.disk_usage(folder).free < ROOM:
            return None
    except OSError:
        return None
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache")  # as well without it
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def machine() -> str:
    """Names the kind of processor: programs hold its machine code, and another may share the home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = [f"model name: {platform.processor()}"]
    kind = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU "))]
    return f"{platform.machine()}-{hashlib.sha256(repr(kind).encode()).hexdigest()[:12]}"


def trim(folder: Path, limit: int) -> None:
    """Removes files, those first that were not used for longest, until half of `limit` bytes is left."""
    with os.scandir(folder) as entries:
        files = [(max(s.st_atime, s.st_mtime), s.st_size, e.path) for e in entries for s in [e.stat()]]
    held = sum(size for _, size, _ in files)
    if held <= limit:
        return
    for _, size, path in sorted(files):
        if held <= limit // 2:
            break
        with contextlib.suppress(OSError):  # another process may be at it
            os.unlink(path)
        held -= size
