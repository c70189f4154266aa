"""Top-1 accuracy and loss over a loader; the same code for validation and test."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit import distributed
from gift_vit.engine.precision import Precision
from gift_vit.errors import ConfigError


@dataclass(frozen=True)
class Evaluation:
    """``top1`` in percent (0–100), ``loss`` the mean cross entropy in nats, over ``images`` images."""

    top1: float
    loss: float
    images: int


class Tally:
    """Scores added up batch by batch on a device."""

    def __init__(self, device: torch.device) -> None:
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._images = 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch of logits (B, classes) and labels (B,)."""
        logits = logits.float()
        self._correct += (logits.argmax(1) == labels).sum()
        self._loss += F.cross_entropy(logits, labels, reduction="sum").double()
        self._images += len(labels)

    def evaluation(self) -> Evaluation:
        """The scores over all batches, of all processes; no image is an error."""
        images = torch.tensor(self._images, dtype=torch.float64, device=self._loss.device)
        totals = torch.stack([self._correct.double(), self._loss, images])
        distributed.sum_over_processes(totals)
        correct, loss, images = totals.tolist()
        if images == 0:
            raise ConfigError("nothing to evaluate: the split has no images")
        return Evaluation(top1=100 * int(correct) / int(images), loss=loss / images, images=int(images))


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, precision: Precision
) -> Evaluation:
    """Score a model on batches of images (B, 3, H, W) and labels (B,); its training flag is restored.

    Of several processes each scores the batches it is given; the evaluation is of all of them.
    """
    was_training = model.training
    model.eval()
    tally = Tally(device)
    for inputs, labels in batches:
        inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with precision.autocast():
            logits = model(inputs)
        tally.add(logits, labels)
    model.train(was_training)
    return tally.evaluation()
