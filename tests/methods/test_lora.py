"""LoRA against its formula, peft's layers against ours, and the slices of the fused projection."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from gift_vit.methods import apply_method, merge_method
from gift_vit.methods.config import LoraConfig
from tests.methods.checks import drawn

Q, K, V = slice(0, 64), slice(64, 128), slice(128, 192)


def matrices(model: nn.Module, layer: str, adapter: str) -> tuple[Tensor, Tensor]:
    return tuple(model.get_parameter(f"{layer}.lora_{side}.{adapter}.weight").detach() for side in "AB")  # pyright: ignore[reportReturnType]


@torch.no_grad()
@pytest.mark.parametrize(("target", "d_in"), [("attn.proj", 64), ("attn.qkv", 64), ("mlp.fc1", 64), ("mlp.fc2", 192)])
def test_a_whole_layer_is_the_formula(tiny_vit: nn.Module, target: str, d_in: int) -> None:
    name = f"blocks.2.{target}"
    plain = deepcopy(tiny_vit).double().get_submodule(name)
    model = drawn(tiny_vit, LoraConfig(rank=4, alpha=6, target_modules=[target], blocks=[2]))
    a, b = matrices(model, name, "default")
    x = torch.randn(2, 5, d_in, dtype=torch.float64)
    expected = plain(x) + 1.5 * (x @ a.T) @ b.T
    torch.testing.assert_close(model.get_submodule(name)(x), expected, atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_slices_change_their_rows_only(tiny_vit: nn.Module) -> None:
    name = "blocks.2.attn.qkv"
    plain = deepcopy(tiny_vit).double().get_submodule(name)
    model = drawn(tiny_vit, LoraConfig(rank=4, alpha=6, target_modules=["attn.v", "attn.q"]))
    x = torch.randn(2, 5, 64, dtype=torch.float64)
    y, before = model.get_submodule(name)(x), plain(x)
    for rows, adapter in ((Q, "q"), (V, "v")):
        a, b = matrices(model, name, adapter)
        torch.testing.assert_close(y[..., rows], before[..., rows] + 1.5 * (x @ a.T) @ b.T, atol=1e-12, rtol=1e-12)
    assert torch.equal(y[..., K], before[..., K])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_merged_layers_are_frozen_and_keep_the_mode(tiny_vit: nn.Module, training: bool) -> None:
    model = apply_method(tiny_vit, LoraConfig(target_modules=["attn.q", "attn.proj"], dropout=0.1)).train(training)
    merged = merge_method(model)
    assert {module.training for module in merged.modules()} == {training}
    assert {name for name, p in merged.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


def test_slices_start_as_peft_s_layers_do(tiny_vit: nn.Module) -> None:
    starts = {}
    for target, adapter in (("attn.qkv", "default"), ("attn.q", "q")):
        torch.manual_seed(0)
        model = apply_method(deepcopy(tiny_vit), LoraConfig(rank=64, target_modules=[target], blocks=[0]))
        a, b = matrices(model, "blocks.0.attn.qkv", adapter)
        assert not b.any()
        starts[adapter] = a
    for a in starts.values():  # nn.Linear's: uniform on ±1/√d_in
        assert 0.98 / 8 < a.abs().max() <= 1 / 8
        assert a.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.03)


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
