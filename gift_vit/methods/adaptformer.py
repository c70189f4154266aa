"""AdaptFormer: a bottleneck beside the MLP of every block (Chen et al., arXiv 2205.13535).

With x the tokens after attention, and s → ``scale``:

    ``y = x + MLP(LN(x)) + s · (ReLU(x W_downᵀ + b_down) W_upᵀ + b_up)``

The paper's equation 3 and first figure feed LN(x) to the bottleneck too; the authors call their code right, which feeds x
(https://github.com/ShoufaChen/AdaptFormer/issues/9). As there, drop path leaves the bottleneck alone.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.methods.blocks import AdaptedBlock, Branch, timm_blocks
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


class AdaptFormerBlock(AdaptedBlock):
    """timm's block with a :class:`Bottleneck` beside its MLP."""

    adaptformer: Bottleneck

    def compose(self, x: Tensor, attend: Branch, feed: Branch) -> Tensor:
        """As :class:`AdaptedBlock` says."""
        x = attend(x)
        return feed(x) + self.adaptformer(x)


@register_method("adaptformer", AdaptFormerConfig, merge=None, unmergeable="its ReLU is no linear change of a weight")
def apply_adaptformer(model: nn.Module, cfg: AdaptFormerConfig) -> None:
    """Replace every block of a timm ViT by an :class:`AdaptFormerBlock`."""
    vit, blocks = timm_blocks(model, "adaptformer")
    device = next(model.parameters()).device
    for index, block in blocks.items():
        bottleneck = Bottleneck(vit.embed_dim, cfg, device)
        model.set_submodule(f"blocks.{index}", AdaptFormerBlock(block, adaptformer=bottleneck))
