"""LoRA: Low-Rank Adaptation (Hu et al., arXiv 2106.09685): y = x Wᵀ + b + (α / r) (x Aᵀ) Bᵀ with A (r × d_in), B (d_out × r).

Whole layers are Hugging Face peft's. The slices q, k and v of timm's fused projection, which peft cannot name, are ours.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gift_vit.methods.config import LoraConfig, register_method
from gift_vit.methods.hf_peft import inject, merge_layers
from gift_vit.methods.targets import AdaptedLinear, find_targets, merge_linears, replace_linear


class SlicedLoraLinear(AdaptedLinear):
    """A frozen fused projection with LoRA on some of its row slices; still one product for the frozen part.

    Attributes:
        lora_A: By slice (``q``, ``k``, ``v``), a weight (r, d_in) as ``nn.Linear`` draws it, as peft does.
        lora_B: By slice, a weight (rows, r), zero.

    Args:
        linear: The layer to adapt; its parameters are used, not copied.
        rows: The rows of the weight that each slice covers.
        cfg: Rank, α and dropout.
    """

    def __init__(self, linear: nn.Linear, rows: Mapping[str, slice], cfg: LoraConfig) -> None:
        super().__init__(linear)
        self.rows = dict(rows)
        self.scaling = cfg.alpha / cfg.rank
        self.dropout = nn.Dropout(cfg.dropout)
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        device = linear.weight.device
        for name, part in self.rows.items():
            self.lora_A[name] = nn.Linear(linear.in_features, cfg.rank, bias=False, device=device)
            self.lora_B[name] = nn.Linear(cfg.rank, part.stop - part.start, bias=False, device=device)
            nn.init.zeros_(self.lora_B[name].get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., d_in) to (..., d_out)."""
        y = self.frozen(x)
        x = self.dropout(x)
        for name, rows in self.rows.items():
            y[..., rows] += self.scaling * self.lora_B[name](self.lora_A[name](x))
        return y

    def delta_weight(self) -> Tensor:
        """ΔW of the whole layer, shape (d_out, d_in); rows that no slice covers are zero."""
        delta = torch.zeros_like(self.weight)
        for name, rows in self.rows.items():
            delta[rows] = self.scaling * self.lora_B[name].get_parameter("weight") @ self.lora_A[name].get_parameter("weight")
        return delta

    def merged_weight(self) -> Tensor:
        """W + ΔW."""
        return self.weight + self.delta_weight()


def merge_lora(model: nn.Module, cfg: LoraConfig) -> None:
    """Replace every adapted layer by a plain ``nn.Linear`` of weight W + ΔW."""
    del cfg
    merge_layers(model)
    merge_linears(model)


@register_method("lora", LoraConfig, merge=merge_lora)
def apply_lora(model: nn.Module, cfg: LoraConfig) -> None:
    """Replace whole target layers by peft's LoRA layers, and fused projections by :class:`SlicedLoraLinear`."""
    whole: list[str] = []
    sliced: dict[str, dict[str, slice]] = {}
    for target, layers in find_targets(model, cfg.target_modules, cfg.blocks).items():
        for layer in layers:
            if layer.slice_index is None:
                whole.append(layer.name)
            else:
                sliced.setdefault(layer.name, {})[target.removeprefix("attn.")] = layer.rows
    if whole:
        options = {"r": cfg.rank, "lora_alpha": cfg.alpha, "lora_dropout": cfg.dropout}
        inject(model, "LORA", whole, options)
    for name, rows in sliced.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        replace_linear(model, name, SlicedLoraLinear(linear, rows, cfg))
