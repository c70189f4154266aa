"""What a model is trained for, and what it is scored by: all that the engine knows of a task."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gift_vit.common.tensors import IGNORED


def first_choice(outputs: Tensor, labels: Tensor) -> Tensor:
    """Whether the largest output of (B, C) is that of the label, (B,)."""
    return outputs.argmax(1) == labels


@dataclass(frozen=True)
class Objective:
    """A loss, and scores.

    Attributes:
        loss: The sum over a batch's outputs (B, C) float32 and labels (B,), without those labelled :data:`IGNORED`.
        correct: Which examples of such a batch are right, (B,).
        of_one_shape: Whether the outputs of all batches have one shape but for B, and can be kept together.
        scores: Of all outputs (N, C) float32 and labels (N,) of a split: scores in percent by name, the first is the one that
            counts. None: the share of the examples that are right, which is counted batch by batch.
        keep_logits: Whether an evaluation keeps the outputs.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    correct: Callable[[Tensor, Tensor], Tensor] = first_choice
    of_one_shape: bool = True
    scores: Callable[[NDArray[Any], NDArray[Any]], dict[str, float]] | None = None
    keep_logits: bool = False

    @property
    def needs_logits(self) -> bool:
        """Whether the outputs of a whole split are looked at together."""
        return self.keep_logits or self.scores is not None

    def keeping(self, keep_logits: bool = True) -> "Objective":
        """The same, with the outputs kept or not; kept only where they can be."""
        return replace(self, keep_logits=keep_logits and self.of_one_shape)


cross_entropy: Callable[[Tensor, Tensor], Tensor] = partial(F.cross_entropy, reduction="sum")
CLASSES = Objective(cross_entropy)
"""Classes, told apart by cross entropy and counted by top-1 accuracy."""


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """The sum of (output − label)² over outputs (B, 1) and labels (B,), without those labelled NaN."""
    outputs = outputs.squeeze(1)
    errors = outputs - outputs.detach().where(labels.isnan(), labels)
    return (errors**2).sum()


def sequence_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of sequences of classes, of each example the mean over its positions: however long, all count alike.

    Args:
        outputs: (B, A, C).
        labels: (B, A') with A' ≥ A; both end at the same position, and what is shorter is filled up in front with
            :data:`IGNORED`.
    """
    labels = _ends(labels, outputs)
    each = F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return (each.sum(1) / (labels != IGNORED).sum(1).clamp(min=1)).sum()


def whole_sequence(outputs: Tensor, labels: Tensor) -> Tensor:
    """Whether the first choice is the label at every position, as greedy decoding would go to the end, (B,)."""
    labels = _ends(labels, outputs)
    return ((outputs.argmax(2) == labels) | (labels == IGNORED)).all(1)


def _ends(labels: Tensor, outputs: Tensor) -> Tensor:
    return labels[:, labels.shape[1] - outputs.shape[1] :]


SEQUENCES = Objective(sequence_cross_entropy, whole_sequence, of_one_shape=False)
"""Sequences of classes, right if all of them are."""
