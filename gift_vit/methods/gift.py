"""GIFT: Generative Interpretable Fine-Tuning (Savadikar, Song, Wu, arXiv 2312.00700).

The fine-tuned weight of a frozen linear layer ω (here ``weight``, d_out × d_in) is ``ω + H(ω φ) ψ``. In the paper's tables H is
the identity and this is ``ω (I + φ ψ)``. Symbols of the paper and names here: φ → ``phi`` (d_in × r), ψ → ``psi`` (r × d_in),
C = ω φ → ``clusters`` (d_out × r), H → ``schema``, H(C) → ``generated`` (d_out × r), Δω = H(C) ψ → ``delta_weight``,
r → ``rank``. One pair (φ, ψ) with its H serves all layers of a target; ψ starts at zero, so the model is then unchanged.

WeGeFT, the paper's later form, has φ start at zero and ψ drawn, and scales the update by α / r (``init: wegeft``, ``alpha``).
"""

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from gift_vit.common.errors import ConfigError
from gift_vit.methods.config import GiftConfig, register_method
from gift_vit.methods.gift_schemas import build_schema
from gift_vit.methods.targets import AdaptedLinear, TargetLayer, find_targets, finer, merge_linears

log = logging.getLogger(__name__)

_SCALED_BY = {("attn", "proj"): "ls1", ("mlp", "fc2"): "ls2"}  # layers that write into the residual stream: their LayerScale


class GiftPair(nn.Module):
    """The trainable (φ, ψ) that all layers of one target share, and the schema between them.

    Attributes:
        phi: (d_in, r), drawn as ``nn.Linear(d_in, r)`` draws its weight: uniform on ±1/√d_in.
        psi: (r, d_in), zero. As WeGeFT starts, it is drawn as φ is, and φ is zero.
        scale: α / r, the factor of the update; None: 1.
        phi_bias: (r,) or None, uniform on ±1/√d_in.
        psi_bias: (d_in,) or None, zero.
        schema: H, from (L, N, r) to (L, N, r) for L layers of N rows. Until :meth:`draw_schema`, the linear one: all φ of a
            model are drawn before any schema, so that equal seeds give equal φ whatever the schema.
    """

    phi_bias: nn.Parameter | None
    psi_bias: nn.Parameter | None

    def __init__(self, d_in: int, cfg: GiftConfig, device: torch.device) -> None:
        super().__init__()
        if cfg.rank > d_in:
            raise ConfigError(f"method.rank={cfg.rank} is larger than the target's d_in={d_in}; choose 1 to {d_in}")
        bound = 1 / math.sqrt(d_in)
        drawn = torch.empty(cfg.rank, d_in, device=device)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
        zero = torch.zeros_like(drawn)
        phi, psi = (zero, drawn) if cfg.init == "wegeft" else (drawn, zero)
        self.phi = nn.Parameter(phi.T.contiguous())
        self.psi = nn.Parameter(psi)
        self.scale = None if cfg.alpha is None else cfg.alpha / cfg.rank
        phi_bias = torch.empty(cfg.rank, device=device).uniform_(-bound, bound) if cfg.phi_bias else None
        self.phi_bias = None if phi_bias is None else nn.Parameter(phi_bias)
        self.psi_bias = nn.Parameter(torch.zeros(d_in, device=device)) if cfg.psi_bias else None
        self.schema: nn.Module = nn.Identity()

    def draw_schema(self, cfg: GiftConfig, num_rows: int) -> None:
        """Create the schema's network for layers of ``num_rows`` rows."""
        if cfg.schema != "linear":
            self.schema = build_schema(cfg, num_rows, self.phi.device)

    @property
    def is_linear(self) -> bool:
        """Whether nothing stands between φ and ψ."""
        return isinstance(self.schema, nn.Identity)

    def clusters(self, weight: Tensor) -> Tensor:
        """C = ω φ (+ bias), shape (d_out, r), for a frozen weight (d_out, d_in); also the token-clustering head."""
        clusters = weight.to(self.phi.dtype) @ self.phi
        return clusters if self.phi_bias is None else clusters + self.phi_bias

    def generate(self, weights: Sequence[Tensor]) -> Tensor:
        """H(C) of L frozen weights (N, d_in) in one call of the schema, shape (L, N, r), in the pair's own precision."""
        with _without_autocast(self.phi.device):
            return self.schema(torch.stack([self.clusters(weight) for weight in weights]))

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Δω = H(C) ψ (+ bias), shape (d_out, d_in), for a frozen weight (d_out, d_in).

        The one definition of the update: merging uses it, the forward passes are tested against it.
        Source: arXiv 2312.00700; for the linear schema the two-linear-layer form ``ω + ω φ ψ``.
        """
        with _without_autocast(self.phi.device):
            delta = self.generate([weight])[0] @ self.psi
            return self._scaled(delta if self.psi_bias is None else delta + self.psi_bias)

    def delta_output(self, x: Tensor, generated: Tensor) -> Tensor:
        """X Δωᵀ for tokens (..., d_in), shape (..., d_out), through r channels and without forming Δω.

        ``x Δωᵀ = (x ψᵀ) H(C)ᵀ + (x b_ψ) 1ᵀ`` for ``generated`` = H(C), shape (d_out, r), of the layer's weight.
        """
        delta = (x @ self.psi.to(x.dtype).T) @ generated.to(x.dtype).T
        if self.psi_bias is not None:
            delta = delta + (x @ self.psi_bias.to(x.dtype)).unsqueeze(-1)
        return self._scaled(delta)

    def _scaled(self, delta: Tensor) -> Tensor:
        return delta if self.scale is None else self.scale * delta


class GiftLinear(AdaptedLinear):
    """A frozen linear layer fine-tuned by GIFT.

    The pairs belong to the model (``model.gift``), not to this layer: they are shared, and listed once in the state dict.

    Args:
        linear: The layer to adapt; its parameters are used, not copied.
        parts: Each pair with the rows of the weight it updates; rows do not overlap.

    Attributes:
        generated: For each part H(C) of its rows while the model's forward pass has it ready, see :class:`GiftAdapter`;
            otherwise None, and the layer computes its own.
    """

    def __init__(self, linear: nn.Linear, parts: Sequence[tuple[GiftPair, slice]]) -> None:
        super().__init__(linear)
        self.parts = tuple(sorted(parts, key=lambda part: part[1].start))
        self.generated: list[Tensor | None] = [None] * len(self.parts)
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., d_in) to (..., d_out).

        One frozen product and two through r channels. Of the tokens only x and x ψᵀ are kept for the backward pass, no
        (d_out, d_in) matrix is, and where x needs no gradient no product of that size is made.
        """
        y = self.frozen(x)
        deltas = [self._delta_output(x, index) for index in range(len(self.parts))]
        return y + (deltas[0] if self._is_whole else self._spread(deltas))

    @property
    def _is_whole(self) -> bool:
        return self.parts[0][1] == slice(0, self.out_features)

    def _spread(self, deltas: Sequence[Tensor]) -> Tensor:
        """Deltas of the parts at their rows and zeros between them: the gradient of the frozen product then passes uncut."""
        first = deltas[0]
        pieces, end = [], 0
        for delta, (_, rows) in zip(deltas, self.parts, strict=True):
            pieces += [first.new_zeros(()).expand(*first.shape[:-1], rows.start - end), delta]
            end = rows.stop
        pieces.append(first.new_zeros(()).expand(*first.shape[:-1], self.out_features - end))
        return torch.cat(pieces, dim=-1)

    def _delta_output(self, x: Tensor, index: int) -> Tensor:
        pair, rows = self.parts[index]
        generated = self.generated[index]
        return pair.delta_output(x, pair.generate([self.weight[rows]])[0] if generated is None else generated)

    def delta_weight(self) -> Tensor:
        """Δω of the whole layer, shape (d_out, d_in); rows that no target covers are zero."""
        delta = torch.zeros_like(finer(self.weight))
        for pair, rows in self.parts:
            delta[rows] = pair.delta_weight(self.weight[rows]).to(delta.dtype)
        return delta

    def merged_weight(self) -> Tensor:
        """ω + Δω."""
        return finer(self.weight) + self.delta_weight()


class GiftAdapter(nn.Module):
    """``model.gift``: the pairs under the names of their targets, and what generates for all layers of a pair at once.

    With a schema other than the linear one, H(C) of all layers of a pair comes from one call at the start of each forward pass
    of the model; the layers hold it during the pass and no longer, for its graph belongs to one backward pass. Where no pass of
    the whole model runs (``model.forward_features`` called directly, say), each layer computes its own; so it does under timm's
    gradient checkpointing and where the MLPs are recomputed: what is run again must find what it found the first time.

    Args:
        pairs: The pairs by target.
    """

    def __init__(self, pairs: dict[str, GiftPair]) -> None:
        super().__init__()
        for name, pair in pairs.items():
            _add_nested(self, name, pair)
        self.batches: list[tuple[GiftPair, list[tuple[GiftLinear, int]]]] = []
        self.mlp_is_recomputed = False

    def set_mlp_recomputed(self, recomputed: bool) -> None:
        """Whether the MLPs are computed again in the backward pass; :mod:`gift_vit.acceleration` tells."""
        self.mlp_is_recomputed = recomputed

    def connect(self, model: nn.Module) -> None:
        """Generate in every forward pass of ``model`` from now on.

        Its ``forward`` is wrapped and not hooked, for ``torch.compile`` leaves the outermost module's hooks out of its graph.
        """
        batches: dict[tuple[GiftPair, int], list[tuple[GiftLinear, int]]] = {}
        for layer in (module for module in model.modules() if isinstance(module, GiftLinear)):
            for index, (pair, rows) in enumerate(layer.parts):
                batches.setdefault((pair, rows.stop - rows.start), []).append((layer, index))
        self.batches = [(pair, parts) for (pair, _), parts in batches.items()]
        model.forward = partial(_forward_generating, model)

    def generate(self) -> None:
        """Give every layer H(C) of its weight, by one call for all layers of a pair that have equally many rows."""
        for pair, parts in self.batches:
            generated = pair.generate([layer.weight[layer.parts[index][1]] for layer, index in parts])
            for (layer, index), own in zip(parts, generated.unbind(), strict=True):
                layer.generated[index] = own

    def release(self) -> None:
        """Let go of what :meth:`generate` made."""
        for _, parts in self.batches:
            for layer, index in parts:
                layer.generated[index] = None


def _forward_generating(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward pass of the model's class, with all H(C) at hand."""
    adapter = cast("GiftAdapter", model.gift)
    try:
        recomputes = getattr(model, "grad_checkpointing", False) or adapter.mlp_is_recomputed
        if not (recomputes and torch.is_grad_enabled()):
            adapter.generate()
        return type(model).forward(model, *args, **kwargs)
    finally:
        adapter.release()


def merge_gift(model: nn.Module, cfg: GiftConfig) -> None:
    """Replace every adapted layer by a plain ``nn.Linear`` of weight ω + Δω and remove the pairs."""
    merge_linears(model)
    if cfg.schema != "linear":
        del model.forward  # the class's own again
    del model.gift


@register_method("gift", GiftConfig, merge=merge_gift)
def apply_gift(model: nn.Module, cfg: GiftConfig) -> None:
    """Replace the target layers of a timm ViT by :class:`GiftLinear`; the pairs live in ``model.gift``."""
    targets = find_targets(model, cfg.target_modules, cfg.blocks)
    pairs = _build_pairs(targets, cfg)
    if cfg.psi_bias or cfg.phi_bias:
        _freeze_idle_biases(model, pairs, targets, cfg)
    model.gift = adapter = GiftAdapter(pairs).train(model.training)
    parts: dict[str, tuple[nn.Linear, list[tuple[GiftPair, slice]]]] = {}
    for target, layers in targets.items():
        for layer in layers:
            pair = pairs["shared" if cfg.share else target]
            parts.setdefault(layer.name, (layer.module, []))[1].append((pair, layer.rows))
    for name, (linear, layer_parts) in parts.items():
        model.set_submodule(name, GiftLinear(linear, layer_parts))
    if cfg.schema != "linear":
        adapter.connect(model)


def _build_pairs(targets: dict[str, list[TargetLayer]], cfg: GiftConfig) -> dict[str, GiftPair]:
    device = next(iter(targets.values()))[0].module.weight.device
    groups = {"shared": [layer for layers in targets.values() for layer in layers]} if cfg.share else targets
    widths = {target: layers[0].module.in_features for target, layers in targets.items()}
    if cfg.share and len(set(widths.values())) > 1:
        listed = ", ".join(f"{target} {width}" for target, width in widths.items())
        raise ConfigError(f"share=true needs targets of one input width, got {listed}; drop some or set share=false")
    if cfg.fixes_rows:
        for layers in groups.values():
            _check_one_output_width(layers, cfg)
    pairs = {name: GiftPair(layers[0].module.in_features, cfg, device) for name, layers in groups.items()}
    for name, layers in groups.items():
        if len({layer.module.in_features for layer in layers}) > 1:
            sizes = ", ".join(f"{layer.name} {layer.module.in_features}" for layer in layers)
            raise ConfigError(f"the layers of target {name!r} differ in their input width ({sizes}); name a narrower target")
        pairs[name].draw_schema(cfg, layers[0].num_rows)
    return pairs


def _freeze_idle_biases(
    model: nn.Module, pairs: dict[str, GiftPair], targets: dict[str, list[TargetLayer]], cfg: GiftConfig
) -> None:
    """Leave a bias as it is where nothing would follow from it: it has no gradient, and an optimiser moves it by rounding.

    A token's update by ψ's bias is the same in all output channels, and so is that by φ's where nothing stands between φ and ψ.
    Added to the residual stream of a ViT with LayerNorm, such a number is what the next norm subtracts, in every block and
    before the head.
    """
    for name, pair in pairs.items():
        layers = [layer for target, own in targets.items() if cfg.share or target == name for layer in own]
        biases = {"psi_bias": pair.psi_bias, "phi_bias": pair.phi_bias if pair.is_linear else None}
        for option, bias in biases.items():
            if bias is not None and all(_is_subtracted(model, layer) for layer in layers):
                bias.requires_grad_(False)
                log.warning(
                    "method.%s does nothing at %s, where LayerNorm subtracts it: not trained, not counted", option, name
                )


def _is_subtracted(model: nn.Module, layer: TargetLayer) -> bool:
    """Whether LayerNorms subtract what a layer adds to all of its output channels alike."""
    block_name, _, inside = layer.name.rpartition(".")[0].rpartition(".")
    writer = (inside, layer.name.rpartition(".")[2])
    if type(model) is not VisionTransformer or writer not in _SCALED_BY:
        return False
    block: Any = model.get_submodule(block_name)
    norms = [norm for other in cast("Any", model.blocks) for norm in (other.norm1, other.norm2)]
    # the head's own norm comes after pooling, and a maximum over tokens does not keep the channels' distances
    last = model.fc_norm if model.global_pool in ("token", "avg") and not isinstance(model.norm, nn.LayerNorm) else model.norm
    is_plain = type(block) is Block and isinstance(getattr(block, _SCALED_BY[writer]), nn.Identity)
    return is_plain and all(isinstance(norm, nn.LayerNorm) for norm in (*norms, last))


def _check_one_output_width(layers: list[TargetLayer], cfg: GiftConfig) -> None:
    rows = {layer.num_rows: layer.name for layer in reversed(layers)}
    if len(rows) > 1:
        option = "pos_embed=learned" if cfg.pos_embed == "learned" else f"schema={cfg.schema}"
        listed = ", ".join(f"{name} {number}" for number, name in reversed(rows.items()))
        raise ConfigError(
            f"method.{option} has parameters for each output row, so the layers of one (phi, psi) must have the same number, "
            f"got {listed}; drop some or set share=false"
        )


def _add_nested(root: nn.Module, name: str, module: nn.Module) -> None:
    """Add ``module`` under a dotted name, making plain modules on the way: ``attn.proj`` → ``root.attn.proj``."""
    *parents, last = name.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(last, module)


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Weights are generated in the adapter's precision: in bf16 a small Δω is lost beside ω."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
