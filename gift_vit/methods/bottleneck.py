"""Bottleneck adapters: Adapter+ (Steitz, Roth, arXiv 2406.06820), Houlsby's (arXiv 1902.00751), Pfeiffer's, and other places.

With γ → ``scale`` (fixed, one trained number, or one per channel) and the backbone's own activation:

    ``A(x) = γ ⊙ drop_path(up(dropout(act(down(norm?(x))))))``

With a and m(y) what a block's attention and MLP add, drop path and LayerScale included, and y = x + a, a block gives by
``position``:

- ``post`` (Adapter+; with ``norm`` Pfeiffer's): z + A(z) for z = y + m(y);
- ``pre``: y' + m(y') for y' = y + A(y);
- ``intermediate``: y + m + A(m) for m = m(y);
- ``parallel``: y + m(y) + A(y);
- ``houlsby``, two adapters: y' + m + A(m) for y' = x + a + A'(a) and m = m(y').

The last and ``intermediate`` add A(0) to a sample whose branch drop path drops, as the authors do.
"""

from copy import deepcopy
from typing import Any, cast

import torch
from timm.layers.drop import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from gift_vit.common.errors import ConfigError
from gift_vit.methods.blocks import AdaptedBlock, Branch, timm_blocks
from gift_vit.methods.config import AdapterConfig, register_method
from gift_vit.methods.targets import SmallLinear, chosen_blocks


class Adapter(nn.Module):
    """γ ⊙ drop_path(up(dropout(act(down(norm?(x)))))).

    Attributes:
        down: d → r.
        up: r → d.
        norm: LayerNorm of its own, or none.
        scale: γ, (d,) or (1,), at the start 1; a number where it is fixed.
    """

    scale: nn.Parameter | float

    def __init__(self, width: int, act: nn.Module, cfg: AdapterConfig, device: torch.device) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, device=device) if cfg.norm else nn.Identity()
        self.down = SmallLinear(width, cfg.bottleneck, bias=cfg.bias, device=device)
        self.act = deepcopy(act)
        self.dropout = nn.Dropout(cfg.dropout)
        self.up = SmallLinear(cfg.bottleneck, width, bias=cfg.bias, device=device)
        self.drop_path = DropPath(cfg.drop_path) if cfg.drop_path else nn.Identity()
        channels = {"channel": width, "scalar": 1}.get(cfg.scale)
        self.scale = cfg.factor if channels is None else nn.Parameter(torch.ones(channels, device=device))
        _draw(self.down, self.up, cfg.init)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, d) to (B, N, d), in their dtype."""
        dtype = self.down.weight.dtype
        normed = self.norm(x.to(dtype)).to(x.dtype) if isinstance(self.norm, nn.LayerNorm) else x
        change = self.drop_path(self.up(self.dropout(self.act(self.down(normed)))))
        return (self.scale * change).to(x.dtype)


class AdapterBlock(AdaptedBlock):
    """timm's block with adapters at ``position``, any but ``post``; ``adapter_attn`` is the first one of ``houlsby``."""

    adapter: Adapter
    adapter_attn: Adapter

    def __init__(self, block: Block, position: str, **own: Adapter) -> None:
        super().__init__(block, **own)
        self.position = position

    def compose(self, x: Tensor, attend: Branch, feed: Branch) -> Tensor:
        """As :class:`AdaptedBlock` says."""
        y = attend(x, lambda a: a + self.adapter_attn(a)) if self.position == "houlsby" else attend(x)
        if self.position == "pre":
            return feed(y + self.adapter(y))
        if self.position == "parallel":
            return feed(y) + self.adapter(y)
        return feed(y, lambda m: m + self.adapter(m))


@register_method(
    "adapter", AdapterConfig, merge=None, identity_at_init=False, unmergeable="its GELU is no linear change of a weight"
)
def apply_adapter(model: nn.Module, cfg: AdapterConfig) -> None:
    """Put adapters at their place of every chosen block of a timm ViT.

    Raises:
        ConfigError: If the model's blocks are not what the position needs.
    """
    if cfg.position == "post":
        for block in _sequential_blocks(model, cfg):
            block.add_module("adapter", _adapter_of(model, block, cfg))
            block.register_forward_hook(_add_adapter)  # whatever the block is, and however it is computed
    else:
        for index, block in timm_blocks(model, "adapter", cfg.blocks)[1].items():
            own = {"adapter": _adapter_of(model, block, cfg)}
            if cfg.position == "houlsby":
                own = {"adapter_attn": _adapter_of(model, block, cfg), **own}
            model.set_submodule(f"blocks.{index}", AdapterBlock(block, cfg.position, **own))
    if cfg.train_norms:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)


def _sequential_blocks(model: nn.Module, cfg: AdapterConfig) -> list[nn.Module]:
    indices = chosen_blocks(model, cfg.blocks)
    if not indices or not isinstance(getattr(model, "embed_dim", None), int):
        raise ConfigError(f"method 'adapter' needs a timm ViT with blocks of one width, not a {type(model).__name__}")
    return [model.get_submodule(f"blocks.{index}") for index in indices]


def _adapter_of(model: nn.Module, block: nn.Module, cfg: AdapterConfig) -> Adapter:
    act: Any = getattr(getattr(block, "mlp", None), "act", None) or nn.GELU()
    adapter = Adapter(cast("int", model.embed_dim), act, cfg, next(model.parameters()).device)
    return adapter.train(block.training)


def _add_adapter(block: Any, args: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
    del args
    return tokens + block.adapter(tokens)


def _draw(down: nn.Linear, up: nn.Linear, init: str) -> None:
    """The first weights: near zero (``houlsby``, ``bert``), or a random ``down`` and no ``up`` (``lora``)."""
    if init == "lora":  # down as nn.Linear draws it, weight and bias
        nn.init.zeros_(up.weight)
    else:
        for layer in (down, up):
            if init == "houlsby":
                nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
            else:
                nn.init.normal_(layer.weight, std=0.02)
    for layer in (up,) if init == "lora" else (down, up):
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
