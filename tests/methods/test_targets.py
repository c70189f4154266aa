"""Which layers a target names, and what a wrong one is told."""

import pytest
import timm
import torch
from torch import nn

from gift_vit.errors import ConfigError
from gift_vit.methods import GiftConfig, apply_method
from gift_vit.methods.targets import find_targets, nameable_targets

NAMEABLE = "attn.qkv, attn.q, attn.k, attn.v, attn.proj, mlp.fc1, mlp.fc2"


def names(model: nn.Module, target: str, blocks: list[int] | None = None) -> list[str]:
    return [layer.name for layer in find_targets(model, [target], blocks)[target]]


def test_nameable_targets(tiny_vit: nn.Module) -> None:
    assert ", ".join(nameable_targets(tiny_vit)) == NAMEABLE


@pytest.mark.parametrize(
    ("target", "suffix"),
    [
        ("attn.proj", "attn.proj"),
        ("attn.qkv", "attn.qkv"),
        ("attn.q", "attn.qkv"),
        ("attn.k", "attn.qkv"),
        ("attn.v", "attn.qkv"),
        ("mlp.fc1", "mlp.fc1"),
        ("fc2", "mlp.fc2"),
    ],
)
def test_a_target_names_one_layer_per_block(tiny_vit: nn.Module, target: str, suffix: str) -> None:
    assert names(tiny_vit, target) == [f"blocks.{index}.{suffix}" for index in range(6)]
    assert names(tiny_vit, target, [4, 1]) == [f"blocks.{index}.{suffix}" for index in (1, 4)]
    for layer in find_targets(tiny_vit, [target])[target]:
        assert layer.module is tiny_vit.get_submodule(layer.name)


def test_a_full_name_is_its_own_suffix(tiny_vit: nn.Module) -> None:
    assert names(tiny_vit, "blocks.1.attn.proj") == ["blocks.1.attn.proj"]


def test_blocks_are_numbers_and_not_prefixes() -> None:
    deep = timm.create_model("test_vit", depth=12, num_classes=10)
    assert names(deep, "attn.proj", [1]) == ["blocks.1.attn.proj"]
    assert names(deep, "attn.proj", [1, 11]) == ["blocks.1.attn.proj", "blocks.11.attn.proj"]


@pytest.mark.parametrize(
    ("target", "start", "stop"),
    [("attn.q", 0, 64), ("attn.k", 64, 128), ("attn.v", 128, 192), ("attn.qkv", 0, 192), ("attn.proj", 0, 64)],
)
def test_rows_of_the_slices(tiny_vit: nn.Module, target: str, start: int, stop: int) -> None:
    assert {(layer.rows.start, layer.rows.stop) for layer in find_targets(tiny_vit, [target])[target]} == {(start, stop)}


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


ERRORS = {
    "unknown": (
        GiftConfig(rank=4, target_modules=["attn.prj"]),
        f"target 'attn.prj' matches no layer; name one of {NAMEABLE}",
    ),
    "second_unknown": (GiftConfig(rank=4, target_modules=["attn.proj", "ffn"]), "target 'ffn' matches no layer"),
    "half_a_word": (GiftConfig(rank=4, target_modules=["roj"]), "target 'roj' matches no layer"),
    "convolution": (
        GiftConfig(rank=4, target_modules=["proj"]),
        f"target 'proj' matches patch_embed.proj, a Conv2d and not an nn.Linear; name one of {NAMEABLE}",
    ),
    "block": (
        GiftConfig(rank=4, target_modules=["attn"]),
        f"target 'attn' matches blocks.0.attn, a Attention and not an nn.Linear; name one of {NAMEABLE}",
    ),
    "string": (
        GiftConfig(rank=4, target_modules="attn.proj"),  # pyright: ignore[reportArgumentType]
        "target_modules is a list, not the string 'attn.proj': write [attn.proj]",
    ),
    "empty": (GiftConfig(rank=4, target_modules=[]), f"target_modules is empty; name at least one of {NAMEABLE}"),
    "duplicate": (
        GiftConfig(rank=4, target_modules=["attn.proj", "attn.proj"]),
        "target_modules=['attn.proj', 'attn.proj'] names a target twice",
    ),
    "qkv_and_q": (
        GiftConfig(rank=4, target_modules=["attn.qkv", "attn.q"]),
        "targets 'attn.qkv' and 'attn.q' both cover blocks.0.attn.qkv; keep one of them",
    ),
    "v_and_qkv": (
        GiftConfig(rank=4, target_modules=["attn.v", "attn.qkv"]),
        "targets 'attn.v' and 'attn.qkv' both cover blocks.0.attn.qkv; keep one of them",
    ),
    "two_suffixes": (
        GiftConfig(rank=4, target_modules=["fc1", "mlp.fc1"]),
        "targets 'fc1' and 'mlp.fc1' both cover blocks.0.mlp.fc1; keep one of them",
    ),
    "block_too_high": (GiftConfig(rank=4, blocks=[0, 6]), "blocks=[0, 6]: give distinct indices from 0 to 5"),
    "block_negative": (GiftConfig(rank=4, blocks=[-1]), "blocks=[-1]: give distinct indices from 0 to 5"),
    "block_twice": (GiftConfig(rank=4, blocks=[2, 2]), "blocks=[2, 2]: give distinct indices from 0 to 5"),
    "no_blocks": (GiftConfig(rank=4, blocks=[]), "blocks=[]: give distinct indices from 0 to 5"),
    "rank_too_high": (GiftConfig(rank=65), "method.rank=65 is larger than the target's d_in=64; choose 1 to 64"),
    "rank_too_high_for_one": (
        GiftConfig(rank=100, target_modules=["mlp.fc2", "mlp.fc1"]),
        "method.rank=100 is larger than the target's d_in=64; choose 1 to 64",
    ),
    "share_unequal": (
        GiftConfig(rank=4, target_modules=["attn.proj", "mlp.fc2"], share=True),
        "share=true needs targets of one input width, got attn.proj 64, mlp.fc2 192; drop some or set share=false",
    ),
}


def test_all_errors_are_tried() -> None:
    assert len(ERRORS) == 18


@pytest.mark.parametrize(("config", "message"), ERRORS.values(), ids=ERRORS)
def test_a_wrong_config_is_one_line_and_leaves_a_usable_model(tiny_vit: nn.Module, config: GiftConfig, message: str) -> None:
    images = torch.randn(1, 3, 160, 160)
    logits, keys = tiny_vit(images), list(tiny_vit.state_dict())
    with pytest.raises(ConfigError) as caught:
        apply_method(tiny_vit, config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tiny_vit.state_dict()) == keys
    assert torch.equal(tiny_vit(images), logits)
    assert torch.equal(apply_method(tiny_vit, GiftConfig(rank=64))(images), logits)


@pytest.mark.parametrize("rank", [0, -1])
def test_rank_below_one(rank: int) -> None:
    with pytest.raises(ConfigError, match=f"method.rank={rank}: expected a whole number from 1 to the layer's d_in"):
        GiftConfig(rank=rank)


def test_unknown_schema() -> None:
    with pytest.raises(ConfigError, match=r"unknown method.schema 'linaer' \(known: linear"):
        GiftConfig(schema="linaer")


def test_layers_of_one_target_that_differ_in_width(tiny_vit: nn.Module) -> None:
    tiny_vit.get_submodule("blocks.1.attn").proj = nn.Linear(32, 64)
    with pytest.raises(ConfigError, match=r"target 'attn.proj' differ in their input width \(blocks.0.attn.proj 64, "):
        find_targets(tiny_vit, ["attn.proj"])


def test_a_model_without_fused_projection_has_no_slices() -> None:
    model = nn.Sequential()
    model.add_module("blocks", nn.Sequential(nn.ModuleDict({"fc": nn.Linear(4, 4)})))
    assert nameable_targets(model) == ["fc"]
    with pytest.raises(ConfigError, match=r"target 'attn\.q' matches no layer; name one of fc$"):
        find_targets(model, ["attn.q"])


def test_attention_that_bypasses_its_qkv_layer_is_refused() -> None:
    with torch.device("meta"):
        model = timm.create_model("beit_base_patch16_224")
    with pytest.raises(ConfigError, match=r"target 'attn.q' cannot be adapted in Beit: .* directly"):
        find_targets(model, ["attn.q"])
    assert len(find_targets(model, ["attn.proj"])["attn.proj"]) == 12
