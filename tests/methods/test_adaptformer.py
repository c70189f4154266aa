"""AdaptFormer against its formula, its initialisation, its counts, and what it refuses."""

import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from gift_vit.methods import apply_method
from gift_vit.methods.config import AdaptFormerConfig
from tests.methods.checks import drawn

TOKENS = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def adapted(cfg: AdaptFormerConfig, **arguments: Any) -> tuple[nn.Module, nn.Module]:
    """A plain block in float64, and the same one with a trained bottleneck."""
    torch.manual_seed(0)
    plain = timm.create_model("test_vit", depth=1, num_classes=2, **arguments).double().eval()
    model = drawn(deepcopy(plain), cfg)
    return plain.get_submodule("blocks.0"), model.get_submodule("blocks.0")


def bottleneck_by_hand(block: nn.Module, tokens: Tensor) -> np.ndarray[Any, Any]:
    """relu(x W_down^T + b_down) W_up^T + b_up, token by token."""
    adapter = block.get_submodule("adaptformer")
    down, b_down, up, b_up = (p.detach().numpy() for p in adapter.parameters())
    rows = tokens.detach().reshape(-1, 64).numpy()
    return np.stack([up @ np.maximum(down @ row + b_down, 0) + b_up for row in rows]).reshape(tokens.shape)


@pytest.mark.parametrize("scale", [0.1, 2.0])
@pytest.mark.parametrize("layer_scale", [None, 0.01])
def test_a_block_is_the_papers_formula(scale: float, layer_scale: float | None) -> None:
    timm_block, block = adapted(AdaptFormerConfig(bottleneck=5, scale=scale), init_values=layer_scale)
    plain: Any = timm_block
    x = TOKENS + plain.ls1(plain.attn(plain.norm1(TOKENS)))
    delta = (block(TOKENS) - plain(TOKENS)).detach().numpy()
    np.testing.assert_allclose(delta, scale * bottleneck_by_hand(block, x), atol=1e-12, rtol=1e-12)
    assert np.abs(delta).max() > 0.01


def test_drop_path_leaves_the_bottleneck_alone() -> None:
    _, block = adapted(AdaptFormerConfig(bottleneck=5, dropout=0))
    for path in ("drop_path1", "drop_path2"):
        block.add_module(path, DropPath(1.0))
    block.train()
    delta = (block(TOKENS) - TOKENS).detach().numpy()
    np.testing.assert_allclose(delta, 0.1 * bottleneck_by_hand(block, TOKENS), atol=1e-12, rtol=1e-12)


def test_dropout_stands_after_the_relu_in_training_only() -> None:
    _, block = adapted(AdaptFormerConfig(bottleneck=5, dropout=0.4))
    adapter: Any = block.get_submodule("adaptformer")
    hidden: list[Tensor] = []
    adapter.up.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    adapter.eval()(TOKENS)
    adapter.train()(TOKENS)
    kept, dropped = hidden
    assert kept.min() == 0
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0, kept / 0.6))
    positive = kept > 0
    assert (dropped[positive] == 0).double().mean().item() == pytest.approx(0.4, abs=0.2)
    assert not (dropped[positive] == 0).all()


def test_masks_reach_the_attention() -> None:
    class Recorder(nn.Module):
        def forward(self, x: Tensor, **masks: Any) -> Tensor:
            seen.append(masks)
            return x

    seen: list[dict[str, Any]] = []
    _, block = adapted(AdaptFormerConfig(bottleneck=5))
    block.add_module("attn", Recorder())
    block(TOKENS, attn_mask="mask", is_causal=True)
    assert seen == [{"attn_mask": "mask", "is_causal": True}]


def test_initialisation(tiny_vit: nn.Module) -> None:
    model = apply_method(tiny_vit, AdaptFormerConfig())
    for index in range(6):
        down = model.get_parameter(f"blocks.{index}.adaptformer.down.weight")
        assert down.shape == (64, 64)
        assert down.abs().max().item() == pytest.approx(1 / math.sqrt(64), rel=1e-2)
        assert down.std().item() == pytest.approx(1 / math.sqrt(3 * 64), rel=5e-2)
        for name in ("down.bias", "up.weight", "up.bias"):
            assert not model.get_parameter(f"blocks.{index}.adaptformer.{name}").any()
