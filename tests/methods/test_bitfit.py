"""BitFit: which biases, how many, and what is left of them after merging."""

import pytest
import timm
import torch

from gift_vit.methods import adapter_state_dict, apply_method, count_parameters
from gift_vit.methods.config import BitFitConfig
from tests.methods.checks import refused


def test_average_pooling_s_norm_counts_and_no_head_does() -> None:
    model = apply_method(timm.create_model("test_vit", global_pool="avg", num_classes=3), BitFitConfig("all"))
    assert "fc_norm.bias" in adapter_state_dict(model)
    assert count_parameters(model).adapter == 6 * 8 * 64 + 6 * 2 * 64 + 64 + 64
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=3)
    apply_method(distilled, BitFitConfig("all"))
    assert count_parameters(distilled).adapter == 12 * 9 * 192 + 12 * 2 * 192 + 192 + 192


def test_layers_without_bias_are_passed_over_and_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        model = apply_method(timm.create_model("test_vit", qkv_bias=False), BitFitConfig())
    assert "fewer biases than on a plain ViT: attn.qkv of the blocks have none" in caplog.text
    assert count_parameters(model).adapter == 6 * (64 + 192 + 64)


def test_biases_beside_their_layer_are_trained_by_all_only() -> None:
    with torch.device("meta"):
        models = [timm.create_model("beit_base_patch16_224", num_classes=2) for _ in range(2)]
    linear, everything = (apply_method(m, BitFitConfig(s)) for m, s in zip(models, ["linear", "all"], strict=True))
    assert "blocks.0.attn.q_bias" not in adapter_state_dict(linear)
    assert "blocks.0.attn.q_bias" in adapter_state_dict(everything)
    assert "blocks.0.attn.relative_position_bias_table" not in adapter_state_dict(everything)


@pytest.mark.parametrize(
    ("scope", "lack"), [("linear", "linear layers in the blocks have no bias"), ("all", "backbone has no bias")]
)
def test_a_backbone_without_biases(scope: str, lack: str) -> None:
    model = timm.create_model("test_vit", qkv_bias=False, proj_bias=False, pre_norm=True, norm_layer="rmsnorm")
    assert [name for name, _ in model.named_parameters() if name.endswith("bias")] == ["head.bias"]
    with refused(f"method 'bitfit' finds nothing to train: the {lack}; choose another method"):
        apply_method(model, BitFitConfig(scope))
