"""What a timm ViT makes of images at each layer: one row per image."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from gift_vit.common.errors import ConfigError
from gift_vit.common.vits import check_vit

POOLED = "pooled"


class _EnoughError(Exception):
    """The last layer that was asked for is done; the blocks above it are not computed."""


@dataclass(frozen=True)
class Layers:
    """The layers of a ViT that are looked at: the outputs of blocks, and last the pooled vector that the head is given.

    A block's row holds all tokens, flattened (``tokens="all"``), the class token (``cls``) or the mean of the image tokens
    (``mean``). Prompts, which a method has put between the tokens, are left out, so that rows are as long as without them.

    Attributes:
        model: In eval mode, with frozen parameters; see :func:`open_layers`.
        blocks: Indices from 0, in ascending order.
        tokens: all, cls or mean.
    """

    model: nn.Module
    blocks: tuple[int, ...]
    tokens: str = "all"

    @property
    def names(self) -> list[str]:
        """Of the L layers."""
        return [*map(str, self.blocks), POOLED]

    @property
    def depth(self) -> int:
        """How many blocks the model has."""
        return len(cast("nn.Sequential", self.model.blocks))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def taken(self, images: Tensor, asked: str) -> Tensor:
        """Images (n, 3, H, W) as the model takes them: of its kind of numbers, on its device.

        Raises:
            ConfigError: If there are none, or they are not of its size and in 0..1; ``asked`` is what takes them.
        """
        embed = cast(nn.Module, self.model.patch_embed)
        size = tuple(getattr(embed, "img_size", None) or ()) if getattr(embed, "strict_img_size", True) else ()
        shape = tuple(images.shape)
        fits = len(shape) == 4 and shape[0] > 0 and shape[1] == 3 and (not size or shape[2:] == size)
        if not fits or not ((images >= 0) & (images <= 1)).all():
            wanted = ", ".join(map(str, size)) or "H, W"
            raise ConfigError(f"{asked} takes images (n, 3, {wanted}) in 0..1, n 1 or more, got {shape} of {images.dtype}")
        return images.detach().to(next(self.model.parameters()))

    def rows(self, images: Tensor, counts: Sequence[int] | None = None) -> list[Tensor]:
        """The rows of each of the L layers.

        Args:
            images: (n, 3, H, W) in 0..1, on the model's device.
            counts: Of each layer: how many of the images it alone is looked at for, in the order of the layers. An
                image is not computed beyond its layer. None: every layer for all images.

        Returns:
            L matrices (n or ``counts[l]``, d_l).

        Raises:
            ConfigError: If the model computes its blocks more than once.
        """
        found: list[Tensor] = []
        num_tokens: list[int] = []

        def take(index: int, tokens: Tensor) -> Tensor | None:
            if counts is None:
                found.append(self._row(tokens, num_tokens[0]))
                return None
            own, rest = tokens[: counts[index]], tokens[counts[index] :]
            found.append(self._row(own, num_tokens[0]))
            if len(rest) == 0:
                raise _EnoughError
            return rest

        blocks = cast("nn.Sequential", self.model.blocks)
        hooks = [
            blocks[0].register_forward_pre_hook(lambda _, args: num_tokens.append(args[0].shape[1:-1].numel()), prepend=True)
        ]
        hooks += [blocks[block].register_forward_hook(_hook(take, index)) for index, block in enumerate(self.blocks)]
        try:
            with suppress(_EnoughError):
                features = self.model.forward_features(self._normalised(images))  # pyright: ignore[reportCallIssue]
                found.append(self.model.forward_head(features, pre_logits=True))  # pyright: ignore[reportCallIssue]
        finally:
            for hook in hooks:
                hook.remove()
        if len(num_tokens) > 1:
            raise ConfigError(
                "the model passes an image through its blocks more than once (as method=toast does): its backbone cannot be "
                "separated from the method, and its layers have no one representation"
            )
        return found + [images.new_empty(0, 0)] * (len(self.names) - len(found))

    def _row(self, tokens: Tensor, num_tokens: int) -> Tensor:
        tokens, embed = tokens.flatten(1, -2), self.model.patch_embed  # SAM's are (n, h, w, d)
        prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        # in CaiT and ConViT; num_patches is of these images where no others are taken
        comes_later = getattr(embed, "strict_img_size", True) and num_tokens == getattr(embed, "num_patches", None)
        num_patches = num_tokens if comes_later else num_tokens - prefix
        image = tokens[:, tokens.shape[1] - num_patches :]  # prompts stand before them
        prefix = min(prefix, tokens.shape[1] - num_patches)
        if self.tokens == "cls":
            if prefix == 0:
                raise ConfigError("tokens=cls: a layer has no class token; choose others with layers=, or tokens=mean")
            return tokens[:, 0]
        return image.mean(1) if self.tokens == "mean" else torch.cat([tokens[:, :prefix], image], 1).flatten(1)

    def _normalised(self, images: Tensor) -> Tensor:
        facts = resolve_model_data_config(self.model)
        mean, std = (torch.tensor(facts[name], device=images.device).view(3, 1, 1) for name in ("mean", "std"))
        return (images - mean) / std


def _hook(take: "Callable[[int, Tensor], Tensor | None]", index: int) -> Callable[..., Tensor | None]:
    return lambda _module, _args, tokens: take(index, tokens)


def open_layers(model: nn.Module, blocks: Sequence[int] | None = None, tokens: str = "all") -> Layers:
    """The layers of a ViT, which is put into eval mode, and whose parameters are frozen.

    Args:
        model: Of timm, with or without a method applied.
        blocks: Indices; negative: from the end. None: all.
        tokens: all, cls or mean.

    Raises:
        ConfigError: If the model is no ViT, has no such block or no class token where that is asked for, or one is given twice.
    """
    check_vit(model)
    depth = len(cast("nn.Sequential", model.blocks))
    given = list(range(depth)) if blocks is None else list(blocks)
    if any(not -depth <= block < depth for block in given):
        raise ConfigError(f"layers={given}: the model has {depth} blocks; give indices from 0 to {depth - 1}")
    chosen = sorted({block % depth for block in given})
    if len(chosen) < len(given):
        raise ConfigError(f"layers={given}: of the model's {depth} blocks one is named twice; give each once")
    if tokens == "cls" and getattr(model, "cls_token", None) is None:
        raise ConfigError("tokens=cls: the model has no class token; use tokens=mean or tokens=all")
    return Layers(model.eval().requires_grad_(False), tuple(chosen), tokens)
