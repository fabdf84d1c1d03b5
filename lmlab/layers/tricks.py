"""Other ways to the same numbers that are faster, each with a name and a switch.

turned_operand      x^T y of a backward pass in bfloat16 as a product that the CPU has a kernel for (linear.py)
table_rows          a linear map of embeddings maps the table, not each embedding (linear.py)
recurrent_gradient  dU of a recurrent layer as one product after the scan, not one a step (recurrent.py)
largest             the largest of many numbers in two stages (largest.py)
kernel_gradient     dW of a convolution as a convolution of another, or as products (convolution.py)

They are on where JAX's default backend is a CPU, recurrent_gradient on a GPU as well, and off elsewhere. `without`
switches some off, as the environment variable LMLAB_WITHOUT does ("table_rows,turned_operand", or "all"); both are
read while a function is traced. Gradients are the same but for rounding. recurrent_gradient and kernel_gradient
have a reverse rule alone: forward mode (`jax.jvp`) through such a layer wants `without("recurrent_gradient")`.
"""

import contextlib
import contextvars
import os
from collections.abc import Iterator

import jax

NAMES = {
    "turned_operand": ("cpu",),
    "table_rows": ("cpu",),
    "recurrent_gradient": ("cpu", "gpu"),
    "kernel_gradient": ("cpu",),
    "largest": ("cpu",),
}
"""And the backends on which each is on."""


def _parse(names: str) -> frozenset[str]:
    off = {name.strip() for name in names.split(",")} - {""}
    unknown = off - {"all", *NAMES}
    if unknown:
        raise ValueError(f"unknown trick {sorted(unknown)[0]!r}; allowed: all, {', '.join(NAMES)}")
    return frozenset(NAMES) if "all" in off else frozenset(off)


_off: contextvars.ContextVar[frozenset[str] | None] = contextvars.ContextVar("off", default=None)


def uses(name: str) -> bool:
    """Whether the trick is on here and now."""
    off = _off.get()
    if off is None:
        off = _parse(os.environ.get("LMLAB_WITHOUT", ""))
    return name not in off and jax.default_backend() in NAMES[name]


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Within it, what is traced goes without these tricks; "all" for every one."""
    token = _off.set(_parse(",".join(names)))
    try:
        yield
    finally:
        _off.reset(token)
