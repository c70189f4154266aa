"""Switching on what is exact: the one place that decides how a model is computed, and how its blocks are.

A block of a timm ViT is computed by its own modules with what is not needed left out. The modules, their names and the state
dict stay timm's; ``block.forward`` is set on the instance, so that hooks on the block still run. What it computes is timm's

    ``x = x + drop_path1(ls1(attn(norm1(x))));  x = x + drop_path2(ls2(mlp(norm2(x))))``

and it is used only where it was seen to give the same numbers. An ``EvaBlock`` is that too, with layer scales that are
parameters, and attention that is given the rotation of the patches' positions (``rope``).

Modules of others have their say by two methods:

- A block of another class than timm's is computed so too if it has timm's modules by timm's names and a method
  ``compose(x, attend, feed)``: its tokens (B, N, d) from those before it, where ``attend`` and ``feed`` add timm's first and
  second branch to tokens, or, given a function ``change``, what that makes of the branch. timm's own is
  ``feed(attend(x))``. What ``attend`` gives has the tokens that the block gives out, perhaps the first one alone.
- A module that takes the tokens for an image has a method ``take_for_row(tokens)``: how many tokens a trial gives it, whose
  image is one row.
- A module that keeps something during a forward pass has a method ``set_mlp_recomputed(recomputed)`` if it wants to know
  whether the MLPs are computed a second time, in the backward pass, when that is gone.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from types import FunctionType, NoneType
from typing import Any, TypeAlias, cast

import torch
from timm.layers.config import use_fused_attn
from timm.layers.drop import DropPath
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gift_vit.acceleration.config import ComputeConfig
from gift_vit.acceleration.products import OnednnProducts
from gift_vit.common.environment import onednn_is_faster
from gift_vit.common.errors import ConfigError
from gift_vit.engine.config import TrainerConfig

log = logging.getLogger(__name__)

Change: TypeAlias = Callable[[Tensor], Tensor] | None
_SAMPLES, _PATCHES = 6, 4  # of a trial, in which drop path drops some of the samples and keeps others
_PLAIN = (bool, int, float, str, tuple, NoneType, FunctionType)
_OTHER_NUMBERS = "the numbers would be others (dropout, a method that mixes tokens, modules unlike those of timm's Block)"
_READ_BY_HEAD = ("forward", "forward_features", "forward_head", "pool")


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


def accelerate(model: nn.Module, compute: ComputeConfig, trainer: TrainerConfig) -> dict[str, Any]:
    """Compute a model with less work, or less memory, and the same numbers but for rounding; in place.

    - ``trainer.cls_last_block``: where the head reads the class token alone, the last block computes no other.
    - Branches are computed for the samples that drop path keeps, on CPUs.
    - Attention in bf16 on a CPU is computed by plain products: the fused kernel takes two to six times as long there.
    - Products with frozen weights in fp32 go through oneDNN on processors of AMD's, where it is faster than MKL.
    - ``trainer.memory``: ``lean`` computes the inside of the MLPs twice, ``minimal`` all blocks, instead of keeping them.

    Each of the first two is used where a trial of the block gives what timm gives. Parameters and state-dict keys stay, merging
    works, and the model still evaluates and compiles; ``forward_features`` returns the tokens that the head reads, and
    :func:`all_tokens` all of them.

    Args:
        model: A timm ViT on its device, plain or with its method applied already.
        compute: What is wanted.
        trainer: Its ``precision`` and ``compile`` decide what is possible.

    Returns:
        What is on, as plain values for a run's record.

    Raises:
        ConfigError: If the model does not allow what was asked for by name.
    """
    blocks = _blocks(model)
    for block in blocks:
        drop_plan(block)
    on_class_token = _adopt_class_token(model, compute.cls_last_block)
    some = next(model.parameters())
    on_cpu = some.device.type == "cpu"
    dropping = [block for block in blocks if on_cpu and any(isinstance(m, DropPath) and m.drop_prob for m in block.children())]
    skipping = _adopt_all(dropping, kept_samples_only=True)
    if not all(skipping):
        log.info("drop path computes what it drops in %d of %d blocks: %s", skipping.count(False), len(blocks), _OTHER_NUMBERS)
    _set_memory(model, compute.memory)
    slow_products = on_cpu and some.dtype == torch.float32 and trainer.precision == "fp32" and onednn_is_faster()
    by_onednn = blocks if slow_products and not trainer.compile and all(map(is_computable, blocks)) else []
    for block in by_onednn:  # the products are the same to rounding whatever the block is: there is nothing to try
        set_plan(block, _changed_plan(block, onednn_products=True))
    # lean keeps little for the backward pass, plain products the attention weights
    plain = on_cpu and trainer.precision == "bf16" and compute.memory != "lean"
    if hasattr(model, "take_plain_attention"):  # a model of transformers
        plain = plain and model.take_plain_attention()  # pyright: ignore[reportCallIssue]
    _set_fused_attention(model, not plain and bool(use_fused_attn()))
    return {
        "cls_last_block": on_class_token,
        "drop_path_on_kept": bool(skipping) and all(skipping) and not trainer.compile,
        "plain_attention": plain,
        "onednn_products": bool(by_onednn),
        "memory": compute.memory,
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


def has_fused_attention(model: nn.Module) -> bool:
    """Whether attention is computed by a fused kernel in any block, as it is set up now."""
    return any(getattr(module, "fused_attn", False) for block in _blocks(model) for module in block.modules())


def _blocks(model: nn.Module) -> list[nn.Module]:
    return list(cast("nn.Sequential", getattr(model, "blocks", nn.Sequential())))


def _adopt_class_token(model: nn.Module, wanted: str) -> bool:
    if wanted == "off" or (wanted == "auto" and not _blocks(model)):
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
    if not isinstance(model, VisionTransformer | Eva):
        return f"the model is no VisionTransformer of timm's but a {type(model).__name__}"
    timms = VisionTransformer if isinstance(model, VisionTransformer) else Eva
    own = [name for name in _READ_BY_HEAD if getattr(type(model), name) is not getattr(timms, name)]
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
    vars(model)["recomputes"] = memory != "fast"  # what is computed anew in the backward pass cannot be recorded with it
    for module in model.modules():
        if hasattr(module, "set_mlp_recomputed"):
            module.set_mlp_recomputed(memory == "lean")  # pyright: ignore[reportCallIssue]
    blocks = _blocks(model)
    if memory == "lean" and not (blocks and all(_adopt_all(blocks, recompute_mlp=True))):
        kinds = " and ".join(sorted({type(block).__name__ for block in blocks})) or type(model).__name__
        raise ConfigError(f"trainer.memory=lean is not possible with {kinds}: it is not timm's Block of a ViT; use minimal")
    try:
        model.set_grad_checkpointing(memory == "minimal")  # pyright: ignore[reportCallIssue]
    except (
        AttributeError,
        AssertionError,
    ) as error:  # by ConViT, which has one that refuses
        if memory == "minimal":
            raise ConfigError(
                f"trainer.memory=minimal is not possible: {type(model).__name__} cannot checkpoint its blocks"
            ) from error


def _adopt_all(blocks: Sequence[nn.Module], **change: bool) -> list[bool]:
    """:func:`_adopt` for each block; of blocks of one kind the first alone is tried, for a trial of a ViT-B's takes 0.1 s."""
    tried: dict[str, bool] = {}
    adopted: list[bool] = []
    for block in blocks:
        kind = _kind(block)
        if kind not in tried:
            tried[kind] = _adopt(block, **change)
        elif tried[kind]:
            set_plan(block, _changed_plan(block, **change))
        adopted.append(tried[kind])
    return adopted


def _kind(block: nn.Module) -> str:
    """All that says how a block computes, but for the numbers in its tensors and the rates of its drop paths."""
    told: list[Any] = [plan_of(block)]
    for name, module in block.named_modules():
        values = {key: value.func if isinstance(value, partial) else value for key, value in vars(module).items()}
        plain = {key: value for key, value in values.items() if isinstance(value, _PLAIN)}
        if isinstance(module, DropPath):
            plain["drop_prob"] = module.drop_prob > 0
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        told.append((name, type(module), sorted(values), plain, hooks))
    return repr(told)


def _adopt(block: nn.Module, **change: bool) -> bool:
    """Change the block's plan if a copy of the block computes the same so, in both modes, from the same random numbers."""
    if not is_computable(block):
        return False
    plan = _changed_plan(block, **change)
    trial: Any = deepcopy(block).double()  # rounding in fp32 hides what a method mixes that is close to its start
    for module in trial.modules():
        if hasattr(module, "take_for_row"):
            module.take_for_row(_trial_tokens(block))
        if isinstance(module, DropPath) and module.drop_prob:
            module.drop_prob = 0.5  # at the rates of training all of a few samples are kept, which would show nothing
    set_plan(trial, plan)
    with suppress(AttributeError, RuntimeError, TypeError):  # modules that this forward pass does not know
        if _computes_the_same(trial):
            set_plan(block, plan)
    drop_plan(trial)  # else the trial would hold itself, and its memory until Python looks for such circles
    return plan_of(block) is plan


def _changed_plan(block: nn.Module, **change: bool) -> BlockPlan:
    return replace(plan_of(block) or BlockPlan(), **change)


def _trial_tokens(block: Any) -> int:
    return getattr(block.attn, "num_prefix_tokens", 1) + _PATCHES


@torch.no_grad()
def _computes_the_same(block: Any) -> bool:
    """Whether the tokens come out as by the class's own forward pass, and the random numbers drawn are as many.

    Trainable parameters are moved from their start: there, a method that mixes tokens or samples may not show.
    """
    generator, some = torch.Generator().manual_seed(0), next(block.parameters())
    for parameter in block.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    # small, so that the sum of tokens and branches shows a difference between the branches
    width = block.attn.num_heads * block.attn.head_dim
    x = 0.01 * torch.randn(_SAMPLES, _trial_tokens(block), width, generator=generator).to(some)
    inputs = {"x": x}
    if isinstance(block, EvaBlock):
        angles = torch.randn(_PATCHES, block.attn.head_dim, generator=generator).to(some)
        inputs["rope"] = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return all(_same_outcome(block.train(training), inputs) for training in (False, True))


def _same_outcome(block: nn.Module, inputs: dict[str, Tensor]) -> bool:
    x = inputs["x"]
    expected, drawn = _outcome(partial(type(block).forward, block), inputs)
    actual, also_drawn = _outcome(block.forward, inputs)
    expected, residual = expected[:, : actual.shape[1]], x[:, : actual.shape[1]]
    tolerance = torch.finfo(x.dtype).eps ** 0.5 * (expected - residual).abs().max()
    return torch.equal(drawn, also_drawn) and bool((actual - expected).abs().max() <= tolerance)


def _outcome(forward: Callable[..., Tensor], inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The output for a fixed seed, and the state in which the generator is left."""
    x = inputs["x"]
    cuda = x.device.type == "cuda"
    with torch.random.fork_rng(devices=[x.device] if cuda else []):
        torch.manual_seed(0)
        output = forward(**inputs)
        return output, torch.cuda.get_rng_state(x.device) if cuda else torch.get_rng_state()


def is_computable(block: nn.Module) -> bool:
    """Whether the block is timm's, or says how it is composed of timm's branches."""
    return type(block) in (Block, EvaBlock) or hasattr(block, "compose")


def plan_of(block: nn.Module) -> BlockPlan | None:
    """What :func:`set_plan` set; None: the block is computed as its class does."""
    return getattr(block, "plan", None)


def set_plan(block: Any, plan: BlockPlan) -> None:
    """Compute a block that :func:`is_computable` after ``plan`` from now on."""
    block.plan = plan
    block.forward = partial(_forward, block)


def drop_plan(block: Any) -> None:
    """Give the block its class's own forward pass back, where it has another."""
    if plan_of(block) is not None:
        del block.plan, block.forward


def compute(block: Any, x: Tensor, **named: Any) -> Tensor:
    """What ``block.forward`` computes, as one function of any block that :func:`is_computable`."""
    return type(block).forward(block, x, **named) if plan_of(block) is None else _forward(block, x, **named)


def is_masked(named: dict[str, Any]) -> bool:
    """Whether what timm hands to a block by name has a mask in it; ``Eva`` names masks that there are not, too."""
    return named.get("attn_mask") is not None or bool(named.get("is_causal"))


def _forward(block: Any, x: Tensor, *masks: Any, **named: Any) -> Tensor:
    """Tokens (B, N, d) to (B, N, d), or (B, 1, d) where only the class token is wanted; with a mask, as timm does."""
    plan: BlockPlan = block.plan
    leaves_out = plan.class_token_only or plan.kept_samples_only or plan.recompute_mlp
    with _products(plan):
        if masks or is_masked(named) or not leaves_out:
            return type(block).forward(block, x, *masks, **named)
        return _forward_without_masks(block, x, plan, named.get("rope"))


def _products(plan: BlockPlan) -> AbstractContextManager[Any]:
    return OnednnProducts() if plan.onednn_products and not torch.compiler.is_compiling() else nullcontext()


def _forward_without_masks(block: Any, x: Tensor, plan: BlockPlan, rope: Tensor | None) -> Tensor:
    rotation = {} if rope is None else {"rope": rope}

    def attention(inputs: Tensor) -> Tensor:
        attend = partial(_class_token_attention, block.attn) if plan.class_token_only else block.attn
        return _scaled(attend(block.norm1(inputs), **rotation), block.ls1 if hasattr(block, "ls1") else block.gamma_1)

    def mlp(inputs: Tensor) -> Tensor:
        if plan.recompute_mlp and torch.is_grad_enabled():
            return checkpoint(partial(_mlp_branch, block), inputs, use_reentrant=False)
        return _mlp_branch(block, inputs)

    kept_only = plan.kept_samples_only and (rope is None or rope.ndim < 4)  # else each sample has positions of its own

    def attend(inputs: Tensor, change: Change = None) -> Tensor:
        tokens = inputs[:, :1] if plan.class_token_only else inputs
        return _add_changed(tokens, attention, inputs, block.drop_path1, kept_only, change)

    def feed(tokens: Tensor, change: Change = None) -> Tensor:
        return _add_changed(tokens, mlp, tokens, block.drop_path2, plan.kept_samples_only, change)

    return block.compose(x, attend, feed) if hasattr(block, "compose") else feed(attend(x))


def _mlp_branch(block: Any, x: Tensor) -> Tensor:
    with _products(block.plan):  # once more, for the second time is in the backward pass
        return _scaled(block.mlp(block.norm2(x)), block.ls2 if hasattr(block, "ls2") else block.gamma_2)


def _scaled(branch: Tensor, layer_scale: nn.Module | Tensor | None) -> Tensor:
    """A branch with its layer scale, which is a module of timm's ``Block`` and a parameter or nothing of an ``EvaBlock``."""
    if isinstance(layer_scale, nn.Module):
        return layer_scale(branch)
    return branch if layer_scale is None else layer_scale * branch


def _class_token_attention(attn: Any, x: Tensor, rope: Tensor | None = None) -> Tensor:
    """What the class token reads from normed tokens (B, N, d), shape (B, 1, d).

    ``rope`` turns the keys of patches. The class token is one of the prefix tokens before them, and is not turned.
    """
    query, key, value = _heads(attn, x)
    query, key = attn.q_norm(query), attn.k_norm(key)
    if rope is not None:
        prefix, patches = key.tensor_split([attn.num_prefix_tokens], dim=2)
        patches = apply_rot_embed_cat(patches, rope, **({"half": True} if getattr(attn, "rotate_half", False) else {}))
        query, key = query.type_as(value), torch.cat([prefix, patches], dim=2).type_as(value)
    groups = getattr(attn, "num_kv_groups", 1)
    if groups > 1:
        key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    read = F.scaled_dot_product_attention(query, key, value, scale=attn.scale).transpose(1, 2).flatten(2)
    if hasattr(attn, "norm"):
        read = attn.norm(read)
    if getattr(attn, "gate", None) is not None:
        read = read * attn.gate(x[:, :1]).sigmoid()
    return attn.proj_drop(attn.proj(read))


def _heads(attn: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Query (B, heads, 1, head_dim) of the class token; keys and values (B, heads, N, head_dim) of all tokens.

    Of a plain fused projection the query's rows are applied to one token only; whatever stands in its place is called whole.
    """
    parts = (attn.q_proj(x[:, :1]), attn.k_proj(x), attn.v_proj(x)) if attn.qkv is None else _fused_heads(attn, x)
    return tuple(part.unflatten(-1, (-1, attn.head_dim)).transpose(1, 2) for part in parts)


def _fused_heads(attn: Any, x: Tensor) -> tuple[Tensor, ...]:
    """The query (B, 1, d) of the class token, keys and values (B, N, d), of a fused projection."""
    qkv, beside = attn.qkv, None
    if getattr(attn, "q_bias", None) is not None:
        beside = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    is_called = beside is None or getattr(attn, "qkv_bias_separate", False)  # else timm takes its weight, and no hook runs
    if is_called and (type(qkv) is not nn.Linear or qkv._forward_hooks or qkv._forward_pre_hooks):
        query, key, value = (qkv(x) if beside is None else qkv(x) + beside).chunk(3, dim=-1)
        return query[:, :1], key, value
    width = qkv.weight.shape[0] // 3
    bias = qkv.bias if beside is None else beside
    weights = qkv.weight.split([width, 2 * width])
    biases = (None, None) if bias is None else bias.split([width, 2 * width])
    return F.linear(x[:, :1], weights[0], biases[0]), *F.linear(x, weights[1], biases[1]).chunk(2, dim=-1)


def _add_changed(
    tokens: Tensor, branch: Callable[[Tensor], Tensor], inputs: Tensor, drop_path: nn.Module, kept_only: bool, change: Change
) -> Tensor:
    """``tokens + change(drop_path(branch(inputs)))``."""
    if change is None:
        return _add_branch(tokens, branch, inputs, drop_path, kept_only)
    return tokens + change(_add_branch(torch.zeros_like(tokens), branch, inputs, drop_path, kept_only))


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
    weight = 1 / keep_prob if drop_path.scale_by_keep else 1.0
    if len(kept) == len(inputs):
        return torch.add(tokens, branch(inputs), alpha=weight)
    if len(kept) == 0:  # a gradient of zero, and not none: an optimiser makes a difference there
        kept, weight = kept.new_zeros(1), 0.0
    added = branch(inputs.index_select(0, kept))
    dtype = torch.promote_types(tokens.dtype, added.dtype)
    return tokens.to(dtype).index_add(0, kept, added.to(dtype), alpha=weight)
