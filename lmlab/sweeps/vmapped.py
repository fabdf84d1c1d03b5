"""A sweep as few programs: runs that differ in numbers alone take each step together (see sweeps/program.py)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lmlab import config as config_lib
from lmlab.flags import UsageError
from lmlab.run import Start
from lmlab.sweeps import grid
from lmlab.sweeps.grid import Cell


def launch(workdir: Path, cells: Sequence[Cell], *, together: int = 0) -> None:
    """Trains cells in this process, those that differ in dynamic leaves and the seed alone as one program.

    together: the most runs of one program, which share the memory of the device; 0: as many as there are
    """
    if together < 0:
        raise UsageError(f"--together: received {together}; allowed: 1 or more, or 0 for all")
    states = {cell.name: grid.status(workdir, cell) for cell in cells}
    for name in (name for name, state in states.items() if state == "running"):
        print(f"elsewhere: {name}", flush=True)
    starts = [
        Start(cell.spec, workdir / cell.name, cell.overrides)
        for cell in cells
        if states[cell.name] not in ("running", "done")
    ]
    groups = [
        group[first : first + (together or len(group))]
        for group in alike(starts)
        for first in range(0, len(group), together or len(group))
    ]
    from lmlab.sweeps.program import Group
    from lmlab.training import parallel

    for number, group in enumerate(groups):
        print(f"program {number + 1} of {len(groups)}, runs: {len(group)}", flush=True)
        parallel.prepare(group[0].config.precision)
        Group(group).train()


def alike(starts: Sequence[Start]) -> list[list[Start]]:
    """Runs in groups that a program each can train: all but the seed and the dynamic leaves is the same.

    Where a dynamic leaf is 0 in one run and not in another, they are apart as well: what is multiplied by 0 is
    left out (weight decay, dropout), and the program has another form.
    """
    from lmlab.training import parallel

    groups: list[tuple[Sequence[str], list[Start]]] = []
    for start in starts:
        found = next((group for dynamic, group in groups if _fits(start, group[0], dynamic)), None)
        if found is not None:
            found.append(start)
            continue
        parallel.prepare(start.config.precision)  # before JAX is asked for anything
        groups.append((start.module.build(start.config, start.assets).dynamic, [start]))
    return [group for _, group in groups]


def _fits(start: Start, other: Start, dynamic: Sequence[str]) -> bool:
    changes = config_lib.difference(other.config, start.config)
    numbers = all(key == "seed" or (key in dynamic and bool(a) == bool(b)) for key, (a, b) in changes.items())
    return numbers and start.module is other.module and _assets(start) == _assets(other)


def _assets(start: Start) -> Mapping[str, bytes] | None:
    """What a run that goes on has kept."""
    folder = start.assets.folder
    return None if folder is None else {path.name: path.read_bytes() for path in folder.glob("*.json")}
