"""A merged model and its adapter file give the maps that the adapted model gives."""

from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from gift_vit.common.errors import ConfigError
from gift_vit.explain.maps import explain
from gift_vit.explain.unmerge import unmerge
from gift_vit.methods import GiftConfig, LinearConfig, apply_method, merge_method, save_adapter
from tests.explain.conftest import noise, some_images

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
    with torch.no_grad():
        for number, parameter in enumerate(model.get_submodule("gift").parameters()):
            parameter.add_(noise(*parameter.shape, seed=number), alpha=scale / len(parameter) ** 0.5)
    return model


def saved(model: nn.Module, folder: Path) -> Path:
    """The file of its adapter."""
    save_adapter(model, folder / "adapter.safetensors")
    return folder / "adapter.safetensors"


@pytest.mark.parametrize("options", ADAPTERS)
def test_maps_of_a_merged_model_equal_the_adapted_one_s(tiny_vit: nn.Module, tmp_path: Path, options: dict[str, Any]) -> None:
    """And so does a plain backbone, which is given the adapter."""
    plain, model, images = deepcopy(tiny_vit), trained(tiny_vit, **options), some_images().float()
    file, expected = saved(model, tmp_path), explain(model, images)
    frozen, merged = plain.state_dict(), merge_method(model)
    weights = deepcopy(merged.state_dict())
    assert max((weights[name] - tensor).norm() / tensor.norm() for name, tensor in frozen.items()) > 0.05
    recovered = unmerge(merged, file)
    for name, tensor in frozen.items():
        assert_close(recovered.state_dict()[name], tensor, atol=2e-6, rtol=1e-5)
    for given, response in product((recovered, unmerge(plain, file)), ("post", "pre")):
        assert_close(explain(given, images).raw(response), expected.raw(response), atol=2e-4, rtol=1e-4)
    assert all(torch.equal(merged.state_dict()[name], tensor) for name, tensor in weights.items())
    assert not hasattr(merged, "gift")


def test_another_method_s_adapter_is_an_error(tiny_vit: nn.Module, tmp_path: Path) -> None:
    file = saved(apply_method(tiny_vit, LinearConfig()), tmp_path)
    with pytest.raises(ConfigError, match=r"cluster maps explain GIFT; .*adapter.safetensors holds a LinearConfig"):
        unmerge(timm.create_model("test_vit", num_classes=10), file)


def test_what_cannot_be_unmerged_is_an_error(tiny_vit: nn.Module, tmp_path: Path) -> None:
    model = trained(tiny_vit)
    file, merged = saved(model, tmp_path), merge_method(deepcopy(model))
    with torch.no_grad():
        merged.get_parameter("head.weight").add_(1)
        phi, psi = (model.get_parameter(f"gift.attn.proj.{name}") for name in ("phi", "psi"))
        psi.copy_(-torch.linalg.pinv(phi))  # ψ φ = −1: what φ spans is wiped out of the weight
    with pytest.raises(ConfigError, match=r"the model is not the merged one of .*: its head is another"):
        unmerge(merged, file)
    large = trained(timm.create_model("test_vit", num_classes=10), scale=30, schema="gelu")
    for own, reason in ((model, "1 . ψ φ has no inverse"), (large, "the update is too large")):
        file = saved(own, tmp_path)
        with pytest.raises(ConfigError, match=f"the frozen weights cannot be recovered: {reason}"):
            unmerge(merge_method(own), file)
