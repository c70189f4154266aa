"""AdaptFormer against its formula, its initialisation, its counts, and what it refuses."""

import math
from copy import deepcopy
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers.drop import DropPath
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

from gift_vit.errors import ConfigError
from gift_vit.methods import apply_method, count_parameters, merge_method
from gift_vit.methods.adaptformer import AdaptFormerConfig

TOKENS = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def adapted(cfg: AdaptFormerConfig, **arguments: Any) -> tuple[nn.Module, nn.Module]:
    """A plain block in float64, and the same one with a trained bottleneck."""
    torch.manual_seed(0)
    plain = timm.create_model("test_vit", depth=1, num_classes=2, **arguments).double().eval()
    model = apply_method(deepcopy(plain), cfg).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adaptformer" in name:
                parameter.normal_(std=0.3)
    return plain.get_submodule("blocks.0"), model.get_submodule("blocks.0")


def after_attention(block: Any, tokens: Tensor) -> Tensor:
    return tokens + block.ls1(block.attn(block.norm1(tokens)))


def bottleneck_by_hand(block: nn.Module, tokens: Tensor) -> np.ndarray[Any, Any]:
    """relu(x W_down^T + b_down) W_up^T + b_up, token by token."""
    down, up, b_down, b_up = (
        block.get_parameter(f"adaptformer.{name}").detach().numpy()
        for name in ("down.weight", "up.weight", "down.bias", "up.bias")
    )
    rows = tokens.detach().reshape(-1, 64).numpy()
    return np.stack([up @ np.maximum(down @ row + b_down, 0) + b_up for row in rows]).reshape(tokens.shape)


@pytest.mark.parametrize("scale", [0.1, 2.0])
@pytest.mark.parametrize("layer_scale", [None, 0.01])
def test_a_block_is_the_papers_formula(scale: float, layer_scale: float | None) -> None:
    plain, block = adapted(AdaptFormerConfig(bottleneck=5, scale=scale), init_values=layer_scale)
    x = after_attention(plain, TOKENS)
    delta = (block(TOKENS) - plain(TOKENS)).detach().numpy()
    np.testing.assert_allclose(delta, scale * bottleneck_by_hand(block, x), atol=1e-12, rtol=1e-12)
    assert np.abs(delta).max() > 0.01


def test_drop_path_leaves_the_bottleneck_alone() -> None:
    plain, block = adapted(AdaptFormerConfig(bottleneck=5, dropout=0), drop_path_rate=0.5)
    for path in ("drop_path1", "drop_path2"):
        block.add_module(path, DropPath(1.0))
    block.train()
    delta = (block(TOKENS) - TOKENS).detach().numpy()
    np.testing.assert_allclose(delta, 0.1 * bottleneck_by_hand(block, TOKENS), atol=1e-12, rtol=1e-12)
    assert type(plain.get_submodule("drop_path2")) is nn.Identity  # timm drops nothing in the first block


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


def test_the_backbone_keeps_its_keys(tiny_vit: nn.Module) -> None:
    before = set(tiny_vit.state_dict())
    added = set(apply_method(tiny_vit, AdaptFormerConfig()).state_dict()) - before
    assert before <= set(tiny_vit.state_dict())
    assert len(added) == 6 * 4
    assert all(".adaptformer." in name for name in added)


@pytest.mark.parametrize(("bottleneck", "size"), [(64, 1_189_632), (8, 156_768)])
def test_counts_on_vit_b16(bottleneck: int, size: int) -> None:
    assert size == 12 * (2 * 768 * bottleneck + bottleneck + 768)
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224", num_classes=200)
        model = apply_method(vit, AdaptFormerConfig(bottleneck=bottleneck))
    assert astuple(count_parameters(model)) == (size, 153_800, 85_798_656)


def test_half_precision_backbones_keep_the_bottleneck_in_fp32(tiny_vit: nn.Module) -> None:
    model = apply_method(tiny_vit.bfloat16(), AdaptFormerConfig())
    logits = model(torch.randn(2, 3, 160, 160).bfloat16())
    logits.sum().backward()
    gradient = model.get_parameter("blocks.0.adaptformer.up.weight").grad
    assert logits.dtype == torch.bfloat16
    assert gradient is not None
    assert gradient.dtype == torch.float32


def test_merging_is_refused(tiny_vit: nn.Module) -> None:
    model = apply_method(tiny_vit, AdaptFormerConfig())
    with pytest.raises(ConfigError, match="method 'adaptformer' cannot be merged"):
        merge_method(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bottleneck": 0}, "method.bottleneck=0: expected 1 or more"),
        ({"scale": 0.0}, "method.scale=0 switches the adapter off; give another number"),
        ({"dropout": 1.0}, "method.dropout=1.0: expected a number from 0 to below 1"),
    ],
)
def test_wrong_values(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AdaptFormerConfig(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_name": "beit_base_patch16_224"}, "method 'adaptformer' needs a timm VisionTransformer, not a Beit"),
        (
            {"model_name": "test_vit", "block_fn": ResPostBlock},
            "method 'adaptformer' needs blocks of timm's class Block, not ResPostBlock",
        ),
    ],
    ids=["model", "block"],
)
def test_other_blocks_are_refused(arguments: dict[str, Any], message: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(**arguments)
    keys = list(model.state_dict())
    with pytest.raises(ConfigError) as caught:
        apply_method(model, AdaptFormerConfig())
    assert str(caught.value) == message
    assert list(model.state_dict()) == keys
