"""Whoever wants to see training happen."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from torch import Tensor


class _Scores(TypedDict, total=False):
    val_top1: float
    val_loss: float


class EpochRecord(_Scores):
    """What is known of a finished epoch: a line of ``metrics.jsonl``.

    ``epoch`` counts from 0; ``train_loss`` and ``val_loss`` are means over images, ``lr`` is that of the last update, ``steps``
    the number of updates, ``seconds`` the time they took, ``val_top1`` in percent. ``val_*`` are there only if it was scored.
    """

    epoch: int
    train_loss: float
    lr: float
    steps: int
    seconds: float
    images_per_s: float


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int | None:
    """The epoch with the highest score on val, of equal ones the first; None where none was scored."""
    scores = {record["epoch"]: record["val_top1"] for record in history if "val_top1" in record}
    return max(scores, key=scores.__getitem__, default=None)


class StopTraining(Exception):
    """Raised by an observer after an epoch: the run ends here, resumably. ``facts`` are kept beside the reason."""

    def __init__(self, reason: str, **facts: float) -> None:
        super().__init__(reason)
        self.facts = facts


class Observer:
    """Is told of everything and does nothing: progress display, metrics file and tracker override what they want to see."""

    def resumed(self, history: list[EpochRecord]) -> None:
        """Training goes on after the epochs whose records these are."""

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:
        """Epoch ``epoch`` (from 0) of ``epochs`` begins; it has ``images`` images."""

    def step_done(self, loss: "Tensor | None", lr: float, images: int) -> None:
        """An update was made; ``loss`` is a detached scalar: on a GPU the latest that can be read without waiting for it.

        None: there is none yet in this epoch.
        """

    def setting_scored(self, record: Mapping[str, float]) -> None:
        """A method that is fitted, and not trained in epochs, was scored with one of its settings, which is in the record."""

    def epoch_done(self, record: EpochRecord) -> None:
        """An epoch is finished, checkpointed and, if it was due, scored.

        Raises:
            StopTraining: To end the run early.
        """
