"""A run and its folder: ``Run.open(folder)``. Imports no torch."""

from gift_vit.runs.run import Run

__all__ = ["Run"]
