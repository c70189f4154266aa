"""SSF: Scaling and Shifting the deep Features (Lian et al., arXiv 2210.08823).

Every operation of the backbone that has weights (the patch embedding, each norm, each linear layer) is followed by
``y = γ ⊙ x + β``, γ → ``scale`` and β → ``shift``, one value of each per channel. The same function has the layer of
``weight ← γ ⊙ weight`` (row by row) and ``bias ← γ ⊙ bias + β``, which is what merging makes of it.

On ViT-B/16: 2 · (768 + 12 · (768 + 2304 + 768 + 768 + 3072 + 768) + 768) = 205 824 parameters.
"""

from typing import Any

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from gift_vit.methods.config import SsfConfig, register_method
from gift_vit.methods.targets import find_targets, nameable_targets, refuse_shared, refuse_without_bias


class ScaleShift(nn.Module):
    """γ ⊙ x + β after a layer.

    Attributes:
        scale: γ, (channels,).
        shift: β, (channels,).
    """

    def __init__(self, layer: nn.Module, init_std: float) -> None:
        super().__init__()
        channels, device = len(layer.get_parameter("weight")), layer.get_parameter("weight").device
        self.scale = nn.Parameter(torch.empty(channels, device=device).normal_(1, init_std))
        self.shift = nn.Parameter(torch.empty(channels, device=device).normal_(0, init_std))
        self.shape = (-1, 1, 1) if isinstance(layer, nn.Conv2d | LayerNorm2d) else (-1,)
        self.handle = layer.register_forward_hook(_scale_and_shift)

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., channels), or (B, channels, height, width) of an image layer; the dtype stays."""
        return (x * self.scale.view(self.shape) + self.shift.view(self.shape)).to(x.dtype)


def _scale_and_shift(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    del args
    return layer.ssf(output)


@torch.no_grad()
def merge_ssf(model: nn.Module, cfg: SsfConfig) -> None:
    """Fold every scale and shift into the weight and bias of its layer and remove them."""
    del cfg
    layers: list[tuple[str, Any]] = [(name, layer) for name, layer in model.named_modules() if hasattr(layer, "ssf")]
    refuse_without_bias("ssf", layers)
    refuse_shared("ssf", model, layers)
    for _, layer in layers:
        scale, shift = layer.ssf.scale, layer.ssf.shift
        layer.weight.copy_(layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.copy_(layer.bias * scale + shift)
        layer.ssf.handle.remove()
        del layer.ssf


@register_method("ssf", SsfConfig, merge=merge_ssf, identity_at_init=False)
def apply_ssf(model: nn.Module, cfg: SsfConfig) -> None:
    """Hook every layer with a weight outside the head; its scale and shift live in the layer's own ``ssf``."""
    if "attn.qkv" in nameable_targets(model):
        find_targets(model, ["attn.qkv"])  # refuses attention that goes past its layer, where a hook is never called
    for name, layer in list(model.named_modules()):
        if isinstance(getattr(layer, "weight", None), nn.Parameter) and not name.startswith(("head", "patch_embed.backbone")):
            layer.add_module("ssf", ScaleShift(layer, cfg.init_std))
            layer.get_submodule("ssf").train(layer.training)
