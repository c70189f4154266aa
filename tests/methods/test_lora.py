"""LoRA against its formula, peft's layers against ours, and the slices of the fused projection."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gift_vit.methods import apply_method
from gift_vit.methods.config import LoraConfig
from tests.methods.checks import drawn

Q, V = slice(0, 64), slice(128, 192)


def matrices(model: nn.Module, layer: str, adapter: str) -> tuple[Tensor, Tensor]:
    return tuple(model.get_parameter(f"{layer}.lora_{side}.{adapter}.weight").detach() for side in "AB")  # pyright: ignore[reportReturnType]


@torch.no_grad()
@pytest.mark.parametrize("target", ["attn.proj", "attn.qkv", "mlp.fc1", "mlp.fc2", "attn.v"])
def test_a_layer_is_the_formula_and_a_slice_changes_its_rows_only(tiny_vit: nn.Module, target: str) -> None:
    names = {"attn.v": {"v": V, "q": Q}}.get(target, {"default": slice(None)})
    layer = f"blocks.2.{'attn.qkv' if target == 'attn.v' else target}"
    plain: Any = deepcopy(tiny_vit).double().get_submodule(layer)
    targets = ["attn.v", "attn.q"] if target == "attn.v" else [target]
    model = drawn(tiny_vit, LoraConfig(rank=4, alpha=6, target_modules=targets, blocks=[2]))
    x = torch.randn(2, 5, plain.in_features, dtype=torch.float64)
    expected = plain(x)
    for adapter, rows in names.items():
        a, b = matrices(model, layer, adapter)
        expected[..., rows] += 1.5 * (x @ a.T) @ b.T
    torch.testing.assert_close(model.get_submodule(layer)(x), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("target", "adapter"), [("attn.qkv", "default"), ("attn.q", "q")])
def test_slices_start_as_peft_s_layers_do(tiny_vit: nn.Module, target: str, adapter: str) -> None:
    model = apply_method(tiny_vit, LoraConfig(rank=64, target_modules=[target], blocks=[0]))
    a, b = matrices(model, "blocks.0.attn.qkv", adapter)
    assert not b.any()
    assert 0.98 / 8 < a.abs().max() <= 1 / 8  # nn.Linear's: uniform on ±1/√d_in
    assert a.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.03)


@pytest.mark.parametrize(("target", "adapter"), [("attn.qkv", "default"), ("attn.q", "q")])
def test_a_gaussian_start_deviates_by_one_over_the_rank(tiny_vit: nn.Module, target: str, adapter: str) -> None:
    model = apply_method(tiny_vit, LoraConfig(rank=16, target_modules=[target], blocks=[0], init="gaussian"))
    assert matrices(model, "blocks.0.attn.qkv", adapter)[0].std().item() == pytest.approx(1 / 16, rel=0.05)


@torch.no_grad()
@pytest.mark.parametrize("target", ["attn.proj", "attn.q"])
def test_dropout_acts_on_the_update_while_training(tiny_vit: nn.Module, target: str) -> None:
    model = drawn(tiny_vit, LoraConfig(rank=4, alpha=4, target_modules=[target], dropout=0.5))
    name, adapter = ("blocks.0.attn.qkv", "q") if target == "attn.q" else ("blocks.0.attn.proj", "default")
    a, b = matrices(model, name, adapter)
    layer = model.get_submodule(name)
    x = torch.ones(20_000, 64, dtype=torch.float64)
    kept = (layer(x) - layer(torch.zeros_like(x)))[0, Q]
    layer.train()
    dropped = (layer(x) - layer(torch.zeros_like(x)))[:, Q]
    spread = (0.5 / 0.5 * (a.T @ b.T[:, Q]).square().sum(dim=0)).sqrt()  # of a sum of 64 terms, each 0 or twice itself
    torch.testing.assert_close(dropped.std(dim=0), spread, atol=0, rtol=0.05)
    torch.testing.assert_close(dropped.mean(dim=0), kept, atol=0.05, rtol=0.05)
