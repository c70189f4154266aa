"""Finding the linear layers a method adapts: the only place that knows timm's module names and its fused qkv."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from gift_vit.common.errors import ConfigError
from gift_vit.methods.config import QKV_SLICES


class LinearLike(Protocol):
    """A layer that stands in for an ``nn.Linear``."""

    bias: nn.Parameter | None
    training: bool


@dataclass(frozen=True)
class TargetLayer:
    """One linear layer to adapt.

    ``slice_index`` is None for the whole layer, or 0, 1, 2 for the rows of q, k, v in the fused projection ``attn.qkv``.
    """

    name: str
    module: nn.Linear
    slice_index: int | None

    @property
    def rows(self) -> slice:
        """Rows of the layer's weight that the target covers."""
        if self.slice_index is None:
            return slice(0, self.module.out_features)
        size = self.module.out_features // 3
        return slice(self.slice_index * size, (self.slice_index + 1) * size)


def find_targets(
    model: nn.Module, target_modules: Sequence[str], blocks: Sequence[int] | None = None
) -> dict[str, list[TargetLayer]]:
    """The layers behind each target, in the model's order.

    Args:
        model: A timm ViT.
        target_modules: Suffixes of timm module names (``attn.proj``, ``attn.qkv``, ``mlp.fc1``, ``mlp.fc2``) or the slices
            ``attn.q``, ``attn.k``, ``attn.v`` of the fused projection.
        blocks: Indices of the blocks to adapt; None: all.

    Raises:
        ConfigError: If a target matches nothing or no ``nn.Linear``, a layer is named twice, or a block does not exist.
    """
    if isinstance(target_modules, str):
        raise ConfigError(f"target_modules is a list, not the string {target_modules!r}: write [{target_modules}]")
    if not target_modules:
        raise ConfigError(f"target_modules is empty; name at least one of {', '.join(nameable_targets(model))}")
    _check_blocks(model, blocks)
    found = {target: _layers_of(model, target, blocks) for target in target_modules}
    _check_disjoint(target_modules, found)
    return found


def nameable_targets(model: nn.Module) -> list[str]:
    """What can be named as a target: suffixes shared by the linear layers inside the blocks, and the slices of fused qkv."""
    suffixes: dict[str, None] = {}
    for name, module in model.named_modules():
        match = re.fullmatch(r"blocks\.\d+\.(.+)", name)
        if match and isinstance(module, nn.Linear):
            suffixes[match[1]] = None
            if match[1] == "attn.qkv":
                suffixes |= dict.fromkeys(QKV_SLICES)
    return list(suffixes)


def plain_linear(layer: LinearLike, weight: Tensor) -> nn.Linear:
    """A frozen ``nn.Linear`` of a merged weight (d_out, d_in) and an adapted layer's bias, in that layer's mode."""
    d_out, d_in = weight.shape
    linear = nn.Linear(d_in, d_out, bias=layer.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight)
    if layer.bias is not None:
        linear.bias = layer.bias
    return linear.requires_grad_(False).train(layer.training)


def _layers_of(model: nn.Module, target: str, blocks: Sequence[int] | None) -> list[TargetLayer]:
    slice_index = QKV_SLICES.index(target) if target in QKV_SLICES else None
    suffix = "attn.qkv" if slice_index is not None else target
    if slice_index is not None and "attn.qkv" not in nameable_targets(model):  # EVA-02 has a layer for each
        slice_index, suffix = None, f"{target}_proj"
    layers: list[TargetLayer] = []
    for name, module in model.named_modules():
        if not (name == suffix or name.endswith("." + suffix)):
            continue
        if isinstance(module, nn.Linear) and not name.startswith("blocks."):  # an attention pool has an MLP too
            continue
        if not isinstance(module, nn.Linear):
            raise ConfigError(
                f"target {target!r} matches {name}, a {type(module).__name__} and not an nn.Linear; "
                f"name one of {', '.join(nameable_targets(model))}"
            )
        owner = model.get_submodule(name.rpartition(".")[0])
        if suffix == "attn.qkv" and getattr(owner, "q_bias", None) is not None:
            raise ConfigError(
                f"target {target!r} cannot be adapted in {type(model).__name__}: its attention uses the weight of {name} "
                "directly, with biases of its own; name another target, such as attn.proj"
            )
        index = _block_index(name)
        if blocks is None or index in blocks:
            layers.append(TargetLayer(name, module, slice_index))
    if not layers:
        raise ConfigError(f"target {target!r} matches no layer; name one of {', '.join(nameable_targets(model))}")
    if len({layer.module.in_features for layer in layers}) > 1:
        sizes = ", ".join(f"{layer.name} {layer.module.in_features}" for layer in layers)
        raise ConfigError(f"the layers of target {target!r} differ in their input width ({sizes}); name a narrower target")
    return layers


def _block_index(name: str) -> int | None:
    match = re.match(r"blocks\.(\d+)\.", name)
    return int(match[1]) if match else None


def _check_blocks(model: nn.Module, blocks: Sequence[int] | None) -> None:
    if blocks is None:
        return
    depth = len({_block_index(name) for name, _ in model.named_modules()} - {None})
    wrong = [index for index in blocks if not 0 <= index < depth]
    if wrong or not blocks or len(set(blocks)) < len(blocks):
        raise ConfigError(f"blocks={list(blocks)}: give distinct indices from 0 to {depth - 1}")


def _check_disjoint(targets: Sequence[str], found: dict[str, list[TargetLayer]]) -> None:
    if len(found) < len(targets):
        raise ConfigError(f"target_modules={list(targets)} names a target twice")
    taken: dict[tuple[str, int], str] = {}
    for target, layers in found.items():
        for layer in layers:
            slices = range(3) if layer.slice_index is None else [layer.slice_index]
            for index in slices:
                other = taken.setdefault((layer.name, index), target)
                if other != target:
                    raise ConfigError(f"targets {other!r} and {target!r} both cover {layer.name}; keep one of them")
