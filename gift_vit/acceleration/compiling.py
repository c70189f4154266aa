"""Compiling a ViT block by block, so that all blocks share what the compiler made of the first.

The whole model as one graph takes the compiler twice as long, and again as long for evaluation. A block's forward pass is one
function of the block and its tokens; a second block costs nothing as long as it differs in nothing that is compiled in. timm's
drop path rates are such numbers, one for each block, and so they become tensors here.
"""

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from gift_vit.acceleration.accelerate import compute, is_computable, is_masked


class TensorDropPath(nn.Module):
    """timm's drop path with its rate in a tensor: the same for all blocks to a compiler, the same distribution.

    Attributes:
        keep_prob: Probability that a sample keeps the branch, a scalar; not in the state dict, as timm's is not.
    """

    keep_prob: Tensor

    def __init__(self, drop_prob: float, scale_by_keep: bool, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("keep_prob", torch.tensor(1 - drop_prob, device=device), persistent=False)
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        """A branch (B, …), in training zero for the samples that are dropped and scaled up for the others."""
        if not self.training:
            return x
        uniform = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device)
        kept = (uniform < self.keep_prob).to(x.dtype)
        return x * (kept / self.keep_prob if self.scale_by_keep else kept)


def compile_blocks(model: nn.Module, backend: str = "inductor") -> bool:
    """Compile what a model's blocks compute in training, in place; whether that was possible.

    In evaluation they are computed as before: that is not compiled anew. Parameters and state-dict keys stay.
    """
    blocks: list[Any] = list(getattr(model, "blocks", []))
    if not blocks or not all(map(is_computable, blocks)):
        return False
    _share_drop_paths(blocks)
    # a function of its own: of one function the compiler makes eight variants, and then gives up without a word
    own = FunctionType(compute.__code__.replace(), compute.__globals__, compute.__name__)
    compiled = torch.compile(own, backend=backend, dynamic=False)
    for block in blocks:
        block.forward = partial(_forward, block, block.forward, compiled)
    vars(model)["compiled_by_block"] = True  # fit need not compile it
    return True


def _forward(
    block: nn.Module, plain: Callable[..., Tensor], compiled: Callable[..., Tensor], x: Tensor, *masks: Any, **named: Any
) -> Tensor:
    if block.training and not masks and not is_masked(named):
        return compiled(block, x, **named)
    return plain(x, *masks, **named)


def _share_drop_paths(blocks: list[Any]) -> None:
    """Give all blocks the same kind of drop path, if any has one; the first block's rate is usually 0."""
    if not any(isinstance(module, DropPath) for block in blocks for module in block.children()):
        return
    for block in blocks:
        device = next(block.parameters()).device
        for name in ("drop_path1", "drop_path2"):
            drop_path = getattr(block, name)
            if isinstance(drop_path, DropPath):
                setattr(block, name, TensorDropPath(drop_path.drop_prob, drop_path.scale_by_keep, device))
            elif isinstance(drop_path, nn.Identity):
                setattr(block, name, TensorDropPath(0.0, True, device))
