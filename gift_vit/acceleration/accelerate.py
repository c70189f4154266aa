"""Switching on what is exact: the one place that decides how a model is computed."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from timm.layers.config import use_fused_attn
from timm.layers.drop import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from gift_vit.acceleration.block import BLOCKS, BlockPlan, drop_plan, plan_of, set_plan
from gift_vit.acceleration.products import onednn_is_faster
from gift_vit.engine import TrainerConfig
from gift_vit.errors import ConfigError

log = logging.getLogger(__name__)

_SAMPLES, _TOKENS = 6, 5
_OTHER_NUMBERS = "the numbers would be others (dropout, an adapter that mixes tokens, modules unlike those of timm's Block)"
_READ_BY_HEAD = ("forward", "forward_features", "forward_head", "pool")


def accelerate(model: nn.Module, trainer: TrainerConfig) -> dict[str, Any]:
    """Compute a model with less work, or less memory, and the same numbers but for rounding; in place.

    - ``trainer.cls_last_block``: where the head reads the class token alone, the last block computes no other.
    - Branches are computed for the samples that drop path keeps, on CPUs.
    - Attention in bf16 on a CPU is computed by plain products: timm's fused kernel takes two to six times as long there.
    - Products with frozen weights in fp32 go through oneDNN on processors of AMD's, where it is faster than MKL.
    - ``trainer.memory``: ``lean`` computes the inside of the MLPs twice, ``minimal`` all blocks, instead of keeping them.

    Each of the first two is used where a trial of the block gives what timm gives. Parameters and state-dict keys stay, merging
    works, and the model still evaluates and compiles; ``forward_features`` returns the tokens that the head reads, and
    :func:`all_tokens` all of them.

    Args:
        model: A timm ViT on its device, with or without a method applied.
        trainer: Its keys ``cls_last_block``, ``memory``, ``precision`` and ``compile``.

    Returns:
        What is on, as plain values for a run's record.

    Raises:
        ConfigError: If the model does not allow what was asked for by name.
    """
    blocks = _blocks(model)
    for block in blocks:
        drop_plan(block)
    on_class_token = _adopt_class_token(model, trainer.cls_last_block)
    dropping = [block for block in blocks if any(isinstance(m, DropPath) and m.drop_prob for m in block.children())]
    skipping = [_adopt(block, kept_samples_only=True) for block in dropping]
    if not all(skipping):
        log.info("drop path computes what it drops in %d of %d blocks: %s", skipping.count(False), len(blocks), _OTHER_NUMBERS)
    _set_memory(model, trainer.memory)
    some = next(model.parameters())
    on_cpu = some.device.type == "cpu"
    slow_products = on_cpu and some.dtype == torch.float32 and trainer.precision == "fp32" and onednn_is_faster()
    by_onednn = blocks if slow_products and not trainer.compile and all(type(block) in BLOCKS for block in blocks) else []
    for block in by_onednn:  # the products are the same to rounding whatever the block is: there is nothing to try
        set_plan(block, replace(plan_of(block) or BlockPlan(), onednn_products=True))
    # lean keeps little for the backward pass, plain products the attention weights
    plain = on_cpu and trainer.precision == "bf16" and trainer.memory != "lean"
    _set_fused_attention(model, not plain and bool(use_fused_attn()))
    return {
        "cls_last_block": on_class_token,
        "drop_path_on_kept": bool(skipping) and all(skipping) and on_cpu and not trainer.compile,
        "plain_attention": plain,
        "onednn_products": bool(by_onednn),
        "memory": trainer.memory,
        "precision": trainer.precision,
        "compile": trainer.compile,
    }


@contextmanager
def all_tokens(model: nn.Module) -> Iterator[None]:
    """Let the last block compute all tokens for the time being: for whoever looks at more than the model's output."""
    plans = [plan for block in _blocks(model) if (plan := plan_of(block)) is not None]
    before = [plan.class_token_only for plan in plans]
    for plan in plans:
        plan.class_token_only = False
    try:
        yield
    finally:
        for plan, class_token_only in zip(plans, before, strict=True):
            plan.class_token_only = class_token_only


def _blocks(model: nn.Module) -> list[nn.Module]:
    return list(cast("nn.Sequential", getattr(model, "blocks", nn.Sequential())))


def _adopt_class_token(model: nn.Module, wanted: str) -> bool:
    if wanted == "off":
        return False
    reason = _class_token_obstacle(model)
    if reason is None and _adopt(_blocks(model)[-1], class_token_only=True):
        return True
    reason = reason or _OTHER_NUMBERS
    if wanted == "on":
        raise ConfigError(f"trainer.cls_last_block=on is not possible with this model: {reason}; set it to auto")
    log.info("the last block computes all tokens: %s", reason)
    return False


def _class_token_obstacle(model: nn.Module) -> str | None:
    """Why the head may read other tokens than the class token; None: it does not."""
    if not isinstance(model, VisionTransformer):
        return f"the model is no VisionTransformer of timm's but a {type(model).__name__}"
    own = [name for name in _READ_BY_HEAD if getattr(type(model), name) is not getattr(VisionTransformer, name)]
    if own:
        return f"{type(model).__name__} has a {own[0]} of its own"
    if model.attn_pool is not None or model.global_pool != "token":
        return f"the head pools {model.global_pool!r} and not the class token"
    return None


def _set_fused_attention(model: nn.Module, fused: bool) -> None:
    for module in (module for block in _blocks(model) for module in block.modules()):
        if hasattr(module, "fused_attn"):
            vars(module)["fused_attn"] = fused  # as timm's own switch does, before modules are built


def _set_memory(model: nn.Module, memory: str) -> None:
    vars(model)["recomputes_mlp"] = memory == "lean"  # for methods that keep something from one pass to the next
    if memory == "lean" and not all(_adopt(block, recompute_mlp=True) for block in _blocks(model)):
        raise ConfigError(
            f"trainer.memory=lean is not possible with {type(model).__name__}, whose blocks are not built as those of timm's "
            "VisionTransformer; use minimal"
        )
    if hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(memory == "minimal")  # pyright: ignore[reportCallIssue]
    elif memory == "minimal":
        raise ConfigError(f"trainer.memory=minimal is not possible: {type(model).__name__} cannot checkpoint its blocks")


def _adopt(block: nn.Module, **change: bool) -> bool:
    """Change the block's plan if a copy of the block computes the same so, in both modes, from the same random numbers."""
    if type(block) not in BLOCKS:
        return False
    plan = replace(plan_of(block) or BlockPlan(), **change)
    trial: Any = deepcopy(block).double()  # rounding in fp32 hides what an adapter mixes that is close to its start
    set_plan(trial, plan)
    with suppress(AttributeError, RuntimeError, TypeError):  # modules that this forward pass does not know
        if _computes_the_same(trial):
            set_plan(block, plan)
            return True
    return False


@torch.no_grad()
def _computes_the_same(block: Any) -> bool:
    """Whether the tokens come out as by the class's own forward pass, and the random numbers drawn are as many.

    Trainable parameters are moved from their start: there, an adapter that mixes tokens or samples may not show.
    """
    generator, some = torch.Generator().manual_seed(0), next(block.parameters())
    for parameter in block.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    # small, so that the sum of tokens and branches shows a difference between the branches
    x = 0.01 * torch.randn(_SAMPLES, _TOKENS, block.attn.num_heads * block.attn.head_dim, generator=generator).to(some)
    return all(_same_outcome(block.train(training), x) for training in (False, True))


def _same_outcome(block: nn.Module, x: Tensor) -> bool:
    expected, drawn = _outcome(partial(type(block).forward, block), x)
    actual, also_drawn = _outcome(block.forward, x)
    expected, residual = expected[:, : actual.shape[1]], x[:, : actual.shape[1]]
    tolerance = torch.finfo(x.dtype).eps ** 0.5 * (expected - residual).abs().max()
    return torch.equal(drawn, also_drawn) and bool((actual - expected).abs().max() <= tolerance)


def _outcome(forward: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The output for a fixed seed, and the state in which the generator is left."""
    cuda = x.device.type == "cuda"
    with torch.random.fork_rng(devices=[x.device] if cuda else []):
        torch.manual_seed(0)
        output = forward(x)
        return output, torch.cuda.get_rng_state(x.device) if cuda else torch.get_rng_state()
