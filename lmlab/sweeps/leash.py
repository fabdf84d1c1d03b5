"""python leash.py PARENT CORES COMMAND...: becomes COMMAND, on CORES ("0,1"; "": all), which gets a SIGTERM when
PARENT dies.

A file of its own, run by itself before the command: a process that has threads, as JAX's, must not run Python
between fork and exec.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent: str, cores: str, *command: str) -> None:
    if cores:
        os.sched_setaffinity(0, map(int, cores.split(",")))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before it was asked to tell
        sys.exit(75)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
