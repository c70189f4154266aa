"""APLA: some output channels of the attention's projection are trained and nothing is added (Sorkhei et al., arXiv 2503.11335).

Of a frozen layer (W, c) the ``rows`` R, drawn at random for each layer, have a trained copy: ``y[R] = x W_Rᵀ + c_R``, and the
other channels are the frozen ones. With ``rank: null`` the layer itself is trained.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.common.errors import ConfigError
from gift_vit.methods.config import AplaConfig, register_method
from gift_vit.methods.targets import AdaptedLinear, find_targets, finer, merge_linears, replace_linear


class AplaLinear(AdaptedLinear):
    """A frozen linear layer of which some rows are trained.

    Attributes:
        apla_rows: (r,) int64, the channels that are trained; in the adapter file, whatever the seed.
        apla_weight: (r, d_in), their weights; at the start copies of the frozen ones.
        apla_bias: (r,), their biases; None where the layer has none.
    """

    apla_rows: Tensor
    apla_bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, rows: Tensor) -> None:
        super().__init__(linear)
        self.register_buffer("apla_rows", rows)
        self.apla_weight = nn.Parameter(finer(linear.weight.detach()[rows]).clone())
        self.apla_bias = None if linear.bias is None else nn.Parameter(finer(linear.bias.detach()[rows]).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., d_in) to (..., d_out).

        What the trained rows add to the frozen ones is computed and not they themselves: no gradient of the whole weight is
        made, and the model is unchanged at the start to the bit.
        """
        weight = self.apla_weight - self.weight[self.apla_rows]
        bias = None if self.apla_bias is None else self.apla_bias - cast("Tensor", self.bias)[self.apla_rows]
        change = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        y = self.frozen(x)
        return y.index_add(-1, self.apla_rows, change.to(y.dtype))

    def merged_weight(self) -> Tensor:
        """W with the trained rows in their places."""
        return finer(self.weight).index_copy(0, self.apla_rows, finer(self.apla_weight))

    def merged_bias(self) -> Tensor | None:
        """The bias with the trained rows in their places."""
        if self.bias is None or self.apla_bias is None:
            return None
        return finer(self.bias).index_copy(0, self.apla_rows, finer(self.apla_bias))


@register_method("apla", AplaConfig, merge=lambda model, _: merge_linears(model))
def apply_apla(model: nn.Module, cfg: AplaConfig) -> None:
    """Replace the target layers by :class:`AplaLinear`, or train them themselves where ``rank`` is null.

    Raises:
        ConfigError: If a layer has fewer channels than ``rank``.
    """
    layers = [layer for found in find_targets(model, cfg.target_modules, cfg.blocks).values() for layer in found]
    if cfg.rank is None:
        for layer in layers:
            layer.module.requires_grad_(True)
        return
    for layer in layers:
        if cfg.rank > layer.module.out_features:
            channels = layer.module.out_features
            raise ConfigError(f"method.rank={cfg.rank}: expected 1 to {channels}, the output channels of {layer.name}, or null")
    generator = torch.Generator().manual_seed(cfg.seed)
    for layer in layers:
        rows = torch.randperm(layer.module.out_features, generator=generator, device="cpu")[: cfg.rank]
        replace_linear(model, layer.name, AplaLinear(layer.module, rows.to(layer.module.weight.device)))
