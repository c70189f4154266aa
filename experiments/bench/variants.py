"""What the benchmark compares: ways to fine-tune one ViT, and the forms they are measured against."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.acceleration import accelerate
from gift_vit.compose import compose_config
from gift_vit.config import load_config
from gift_vit.errors import ConfigError
from gift_vit.methods import apply_method, merge_method
from gift_vit.methods.gift import GiftLinear, GiftPair

NUM_CLASSES = 100
REFERENCE, FLOOR, PLAIN = "reference", "floor", "plain"  # the methods that are no method of the project


@dataclass(frozen=True)
class Variant:
    """One way to compute a training step, or a forward pass.

    Attributes:
        method: A choice of ``method=``; ``reference``, GIFT as its authors' code computes it; ``floor``, a frozen backbone that
            only passes a gradient through, from block 0's projection on; or ``plain``, timm's own model.
        precision: As ``trainer.precision``.
        memory: As ``trainer.memory``.
        accelerated: With what :func:`gift_vit.acceleration.accelerate` does; otherwise as timm computes.
        compiled: By ``torch.compile``, as one graph.
        cuda_graphs: Compiled, and its kernels launched as CUDA graphs (mode ``reduce-overhead``).
        drop_path: Drop path rate.
        training: A training step; otherwise a forward pass in eval mode.
        merged: With the adapter merged.
        explained: A forward pass that also makes GIFT's maps, of all adapted layers and clusters before and after the update.
    """

    name: str
    method: str
    precision: str = "fp32"
    memory: str = "fast"
    accelerated: bool = True
    compiled: bool = False
    cuda_graphs: bool = False
    drop_path: float = 0.0
    training: bool = True
    merged: bool = False
    explained: bool = False


def _timm(name: str, method: str, **kwargs: Any) -> Variant:
    return Variant(name, method, accelerated=False, **kwargs)


def _inference(name: str, method: str, **kwargs: Any) -> Variant:
    return Variant(name, method, training=False, **kwargs)


VARIANTS = (
    _timm("reference", REFERENCE),
    _timm("floor", FLOOR),
    Variant("gift", "gift"),
    Variant("gift lean", "gift", memory="lean"),
    Variant("gift minimal", "gift", memory="minimal"),
    _timm("gift, timm's forward", "gift"),
    _timm("lora", "lora"),
    Variant("lora, accelerated", "lora"),
    _timm("dora", "dora"),
    _timm("oft", "oft"),
    _timm("vpt_deep", "vpt_deep"),
    _timm("bitfit", "bitfit"),
    _timm("linear", "linear"),
    _timm("full", "full"),
    _timm("reference, drop path", REFERENCE, drop_path=0.1),
    Variant("gift, drop path", "gift", drop_path=0.1),
    Variant("gift compiled", "gift", compiled=True),
    _timm("reference bf16", REFERENCE, precision="bf16"),
    _timm("floor bf16", FLOOR, precision="bf16"),
    Variant("gift bf16", "gift", precision="bf16"),
    Variant("gift lean bf16", "gift", precision="bf16", memory="lean"),
    _timm("lora bf16", "lora", precision="bf16"),
    _timm("floor bf16 compiled", FLOOR, precision="bf16", compiled=True),
    Variant("gift bf16 compiled", "gift", precision="bf16", compiled=True),
    Variant("gift bf16 CUDA graphs", "gift", precision="bf16", compiled=True, cuda_graphs=True),
    _timm("reference tf32", REFERENCE, precision="tf32"),
    _inference("plain, inference", PLAIN, accelerated=False),
    _inference("gift merged, inference", "gift", merged=True),
    _inference("gift, inference", "gift"),
    _inference("gift explained, inference", "gift", explained=True),
    _inference("lora, inference", "lora", accelerated=False),
    _inference("vpt_deep, inference", "vpt_deep", accelerated=False),
    _inference("reference, inference", REFERENCE, accelerated=False),
)
QUICK = ("reference", "floor", "gift", "gift lean", "lora", "linear", "gift bf16", "plain, inference", "gift merged, inference")


def choose_variants(names: list[str] | None) -> list[Variant]:
    """The variants of these names; all for None.

    Raises:
        ConfigError: For a name that is not known.
    """
    known = {variant.name: variant for variant in VARIANTS}
    if unknown := [name for name in names or () if name not in known]:
        raise ConfigError(f"unknown variant {unknown[0]!r} (known: {'; '.join(known)})")
    return [known[name] for name in names] if names is not None else list(VARIANTS)


def build(variant: Variant, architecture: str, device: torch.device, frozen: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The variant's model on its device, with random weights that are the same for all variants.

    ``frozen`` are parameters by name on that device, to use in place of the model's own frozen ones: variants share them.
    """
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=NUM_CLASSES, drop_path_rate=variant.drop_path)
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
    if variant.accelerated:
        choices = {"memory": variant.memory, "precision": variant.precision, "compile": variant.compiled}
        accelerate(model.to(device), replace(cfg.trainer, **choices))
    model.train(variant.training)
    if not variant.training:
        model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if frozen is not None and name in frozen and not parameter.requires_grad:
            parameter.data = frozen[name].data
    return model.to(device)


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
