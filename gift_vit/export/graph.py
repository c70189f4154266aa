"""The model as the function that is exported: what goes in, what comes out, which sizes are free."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from gift_vit.data.transforms import InputStatistics
from gift_vit.methods.adapter import adapter_state_dict, applied_method, head_names
from gift_vit.methods.config import GiftConfig

_LARGEST_BATCH, _LARGEST_RANK, _MOST_CLASSES = 4096, 4096, 65536
_EXAMPLES = 2  # images; of one, torch would take the batch for a constant


@dataclass(frozen=True)
class Inputs:
    """The tensors of an adapter file, which are inputs beside the images, in order, and their free sizes.

    Attributes:
        tensors: By state-dict name: the run's own.
        free: For each, what is free about it: axis to dimension.
    """

    tensors: dict[str, Tensor]
    free: list[dict[int, Any]]


class Graph(nn.Module):
    """A model from images to logits in float32, whatever it computes in.

    Args:
        model: In evaluation mode; its parameters are of one type.
        stats: Given: images are pixels of 0 to 255, (B, S, S, 3), and normalised first. None: normalised ones, (B, 3, S, S).
        names: State-dict names of the tensors that are inputs.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, stats: InputStatistics | None, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.dtype = next(model.parameters()).dtype
        self.takes_pixels = stats is not None
        if stats is not None:
            self.register_buffer("mean", torch.tensor(stats.mean).view(3, 1, 1))
            self.register_buffer("std", torch.tensor(stats.std).view(3, 1, 1))

    def forward(self, images: Tensor, tensors: tuple[Tensor, ...] = ()) -> Tensor:
        """Logits (B, classes)."""
        if self.takes_pixels:
            images = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        replaced = {
            name: tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in zip(self.names, tensors, strict=True)
        }
        return torch.func.functional_call(self.model, replaced, (images.to(self.dtype),)).float()


def adapter_inputs(model: nn.Module) -> Inputs:
    """All that the adapter file of a model with a method applied holds: frozen random projections too, for a seed draws them.

    Free are the number of classes, and the rank of GIFT's φ (d × r) and ψ (r × d) where nothing else depends on it.
    """
    classes = Dim("classes", min=1, max=_MOST_CLASSES)
    gift, head = applied_method(model).config, head_names(model)
    free_rank = isinstance(gift, GiftConfig) and gift.schema == "linear" and not gift.phi_bias and gift.alpha is None
    tensors = {name: tensor.detach().clone() for name, tensor in adapter_state_dict(model).items()}
    rank = Dim("rank", min=1, max=_LARGEST_RANK)
    axes = {"phi": {1: rank}, "psi": {0: rank}} if free_rank else {}
    free = [{0: classes} if name in head else axes.get(name.rpartition(".")[2], {}) for name in tensors]
    return Inputs(tensors, free)


def to_program(graph: Graph, images: Tensor, inputs: Inputs | None) -> ExportedProgram:
    """Record the graph with images like these, for batches of any size.

    Raises:
        Exception: Of many kinds, where torch cannot follow the model or a size would become a constant.
    """
    batch = {0: Dim("batch", min=1, max=_LARGEST_BATCH)}
    examples: tuple[Any, ...] = (images[:_EXAMPLES],)
    shapes: tuple[Any, ...] = (batch,)
    if inputs is not None:
        examples, shapes = (*examples, tuple(inputs.tensors.values())), (*shapes, tuple(inputs.free))
    return torch.export.export(graph, examples, dynamic_shapes=shapes, strict=False)
