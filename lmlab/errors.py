"""What a user sees of an error: one line, where it is theirs to mend."""

import sys
import traceback
from pathlib import Path


def fail(who: str, error, code: int = 2) -> int:
    """The first line of an error on stderr; returns the exit code."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    print(f"{who}: {lines[0] if lines else type(error).__name__}", file=sys.stderr)
    return code


def of_system(error: OSError) -> str:
    """ "No such file or directory: runs/x"."""
    if error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return error.strerror or str(error)


def ours(error: BaseException) -> bool:
    """Whether lmlab or the experiment raised it: such a message is for the user, others are faults to be seen."""
    here = Path(__file__).resolve().parent
    frames = traceback.extract_tb(error.__traceback__)
    places = [Path(frame.filename).resolve() for frame in frames]
    experiments = {
        Path(module.__file__).resolve()
        for name, module in list(sys.modules.items())
        if name.startswith("lmlab_experiment_")
    }
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        # a key of config.model that the model does not have: raised inside dataclasses
        calls = [frame.name for frame, place in zip(frames, places, strict=True) if place in experiments]
        return calls[-1:] == ["build"]
    return here in places[-1].parents or places[-1] in experiments
