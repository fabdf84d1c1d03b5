"""What a process can set so that programs run fast on a CPU; nothing here changes a result."""

import ctypes
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8  # malloc.h of glibc


def keep_memory() -> bool:
    """Lets malloc keep what is freed; whether that could be set (Linux with glibc, LMLAB_KEEP_MEMORY not 0).

    XLA allocates its temporary buffers anew for each step. Memory above 32 MB comes by mmap and goes back
    at once, so that every step would fault its pages in again: a third of a small model's time. One arena,
    because any other maps what is above 64 MB whatever is set. The price is memory: a freed block may be
    cut by a smaller one and a second be asked for, so that a process may hold twice its largest buffer.
    """
    if sys.platform != "linux" or os.environ.get("LMLAB_KEEP_MEMORY") == "0":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 2**28, ARENA_MAX: 1}
    return all([mallopt(option, value) for option, value in options.items()])
