"""A run and its folder: ``Run.open(folder)``, and ``Run.train(words)`` for a new one. Imports no torch."""

from collections.abc import Sequence

from gift_vit.runs.run import Run as _Run

__all__ = ["Run"]


class Run(_Run):
    """One run's folder, everything that can be read from it, and how a run is trained from Python or a notebook.

    A class of its own, since training reads other runs.
    """

    @classmethod
    def train(cls, words: Sequence[str]) -> "Run":
        """Train one run, as ``python -m gift_vit.train <words>`` does; one that is finished already is only opened.

        An interrupted run is resumed. Nothing is left in this process: random states, logging and Hydra are as they were.

        Args:
            words: Of the command line, as ``["dataset=digits", "method=gift", "phase=final"]``; one run, no sweep.

        Raises:
            ConfigError: For a mistake in the words, or a configuration that does not fit data or model.
            RunError: If the training fails.
        """
        from gift_vit.runs.job import train_words  # Hydra, and in there torch

        return cls.open(train_words(words))
