"""Maps that owe nothing to GIFT's clusters, to compare them with: attention, gradients, and the middle of the picture."""

import math
from contextlib import ExitStack
from typing import cast

import torch
from torch import Tensor, nn

from gift_vit.common.errors import ConfigError
from gift_vit.explain.maps import eval_mode, patch_grid


def shows_attention(model: nn.Module) -> bool:
    """Whether :func:`attention_maps` can be made, of a class token that the head reads.

    Not of models whose positions enter after queries and keys were seen.
    """
    reads = getattr(model, "global_pool", None) == "token"
    return reads and bool(getattr(model, "has_class_token", False))  # timm's VisionTransformer alone says it


def attention_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Where the class token looks: ``cls_attention`` and ``rollout``, each (B, h, w), from one forward pass.

    ``cls_attention`` is the last block's attention of the class token to the patches, mean over heads. ``rollout`` is that of
    the product over blocks of ½ (A + 1) (Abnar and Zuidema, arXiv 2005.00928).

    Args:
        model: A timm ViT with or without an adapter, left as it was found.
        images: (B, 3, H, W), as the model expects them.

    Raises:
        ConfigError: If the model's head reads no class token, or its attention shows no queries and keys.
    """
    if not shows_attention(model):
        raise ConfigError(
            f"attention maps need a class token that the head reads, and its attention; {type(model).__name__} shows none"
        )
    grid, prefix = patch_grid(model, images), cast("int", model.num_prefix_tokens)
    seen: list[Tensor] = []
    attentions = [block.get_submodule("attn") for block in cast("nn.Sequential", model.blocks)]
    with ExitStack() as stack, torch.no_grad():
        for attention in attentions:
            for name in ("q_norm", "k_norm"):
                module = getattr(attention, name, None)
                if not isinstance(module, nn.Module):
                    raise ConfigError(f"attention maps need queries and keys, which {type(attention).__name__} does not show")
                stack.callback(module.register_forward_hook(lambda *arguments: seen.append(arguments[2])).remove)
        stack.enter_context(eval_mode(model))
        model(images)
    weights = [_attention(q, k) for q, k in zip(seen[::2], seen[1::2], strict=True)]
    identity = torch.eye(weights[0].shape[-1]).to(weights[0])
    joint = identity
    for layer in weights:
        joint = (layer + identity) / 2 @ joint
    return {
        "cls_attention": weights[-1][:, 0, prefix:].unflatten(-1, grid),
        "rollout": joint[:, 0, prefix:].unflatten(-1, grid),
    }


def gradient_map(model: nn.Module, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """Gradient × activation of the last block's normalised tokens (GradCAM for a ViT, Selvaraju et al., 1610.02391), (B, h, w).

    The tokens are weighted by the mean gradient of a class's logit over the patches, summed over channels, and cut off below 0.

    Args:
        model: A timm ViT, left as it was found; no gradient stays on it.
        images: (B, 3, H, W), as the model expects them.
        classes: (B,), whose logits; None: the predicted ones.
    """
    grid = patch_grid(model, images)
    seen: list[Tensor] = []

    def follow(_: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[0]

    with ExitStack() as stack, torch.enable_grad():
        norm = cast("nn.Sequential", model.blocks)[-1].get_submodule("norm1")
        stack.callback(norm.register_forward_hook(follow).remove)
        stack.enter_context(eval_mode(model))
        logits = model(images)
        chosen = logits.argmax(1) if classes is None else classes
        (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), seen[0])
    patches = grid[0] * grid[1]  # class and register tokens come first; SAM's tokens are (B, h, w, d)
    gradient, tokens = (own.flatten(1, -2)[:, -patches:] for own in (gradient, seen[0].detach()))
    weights = gradient.mean(1, keepdim=True)
    return (weights * tokens).sum(-1).clamp(min=0).unflatten(-1, grid)


def centre_map(size: tuple[int, int]) -> Tensor:
    """A pyramid over the middle of a picture, (H, W) in 0..1: above a threshold it is a centred box of the picture's shape."""
    rows, columns = ((torch.arange(side) + 0.5) / side * 2 - 1 for side in size)
    return 1 - torch.maximum(rows.abs()[:, None], columns.abs()[None])


def _attention(queries: Tensor, keys: Tensor) -> Tensor:
    """Mean over heads of softmax(q kᵀ / √d), (B, N, N), of (B, heads, N, d)."""
    return (queries @ keys.mT / math.sqrt(queries.shape[-1])).softmax(-1).mean(1)
