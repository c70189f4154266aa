"""The models of the benchmark's variants."""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.bench.variants import FLOOR, PLAIN, REFERENCE, Variant
from gift_vit.acceleration.accelerate import accelerate
from gift_vit.acceleration.frozen import hold_frozen_products
from gift_vit.acceleration.patches import embed_by_product
from gift_vit.config import compose_config, load_config
from gift_vit.methods import apply_method, merge_method
from gift_vit.methods.gift import GiftLinear, GiftPair

NUM_CLASSES = 100


def build(variant: Variant, architecture: str, device: torch.device, frozen: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The variant's model on its device, with random weights that are the same for all variants.

    ``frozen`` are the backbone's parameters by name on that device, where they have been drawn already: variants share those
    that stay frozen.
    """
    torch.manual_seed(0)
    model = _backbone(variant, architecture, frozen)
    cfg = load_config(compose_config([f"method={'gift' if variant.method in (REFERENCE, FLOOR, PLAIN) else variant.method}"]))
    if variant.method == FLOOR:
        model.requires_grad_(False)
        for name in ("blocks.0.attn.proj.bias", "head.weight", "head.bias"):
            model.get_parameter(name).requires_grad_(True)
    elif variant.method != PLAIN:
        apply_method(model, cfg.method)
    if variant.method == REFERENCE:
        _use_reference_form(model)
    if variant.merged:
        merge_method(model)
    if not variant.training:
        model.requires_grad_(False)
    for name in {name for name, parameter in model.named_parameters() if parameter.requires_grad} & set(frozen or ()):
        model.get_parameter(name).data = model.get_parameter(name).data.clone()
    if variant.accelerated:
        trainer = replace(cfg.trainer, precision=variant.precision, compile=variant.compiled)
        accelerate(model.to(device), replace(cfg.compute, memory=variant.memory), trainer)
        if variant.captured:
            hold_frozen_products(model)
            embed_by_product(model)
    return model.to(device).train(variant.training)


def _backbone(variant: Variant, architecture: str, frozen: Mapping[str, Tensor] | None) -> nn.Module:
    if frozen is None:
        return timm.create_model(architecture, num_classes=NUM_CLASSES, drop_path_rate=variant.drop_path)
    with torch.device("meta"):  # drawing the weights of a ViT-B takes seconds
        model = timm.create_model(architecture, num_classes=NUM_CLASSES, drop_path_rate=variant.drop_path)
    model.load_state_dict({name: tensor.detach() for name, tensor in frozen.items()}, assign=True)
    return model


class ReferenceGiftLinear(nn.Module):
    """GIFT as the authors' code computes it: a d_out × d_in update per layer and step, and two products per token."""

    def __init__(self, layer: GiftLinear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.pairs = (layer.parts[0][0],)  # a tuple: the pair is the model's, not the layer's

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., d_in) to (..., d_out)."""
        pair = cast("GiftPair", self.pairs[0])
        update = (self.weight @ pair.phi) @ pair.psi
        return F.linear(x, self.weight, self.bias) + F.linear(x, update)


def _use_reference_form(model: nn.Module) -> None:
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, GiftLinear)]:
        model.set_submodule(name, ReferenceGiftLinear(layer))
