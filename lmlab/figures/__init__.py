"""Figures in one style, from numbers alone: nothing here knows a model or trains."""
