"""What methods put in the place of timm's blocks: branches of their own beside, before or after those of the block."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast

from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from gift_vit.common.errors import ConfigError
from gift_vit.methods.targets import chosen_blocks


class Branch(Protocol):
    """Adds the attention's or the MLP's branch to tokens (B, N, d).

    What comes out has the tokens that the block gives out: the first of them alone where the others are not wanted.
    """

    def __call__(self, x: Tensor, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """``x + branch(x)``, or ``x + change(branch(x))``; drop path and layer scale belong to the branch."""
        ...


class AdaptedBlock(nn.Module):
    """timm's ``Block`` with modules of a method; those of the block keep their names, so its state-dict keys stay.

    A subclass says in :meth:`compose` what it computes, and :mod:`gift_vit.acceleration` computes it as it does timm's blocks.

    Args:
        block: The block whose modules are used.
        own: The method's modules by name.
    """

    norm1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    drop_path2: nn.Module

    def __init__(self, block: Block, **own: nn.Module) -> None:
        super().__init__()
        for name, module in (*block.named_children(), *own.items()):
            self.add_module(name, module)
        self.train(block.training)

    def forward(self, x: Tensor, **masks: Any) -> Tensor:
        """Tokens (B, N, d) to (B, N, d); ``masks`` are those that timm's block hands to its attention."""
        timm: Any = self

        def attend(x: Tensor, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
            branch = timm.drop_path1(timm.ls1(timm.attn(timm.norm1(x), **masks)))
            return x + (branch if change is None else change(branch))

        def feed(x: Tensor, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
            branch = timm.drop_path2(timm.ls2(timm.mlp(timm.norm2(x))))
            return x + (branch if change is None else change(branch))

        return self.compose(x, attend, feed)

    def compose(self, x: Tensor, attend: Branch, feed: Branch) -> Tensor:
        """The block's function of tokens (B, N, d), with ``attend`` and ``feed`` for timm's two branches."""
        raise NotImplementedError


def timm_blocks(model: nn.Module, kind: str, blocks: Sequence[int] | None = None) -> tuple[VisionTransformer, dict[int, Block]]:
    """The model as a timm ViT, and its chosen blocks by their index, all for None.

    Raises:
        ConfigError: If the model is no timm ``VisionTransformer``, or a block is not of timm's class ``Block``.
    """
    if not isinstance(model, VisionTransformer):
        raise ConfigError(f"method {kind!r} needs a timm VisionTransformer, not a {type(model).__name__}")
    chosen = {index: model.blocks[index] for index in chosen_blocks(model, blocks)}
    other = [type(block).__name__ for block in chosen.values() if type(block) is not Block]
    if other:
        raise ConfigError(f"method {kind!r} needs blocks of timm's class Block, not {other[0]}")
    return model, cast("dict[int, Block]", chosen)


def refuse_intermediates(model: nn.Module, reason: str) -> None:
    """Let timm's ``forward_intermediates`` be an error, on a model with a method of which it knows nothing."""
    vars(model)["forward_intermediates"] = partial(_refuse, f"a model with {reason}, and has no forward_intermediates")


def _refuse(what: str, *args: Any, **kwargs: Any) -> None:
    del args, kwargs
    raise ConfigError(f"{what}; take forward_features, or hooks")
