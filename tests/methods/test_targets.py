"""Which layers a target names, and what a wrong one is told."""

from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from torch import nn

from gift_vit.methods import GiftConfig, apply_method
from gift_vit.methods.targets import find_targets, nameable_targets
from tests.methods.checks import refused

NAMEABLE = "attn.qkv, attn.q, attn.k, attn.v, attn.proj, mlp.fc1, mlp.fc2"


def names(model: nn.Module, target: str, blocks: list[int] | None = None) -> list[str]:
    return [layer.name for layer in find_targets(model, [target], blocks)[target]]


TARGETS = {
    "attn.qkv": ("attn.qkv", 0, 192),
    "attn.q": ("attn.qkv", 0, 64),
    "attn.k": ("attn.qkv", 64, 128),
    "attn.v": ("attn.qkv", 128, 192),
    "attn.proj": ("attn.proj", 0, 64),
    "mlp.fc1": ("mlp.fc1", 0, 192),
    "mlp.fc2": ("mlp.fc2", 0, 64),
    "fc2": ("mlp.fc2", 0, 64),
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_names_rows_of_one_layer_per_block(tiny_vit: nn.Module, target: str) -> None:
    suffix, start, stop = TARGETS[target]
    assert names(tiny_vit, target) == [f"blocks.{index}.{suffix}" for index in range(6)]
    assert names(tiny_vit, target, [4, 1]) == [f"blocks.{index}.{suffix}" for index in (1, 4)]
    assert nameable_targets(tiny_vit) == NAMEABLE.split(", ")
    for layer in find_targets(tiny_vit, [target])[target]:
        assert layer.module is tiny_vit.get_submodule(layer.name)
        assert layer.rows == slice(start, stop)


def test_an_attention_pool_is_no_block_and_eva02_has_a_layer_for_each_of_q_k_v() -> None:
    pooling = timm.create_model("test_vit", global_pool="map")
    assert names(pooling, "mlp.fc1") == [f"blocks.{index}.mlp.fc1" for index in range(6)]
    with torch.device("meta"):
        eva = timm.create_model("eva02_base_patch14_224", depth=2)
    assert names(eva, "attn.q") == ["blocks.0.attn.q_proj", "blocks.1.attn.q_proj"]
    assert find_targets(eva, ["attn.v"])["attn.v"][0].slice_index is None


def test_blocks_are_numbers_and_not_prefixes() -> None:
    deep = timm.create_model("test_vit", depth=12, num_classes=10)
    assert names(deep, "attn.proj", [1, 11]) == ["blocks.1.attn.proj", "blocks.11.attn.proj"]
    assert names(deep, "blocks.1.attn.proj") == ["blocks.1.attn.proj"], "a full name is its own suffix"
    with torch.device("meta"):
        beit = timm.create_model("beit_base_patch16_224")
    assert len(names(beit, "attn.proj")) == 12, "only its attn.qkv is refused"
    with refused("target 'qkv' cannot be adapted in Beit"):
        find_targets(beit, ["qkv"])


def test_a_target_that_some_blocks_lack_is_refused_and_its_blocks_can_be_named() -> None:
    """ConViT has another attention in its first blocks."""
    convit = timm.create_model("convit_tiny", img_size=32, depth=4, local_up_to_layer=2, num_classes=2)
    for blocks, found in ((None, "2,3"), ([1, 3], "3")):
        with refused(f"target 'attn.q' is in blocks {found} alone; give method.blocks=[{found}], or another target"):
            find_targets(convit, ["attn.q"], blocks)
    assert names(convit, "attn.q", [2, 3]) == ["blocks.2.attn.qkv", "blocks.3.attn.qkv"]
    assert len(names(convit, "attn.proj")) == 4


@torch.no_grad()
def test_the_slices_are_what_timm_takes_for_q_k_v(tiny_vit: nn.Module) -> None:
    """Attention does not see a constant added to every key, but it does see one added to queries or values."""
    attention = tiny_vit.get_submodule("blocks.0.attn")
    tokens = torch.randn(1, 5, 64)
    before = attention(tokens)
    differences = {}
    for target in ("attn.q", "attn.k", "attn.v"):
        layer = find_targets(tiny_vit, [target], [0])[target][0]
        rows = layer.module.bias[layer.rows]
        rows += 1
        differences[target] = (attention(tokens) - before).abs().max().item()
        rows -= 1
    assert differences["attn.k"] < 1e-6
    assert differences["attn.q"] > 1e-4
    shift = attention.get_parameter("proj.weight").sum(dim=1)  # values + 1, whatever the attention: outputs + proj(1)
    assert differences["attn.v"] == pytest.approx(shift.abs().max().item(), rel=1e-4)


TARGET_ERRORS = [
    (["attn.prj"], f"target 'attn.prj' matches no layer; name one of {NAMEABLE}"),
    (["roj"], "target 'roj' matches no layer"),
    (["proj"], f"target 'proj' matches patch_embed.proj, a Conv2d and not an nn.Linear; name one of {NAMEABLE}"),
    (["attn"], f"target 'attn' matches blocks.0.attn, a Attention and not an nn.Linear; name one of {NAMEABLE}"),
    ("attn.proj", "method.target_modules is a list, not the string 'attn.proj': write [attn.proj]"),
    ([], f"target_modules is empty; name at least one of {NAMEABLE}"),
    (["attn.proj", "attn.proj"], "target_modules=['attn.proj', 'attn.proj'] names a target twice"),
    (["attn.qkv", "attn.q"], "targets 'attn.qkv' and 'attn.q' both cover blocks.0.attn.qkv; keep one of them"),
    (["fc1", "mlp.fc1"], "targets 'fc1' and 'mlp.fc1' both cover blocks.0.mlp.fc1; keep one of them"),
]
OTHER_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"blocks": [0, 6]}, "blocks=[0, 6]: give distinct indices from 0 to 5"),
    ({"blocks": [2, 2]}, "blocks=[2, 2]: give distinct indices from 0 to 5"),
    ({"blocks": []}, "blocks=[]: give distinct indices from 0 to 5"),
    ({"rank": 65}, "method.rank=65 is larger than the target's d_in=64; choose 1 to 64"),
    (
        {"rank": 100, "target_modules": ["mlp.fc2", "mlp.fc1"]},
        "method.rank=100 is larger than the target's d_in=64; choose 1 to 64",
    ),
    (
        {"target_modules": ["attn.proj", "mlp.fc2"], "share": True},
        "share=true needs targets of one input width, got attn.proj 64, mlp.fc2 192; drop some or set share=false",
    ),
]
ERRORS = [*(({"target_modules": targets}, message) for targets, message in TARGET_ERRORS), *OTHER_ERRORS]


@pytest.mark.parametrize(("options", "message"), ERRORS)
def test_a_wrong_config_leaves_a_usable_model(tiny_vit: nn.Module, options: dict[str, Any], message: str) -> None:
    images = torch.randn(1, 3, 160, 160)
    logits, keys = tiny_vit(images), list(tiny_vit.state_dict())
    with refused(message):
        apply_method(tiny_vit, GiftConfig(**options))
    assert list(tiny_vit.state_dict()) == keys
    assert all(parameter.requires_grad for parameter in tiny_vit.parameters())
    assert torch.equal(apply_method(tiny_vit, GiftConfig(rank=64))(images), logits)


def test_layers_of_one_target_that_differ_in_width(tiny_vit: nn.Module) -> None:
    tiny_vit.get_submodule("blocks.1.attn").proj = nn.Linear(32, 64)
    with refused("the layers of target 'attn.proj' differ in their input width (blocks.0.attn.proj 64, "):
        apply_method(deepcopy(tiny_vit), GiftConfig(rank=2))
    assert len(find_targets(tiny_vit, ["attn.proj"])["attn.proj"]) > 1, "of LoRA each has a pair of its own"


def test_a_name_that_is_whole_is_of_its_layers_alone(tiny_vit: nn.Module) -> None:
    """BERT has attention.output.dense and output.dense."""
    for block in tiny_vit.get_submodule("blocks").children():
        block.add_module("fc1", nn.Linear(32, 64))
    found = find_targets(tiny_vit, ["fc1", "mlp.fc1"])
    assert {layer.name.partition(".")[2][2:] for layer in found["fc1"]} == {"fc1"}
    assert {layer.name.partition(".")[2][2:] for layer in found["mlp.fc1"]} == {"mlp.fc1"}


def test_a_model_without_fused_projection_has_no_slices() -> None:
    model = nn.Sequential()
    model.add_module("blocks", nn.Sequential(nn.ModuleDict({"fc": nn.Linear(4, 4)})))
    assert nameable_targets(model) == ["fc"]
    with refused("target 'attn.q' matches no layer; name one of fc"):
        find_targets(model, ["attn.q"])
