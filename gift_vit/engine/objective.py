"""What a model is trained for, and what it is scored by: all that the engine knows of a task."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # the label of an example that does not count, which F.cross_entropy ignores unless told otherwise


@dataclass(frozen=True)
class Objective:
    """A loss, and scores.

    Attributes:
        loss: The sum over a batch's outputs (B, C) float32 and labels (B,), without those labelled :data:`IGNORED`.
        scores: Of all outputs (N, C) float32 and labels (N,) of a split: scores in percent by name, the first is the one that
            counts. None: top-1 accuracy, which is counted batch by batch.
        keep_logits: Whether an evaluation keeps the outputs.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    scores: Callable[[NDArray[Any], NDArray[Any]], dict[str, float]] | None = None
    keep_logits: bool = False

    @property
    def needs_logits(self) -> bool:
        """Whether the outputs of a whole split are looked at together."""
        return self.keep_logits or self.scores is not None

    def keeping(self, keep_logits: bool = True) -> "Objective":
        """The same, with the outputs kept or not."""
        return replace(self, keep_logits=keep_logits)


cross_entropy: Callable[[Tensor, Tensor], Tensor] = partial(F.cross_entropy, reduction="sum")
CLASSES = Objective(cross_entropy)
"""Classes, told apart by cross entropy and counted by top-1 accuracy."""


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """The sum of (output − label)² over outputs (B, 1) and labels (B,)."""
    errors = outputs.squeeze(1) - labels
    return (errors**2).masked_fill(labels == IGNORED, 0.0).sum()
