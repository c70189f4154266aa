"""Methods on models that ``torch.compile`` wraps, or has compiled others of before."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn

from gift_vit.common.errors import ConfigError
from gift_vit.methods import (
    GiftConfig,
    LinearConfig,
    adapter_state_dict,
    apply_method,
    count_parameters,
    load_adapter,
    merge_method,
    save_adapter,
)
from gift_vit.methods.config import AdapterConfig, SsfConfig, VptConfig
from tests.methods.checks import assert_close, drawn


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", depth=2, img_size=32, num_classes=10).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("config", [VptConfig(), AdapterConfig(), SsfConfig()], ids=lambda config: type(config).__name__)
@torch.no_grad()
def test_hooks_are_seen_after_a_model_without_them_was_compiled(images: Tensor, config: Any) -> None:
    torch.compiler.reset()
    plain = drawn(vit(), LinearConfig())
    compiled(plain)(images)
    model = drawn(vit(), config)
    assert_close(compiled(model)(images), model(images))
    assert_close(compiled(plain)(images), plain(images))


@pytest.mark.parametrize("config", [GiftConfig(rank=4), GiftConfig(rank=4, schema="mlp"), SsfConfig(), LinearConfig()])
@torch.no_grad()
def test_a_compiled_model_is_counted_saved_loaded_and_merged_as_itself(images: Tensor, config: Any, tmp_path: Path) -> None:
    model = drawn(vit(), config).float()
    images = images.float()
    outer, logits = compiled(model), model(images)
    assert count_parameters(outer) == count_parameters(model)
    assert adapter_state_dict(outer).keys() == adapter_state_dict(model).keys()
    save_adapter(outer, tmp_path / "a.safetensors")
    assert load_file(tmp_path / "a.safetensors").keys() == adapter_state_dict(model).keys()
    again = compiled(apply_method(vit(), config))
    assert load_adapter(again, tmp_path / "a.safetensors") is again
    assert_close(again(images), logits)
    if not isinstance(config, LinearConfig):
        assert_close(merge_method(outer)(images), logits)


def test_a_method_is_applied_before_compiling(tmp_path: Path) -> None:
    save_adapter(apply_method(vit(), GiftConfig(rank=4)), tmp_path / "a.safetensors")
    for call in (
        lambda: apply_method(compiled(vit()), VptConfig()),
        lambda: load_adapter(compiled(vit()), tmp_path / "a.safetensors"),
    ):
        with pytest.raises(
            ConfigError, match=r"compiled or wrapped \(OptimizedModule\); apply the method first, and wrap what"
        ):
            call()


def test_a_model_in_ddp_is_counted_saved_and_merged_as_itself(tmp_path: Path) -> None:
    model = drawn(vit(), GiftConfig(rank=4)).float()
    expected = count_parameters(model), list(adapter_state_dict(model))
    distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        outer = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(ConfigError, match=r"compiled or wrapped \(DistributedDataParallel\); apply the method first"):
            apply_method(outer, GiftConfig())
        assert (count_parameters(outer), list(adapter_state_dict(outer))) == expected
        save_adapter(outer, tmp_path / "a.safetensors")
        load_adapter(outer, tmp_path / "a.safetensors")
        assert merge_method(outer) is outer
        assert model.state_dict().keys() == vit().state_dict().keys()
    finally:
        distributed.destroy_process_group()
