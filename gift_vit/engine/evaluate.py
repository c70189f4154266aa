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


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, precision: Precision
) -> Evaluation:
    """Score a model on batches of images (B, 3, H, W) and labels (B,); its training flag is restored.

    Of several processes each scores the batches it is given; the evaluation is of all of them.
    """
    was_training = model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    images = 0
    for inputs, labels in batches:
        inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with precision.autocast():
            logits = model(inputs).float()
        correct += (logits.argmax(1) == labels).sum()
        loss += F.cross_entropy(logits, labels, reduction="sum").double()
        images += len(labels)
    model.train(was_training)
    totals = torch.stack([correct.double(), loss, torch.tensor(images, dtype=torch.float64, device=device)])
    distributed.sum_over_processes(totals)
    correct, loss, images = totals.tolist()
    if images == 0:
        raise ConfigError("nothing to evaluate: the split has no images")
    return Evaluation(top1=100 * int(correct) / int(images), loss=loss / images, images=int(images))
