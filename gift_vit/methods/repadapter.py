"""RepAdapter: a linear bottleneck in front of a frozen layer, which merging folds into it (Luo et al., arXiv 2302.08106).

With s → ``scale``, A → ``down`` (h × d), and B → ``up``, block-diagonal with g groups and stored as (d × h/g):

    ``y = W (x + s (B (A x + a) + b)) + c``

Output channel i of B belongs to group ⌊i g / d⌋ and reads the hidden channels of that group alone. The attention's input goes
to ``qkv`` alone and the MLP's to ``fc1``, so standing in front of these layers is standing in front of attention and MLP. The
authors' code leaves LayerScale out; here the block stays timm's.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.common.errors import ConfigError
from gift_vit.methods.config import RepAdapterConfig, register_method
from gift_vit.methods.targets import (
    AdaptedLinear,
    SmallLinear,
    find_targets,
    finer,
    merge_linears,
    refuse_without_bias,
    replace_linear,
)


class GroupedLinear(SmallLinear):
    """h → d channels in g groups that do not see each other.

    Attributes:
        weight: (d, h / g), zero.
        bias: (d,), zero.
    """

    def __init__(self, hidden: int, width: int, groups: int, device: torch.device) -> None:
        super().__init__(hidden // groups, width, device=device)
        self.groups = groups
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def dense(self) -> Tensor:
        """B̃, the block-diagonal matrix (d, h)."""
        return torch.block_diag(*self.weight.chunk(self.groups))

    def forward(self, input: Tensor) -> Tensor:
        """Tokens (..., h) to (..., d)."""
        return F.linear(input, self.dense().to(input.dtype), self.bias.to(input.dtype))


class RepAdapter(nn.Module):
    """x + s · up(dropout(down(x))).

    Attributes:
        down: d → h; Xavier-uniform weight, zero bias.
        up: h → d in groups; zero, so that the model is unchanged at the start.
    """

    def __init__(self, width: int, cfg: RepAdapterConfig, device: torch.device) -> None:
        super().__init__()
        self.scale = cfg.scale
        self.down = SmallLinear(width, cfg.bottleneck, device=device)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        self.dropout = nn.Dropout(cfg.dropout)
        self.up = GroupedLinear(cfg.bottleneck, width, cfg.groups, device)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., d) to (..., d), in their dtype."""
        return x + (self.scale * self.up(self.dropout(self.down(x)))).to(x.dtype)


class RepAdapterLinear(AdaptedLinear):
    """A frozen linear layer behind a :class:`RepAdapter`."""

    def __init__(self, linear: nn.Linear, cfg: RepAdapterConfig) -> None:
        super().__init__(linear)
        self.repadapter = RepAdapter(linear.in_features, cfg, linear.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., d_in) to (..., d_out)."""
        return self.frozen(self.repadapter(x))

    def merged_weight(self) -> Tensor:
        """W (1 + s B̃ A)."""
        weight, adapter = finer(self.weight), self.repadapter
        return weight + adapter.scale * (weight @ adapter.up.dense().to(weight.dtype)) @ adapter.down.weight.to(weight.dtype)

    def merged_bias(self) -> Tensor:
        """The bias c + s W (B̃ a + b)."""
        adapter, weight, bias = self.repadapter, finer(self.weight), cast("nn.Parameter", self.bias)
        up, a, b = (value.to(weight.dtype) for value in (adapter.up.dense(), adapter.down.bias, adapter.up.bias))
        return finer(bias) + adapter.scale * weight @ (up @ a + b)


def merge_repadapter(model: nn.Module, cfg: RepAdapterConfig) -> None:
    """Fold every adapter into the weight and bias of its layer."""
    del cfg
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, RepAdapterLinear)]
    refuse_without_bias("repadapter", layers)
    merge_linears(model)


@register_method("repadapter", RepAdapterConfig, merge=merge_repadapter)
def apply_repadapter(model: nn.Module, cfg: RepAdapterConfig) -> None:
    """Replace the target layers by :class:`RepAdapterLinear`.

    Raises:
        ConfigError: If a layer's input width is no multiple of the groups.
    """
    layers = [layer for found in find_targets(model, cfg.target_modules, cfg.blocks).values() for layer in found]
    for layer in layers:
        width = layer.module.in_features
        if width % cfg.groups:
            raise ConfigError(f"method.groups={cfg.groups}: expected a divisor of the width {width} of {layer.name}")
    for layer in layers:
        replace_linear(model, layer.name, RepAdapterLinear(layer.module, cfg))
