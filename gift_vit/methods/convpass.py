"""Convpass: a small convolution over the token grid beside attention and MLP (Jie, Deng, arXiv 2207.07039).

With q(x) = x sigmoid(1.702 x), s → ``scale``, and two independent draws dp, dp' of the block's drop path:

    ``P(x) = up(dropout(q(conv3×3(q(down(x))))))``
    ``x ← x + dp(attn(norm1(x))) + s dp'(P₁(norm1(x)))``, ``x ← x + dp(mlp(norm2(x))) + s dp'(P₂(norm2(x)))``

Image tokens are taken for an image of the model's grid. Every prefix token (class, registers) is an image of one pixel, which
sees the middle of the kernel alone. LayerScale, which the authors' timm does not have, is the backbone's branches' alone.
"""

from functools import partial
from typing import Any

import torch
from timm.layers.activations import quick_gelu
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.common.errors import ConfigError
from gift_vit.methods.blocks import AdaptedBlock, Branch, timm_blocks
from gift_vit.methods.config import CONVPASS_BRANCHES, ConvpassConfig, register_method
from gift_vit.methods.targets import SmallLinear


class Convpass(nn.Module):
    """s · P.

    Attributes:
        down: d → h; Xavier-uniform weight, zero bias.
        conv: h → h channels, 3 × 3, padded with zeros; the identity or Xavier-uniform, zero bias.
        up: h → d; zero, so that the model is unchanged at the start.
        grid: Rows and columns of the image tokens of the model's present pass.
    """

    def __init__(self, width: int, prefix: int, grid: tuple[int, int], cfg: ConvpassConfig, device: torch.device) -> None:
        super().__init__()
        self.scale, self.prefix, self.grid = cfg.scale, prefix, grid
        self.down = SmallLinear(width, cfg.bottleneck, device=device)
        self.conv = nn.Conv2d(cfg.bottleneck, cfg.bottleneck, 3, padding=1, device=device)
        self.dropout = nn.Dropout(cfg.dropout)
        self.up = SmallLinear(cfg.bottleneck, width, device=device)
        nn.init.xavier_uniform_(self.down.weight)
        draw = nn.init.dirac_ if cfg.conv_init == "identity" else nn.init.xavier_uniform_
        draw(self.conv.weight)
        for zero in (self.down.bias, self.conv.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)  # pyright: ignore[reportArgumentType] (this convolution has a bias)

    def take_for_row(self, tokens: int) -> None:
        """Take so many tokens, prefix included, for an image of one row from now on."""
        self.grid = (1, tokens - self.prefix)

    def forward(self, x: Tensor) -> Tensor:
        """Normed tokens (B, N, d) to (B, N, d), in their dtype; prefix tokens alone have no image.

        Raises:
            ConfigError: If the image tokens are not those of the grid.
        """
        hidden = quick_gelu(self.down(x))
        prefix, image = hidden[:, : self.prefix], hidden[:, self.prefix :]
        passed = [self._convolve(prefix.unflatten(1, (-1, 1, 1)).flatten(0, 1), prefix)] if prefix.shape[1] else []
        if image.shape[1]:
            rows, columns = self.grid
            if image.shape[1] != rows * columns:
                raise ConfigError(f"method 'convpass' needs the tokens of a grid of {rows} x {columns}, got {image.shape[1]}")
            passed.append(self._convolve(image.unflatten(1, self.grid), image))
        return (self.scale * self.up(self.dropout(quick_gelu(torch.cat(passed, dim=1))))).to(x.dtype)

    def _convolve(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Images (…, rows, columns, h) convolved, in the shape of their tokens (B, n, h)."""
        weight, bias = (parameter.to(images.dtype) for parameter in self.conv.parameters())
        return F.conv2d(images.movedim(-1, 1), weight, bias, padding=1).movedim(1, -1).reshape(tokens.shape)


class ConvpassBlock(AdaptedBlock):
    """timm's block with a :class:`Convpass` beside its attention (``convpass_attn``), its MLP (``convpass_mlp``) or both."""

    def compose(self, x: Tensor, attend: Branch, feed: Branch) -> Tensor:
        """As :class:`AdaptedBlock` says."""
        y = attend(x)
        first, second = (getattr(self, f"convpass_{branch}", None) for branch in CONVPASS_BRANCHES)
        if first is not None:
            y = y + self.drop_path1(first(self.norm1(x[:, : y.shape[1]])))  # another draw than the attention's
        after = feed(y)
        return after if second is None else after + self.drop_path2(second(self.norm2(y)))


@register_method(
    "convpass",
    ConvpassConfig,
    merge=None,
    unmergeable="a convolution over the token grid and its activations are no change of a weight",
)
def apply_convpass(model: nn.Module, cfg: ConvpassConfig) -> None:
    """Replace the chosen blocks of a timm ViT by :class:`ConvpassBlock`.

    Raises:
        ConfigError: If the model's image tokens are no grid.
    """
    vit, blocks = timm_blocks(model, "convpass", cfg.blocks)
    grid = getattr(vit.patch_embed, "grid_size", None)
    if grid is None or not isinstance(vit.patch_drop, nn.Identity):
        reason = "a patch embedding with a grid" if grid is None else "all image tokens, and this model drops some in training"
        raise ConfigError(f"method 'convpass' needs {reason}; its convolution runs over the token grid")
    device = next(model.parameters()).device
    for index, block in blocks.items():
        own = {
            f"convpass_{branch}": Convpass(vit.embed_dim, vit.num_prefix_tokens, grid, cfg, device) for branch in cfg.branches
        }
        model.set_submodule(f"blocks.{index}", ConvpassBlock(block, **own))
    if vit.dynamic_img_size:
        own = [module for module in model.modules() if isinstance(module, Convpass)]
        vit.patch_embed.register_forward_hook(partial(_note_grid, own))


def _note_grid(convolutions: list[Convpass], embedding: nn.Module, args: Any, patches: Tensor) -> None:
    del embedding, args
    for convolution in convolutions:
        convolution.grid = (patches.shape[1], patches.shape[2])
