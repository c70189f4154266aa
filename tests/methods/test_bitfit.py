"""BitFit: which biases, how many, and what is left of them after merging."""

from dataclasses import astuple

import pytest
import timm
import torch
from torch import nn

from gift_vit.errors import ConfigError
from gift_vit.methods import adapter_state_dict, apply_method, count_parameters, merge_method
from gift_vit.methods.bitfit import BitFitConfig


@pytest.mark.parametrize(("scope", "size", "percent"), [("linear", 82_944, 0.0967), ("all", 102_912, 0.1199)])
def test_counts_on_vit_b16(scope: str, size: int, percent: float) -> None:
    assert 12 * (2304 + 768 + 3072 + 768) == 82_944
    assert 82_944 + 12 * 2 * 768 + 768 + 768 == 102_912  # norms of the blocks, last norm, patch embedding
    with torch.device("meta"):
        model = apply_method(timm.create_model("vit_base_patch16_224", num_classes=200), BitFitConfig(scope))
    count = count_parameters(model)
    assert astuple(count) == (size, 153_800, 85_798_656)
    assert count.percent == pytest.approx(percent, abs=5e-5)


def test_the_default_is_the_authors_choice() -> None:
    assert BitFitConfig() == BitFitConfig("linear")


def test_all_is_linear_and_norms_and_patch_embedding(tiny_vit: nn.Module) -> None:
    names = {name for name, _ in tiny_vit.named_parameters() if name.endswith(".bias")}
    apply_method(tiny_vit, BitFitConfig("all"))
    assert {name for name, p in tiny_vit.named_parameters() if p.requires_grad} == names | {"head.weight"}
    assert {"patch_embed.proj.bias", "blocks.5.norm2.bias", "norm.bias", "head.bias"} <= names


def test_average_pooling_s_norm_counts_and_no_head_does() -> None:
    model = apply_method(timm.create_model("test_vit", global_pool="avg", num_classes=3), BitFitConfig("all"))
    assert "fc_norm.bias" in adapter_state_dict(model)
    assert count_parameters(model).adapter == 6 * 8 * 64 + 6 * 2 * 64 + 64 + 64
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=3)
    apply_method(distilled, BitFitConfig("all"))
    assert count_parameters(distilled).adapter == 12 * 9 * 192 + 12 * 2 * 192 + 192 + 192


def test_layers_without_bias_are_passed_over() -> None:
    model = apply_method(timm.create_model("test_vit", qkv_bias=False), BitFitConfig())
    assert count_parameters(model).adapter == 6 * (64 + 192 + 64)


def test_biases_beside_their_layer_are_trained_by_all_only() -> None:
    with torch.device("meta"):
        models = [timm.create_model("beit_base_patch16_224", num_classes=2) for _ in range(2)]
    linear, everything = (apply_method(m, BitFitConfig(s)) for m, s in zip(models, ["linear", "all"], strict=True))
    assert "blocks.0.attn.q_bias" not in adapter_state_dict(linear)
    assert "blocks.0.attn.q_bias" in adapter_state_dict(everything)
    assert "blocks.0.attn.relative_position_bias_table" not in adapter_state_dict(everything)


def test_merging_keeps_the_trained_biases(tiny_vit: nn.Module) -> None:
    model = apply_method(tiny_vit, BitFitConfig())
    with torch.no_grad():
        model.get_parameter("blocks.2.mlp.fc1.bias").fill_(3)
    merge_method(model)
    assert (model.get_parameter("blocks.2.mlp.fc1.bias") == 3).all()


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        (
            "linear",
            "method 'bitfit' finds nothing to train: the linear layers in the blocks have no bias; choose another method",
        ),
        ("all", "method 'bitfit' finds nothing to train: the backbone has no bias; choose another method"),
    ],
)
def test_a_backbone_without_biases(scope: str, message: str) -> None:
    model = timm.create_model("test_vit", qkv_bias=False, proj_bias=False, pre_norm=True, norm_layer="rmsnorm")
    assert [name for name, _ in model.named_parameters() if name.endswith("bias")] == ["head.bias"]
    with pytest.raises(ConfigError) as caught:
        apply_method(model, BitFitConfig(scope))
    assert str(caught.value) == message


def test_unknown_scope() -> None:
    with pytest.raises(ConfigError, match=r"unknown method.scope 'norm' \(known: linear, all\)"):
        BitFitConfig("norm")
