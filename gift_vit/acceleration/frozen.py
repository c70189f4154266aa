"""Frozen products in bf16: what autocast would cast anew in every forward pass, and keep for the backward pass, is cast once.

Autocast keeps a cast weight for the rest of a forward pass only if that weight is trained. A frozen one it casts again in each
pass, and as autograd keeps the copy, it takes memory beside the weight. Held in bf16 from the start, the products are the same
to the bit, and weights and copies take a third of what they took.
"""

from collections import Counter

import torch
from torch import Tensor, nn


def hold_frozen_products(model: nn.Module) -> bool:
    """Round the frozen linear layers inside the blocks of a timm ViT to bf16, in place; whether there are any.

    Layers that a method has put in the place of timm's keep their numbers, for it may do more with them than a product; so do
    norms, embeddings, head and everything trained. The model then computes under bf16 autocast alone, the same bits as
    before. Its float32 weights stay on the CPU in ``model.held_in_bf16``, by name, and
    :func:`gift_vit.methods.merge_method` brings them back.
    """
    held: dict[str, Tensor] = {}
    for name in _frozen_products(model):
        parameter = model.get_parameter(name)
        held[name] = parameter.data.cpu()
        parameter.data = parameter.data.to(torch.bfloat16)
    if held:
        vars(model)["held_in_bf16"] = held
    return bool(held)


def _frozen_products(model: nn.Module) -> list[str]:
    """State-dict names of weights and biases of frozen linear layers that timm's own modules use."""
    uses = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    names: list[str] = []
    for name, module in model.named_modules():
        parent = model.get_submodule(name.rpartition(".")[0])
        if type(module) is nn.Linear and name.startswith("blocks.") and type(parent).__module__.startswith("timm."):
            names += [
                f"{name}.{own}"
                for own, parameter in module.named_parameters(recurse=False)
                if not parameter.requires_grad and parameter.dtype == torch.float32 and uses[id(parameter)] == 1
            ]
    return names
