"""AdaptFormer: a bottleneck beside the MLP of every block (Chen et al., arXiv 2205.13535).

With x the tokens after attention, and s → ``scale``:

    ``y = x + MLP(LN(x)) + s · (ReLU(x W_downᵀ + b_down) W_upᵀ + b_up)``

The paper's equation 3 and first figure feed LN(x) to the bottleneck too; the authors call their code right, which feeds x
(https://github.com/ShoufaChen/AdaptFormer/issues/9). As there, drop path leaves the bottleneck alone.
"""

from typing import Any, cast

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.common.errors import ConfigError
from gift_vit.methods.config import AdaptFormerConfig, register_method


class Bottleneck(nn.Module):
    """s · up(dropout(ReLU(down(x)))).

    Attributes:
        down: d → bottleneck; Kaiming-uniform weight (``nn.Linear``'s own), zero bias.
        up: bottleneck → d; zero, so that the model is unchanged at the start.
    """

    def __init__(self, width: int, cfg: AdaptFormerConfig, device: torch.device) -> None:
        super().__init__()
        self.scale = cfg.scale
        self.down = nn.Linear(width, cfg.bottleneck, device=device)
        self.dropout = nn.Dropout(cfg.dropout)
        self.up = nn.Linear(cfg.bottleneck, width, device=device)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., d) to (..., d), in the dtype of the tokens."""
        hidden = self.dropout(F.relu(self.down(x.to(self.down.weight.dtype))))
        return self.scale * self.up(hidden).to(x.dtype)


class AdaptFormerBlock(nn.Module):
    """timm's ``Block`` with a :class:`Bottleneck`; the modules of the block keep their names, so its state-dict keys stay."""

    def __init__(self, block: Block, adaptformer: Bottleneck) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1, self.drop_path1 = block.norm1, block.attn, block.ls1, block.drop_path1
        self.norm2, self.mlp, self.ls2, self.drop_path2 = block.norm2, block.mlp, block.ls2, block.drop_path2
        self.adaptformer = adaptformer
        self.train(block.training)

    def forward(self, x: Tensor, **attention: Any) -> Tensor:
        """Tokens (B, n, d) to (B, n, d); ``attention`` are the masks that timm's block hands to its attention."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), **attention)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))) + self.beside_mlp(x)

    def beside_mlp(self, x: Tensor) -> Tensor:
        """What is added beside the MLP; a block that tells it is computed by :mod:`gift_vit.acceleration` as timm's are."""
        return self.adaptformer(x)


@register_method("adaptformer", AdaptFormerConfig, merge=None, unmergeable="its ReLU is no linear change of a weight")
def apply_adaptformer(model: nn.Module, cfg: AdaptFormerConfig) -> None:
    """Replace every block of a timm ViT by an :class:`AdaptFormerBlock`."""
    if not isinstance(model, VisionTransformer):
        raise ConfigError(f"method 'adaptformer' needs a timm VisionTransformer, not a {type(model).__name__}")
    other = [type(block).__name__ for block in model.blocks if type(block) is not Block]
    if other:
        raise ConfigError(f"method 'adaptformer' needs blocks of timm's class Block, not {other[0]}")
    device = next(model.parameters()).device
    for index, block in enumerate(model.blocks):
        bottleneck = Bottleneck(model.embed_dim, cfg, device)
        model.blocks[index] = AdaptFormerBlock(cast("Block", block), bottleneck)
