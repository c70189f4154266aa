"""A merged model and its adapter file give the maps that the adapted model gives."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from gift_vit.errors import ConfigError
from gift_vit.explain.maps import explain
from gift_vit.explain.merged import unmerge
from gift_vit.methods import GiftConfig, LoraConfig, apply_method, merge_method, save_adapter

ADAPTERS: list[dict[str, Any]] = [
    {},
    {"target_modules": ["attn.q", "attn.v", "mlp.fc2"], "phi_bias": True, "psi_bias": True},
    {"target_modules": ["attn.k", "attn.proj"], "share": True, "blocks": [1, 4]},
    {"schema": "gelu", "psi_bias": True},
    {"schema": "paca_transformer", "phi_bias": True, "num_clusters": 8},
]


def trained(model: nn.Module, scale: float = 0.3, **options: Any) -> nn.Module:
    """GIFT with ψ away from zero, far enough for the maps to depend on it."""
    apply_method(model, GiftConfig(rank=4, **options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("gift."):
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator) / len(parameter) ** 0.5)
    return model


def some_images() -> torch.Tensor:
    return torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", ADAPTERS)
def test_maps_of_a_merged_model_equal_the_adapted_one_s(tiny_vit: nn.Module, tmp_path: Path, options: dict[str, Any]) -> None:
    assert len(ADAPTERS) == 5
    frozen = {name: tensor.clone() for name, tensor in tiny_vit.state_dict().items()}
    model = trained(tiny_vit, **options)
    file = tmp_path / "adapter.safetensors"
    save_adapter(model, file)
    expected = explain(model, some_images())
    merged = merge_method(model)
    weights = deepcopy(merged.state_dict())
    moved = max(float((weights[name] - tensor).norm() / tensor.norm()) for name, tensor in frozen.items())
    assert moved > 0.05
    recovered = unmerge(merged, file)
    for name, tensor in frozen.items():
        assert_close(recovered.state_dict()[name], tensor, atol=2e-6, rtol=1e-5)
    maps = explain(recovered, some_images())
    for response in ("post", "pre"):
        assert_close(maps.raw(response), expected.raw(response), atol=2e-4, rtol=1e-4)
    assert all(torch.equal(merged.state_dict()[name], tensor) for name, tensor in weights.items())
    assert not hasattr(merged, "gift")


def test_a_plain_backbone_is_given_the_adapter(tiny_vit: nn.Module, tmp_path: Path) -> None:
    plain = deepcopy(tiny_vit)
    model = trained(tiny_vit)
    save_adapter(model, tmp_path / "adapter.safetensors")
    maps = explain(unmerge(plain, tmp_path / "adapter.safetensors"), some_images())
    assert_close(maps.post, explain(model, some_images()).post)


def test_another_method_s_adapter_is_an_error(tiny_vit: nn.Module, tmp_path: Path) -> None:
    save_adapter(apply_method(tiny_vit, LoraConfig()), tmp_path / "lora.safetensors")
    with pytest.raises(ConfigError, match=r"cluster maps explain GIFT; .*lora.safetensors holds a LoraConfig"):
        unmerge(timm.create_model("test_vit", num_classes=10), tmp_path / "lora.safetensors")


def test_another_run_s_merged_model_is_an_error(tiny_vit: nn.Module, tmp_path: Path) -> None:
    model = trained(tiny_vit)
    save_adapter(model, tmp_path / "adapter.safetensors")
    with torch.no_grad():
        model.get_parameter("head.weight").add_(1)
    with pytest.raises(ConfigError, match=r"the model is not the merged one of .*: its head is another"):
        unmerge(merge_method(model), tmp_path / "adapter.safetensors")


def test_weights_that_cannot_be_recovered_are_an_error(tiny_vit: nn.Module, tmp_path: Path) -> None:
    model = trained(tiny_vit)
    with torch.no_grad():  # ψ φ = −1: what φ spans is wiped out of the weight
        phi = model.get_parameter("gift.attn.proj.phi")
        model.get_parameter("gift.attn.proj.psi").copy_(-torch.linalg.pinv(phi))
    save_adapter(model, tmp_path / "adapter.safetensors")
    with pytest.raises(ConfigError, match=r"the frozen weights cannot be recovered: 1 . ψ φ has no inverse"):
        unmerge(merge_method(model), tmp_path / "adapter.safetensors")
    model = trained(timm.create_model("test_vit", num_classes=10), scale=30, schema="gelu")
    save_adapter(model, tmp_path / "large.safetensors")
    with pytest.raises(ConfigError, match="the frozen weights cannot be recovered: the update is too large"):
        unmerge(merge_method(model), tmp_path / "large.safetensors")
