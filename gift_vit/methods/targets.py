"""The linear layers a method adapts: finding them, standing in for them, and merging.

The only place that knows timm's module names and its fused qkv.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.common.errors import ConfigError
from gift_vit.methods.config import QKV_SLICES

# in timm's ViTs, and in the models of transformers that backbones/text.py wraps
_IN_TEXTS = "layers?|albert_layers|h|blocks?|attentions|ffns"
_BLOCK = re.compile(rf"(?:blocks|model\.(?:[\w.]+?\.)?(?:{_IN_TEXTS}))\.(\d+)\.(.+)")

_WEIGHT_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)  # the latter in evaluation


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

    @property
    def num_rows(self) -> int:
        """How many these are."""
        return self.rows.stop - self.rows.start


def find_targets(
    model: nn.Module, target_modules: Sequence[str], blocks: Sequence[int] | None = None
) -> dict[str, list[TargetLayer]]:
    """The layers behind each target, in the model's order.

    Args:
        model: A timm ViT, or a classifier of texts, whose head is none of the layers.
        target_modules: Suffixes of timm module names (``attn.proj``, ``attn.qkv``, ``mlp.fc1``, ``mlp.fc2``) or the slices
            ``attn.q``, ``attn.k``, ``attn.v`` of the fused projection.
        blocks: Indices of the blocks to adapt; None: all.

    Raises:
        ConfigError: If a target matches nothing or no ``nn.Linear``, a layer is named twice, or a block does not exist.
    """
    if not target_modules:
        known = choose_from(nameable_targets(model), "nn.Linear").replace("name one", "name at least one")
        raise ConfigError(f"target_modules is empty; {known}")
    chosen_blocks(model, blocks)
    found = {target: _layers_of(model, target, blocks) for target in target_modules}
    _check_disjoint(target_modules, found)
    return found


def chosen_blocks(model: nn.Module, blocks: Sequence[int] | None) -> list[int]:
    """The indices of the blocks to adapt, all for None.

    Raises:
        ConfigError: If a block does not exist, is named twice, or none is.
    """
    depth = len({block[0] for name, _ in model.named_modules() if (block := block_of(name))})
    if blocks is None:
        return list(range(depth))
    wrong = [index for index in blocks if not 0 <= index < depth]
    if wrong or not blocks or len(set(blocks)) < len(blocks):
        raise ConfigError(f"blocks={list(blocks)}: give distinct indices from 0 to {depth - 1}")
    return list(blocks)


def nameable_targets(model: nn.Module) -> list[str]:
    """What can be named as a target: suffixes shared by the linear layers inside the blocks, and the slices of fused qkv."""
    suffixes: dict[str, None] = {}
    for name, module in model.named_modules():
        block = block_of(name)
        if block and isinstance(module, nn.Linear):
            suffixes[block[1]] = None
            if block[1] == "attn.qkv":
                suffixes |= dict.fromkeys(QKV_SLICES)
    return list(suffixes)


def choose_from(names: Iterable[str], kind: str) -> str:
    """The end of an error line: the targets that can be named, or that the model has no such layers."""
    listed = ", ".join(dict.fromkeys(names))
    return f"name one of {listed}" if listed else f"this model has no {kind} to adapt; take another method or model"


class SmallLinear(nn.Linear):
    """A trained layer of few channels: its product is computed in the dtype of the tokens, its parameters keep their own."""

    def forward(self, input: Tensor) -> Tensor:
        """Tokens (..., d_in) to (..., d_out)."""
        return F.linear(input, self.weight.to(input.dtype), None if self.bias is None else self.bias.to(input.dtype))


class AdaptedLinear(nn.Module):
    """Stands in for a frozen linear layer; :func:`merge_linears` puts a plain one back.

    Keeps the original layer's ``weight`` and ``bias`` under their names, so the backbone's state-dict keys do not change.

    Args:
        linear: The layer to adapt; its parameters are used, not copied.
    """

    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def frozen(self, x: Tensor) -> Tensor:
        """What the plain layer makes of tokens: (..., d_in) to (..., d_out)."""
        return F.linear(x, self.weight, self.bias)

    def merged_weight(self) -> Tensor:
        """The weight (d_out, d_in) of the plain layer that computes the same, in float32 or finer."""
        raise NotImplementedError

    def merged_bias(self) -> Tensor | None:
        """The bias (d_out,) of that layer; unless a method changes it, the frozen one."""
        return self.bias


def finer(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in its own dtype where that is finer: what merging computes in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def replace_linear(model: nn.Module, name: str, layer: AdaptedLinear) -> None:
    """Put a layer in the place of the one of that name, in that one's mode."""
    model.set_submodule(name, layer.train(model.get_submodule(name).training))


def refuse_without_bias(kind: str, layers: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise ConfigError if one of the layers, given with their names, has no bias for what merging adds to it."""
    for name, layer in layers:
        if getattr(layer, "bias", None) is None:
            raise ConfigError(f"method {kind!r} cannot be merged into this backbone: {name} has no bias to take the shift")


def refuse_shared(kind: str, model: nn.Module, layers: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise ConfigError if another module has the weight of one of the layers: merged in place, each would change both."""
    uses = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    for name, layer in layers:
        if uses[id(layer.get_parameter("weight"))] > 1:
            raise ConfigError(f"method {kind!r} cannot be merged into this backbone: another layer has the weight of {name}")


@torch.no_grad()
def merge_linears(model: nn.Module) -> None:
    """Replace every :class:`AdaptedLinear` by a frozen ``nn.Linear`` of its merged weight and bias, in its dtype and mode."""
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, AdaptedLinear)]:
        bias = layer.merged_bias()
        linear = nn.Linear(layer.in_features, layer.out_features, bias=bias is not None, device="meta")
        linear.weight = nn.Parameter(layer.merged_weight().to(layer.weight.dtype))
        if bias is not None:
            linear.bias = nn.Parameter(bias.to(layer.weight.dtype))
        model.set_submodule(name, linear.requires_grad_(False).train(layer.training))


def head_modules(model: nn.Module) -> set[nn.Module]:
    """What classifies texts, with all that it holds; of a ViT nothing, for no layer there has a target's name."""
    found = model.get_classifier() if getattr(model, "tokenizer", None) else ()  # pyright: ignore[reportCallIssue]
    heads = (found,) if isinstance(found, nn.Module) else found
    return {module for head in heads for module in head.modules()}


def linear_head(model: nn.Module, method: str) -> nn.Linear:
    """The model's head, for a method that is fitted on what it sees.

    Raises:
        ConfigError: If it is not one linear layer with a bias.
    """
    head = model.get_classifier()  # pyright: ignore[reportCallIssue]
    if isinstance(head, nn.Linear) and head.bias is not None:
        return head
    remedy = ("; give backbone.pooling=mean" if head else "; a language model has none") if hasattr(model, "tokenizer") else ""
    kinds = ", ".join(type(module).__name__ for module in (head if isinstance(head, tuple) else (head,))) or "none"
    raise ConfigError(f"method {method!r} needs a model with one linear head with a bias, not {kinds}{remedy}")


def _layers_of(model: nn.Module, target: str, blocks: Sequence[int] | None) -> list[TargetLayer]:
    names = nameable_targets(model)
    suffix, slice_index = suffix_of(target, names)
    layers: list[TargetLayer] = []
    for name, module in model.named_modules():
        if not (name == suffix or name.endswith("." + suffix)):
            continue
        block = block_of(name)
        if suffix in names and block is not None and block[1] != suffix:  # named whole, as BERT's output.dense
            continue
        if isinstance(module, nn.Linear) and block is None:  # an attention pool has an MLP too, and a head of texts
            continue
        if not isinstance(module, nn.Linear):
            raise ConfigError(
                f"target {target!r} matches {name}, a {type(module).__name__} and not an nn.Linear; "
                f"{choose_from(names, 'nn.Linear')}"
            )
        parent, _, own_name = name.rpartition(".")
        if reads_weight(model.get_submodule(parent), own_name):
            raise ConfigError(
                f"target {target!r} cannot be adapted in {type(model).__name__}: its attention uses the weight of {name} "
                "directly, with biases of its own; name another target, such as attn.proj, or another method"
            )
        if blocks is None or (block is not None and block[0] in blocks):
            layers.append(TargetLayer(name, module, slice_index))
    if not layers:
        raise ConfigError(f"target {target!r} matches no layer; {choose_from(names, 'nn.Linear')}")
    _check_every_block(model, target, layers, blocks)
    return layers


def _check_every_block(model: nn.Module, target: str, layers: Sequence[TargetLayer], blocks: Sequence[int] | None) -> None:
    """Refuse a target that some of a ViT's blocks lack, as ConViT's do: its adapter would be a part of what is named.

    In models of texts an encoder's blocks have other layers than a decoder's.
    """
    own = {block[0] for name, _ in model.named_modules() if name.startswith("blocks.") and (block := block_of(name))}
    found = {block[0] for layer in layers if (block := block_of(layer.name))}
    if block_of(target):  # a layer by its whole name
        return
    if own - found if blocks is None else own & set(blocks) - found:
        having = ",".join(map(str, sorted(found)))
        raise ConfigError(f"target {target!r} is in blocks {having} alone; give method.blocks=[{having}], or another target")


def reads_weight(parent: nn.Module, name: str) -> bool:
    """Whether a module computes with the weight of its layer ``name`` and does not call the layer.

    What stands in for such a layer is passed by, and merged all the same: where layers share a pair, the merged model would be
    another than the trained one.
    """
    has_own_biases = name == "qkv" and getattr(parent, "q_bias", None) is not None  # timm's BEiT, EVA and Swin V2
    return has_own_biases or isinstance(parent, _WEIGHT_READERS) or type(parent).__name__ == "WavLMAttention"


def suffix_of(target: str, names: Iterable[str]) -> tuple[str, int | None]:
    """The end of the names of a target's layers, and a slice's number in a fused qkv; ``names`` are those inside the blocks."""
    if target not in QKV_SLICES:
        return target, None
    if "attn.qkv" in names:
        return "attn.qkv", QKV_SLICES.index(target)
    return f"{target}_proj", None  # EVA-02 has a layer for each


def block_of(name: str) -> tuple[int, str] | None:
    """The index of the block that a module lies in, and its name there; None: it lies in none."""
    match = _BLOCK.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


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
