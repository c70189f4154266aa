"""GIFT's maps of a model whose adapter is merged: the frozen weights are recovered from the adapter file.

Merging leaves Ŵ = ω + H(ω φ) ψ. With C = ω φ this gives C = Ŵ φ − H(C) (ψ φ), r unknowns per row: a linear system where the
schema is linear, else a fixed point that is iterated; then ω = Ŵ − H(C) ψ. Biases of the pair enter both lines.
"""

from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from gift_vit.common.errors import ConfigError
from gift_vit.methods.adapter import (
    apply_method,
    describe_backbone,
    holds_weights,
    load_adapter,
    load_adapter_state_dict,
    method_config,
    read_adapter,
)
from gift_vit.methods.config import GiftConfig
from gift_vit.methods.gift import GiftLinear, GiftPair

_ITERATIONS = 500
_TOLERANCE = 1e-9  # of C, relative; computed in float64


@torch.no_grad()
def unmerge(model: nn.Module, adapter: str | Path) -> nn.Module:
    """A copy of a merged timm ViT with its GIFT adapter beside the frozen weights again, in eval mode.

    A model that still holds the pretrained weights is given the adapter as :func:`gift_vit.methods.load_adapter` does.

    Args:
        model: What ``merge_method`` or ``python -m gift_vit.merge`` left; unchanged.
        adapter: The adapter's file.

    Raises:
        ConfigError: If the file holds no GIFT, the model is not what this adapter was merged into, or the frozen weights
            cannot be recovered.
    """
    file = read_adapter(adapter)
    config = method_config(file.metadata["method"])
    if not isinstance(config, GiftConfig):
        raise ConfigError(f"cluster maps explain GIFT; {file.path} holds a {type(config).__name__}")
    model = deepcopy(model).eval()
    recorded = file.metadata["backbone"]
    if recorded.get("weights_sha256") and holds_weights(describe_backbone(model), recorded):
        return load_adapter(model, file.path)
    own = model.state_dict()
    if any(n in own and not _same(own[n], tensor) for n, tensor in file.tensors.items() if not n.startswith("gift.")):
        raise ConfigError(f"the model is not the merged one of {file.path}: its head is another; give the model of that run")
    apply_method(model, config)
    load_adapter_state_dict(model, file.tensors)
    for layer in (module for module in model.modules() if isinstance(module, GiftLinear)):
        for pair, rows in layer.parts:
            layer.weight[rows] = frozen_weight(pair, layer.weight[rows])
    return model


@torch.no_grad()
def frozen_weight(pair: GiftPair, merged: Tensor) -> Tensor:
    """ω (d_out, d_in) whose update by ``pair`` is ``merged``.

    Raises:
        ConfigError: If there is none, or the iteration does not find it.
    """
    pair = deepcopy(pair).double()
    if pair.scale is not None:  # α / r belongs to ψ and its bias as well as to the update
        pair.psi.mul_(pair.scale)
        if pair.psi_bias is not None:
            pair.psi_bias.mul_(pair.scale)
    target = merged.double()
    if pair.psi_bias is not None:
        target = target - pair.psi_bias
    projected = target @ pair.phi
    if pair.phi_bias is not None:
        projected = projected + pair.phi_bias
    inner = pair.psi @ pair.phi
    generated = _solve_linear(projected, inner) if pair.is_linear else _iterate(pair, projected, inner)
    return (target - generated @ pair.psi).to(merged.dtype)


def _solve_linear(projected: Tensor, inner: Tensor) -> Tensor:
    """C of ``C (1 + ψ φ) = Ŵ φ``."""
    system = torch.eye(len(inner), dtype=inner.dtype, device=inner.device) + inner
    # what rounded the merged weight to its precision grows by the inverse of this
    if torch.linalg.svdvals(system)[-1] < 1e-5 * (1 + torch.linalg.matrix_norm(inner, 2)):
        raise ConfigError("the frozen weights cannot be recovered: 1 + ψ φ has no inverse; give the run's folder instead")
    return torch.linalg.solve(system, projected, left=False)


def _iterate(pair: GiftPair, projected: Tensor, inner: Tensor) -> Tensor:
    """H(C) at the fixed point of ``C = Ŵ φ − H(C) (ψ φ)``."""
    clusters = projected
    for _ in range(_ITERATIONS):
        generated = pair.schema(clusters.unsqueeze(0))[0]
        following = projected - generated @ inner
        if (following - clusters).norm() <= _TOLERANCE * projected.norm():
            return generated
        clusters = following
    raise ConfigError("the frozen weights cannot be recovered: the update is too large; give the run's folder instead")


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first.float(), second.float(), rtol=1e-2, atol=1e-3)
