"""LoRA: Low-Rank Adaptation (Hu et al., arXiv 2106.09685): y = x Wᵀ + b + σ (x Aᵀ) Bᵀ, A (r × d_in), B (d_out × r), σ = α / r.

Whole layers are Hugging Face peft's. The slices q, k and v of timm's fused projection, which peft cannot name, are ours. So are
LoRA's relatives where peft changes the frozen weight, or needs more than a layer:

- rsLoRA (arXiv 2312.03732), ``rank_stabilized``: σ = α / √r.
- LoRA-FA (arXiv 2308.03303), ``freeze_a``: A stays as it was drawn.
- LoRA+ (arXiv 2402.12354), ``lr_ratio``: the learning rate of B over that of everything else. peft's helper gives the head's
  bias that of B; here the head keeps its own.
- PiSSA (arXiv 2404.02948), ``init: pissa``: A and B start as the best rank-r part of W, which is taken out of W. Here W stays
  whole and the start is subtracted from the update, ``σ (B A − B₀ A₀)``: the same function, and at the start W to the bit.
- EVA (arXiv 2410.07170), ``init: eva``: the rows of A are the directions in which the layer's centred inputs vary most.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.common.errors import ConfigError
from gift_vit.methods.config import LoraConfig, register_method
from gift_vit.methods.hf_peft import inject, merge_peft
from gift_vit.methods.targets import (
    AdaptedLinear,
    SmallLinear,
    TargetLayer,
    find_targets,
    finer,
    merge_linears,
    replace_linear,
)

log = logging.getLogger(__name__)
_WHOLE = "default"  # peft's name of an adapter


class SlicedLoraLinear(AdaptedLinear):
    """A frozen linear layer with LoRA on row slices of a fused projection, or on all rows; one product for the frozen part.

    Attributes:
        lora_A: By slice (``q``, ``k``, ``v``; ``default`` for all rows), a weight (r, d_in) as ``nn.Linear`` draws it.
        lora_B: By slice, a weight (rows, r), zero.
        start: By slice, the names of the buffers that hold where A (r, d_in) and B (rows, r) start, if that is not subtracted
            from the update by B = 0: of PiSSA.

    Args:
        linear: The layer to adapt; its parameters are used, not copied.
        rows: The rows of the weight that each slice covers.
        cfg: Rank, α and dropout.
    """

    def __init__(self, linear: nn.Linear, rows: Mapping[str, slice], cfg: LoraConfig) -> None:
        super().__init__(linear)
        self.rows = dict(rows)
        self.scaling = _scaling(cfg)
        self.dropout = nn.Dropout(cfg.dropout)
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        device = linear.weight.device
        for name, part in self.rows.items():
            self.lora_A[name] = SmallLinear(linear.in_features, cfg.rank, bias=False, device=device)
            self.lora_B[name] = SmallLinear(cfg.rank, part.stop - part.start, bias=False, device=device)
            nn.init.zeros_(self.lora_B[name].get_parameter("weight"))
            if cfg.init == "gaussian":
                nn.init.normal_(self.lora_A[name].get_parameter("weight"), std=1 / cfg.rank)
        self.start: dict[str, tuple[str, str]] = {}

    def take_principal_part(self) -> None:
        """Start as PiSSA: σ B₀ A₀ is the best approximation of W's rows by rank r."""
        for name, rows in self.rows.items():
            a, b = (cast("SmallLinear", side[name]).weight for side in (self.lora_A, self.lora_B))
            u, s, vh = torch.linalg.svd(self.weight.detach()[rows].double(), full_matrices=False)
            root = (s[: len(a)] / self.scaling).sqrt()
            suffix = "" if name == _WHOLE else f"_{name}"
            self.start[name] = (f"pissa_A0{suffix}", f"pissa_B0{suffix}")
            for buffer, trained, value in zip(
                self.start[name], (a, b), (root[:, None] * vh[: len(a)], u[:, : len(a)] * root), strict=True
            ):
                trained.data.copy_(value)
                self.register_buffer(buffer, trained.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., d_in) to (..., d_out)."""
        y = self.frozen(x)
        x = self.dropout(x)
        for name, rows in self.rows.items():
            update = self.lora_B[name](self.lora_A[name](x))
            if name in self.start:
                a0, b0 = (self.get_buffer(buffer).to(x.dtype) for buffer in self.start[name])
                update = update - F.linear(F.linear(x, a0), b0)
            y[..., rows].add_(self.scaling * update)
        return y

    def delta_weight(self) -> Tensor:
        """ΔW of the whole layer, shape (d_out, d_in); rows that no slice covers are zero."""
        delta = torch.zeros_like(finer(self.weight))
        for name, rows in self.rows.items():
            delta[rows] = self.scaling * self.lora_B[name].get_parameter("weight") @ self.lora_A[name].get_parameter("weight")
            if name in self.start:
                a0, b0 = (self.get_buffer(buffer) for buffer in self.start[name])
                delta[rows] -= self.scaling * b0 @ a0
        return delta

    def merged_weight(self) -> Tensor:
        """W + ΔW."""
        return finer(self.weight) + self.delta_weight()


def merge_lora(model: nn.Module, cfg: LoraConfig) -> None:
    """Replace every adapted layer by a plain ``nn.Linear`` of weight W + ΔW."""
    merge_peft(model, cfg)
    merge_linears(model)


@torch.no_grad()
def initialise_lora(model: nn.Module, cfg: LoraConfig, batches: Iterable[Tensor]) -> None:
    """EVA's start, from the first ``cfg.eva_images`` of the images; nothing for the others.

    A's rows are the leading eigenvectors of the covariance of the layer's inputs over all tokens, of unit length and with their
    largest entry positive; with ``whiten`` divided by the root of their singular value. Sums are in float64: how the images are
    dealt into batches does not matter.

    Raises:
        ConfigError: If there is no image.
    """
    if cfg.init != "eva":
        return
    sums = {layer: _Moments(layer.in_features) for layer in _adapted_layers(model)}
    hooks = [layer.register_forward_pre_hook(moments.add) for layer, moments in sums.items()]
    images = 0
    try:
        for batch in batches:
            model(batch[: cfg.eva_images - images])
            images = min(images + len(batch), cfg.eva_images)
            if images == cfg.eva_images:
                break
    finally:
        for hook in hooks:
            hook.remove()
    if images == 0:
        raise ConfigError("method.init=eva starts from training images, and there are none in what it was given")
    log.info("EVA: the inputs of %d layers over %d training images", len(sums), images)
    for layer, moments in sums.items():
        rows = moments.directions(cfg.rank, cfg.whiten)
        for a in layer.lora_A.values():
            a.weight.copy_(rows)


class _Moments:
    """Number, sum and sum of outer products of a layer's inputs, of width d."""

    def __init__(self, width: int) -> None:
        self.count, self.sum, self.outer = (
            0,
            torch.zeros(width, dtype=torch.float64),
            torch.zeros(width, width, dtype=torch.float64),
        )

    def add(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        """A forward pre-hook."""
        del layer
        x = args[0].flatten(0, -2).double()
        self.count += len(x)
        self.sum, self.outer = self.sum.to(x.device) + x.sum(0), self.outer.to(x.device) + x.T @ x

    def directions(self, rank: int, whiten: bool) -> Tensor:
        """The ``rank`` directions of largest variance, (rank, d)."""
        values, vectors = torch.linalg.eigh(self.outer - torch.outer(self.sum, self.sum) / self.count)
        rows = vectors.T.flip(0)[:rank]
        rows = rows * rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
        largest = values.flip(0)[:rank, None]
        if whiten and largest[-1] <= largest[0] * len(values) * torch.finfo(values.dtype).eps:
            raise ConfigError(
                f"method.whiten=true: a layer's inputs do not vary in {rank} directions; lower method.rank, or give more images"
            )
        return rows / largest.sqrt().sqrt() if whiten else rows


def _adapted_layers(model: nn.Module) -> list[Any]:
    """The layers with LoRA, peft's and ours."""
    return [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "in_features")]


def _scaling(cfg: LoraConfig) -> float:
    """σ."""
    return cfg.alpha / (cfg.rank**0.5 if cfg.rank_stabilized else cfg.rank)


@register_method("lora", LoraConfig, merge=merge_lora, initialise=initialise_lora)
def apply_lora(model: nn.Module, cfg: LoraConfig) -> None:
    """Replace whole target layers by peft's LoRA layers, and fused projections by :class:`SlicedLoraLinear`.

    Raises:
        ConfigError: If a layer has no ``rank`` directions to start from.
    """
    whole: list[str] = []
    parts: dict[str, dict[str, slice]] = {}
    for target, layers in find_targets(model, cfg.target_modules, cfg.blocks).items():
        for layer in layers:
            _check_rank(layer, cfg)
            if layer.slice_index is not None:
                parts.setdefault(layer.name, {})[target.removeprefix("attn.")] = layer.rows
            elif cfg.init == "pissa":
                parts[layer.name] = {_WHOLE: layer.rows}
            else:
                whole.append(layer.name)
    if whole:
        options: dict[str, Any] = {"r": cfg.rank, "lora_alpha": cfg.alpha, "lora_dropout": cfg.dropout}
        options |= {"use_rslora": True} if cfg.rank_stabilized else {}
        inject(model, "LORA", whole, options | ({"init_lora_weights": "gaussian"} if cfg.init == "gaussian" else {}))
    for name, rows in parts.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        adapted = SlicedLoraLinear(linear, rows, cfg)
        if cfg.init == "pissa":
            adapted.take_principal_part()
        replace_linear(model, name, adapted)
    for layer in _adapted_layers(model):
        layer.lora_A.requires_grad_(not cfg.freeze_a)
        for b in layer.lora_B.values():
            b.lr_scale = cfg.lr_ratio


def _check_rank(layer: TargetLayer, cfg: LoraConfig) -> None:
    limit = {"pissa": min(layer.num_rows, layer.module.in_features), "eva": layer.module.in_features}.get(cfg.init)
    if limit is not None and cfg.rank > limit:
        raise ConfigError(f"method.rank={cfg.rank}: with method.init={cfg.init} {layer.name} has 1 to {limit} directions")
