"""Figures in one style, from numbers alone: nothing here knows a model or trains.

A module is loaded at its first use: an experiment names its figures, and matplotlib and pandas would cost
the command that trains it half a second.
"""

import importlib.util
import sys


def _at_first_use(name: str):
    spec = importlib.util.find_spec(f"{__name__}.{name}")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


curves, images, maps, settings, style, table = map(
    _at_first_use, ("curves", "images", "maps", "settings", "style", "table")
)
