"""VPT: Visual Prompt Tuning (Jia et al., arXiv 2203.12119).

Trainable tokens P (``prompts``, p × d each) stand between the prefix tokens (class, registers) and the image tokens E of a
frozen ViT; they enter after the position embedding, so they have no position. With blocks L₁ … L_N and prefix tokens x:

- shallow (equations 4 and 5): ``[x₁, Z₁, E₁] = L₁([x₀, P, E₀])``, then ``[xᵢ, Zᵢ, Eᵢ] = Lᵢ([xᵢ₋₁, Zᵢ₋₁, Eᵢ₋₁])``;
- deep (equation 7): ``[xᵢ, _, Eᵢ] = Lᵢ([xᵢ₋₁, Pᵢ₋₁, Eᵢ₋₁])``: every block has prompts of its own.

Prompts leave the sequence before the final norm, so every kind of pooling sees the tokens it knows.
"""

import math
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from gift_vit.common.errors import ConfigError
from gift_vit.methods.blocks import refuse_intermediates
from gift_vit.methods.config import VptConfig, register_method


class Vpt(nn.Module):
    """The prompts, and the hooks on timm's blocks that insert and remove them; the blocks themselves stay as they are.

    Attributes:
        prompts: (depth, p, d) for deep, (1, p, d) for shallow; uniform on ±√(6 / (3 · patch area + d)), as the authors'.
    """

    def __init__(self, model: VisionTransformer, cfg: VptConfig) -> None:
        super().__init__()
        width, device = model.embed_dim, next(model.parameters()).device
        bound = math.sqrt(6 / (3 * math.prod(model.patch_embed.patch_size) + width))
        shape = (len(model.blocks) if cfg.deep else 1, cfg.num_tokens, width)
        self.prompts = nn.Parameter(torch.empty(shape, device=device).uniform_(-bound, bound))
        self.dropout = nn.Dropout(cfg.dropout)
        self.num_prefix_tokens = model.num_prefix_tokens

    def insert(self, index: int, block: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Before a block: put the prompts of ``index`` in, for those of the block before it where there are any.

        Tokens are (B, prefix + n, d) before the first block, (B, prefix + p + n, d) after it.
        """
        del block
        tokens, *rest = args
        prefix, _, image = self._split(tokens, self.prompts.shape[1] if index else 0)
        batch = tokens.shape[0]  # len() would make a constant of it in an exported model
        prompts = self.dropout(self.prompts[index].expand(batch, -1, -1))
        return torch.cat([prefix, prompts.to(tokens.dtype), image], dim=1), *rest

    def remove(self, block: nn.Module, args: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
        """After the last block: tokens (B, prefix + p + n, d) to (B, prefix + n, d); prefix tokens alone stay as they are."""
        del block, args
        if tokens.shape[1] <= self.num_prefix_tokens:  # the last block computed what the head reads and no more
            return tokens
        prefix, _, image = self._split(tokens, self.prompts.shape[1])
        return torch.cat([prefix, image], dim=1)

    def _split(self, tokens: Tensor, num_prompts: int) -> tuple[Tensor, ...]:
        start = self.num_prefix_tokens
        return tokens.split([start, num_prompts, tokens.shape[1] - start - num_prompts], dim=1)


@register_method("vpt", VptConfig, merge=None, identity_at_init=False, unmergeable="prompts are tokens, not weights")
def apply_vpt(model: nn.Module, cfg: VptConfig) -> None:
    """Hook the blocks of a timm ViT; the prompts live in ``model.vpt``."""
    if not isinstance(model, VisionTransformer):
        kind = type(model).__name__
        raise ConfigError(f"method 'vpt' needs a timm VisionTransformer, whose blocks know no positions, and not a {kind}")
    model.vpt = Vpt(model, cfg).train(model.training)
    for index, block in enumerate(model.blocks if cfg.deep else model.blocks[:1]):
        block.register_forward_pre_hook(partial(model.vpt.insert, index))
    model.blocks[-1].register_forward_hook(model.vpt.remove)
    refuse_intermediates(model, "VPT has prompts among its tokens")  # timm's own would take them for patches
