"""LoRA against its formula, peft's layers against ours, and the slices of the fused projection."""

from copy import deepcopy

import pytest
import timm
import torch
from torch import Tensor, nn

from gift_vit.errors import ConfigError
from gift_vit.methods import adapter_state_dict, apply_method, count_parameters, merge_method
from gift_vit.methods.lora import LoraConfig, SlicedLoraLinear
from gift_vit.methods.targets import nameable_targets

Q, K, V = slice(0, 64), slice(64, 128), slice(128, 192)


def drawn(model: nn.Module, config: LoraConfig) -> nn.Module:
    """The method applied, in float64 and eval mode, with A and B away from their start."""
    apply_method(model, config).double().eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for name, tensor in adapter_state_dict(model).items():
            if "lora_" in name:
                tensor.normal_(std=0.1)
    return model


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


@torch.no_grad()
def test_merged_slices_change_their_rows_only(tiny_vit: nn.Module) -> None:
    before = tiny_vit.get_parameter("blocks.2.attn.qkv.weight").double()
    model = drawn(tiny_vit, LoraConfig(rank=4, alpha=6, target_modules=["attn.q", "attn.v"]))
    updates = {adapter: matrices(model, "blocks.2.attn.qkv", adapter) for adapter in "qv"}
    after = merge_method(model).get_parameter("blocks.2.attn.qkv.weight")
    for rows, adapter in ((Q, "q"), (V, "v")):
        a, b = updates[adapter]
        torch.testing.assert_close(after[rows], before[rows] + 1.5 * b @ a, atol=1e-12, rtol=1e-12)
    assert torch.equal(after[K], before[K])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_merged_layers_are_frozen_and_keep_the_mode(tiny_vit: nn.Module, training: bool) -> None:
    model = apply_method(tiny_vit, LoraConfig(target_modules=["attn.q", "attn.proj"], dropout=0.1)).train(training)
    merged = merge_method(model)
    assert {module.training for module in merged.modules()} == {training}
    assert {name for name, p in merged.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


@torch.no_grad()
def test_slices_are_peft_s_layer_with_a_block_of_zeros(tiny_vit: nn.Module) -> None:
    """LoRA of rank r on q and on v is LoRA of rank 2 r on the whole projection, A stacked and B block-diagonal."""
    sliced = drawn(deepcopy(tiny_vit), LoraConfig(rank=4, alpha=1, target_modules=["attn.q", "attn.v"]))
    whole = drawn(tiny_vit, LoraConfig(rank=8, alpha=2, target_modules=["attn.qkv"]))
    for block in range(6):
        name = f"blocks.{block}.attn.qkv"
        (a_q, b_q), (a_v, b_v) = (matrices(sliced, name, adapter) for adapter in "qv")
        a, b = matrices(whole, name, "default")
        a.copy_(torch.cat([a_q, a_v]))
        b.zero_()
        b[Q, :4], b[V, 4:] = b_q, b_v
    images = torch.randn(2, 3, 160, 160, dtype=torch.float64)
    torch.testing.assert_close(sliced(images), whole(images), atol=1e-12, rtol=1e-12)


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
def test_the_delta_weight_is_what_the_forward_adds(tiny_vit: nn.Module) -> None:
    model = drawn(tiny_vit, LoraConfig(rank=4, target_modules=["attn.k"]))
    layer = model.get_submodule("blocks.1.attn.qkv")
    assert isinstance(layer, SlicedLoraLinear)
    x = torch.randn(7, 64, dtype=torch.float64)
    expected = nn.functional.linear(x, layer.weight + layer.delta_weight(), layer.bias)
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=1e-12)


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


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (LoraConfig(rank=8, target_modules=["attn.proj"]), 147_456),
        (LoraConfig(rank=8, target_modules=["attn.q", "attn.v"]), 2 * 147_456),
        (LoraConfig(rank=8, target_modules=["attn.qkv"]), 12 * 8 * (768 + 2304)),
        (LoraConfig(rank=4, target_modules=["mlp.fc1", "mlp.fc2"], blocks=[10, 11]), 2 * 2 * 4 * (768 + 3072)),
    ],
)
def test_counts_on_vit_b16(config: LoraConfig, size: int) -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=200)
    count = count_parameters(apply_method(model, config))
    assert (count.adapter, count.head, count.backbone) == (size, 153_800, 85_798_656)
    if size == 147_456:
        assert f"{count.percent:.4f}" == "0.1719"


def test_only_the_named_layers_are_replaced(tiny_vit: nn.Module) -> None:
    before = {name: type(module) for name, module in tiny_vit.named_modules()}
    apply_method(tiny_vit, LoraConfig(target_modules=["attn.proj", "attn.v"], blocks=[1, 3]))
    changed = {name for name, module in tiny_vit.named_modules() if before.get(name, type(module)) is not type(module)}
    assert changed == {f"blocks.{block}.attn.{layer}" for block in (1, 3) for layer in ("proj", "qkv")}


ERRORS = {
    "rank": ({"rank": 0}, "method.rank=0: expected a whole number of 1 or more"),
    "alpha": ({"alpha": 0.0}, "method.alpha=0.0: expected a number above 0"),
    "dropout": ({"dropout": 1.0}, r"method.dropout=1.0: expected a number in \[0, 1\)"),
    "dropout_below": ({"dropout": -0.1}, r"method.dropout=-0.1: expected a number in \[0, 1\)"),
    "target": ({"target_modules": ["attn.prj"]}, "target 'attn.prj' matches no layer; name one of attn.qkv, attn.q"),
    "convolution": ({"target_modules": ["proj"]}, "target 'proj' matches patch_embed.proj, a Conv2d and not an nn.Linear"),
    "overlap": ({"target_modules": ["attn.q", "attn.qkv"]}, "targets 'attn.q' and 'attn.qkv' both cover blocks.0.attn.qkv"),
    "blocks": ({"blocks": [6]}, r"blocks=\[6\]: give distinct indices from 0 to 5"),
}


@pytest.mark.parametrize(("values", "message"), ERRORS.values(), ids=ERRORS)
def test_wrong_values_are_errors(tiny_vit: nn.Module, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_method(tiny_vit, LoraConfig(**values))  # pyright: ignore[reportArgumentType]
    assert "attn.v" in nameable_targets(tiny_vit)
