"""What a training step costs whatever it runs on: floating-point operations, and what is kept for the backward pass."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Operations of the forward pass and of the whole step; ``saved_bytes`` counts each storage once, parameters left out."""

    forward_flops: int
    flops: int
    saved_bytes: int


def training_cost(model: nn.Module, images: Tensor) -> Cost:
    """The cost of one step of a model on images (B, 3, H, W); its gradients are cleared."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(images)
        forward_flops = counter.get_total_flops()
        saved_bytes = sum(storage.nbytes() for storage in saved.values())
        F.cross_entropy(logits, torch.arange(len(images), device=images.device) % logits.shape[1]).backward()
    model.zero_grad()
    return Cost(forward_flops, counter.get_total_flops(), saved_bytes)


def inference_flops(model: Callable[[Tensor], object], images: Tensor) -> int:
    """Operations of a forward pass without gradients."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops()
