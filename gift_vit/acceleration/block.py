"""A block of a timm ViT, computed by its own modules with what is not needed left out.

The modules, their names and the state dict stay timm's; ``block.forward`` is set on the instance, so that hooks on the block
still run. What it computes is timm's

    ``x = x + drop_path1(ls1(attn(norm1(x))));  x = x + drop_path2(ls2(mlp(norm2(x))))``

and :mod:`gift_vit.acceleration.accelerate` uses it only where it was seen to give the same numbers.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gift_vit.acceleration.products import OnednnProducts
from gift_vit.methods.adaptformer import AdaptFormerBlock

BLOCKS = (Block, AdaptFormerBlock)


@dataclass
class BlockPlan:
    """What a block leaves out or computes in another way.

    Attributes:
        class_token_only: Give out the class token alone; the others serve as keys and values.
        kept_samples_only: While training on a CPU, compute a branch for the samples that drop path keeps.
        recompute_mlp: Compute what is inside the MLP's branch a second time in the backward pass, and do not keep it.
        onednn_products: Compute products with frozen weights as :class:`OnednnProducts` does.
    """

    class_token_only: bool = False
    kept_samples_only: bool = False
    recompute_mlp: bool = False
    onednn_products: bool = False


def plan_of(block: nn.Module) -> BlockPlan | None:
    """What :func:`set_plan` set; None: the block is computed as its class does."""
    return getattr(block, "plan", None)


def set_plan(block: Any, plan: BlockPlan) -> None:
    """Compute a block of :data:`BLOCKS` after ``plan`` from now on."""
    block.plan = plan
    block.forward = partial(_forward, block)


def drop_plan(block: Any) -> None:
    """Give the block its class's own forward pass back, where it has another."""
    if plan_of(block) is not None:
        del block.plan, block.forward


def _forward(block: Any, x: Tensor, *masks: Any, **named_masks: Any) -> Tensor:
    """Tokens (B, N, d) to (B, N, d), or (B, 1, d) where only the class token is wanted; with a mask, as timm does."""
    plan: BlockPlan = block.plan
    leaves_out = plan.class_token_only or plan.kept_samples_only or plan.recompute_mlp
    with _products(plan):
        if masks or named_masks or not leaves_out:
            return type(block).forward(block, x, *masks, **named_masks)
        return _forward_without_masks(block, x, plan)


def _products(plan: BlockPlan) -> AbstractContextManager[Any]:
    return OnednnProducts() if plan.onednn_products and not torch.compiler.is_compiling() else nullcontext()


def _forward_without_masks(block: Any, x: Tensor, plan: BlockPlan) -> Tensor:
    def attention(inputs: Tensor) -> Tensor:
        attend = partial(_class_token_attention, block.attn) if plan.class_token_only else block.attn
        return block.ls1(attend(block.norm1(inputs)))

    def mlp(inputs: Tensor) -> Tensor:
        if plan.recompute_mlp and torch.is_grad_enabled():
            return checkpoint(partial(_mlp_branch, block), inputs, use_reentrant=False)
        return _mlp_branch(block, inputs)

    tokens = x[:, :1] if plan.class_token_only else x
    tokens = _add_branch(tokens, attention, x, block.drop_path1, plan.kept_samples_only)
    after = _add_branch(tokens, mlp, tokens, block.drop_path2, plan.kept_samples_only)
    return after + block.adaptformer(tokens) if isinstance(block, AdaptFormerBlock) else after


def _mlp_branch(block: Any, x: Tensor) -> Tensor:
    with _products(block.plan):  # once more, for the second time is in the backward pass
        return block.ls2(block.mlp(block.norm2(x)))


def _class_token_attention(attn: Any, x: Tensor) -> Tensor:
    """What the class token reads from normed tokens (B, N, d), shape (B, 1, d)."""
    query, key, value = _heads(attn, x)
    read = F.scaled_dot_product_attention(attn.q_norm(query), attn.k_norm(key), value, scale=attn.scale)
    return attn.proj_drop(attn.proj(read.transpose(1, 2).flatten(2)))


def _heads(attn: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Query (B, heads, 1, head_dim) of the class token; keys and values (B, heads, N, head_dim) of all tokens.

    Of a plain fused projection the query's rows are applied to one token only; whatever stands in its place is called whole.
    """
    qkv, shape = attn.qkv, (attn.num_heads, attn.head_dim)
    if type(qkv) is nn.Linear and not qkv._forward_hooks and not qkv._forward_pre_hooks:
        width = qkv.out_features // 3
        weights = qkv.weight.split([width, 2 * width])
        biases = (None, None) if qkv.bias is None else qkv.bias.split([width, 2 * width])
        query = F.linear(x[:, :1], weights[0], biases[0]).unflatten(-1, shape)
        key, value = F.linear(x, weights[1], biases[1]).unflatten(-1, (2, *shape)).unbind(2)
    else:
        query, key, value = qkv(x).unflatten(-1, (3, *shape)).unbind(2)
        query = query[:, :1]
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def _add_branch(
    tokens: Tensor, branch: Callable[[Tensor], Tensor], inputs: Tensor, drop_path: nn.Module, kept_only: bool
) -> Tensor:
    """``tokens + drop_path(branch(inputs))``."""
    # elsewhere the host would wait for the device to tell how many samples are kept, or a graph have a size that changes
    possible = kept_only and inputs.device.type == "cpu" and not torch.compiler.is_compiling()
    if possible and isinstance(drop_path, DropPath) and drop_path.training and drop_path.drop_prob > 0:
        return _add_to_kept(tokens, branch, inputs, drop_path)
    return tokens + drop_path(branch(inputs))


def _add_to_kept(tokens: Tensor, branch: Callable[[Tensor], Tensor], inputs: Tensor, drop_path: DropPath) -> Tensor:
    keep_prob = 1 - drop_path.drop_prob
    # the number timm draws, from the same place in the generator's sequence as long as the branch draws none
    kept = inputs.new_empty(len(inputs), 1, 1).bernoulli_(keep_prob).flatten().nonzero().squeeze(1)
    factor = 1 / keep_prob if drop_path.scale_by_keep else 1.0
    if len(kept) == len(inputs):
        return torch.add(tokens, branch(inputs), alpha=factor)
    if len(kept) == 0:  # a gradient of zero, and not none: an optimiser makes a difference there
        kept, factor = kept.new_zeros(1), 0.0
    added = branch(inputs.index_select(0, kept))
    dtype = torch.promote_types(tokens.dtype, added.dtype)
    return tokens.to(dtype).index_add(0, kept, added.to(dtype), alpha=factor)
