"""What a model's outputs are worth: the loss that training makes smaller, and which examples are right."""

from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # the label that does not count, as F.cross_entropy has it unless told otherwise


class Objective(Protocol):
    """Both for a batch of B examples; nothing here knows of other batches.

    Attributes:
        keeps_logits: Whether the outputs of all batches have one shape but for B, and can be kept together.
    """

    keeps_logits: bool

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The losses of the examples that count, summed: a scalar, in nats."""
        ...

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Whether each example is right, (B,)."""
        ...


class Classes:
    """Logits (B, C) and one class each, (B,)."""

    keeps_logits = True

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy."""
        return F.cross_entropy(outputs, labels, reduction="sum")

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The first choice is the label."""
        return outputs.argmax(1) == labels


class Sequences:
    """Logits (B, A, C) and a sequence of classes each, (B, A'), of A' ≥ A, which ends where the logits do.

    Shorter sequences are filled up in front with :data:`IGNORED`. Every example counts alike, however long it is.
    """

    keeps_logits = False

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy, of each example the mean over its positions."""
        labels = labels[:, labels.shape[1] - outputs.shape[1] :]
        each = F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        return (each.sum(1) / (labels != IGNORED).sum(1).clamp(min=1)).sum()

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The first choice is the label at every position: what greedy decoding would give out, to the end."""
        labels = labels[:, labels.shape[1] - outputs.shape[1] :]
        return ((outputs.argmax(2) == labels) | (labels == IGNORED)).all(1)


CLASSES: Objective = Classes()
SEQUENCES: Objective = Sequences()
