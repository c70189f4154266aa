"""GIFT: Generative Interpretable Fine-Tuning (Savadikar, Song, Wu, arXiv 2312.00700).

The fine-tuned weight of a frozen linear layer ω (here ``weight``, d_out × d_in) is ``ω (I + φ ψ)``. Symbols of the paper and
names here: φ → ``phi`` (d_in × r), ψ → ``psi`` (r × d_in), C = ω φ → ``clusters`` (d_out × r), Δω = C ψ → ``delta_weight``,
r → ``rank``. One pair (φ, ψ) serves all layers of a target; ψ starts at zero, so the model is unchanged at the start.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.errors import ConfigError
from gift_vit.methods.registry import register_method
from gift_vit.methods.targets import TargetLayer, find_targets

SCHEMAS = ("linear",)


@dataclass
class GiftConfig:
    """What GIFT adapts and how.

    Attributes:
        rank: r, the inner dimension of φ ψ; the paper uses 16.
        target_modules: Suffixes of timm module names, see :func:`gift_vit.methods.targets.find_targets`.
        blocks: Indices of the blocks to adapt; None: all.
        share: One (φ, ψ) for all targets instead of one per target; they must agree in d_in.
        schema: What stands between φ and ψ. ``linear``: nothing, as in the paper's tables.
        phi_bias: Add a trainable bias (r) to the clusters.
        psi_bias: Add a trainable bias (d_in) to every row of the update.
    """

    rank: int = 16
    target_modules: list[str] = field(default_factory=lambda: ["attn.proj"])
    blocks: list[int] | None = None
    share: bool = False
    schema: str = "linear"
    phi_bias: bool = False
    psi_bias: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"method.rank={self.rank}: expected a whole number from 1 to the layer's d_in")
        if self.schema not in SCHEMAS:
            raise ConfigError(f"unknown method.schema {self.schema!r} (known: {', '.join(SCHEMAS)})")


class GiftPair(nn.Module):
    """The trainable (φ, ψ) that all layers of one target share.

    Attributes:
        phi: (d_in, r), drawn as ``nn.Linear(d_in, r)`` draws its weight: uniform on ±1/√d_in.
        psi: (r, d_in), zero.
        phi_bias: (r,) or None, uniform on ±1/√d_in.
        psi_bias: (d_in,) or None, zero.
    """

    phi_bias: nn.Parameter | None
    psi_bias: nn.Parameter | None

    def __init__(self, d_in: int, cfg: GiftConfig, device: torch.device) -> None:
        super().__init__()
        if cfg.rank > d_in:
            raise ConfigError(f"method.rank={cfg.rank} is larger than the target's d_in={d_in}; choose 1 to {d_in}")
        bound = 1 / math.sqrt(d_in)
        transposed_phi = torch.empty(cfg.rank, d_in, device=device)
        nn.init.kaiming_uniform_(transposed_phi, a=math.sqrt(5))
        self.phi = nn.Parameter(transposed_phi.T.contiguous())
        self.psi = nn.Parameter(torch.zeros(cfg.rank, d_in, device=device))
        phi_bias = torch.empty(cfg.rank, device=device).uniform_(-bound, bound) if cfg.phi_bias else None
        self.phi_bias = None if phi_bias is None else nn.Parameter(phi_bias)
        self.psi_bias = nn.Parameter(torch.zeros(d_in, device=device)) if cfg.psi_bias else None

    def clusters(self, weight: Tensor) -> Tensor:
        """C = ω φ (+ bias), shape (d_out, r), for a frozen weight (d_out, d_in); also the token-clustering head."""
        clusters = weight.to(self.phi.dtype) @ self.phi
        return clusters if self.phi_bias is None else clusters + self.phi_bias

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Δω = C ψ (+ bias), shape (d_out, d_in), for a frozen weight (d_out, d_in).

        The one definition of the update: merging uses it, the forward passes are tested against it.
        Source: arXiv 2312.00700, the two-linear-layer form ``ω + ω φ ψ``.
        """
        delta = self.clusters(weight) @ self.psi
        return delta if self.psi_bias is None else delta + self.psi_bias

    def shift_input(self, x: Tensor) -> Tensor:
        """X + (x ψᵀ) φᵀ for tokens (..., d_in): feeding this to the frozen layer equals updating its weight (no biases)."""
        return x + (x @ self.psi.to(x.dtype).T) @ self.phi.to(x.dtype).T

    def delta_output(self, x: Tensor, weight: Tensor) -> Tensor:
        """X Δωᵀ for tokens (..., d_in), shape (..., d_out), through r channels and without forming Δω.

        ``x Δωᵀ = (x ψᵀ)(φᵀ ωᵀ + b_φ 1ᵀ) + (x b_ψ) 1ᵀ``, exact with and without the biases.
        """
        delta = (x @ self.psi.to(x.dtype).T) @ self.clusters(weight).to(x.dtype).T
        if self.psi_bias is None:
            return delta
        return delta + (x @ self.psi_bias.to(x.dtype)).unsqueeze(-1)


class GiftLinear(nn.Module):
    """A frozen linear layer fine-tuned by GIFT.

    Keeps the original layer's ``weight`` and ``bias`` under their names, so the backbone's state-dict keys do not change. The
    pairs belong to the model (``model.gift``), not to this layer: they are shared, and listed once in the state dict.

    Args:
        linear: The layer to adapt; its parameters are used, not copied.
        parts: Each pair with the rows of the weight it updates; rows do not overlap.
    """

    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, parts: Sequence[tuple[GiftPair, slice]]) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.parts = tuple(sorted(parts, key=lambda part: part[1].start))
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., d_in) to (..., d_out)."""
        whole = len(self.parts) == 1 and self.parts[0][1] == slice(0, self.out_features)
        pair = self.parts[0][0]
        if whole and pair.phi_bias is None and pair.psi_bias is None:
            return F.linear(pair.shift_input(x), self.weight, self.bias)
        y = F.linear(x, self.weight, self.bias)
        pieces, end = [], 0
        for pair, rows in self.parts:
            delta = pair.delta_output(x, self.weight[rows])
            pieces += [y[..., end : rows.start], y[..., rows] + delta]
            end = rows.stop
        return torch.cat([*pieces, y[..., end:]], dim=-1)

    def delta_weight(self) -> Tensor:
        """Δω of the whole layer, shape (d_out, d_in); rows that no target covers are zero."""
        delta = torch.zeros_like(self.weight)
        for pair, rows in self.parts:
            delta[rows] = pair.delta_weight(self.weight[rows]).to(delta.dtype)
        return delta


@torch.no_grad()
def merge_gift(model: nn.Module, cfg: GiftConfig) -> None:
    """Replace every adapted layer by a plain ``nn.Linear`` of weight ω + Δω and remove the pairs."""
    del cfg
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, GiftLinear)]:
        merged = nn.Linear(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
        )
        merged.weight.copy_(layer.weight + layer.delta_weight())
        if layer.bias is not None:
            merged.bias.copy_(layer.bias)
        merged.requires_grad_(False).train(layer.training)
        model.set_submodule(name, merged)
    del model.gift


@register_method("gift", GiftConfig, merge=merge_gift)
def apply_gift(model: nn.Module, cfg: GiftConfig) -> None:
    """Replace the target layers of a timm ViT by :class:`GiftLinear`; the pairs live in ``model.gift``."""
    targets = find_targets(model, cfg.target_modules, cfg.blocks)
    pairs = _build_pairs(targets, cfg)
    model.gift = nn.Module()
    for name, pair in pairs.items():
        _add_nested(model.gift, name, pair)
    model.gift.train(model.training)
    parts: dict[str, tuple[nn.Linear, list[tuple[GiftPair, slice]]]] = {}
    for target, layers in targets.items():
        for layer in layers:
            pair = pairs["shared" if cfg.share else target]
            parts.setdefault(layer.name, (layer.module, []))[1].append((pair, layer.rows))
    for name, (linear, layer_parts) in parts.items():
        model.set_submodule(name, GiftLinear(linear, layer_parts))


def _build_pairs(targets: dict[str, list[TargetLayer]], cfg: GiftConfig) -> dict[str, GiftPair]:
    widths = {target: layers[0].module.in_features for target, layers in targets.items()}
    device = next(iter(targets.values()))[0].module.weight.device
    if not cfg.share:
        return {target: GiftPair(width, cfg, device) for target, width in widths.items()}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{target} {width}" for target, width in widths.items())
        raise ConfigError(f"share=true needs targets of one input width, got {listed}; drop some or set share=false")
    return {"shared": GiftPair(next(iter(widths.values())), cfg, device)}


def _add_nested(root: nn.Module, name: str, module: nn.Module) -> None:
    """Add ``module`` under a dotted name, making plain modules on the way: ``attn.proj`` → ``root.attn.proj``."""
    *parents, last = name.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(last, module)
