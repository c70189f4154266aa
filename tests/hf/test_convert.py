"""Adapters of timm ViTs as peft folders, and back."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from gift_vit import methods
from gift_vit.common.errors import ConfigError
from gift_vit.hf import GiftConfig, from_adapter, to_adapter
from gift_vit.methods import apply_method, load_adapter, save_adapter
from tests.hf.conftest import build, logits, randomise


def trained(plain: torch.nn.Module | None = None, **options: Any) -> torch.nn.Module:
    model = apply_method(plain or build("timm"), methods.GiftConfig(**{"rank": 4, "target_modules": ["attn.proj"], **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"blocks": [1, 3]},
        {"init": "wegeft", "alpha": 8.0},
        {"target_modules": ["attn.proj", "mlp.fc2"]},
        {"target_modules": ["attn.proj", "mlp.fc1"], "share": True},
        {"target_modules": ["mlp.fc1", "attn.proj"]},
    ],
)
def test_there_and_back(options: dict[str, Any], tmp_path: Path) -> None:
    model = trained(**options)
    save_adapter(model, tmp_path / "a.safetensors", dataset="birds", class_names=["a", "b", "c"])
    from_adapter(tmp_path / "a.safetensors", tmp_path / "folder")
    peft = PeftModel.from_pretrained(build("timm"), str(tmp_path / "folder"))
    torch.testing.assert_close(logits(peft, "timm"), logits(model, "timm"), atol=1e-5, rtol=1e-5)
    to_adapter(tmp_path / "folder", tmp_path / "b.safetensors")
    assert torch.equal(logits(load_adapter(build("timm"), tmp_path / "b.safetensors"), "timm"), logits(model, "timm"))
    first, second = (methods.adapter.read_adapter(tmp_path / f"{name}.safetensors").metadata for name in "ab")
    assert second == first


def test_an_attention_pool_is_no_target(tmp_path: Path) -> None:
    def pooling() -> torch.nn.Module:
        torch.manual_seed(0)
        return timm.create_model("test_vit", num_classes=3, global_pool="map").eval()

    model = trained(pooling(), target_modules=["mlp.fc1"])
    save_adapter(model, tmp_path / "a.safetensors")
    from_adapter(tmp_path / "a.safetensors", tmp_path / "folder")
    peft = PeftModel.from_pretrained(pooling(), str(tmp_path / "folder"))
    torch.testing.assert_close(logits(peft, "timm"), logits(model, "timm"), atol=1e-5, rtol=1e-5)
    applied = apply_method(pooling(), methods.config.GiftHfConfig(rank=4, target_modules=["mlp.fc1"]))
    adapted = {name.partition(".gift_")[0] for name, _ in applied.named_modules() if ".gift_" in name}
    assert adapted == {f"blocks.{index}.mlp.fc1" for index in range(6)}
    whole = get_peft_model(pooling(), GiftConfig(r=4, target_modules=["mlp.fc1"]))  # the pool's too
    whole.save_pretrained(str(tmp_path / "whole"))
    with pytest.raises(ValueError, match=r"adapts attn_pool\.mlp\.fc1, which is no target of gift_vit's GIFT"):
        to_adapter(tmp_path / "whole", tmp_path / "b.safetensors", pooling())


def test_a_peft_model_as_an_adapter_file(tmp_path: Path) -> None:
    model = randomise(
        get_peft_model(build("timm"), GiftConfig(r=4, alpha=8, target_modules=["attn.proj"], modules_to_save=["head"]))
    )
    model.save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="does not say which backbone it adapts; give model="):
        to_adapter(tmp_path, tmp_path / "a.safetensors")
    to_adapter(tmp_path, tmp_path / "a.safetensors", build("timm"))
    assert set(load_file(tmp_path / "a.safetensors")) == {
        "gift.attn.proj.phi",
        "gift.attn.proj.psi",
        "head.weight",
        "head.bias",
    }
    loaded = load_adapter(build("timm"), tmp_path / "a.safetensors")
    torch.testing.assert_close(logits(loaded, "timm"), logits(model, "timm"), atol=1e-5, rtol=1e-5)
    weights = tmp_path / "adapter_model.safetensors"
    for damage in (lambda: weights.write_bytes(weights.read_bytes()[:100]), weights.unlink):
        damage()
        with pytest.raises(ValueError, match=r"its adapter_model\.safetensors cannot be read \(.*\); save the adapter again"):
            to_adapter(tmp_path, tmp_path / "b.safetensors", build("timm"))


def assert_refused(config: GiftConfig, message: str, folder: Path) -> None:
    get_peft_model(build("timm"), config).save_pretrained(str(folder))
    with pytest.raises(ValueError, match=message):
        to_adapter(folder, folder / "a.safetensors", build("timm"))
    assert not (folder / "a.safetensors").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (methods.LoraConfig(rank=2, target_modules=["attn.proj"]), "is an adapter of LoraConfig; only GIFT's"),
        (methods.GiftConfig(rank=2, target_modules=["attn.q"]), "adapts attn.q, of most ViTs a part of a fused layer"),
        (methods.GiftConfig(rank=2, target_modules=["blocks.0.attn.proj"]), r"names single layers \(blocks.0.attn.proj\)"),
        (methods.GiftConfig(rank=2, target_modules=["attn.proj"], schema="gelu"), "has a schema or biases"),
        (methods.GiftConfig(rank=2, target_modules=["attn.proj"], psi_bias=True), "has a schema or biases"),
    ],
)
def test_what_peft_has_nothing_like_is_refused(config: Any, message: str, tmp_path: Path) -> None:
    save_adapter(apply_method(build("timm"), config), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        from_adapter(tmp_path / "a.safetensors", tmp_path / "folder")


def test_what_the_vision_side_has_nothing_like_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no adapter file"):
        from_adapter(tmp_path / "none.safetensors", tmp_path / "folder")
    for share, targets, message in [
        ("layer", ["attn.proj"], "has no equal"),
        ("target", ["head"], "adapts head"),
    ]:
        assert_refused(GiftConfig(r=4, target_modules=targets, share=share), message, tmp_path)
    for whole, message in [(None, "lacks head.bias"), (["head", "norm"], "holds norm.bias")]:
        said = rf"{message}, and an adapter of gift_vit is GIFT's pairs and the head; retrain with modules_to_save=\['head'\]"
        assert_refused(GiftConfig(r=4, target_modules=["attn.proj"], modules_to_save=whole), said, tmp_path)
    options: dict[str, Any] = {"exclude_modules": ["blocks.0.attn.proj"], "bias": "gift_only"}
    for option, value in options.items():
        config = GiftConfig(r=4, target_modules=["attn.proj"], **{option: value})
        assert_refused(config, f"{option}=.* has no equal in gift_vit", tmp_path)
