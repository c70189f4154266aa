"""The layers that GIFT adapts in a model, and the columns that its maps are inner products with.

A map needs C (d_out × K), one column per cluster. There are four choices of it, by name:

``trained``     C = ω φ, as the paper has it. (φ R, R⁻¹ ψ) is the same model for every invertible R, so a single column means
                little and its sign nothing.
``canonical``   C = ω U for the left singular vectors U of φ ψ, strongest first: the same for every such R. Only the signs are
                chosen, so that the largest entry of each vector is positive.
``assignment``  C = Aᵀ of a PaCa block of the schema, as the paper's first version has it: M clusters, each a weighting of the
                layer's output channels.
``random``      C = ω φ for a φ drawn anew as GIFT draws it: what the frozen weight shows without any training.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from gift_vit.common.errors import ConfigError
from gift_vit.explain.config import MapChoice
from gift_vit.methods.adapter import applied_method
from gift_vit.methods.config import GiftConfig
from gift_vit.methods.gift import GiftLinear, GiftPair
from gift_vit.methods.gift_schemas import BlockSchema, PacaAttention
from gift_vit.methods.targets import block_of, suffix_of


class LayerName(NamedTuple):
    """One adapted layer: the ``target`` it belongs to and the index of its transformer block."""

    target: str
    block: int

    def __str__(self) -> str:
        return f"{self.target} of block {self.block}"


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer, and the pair and rows of its weight that one target adapts."""

    name: LayerName
    layer: GiftLinear
    pair: GiftPair
    rows: slice

    @property
    def weight(self) -> Tensor:
        """The frozen ω of the target's rows, (d_out, d_in)."""
        return self.layer.weight[self.rows]

    @property
    def bias(self) -> Tensor | None:
        """The bias of the target's rows, (d_out,)."""
        return None if self.layer.bias is None else self.layer.bias[self.rows]


def find_layers(model: nn.Module, choice: MapChoice) -> list[AdaptedLayer]:
    """The chosen layers, target by target, each target's in the order of ``choice.blocks``.

    Raises:
        ConfigError: If the model has no GIFT, or a target or block is not adapted; names those that are.
    """
    config = applied_method(model).config
    if not isinstance(config, GiftConfig):
        raise ConfigError(f"cluster maps explain GIFT; this model was given a {type(config).__name__}")
    adapted = config.target_modules
    targets = adapted if choice.targets is None else choice.targets
    for target in targets:
        if target not in adapted:
            raise ConfigError(f"target {target!r} is not adapted in this model (adapted: {', '.join(adapted)})")
    found: list[AdaptedLayer] = []
    for target in targets:
        layers = _layers_by_block(model, target)
        blocks = layers if choice.blocks is None else [_block_index(model, block, target, layers) for block in choice.blocks]
        if len(set(blocks)) < len(blocks):
            raise ConfigError(f"layers={choice.blocks}: one of the blocks is named twice; give each once")
        found += [layers[block] for block in blocks]
    return found


def cluster_columns(layer: AdaptedLayer, choice: MapChoice) -> Tensor:
    """C, the columns that the layer's maps are inner products with, shape (d_out, K) in the pair's precision.

    Raises:
        ConfigError: If a cluster does not exist, or the adapter's schema does not have the basis.
    """
    make = {"trained": _trained, "canonical": _canonical, "assignment": _assignment, "random": _random}[choice.basis]
    columns = make(layer, choice)
    if choice.clusters is None:
        return columns
    wrong = [index for index in choice.clusters if not 0 <= index < columns.shape[1]]
    if wrong:
        raise ConfigError(f"clusters={list(choice.clusters)}: give indices from 0 to {columns.shape[1] - 1}")
    return columns[:, list(choice.clusters)]


def _trained(layer: AdaptedLayer, _: MapChoice) -> Tensor:
    return layer.pair.clusters(layer.weight)


def _canonical(layer: AdaptedLayer, _: MapChoice) -> Tensor:
    pair = layer.pair
    if not pair.is_linear:
        raise ConfigError("basis=canonical is of φ ψ and needs schema=linear; this adapter has another; use basis=trained")
    q, r = torch.linalg.qr(pair.phi)  # φ ψ = Q (R ψ): the small factor has the singular values
    directions = q @ torch.linalg.svd(r @ pair.psi, full_matrices=False).U
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return layer.weight.to(directions.dtype) @ (directions * largest.sign())


def _assignment(layer: AdaptedLayer, choice: MapChoice) -> Tensor:
    schema = layer.pair.schema
    blocks = list(schema.blocks) if isinstance(schema, BlockSchema) else []
    attentions = [attn for block in blocks if isinstance(attn := getattr(block, "attn", None), PacaAttention)]
    if not attentions:
        raise ConfigError("basis=assignment needs schema=paca_transformer or paca_attn; this adapter has another; use trained")
    if not 0 <= choice.schema_block < len(attentions):
        raise ConfigError(f"schema_block={choice.schema_block}: the schema has blocks 0 to {len(attentions) - 1}")
    seen: list[Tensor] = []
    attention = attentions[choice.schema_block]
    hook = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        layer.pair.generate([layer.weight])
    finally:
        hook.remove()
    return attention.assignment(seen[0])[0].mT


def _random(layer: AdaptedLayer, choice: MapChoice) -> Tensor:
    d_in, rank = layer.pair.phi.shape
    drawn = torch.rand(d_in, rank, generator=torch.Generator().manual_seed(choice.seed), dtype=torch.float64)
    phi = ((2 * drawn - 1) / math.sqrt(d_in)).to(layer.pair.phi)
    return layer.weight.to(phi.dtype) @ phi


def _block_index(model: nn.Module, block: int, target: str, layers: dict[int, AdaptedLayer]) -> int:
    depth = len(cast("nn.Sequential", model.blocks))
    index = block + depth if block < 0 else block
    if index not in layers:
        adapted = ", ".join(str(known) for known in layers)
        raise ConfigError(f"block={block}: target {target!r} is not adapted there; adapted of the {depth} blocks: {adapted}")
    return index


def _layers_by_block(model: nn.Module, target: str) -> dict[int, AdaptedLayer]:
    adapted = {name: layer for name, layer in model.named_modules() if isinstance(layer, GiftLinear)}
    places = {name: place for name in adapted if (place := block_of(name)) is not None}
    suffix, number = suffix_of(target, [inside for _, inside in places.values()])
    layers: dict[int, AdaptedLayer] = {}
    for name, (block, _) in places.items():
        if f".{name}".endswith(f".{suffix}"):
            layer = adapted[name]
            start = (number or 0) * (layer.out_features // 3)
            pair, rows = next(part for part in layer.parts if part[1].start == start)
            layers[block] = AdaptedLayer(LayerName(target, block), layer, pair, rows)
    return layers
