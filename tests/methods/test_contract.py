"""Every method × every property of the contract in gift_vit/methods/registry.py."""

import re
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.errors import ConfigError
from gift_vit.methods import (
    METHODS,
    FullConfig,
    GiftConfig,
    LinearConfig,
    adapter_state_dict,
    apply_method,
    count_parameters,
    load_adapter,
    load_adapter_state_dict,
    merge_method,
    save_adapter,
)
from tests.tolerance import TOLERANCE

HEAD = {"head.weight", "head.bias"}


@dataclass(frozen=True)
class Example:
    """A config, the pattern that exactly the adapter's parameters match, and their number on test_vit (width 64, MLP 192)."""

    config: Any
    adapter: str
    size: int


# every kind has at least one example, whose blocks exist in a ViT of depth 2
EXAMPLES: dict[str, dict[str, Example]] = {
    "gift": {
        "default": Example(GiftConfig(), r"gift\.attn\.proj\.(phi|psi)", 2 * 64 * 16),
        "several": Example(
            GiftConfig(rank=4, target_modules=["attn.q", "attn.v", "mlp.fc1", "mlp.fc2"]),
            r"gift\.(attn\.q|attn\.v|mlp\.fc1|mlp\.fc2)\.(phi|psi)",
            3 * 2 * 64 * 4 + 2 * 192 * 4,
        ),
        "share": Example(
            GiftConfig(rank=4, target_modules=["attn.proj", "attn.k", "mlp.fc1"], share=True),
            r"gift\.shared\.(phi|psi)",
            2 * 64 * 4,
        ),
        "one_block": Example(GiftConfig(rank=4, blocks=[1]), r"gift\.attn\.proj\.(phi|psi)", 2 * 64 * 4),
        "biases": Example(
            GiftConfig(rank=4, phi_bias=True, psi_bias=True),
            r"gift\.attn\.proj\.(phi|psi|phi_bias|psi_bias)",
            2 * 64 * 4 + 4 + 64,
        ),
        "sliced_biases": Example(
            GiftConfig(rank=4, target_modules=["attn.k"], phi_bias=True, psi_bias=True),
            r"gift\.attn\.k\.(phi|psi|phi_bias|psi_bias)",
            2 * 64 * 4 + 4 + 64,
        ),
        "whole_qkv": Example(GiftConfig(rank=4, target_modules=["attn.qkv"]), r"gift\.attn\.qkv\.(phi|psi)", 2 * 64 * 4),
        "all_targets": Example(
            GiftConfig(rank=4, target_modules=["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]),
            r"gift\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(phi|psi)",
            3 * 2 * 64 * 4 + 2 * 192 * 4,
        ),
    },
    "linear": {"default": Example(LinearConfig(), r"(?!)", 0)},
    "full": {"default": Example(FullConfig(), r"(?!head\.).+", 306_240)},
}
CASES = [(kind, label) for kind in METHODS for label in EXAMPLES.get(kind, {})]
every_case = pytest.mark.parametrize(("kind", "label"), CASES, ids=lambda value: value)


@pytest.fixture
def example(kind: str, label: str) -> Example:
    return EXAMPLES[kind][label]


@pytest.fixture
def model(tiny_vit: nn.Module, example: Example) -> nn.Module:
    torch.manual_seed(1)
    return apply_method(deepcopy(tiny_vit), example.config)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(2))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal within the tolerance of ``actual``'s dtype."""
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected.to(actual.dtype), atol=tolerance["atol"], rtol=tolerance["rtol"])


def train(model: nn.Module, images: Tensor) -> set[str]:
    """Two AdamW steps, after which the model is in eval mode; the names of the parameters that saw a non-zero gradient."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    reached: set[str] = set()
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images), torch.tensor([1, 2])).backward()
        reached |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
    model.eval()
    return reached


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    """Names whose tensors are no longer bit-identical."""
    after = tensors_of(model)
    assert after.keys() == before.keys()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_every_kind_has_examples() -> None:
    assert set(EXAMPLES) == set(METHODS), "add an example config for each kind of method"
    assert all(isinstance(e.config, METHODS[kind].config_cls) for kind, examples in EXAMPLES.items() for e in examples.values())
    assert len(CASES) == sum(map(len, EXAMPLES.values())) >= len(METHODS) >= 3


@every_case
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_outputs_are_unchanged_at_the_start(
    tiny_vit: nn.Module, model: nn.Module, images: Tensor, kind: str, training: bool
) -> None:
    if not METHODS[kind].identity_at_init:
        pytest.skip(f"{kind} changes the outputs by design")
    assert torch.equal(model.train(training)(images), tiny_vit.train(training)(images))


@every_case
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_applying_keeps_the_mode_and_the_weights(tiny_vit: nn.Module, example: Example, training: bool) -> None:
    before = tensors_of(tiny_vit)
    tiny_vit.train(training)
    assert apply_method(tiny_vit, example.config) is tiny_vit
    after = tensors_of(tiny_vit)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name in after)
    assert after.keys() >= HEAD
    assert {module.training for module in tiny_vit.modules()} == {training}


@every_case
def test_exactly_the_declared_parameters_are_trainable(model: nn.Module, example: Example) -> None:
    expected = {name for name, _ in model.named_parameters() if name not in HEAD and re.fullmatch(example.adapter, name)}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected | HEAD
    assert set(adapter_state_dict(model)) == expected | HEAD
    count = count_parameters(model)
    assert (count.adapter, count.head, count.backbone) == (example.size, 650, 306_240)


@every_case
def test_training_reaches_all_declared_parameters_and_no_other(model: nn.Module, images: Tensor) -> None:
    declared = set(adapter_state_dict(model))
    before = tensors_of(model)
    assert train(model, images) == declared
    assert changed(before, model) == declared


@every_case
def test_an_adapter_file_restores_the_logits(tiny_vit: nn.Module, model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    untrained = deepcopy(model)
    train(model, images)
    logits = model(images)
    save_adapter(model, tmp_path / "adapter.safetensors")
    assert not torch.equal(untrained(images), logits)
    assert torch.equal(load_adapter(untrained, tmp_path / "adapter.safetensors")(images), logits)
    assert torch.equal(load_adapter(tiny_vit, tmp_path / "adapter.safetensors")(images), logits)


@every_case
def test_state_dicts_round_trip_and_copy(model: nn.Module, images: Tensor) -> None:
    other = deepcopy(model)
    train(model, images)
    load_adapter_state_dict(other, adapter_state_dict(model))
    assert changed(tensors_of(model), other) == set()
    before = tensors_of(other)
    train(model, images)
    assert changed(before, other) == set()


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_merging_leaves_a_plain_model_of_the_same_logits(
    tiny_vit: nn.Module, model: nn.Module, images: Tensor, kind: str, dtype: torch.dtype
) -> None:
    if METHODS[kind].merge is None:
        with pytest.raises(ConfigError, match=f"'{kind}' cannot be merged"):
            merge_method(model)
        return
    train(model, images)
    model.to(dtype)
    images = images.to(dtype)
    plain = tiny_vit.to(dtype)
    logits = model(images)
    assert not torch.allclose(logits, plain(images), atol=1e-2)
    assert merge_method(model) is model
    assert_close(model(images), logits)
    assert [(name, type(module)) for name, module in model.named_modules()] == [
        (name, type(module)) for name, module in plain.named_modules()
    ]
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(plain(images), model(images))


@every_case
def test_after_merging_a_method_can_be_applied_again(model: nn.Module, images: Tensor, kind: str, example: Example) -> None:
    if METHODS[kind].merge is None:
        pytest.skip(f"{kind} cannot be merged")
    declared = set(adapter_state_dict(model))
    train(model, images)
    logits = merge_method(model)(images)
    apply_method(model, example.config)
    if METHODS[kind].identity_at_init:
        assert torch.equal(model(images), logits)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == declared
    assert count_parameters(model).backbone == 306_240


@every_case
def test_compiles_without_graph_breaks(images: Tensor, example: Example) -> None:
    images = images[..., :32, :32]
    torch.manual_seed(0)
    model = apply_method(timm.create_model("test_vit", depth=2, img_size=32, num_classes=10), example.config)
    train(model, images)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(compiled(images), model(images))


@every_case
def test_bf16_autocast_is_close_and_keeps_gradients_in_fp32(model: nn.Module, images: Tensor) -> None:
    train(model, images)
    logits = model(images)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(images)
        F.cross_entropy(rounded, torch.tensor([1, 2])).backward()
    assert rounded.dtype == torch.bfloat16
    assert_close(rounded, logits)
    for name, tensor in adapter_state_dict(model).items():
        gradient = model.get_parameter(name).grad
        assert tensor.dtype == torch.float32
        assert gradient is not None
        assert gradient.dtype == torch.float32


@every_case
def test_deep_copies_are_independent(model: nn.Module, images: Tensor) -> None:
    before, logits = tensors_of(model), model(images)
    copy = deepcopy(model)
    train(copy, images)
    assert changed(before, model) == set()
    assert torch.equal(model(images), logits)
    assert changed(before, copy) == set(adapter_state_dict(model))
    assert not torch.equal(copy(images), logits)


@every_case
def test_the_same_seed_gives_the_same_weights(tiny_vit: nn.Module, example: Example) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(apply_method(deepcopy(tiny_vit), example.config))
    assert changed(tensors_of(models[0]), models[1]) == set()


@every_case
def test_applying_twice_is_an_error(model: nn.Module, kind: str, example: Example) -> None:
    before = tensors_of(model)
    with pytest.raises(ConfigError, match=f"method '{kind}' is applied to this model already; merge it first"):
        apply_method(model, example.config)
    assert changed(before, model) == set()


@pytest.mark.parametrize("function", [merge_method, count_parameters, adapter_state_dict])
def test_a_plain_model_has_no_method(tiny_vit: nn.Module, function: Any) -> None:
    with pytest.raises(ConfigError, match=r"no method is applied to this model; call apply_method\(model, config\)"):
        function(tiny_vit)


def test_a_method_without_merge_says_so(tiny_vit: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "linear", replace(METHODS["linear"], merge=None))
    apply_method(tiny_vit, LinearConfig())
    with pytest.raises(ConfigError, match="method 'linear' cannot be merged into the backbone; keep the adapter beside it"):
        merge_method(tiny_vit)
    assert count_parameters(tiny_vit).head == 650
