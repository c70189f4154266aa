"""Every method × every property of the contract in gift_vit/methods/registry.py."""

from copy import deepcopy
from dataclasses import replace
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
    LinearConfig,
    adapter_state_dict,
    apply_method,
    count_parameters,
    load_adapter,
    load_adapter_state_dict,
    merge_method,
    save_adapter,
)
from gift_vit.methods.registry import spec_of
from tests.methods.method_examples import Example, all_examples, matches
from tests.tolerance import TOLERANCE

HEAD = {"head.weight", "head.bias"}


EXAMPLES = all_examples()
every_example = pytest.mark.parametrize("label", EXAMPLES)


@pytest.fixture
def example(label: str) -> Example:
    return EXAMPLES[label]


@pytest.fixture
def model(tiny_vit: nn.Module, example: Example) -> nn.Module:
    torch.manual_seed(1)
    return apply_method(deepcopy(tiny_vit), example.config)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(2))


def assert_close(actual: Tensor, expected: Tensor, computed_in: torch.dtype | None = None) -> None:
    """Equal within the tolerance of ``actual``'s dtype, or of another that it was computed in."""
    tolerance = TOLERANCE[computed_in or actual.dtype]
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


def trainable(model: nn.Module) -> set[str]:
    """Names of the trainable parameters; those that layers share have one name."""
    return {name for name, p in model.named_parameters() if p.requires_grad}


def refusal(example: Example) -> str | None:
    """What the error says when this example's model is merged; None: it can be merged."""
    kind = spec_of(example.config).kind
    return f"'{kind}' cannot be merged" if METHODS[kind].merge is None else example.unmergeable


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    """Names whose tensors are no longer bit-identical."""
    after = tensors_of(model)
    assert after.keys() == before.keys()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_every_kind_and_every_yaml_is_here() -> None:
    kinds = {spec_of(example.config).kind for example in EXAMPLES.values()}
    assert kinds == set(METHODS), "each kind of method has a YAML, or an example beside this file"
    assert len(EXAMPLES) > len(METHODS) >= 3


@every_example
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_outputs_are_unchanged_at_the_start(
    tiny_vit: nn.Module, model: nn.Module, images: Tensor, example: Example, training: bool
) -> None:
    same = torch.equal(model.train(training)(images), tiny_vit.train(training)(images))
    assert same == example.unchanged
    assert example.unchanged or not spec_of(example.config).identity_at_init


@every_example
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_applying_keeps_the_mode_and_the_weights(tiny_vit: nn.Module, example: Example, training: bool) -> None:
    before = tensors_of(tiny_vit)
    tiny_vit.train(training)
    assert apply_method(tiny_vit, example.config) is tiny_vit
    after = tensors_of(tiny_vit)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name in after)
    assert after.keys() >= HEAD
    assert {module.training for module in tiny_vit.modules()} == {training}


@every_example
def test_exactly_the_declared_parameters_are_trainable(model: nn.Module, example: Example) -> None:
    if example.adapter is None:
        pytest.skip("no example declares the parameters of this method")
    expected = {name for name, _ in model.named_parameters() if name not in HEAD and matches(example.adapter, name)}
    assert trainable(model) == expected | HEAD
    state = {name for name in adapter_state_dict(model) if matches(example.state, name)}
    assert set(adapter_state_dict(model)) - state == expected | HEAD
    assert bool(state) == (example.state != Example.state)
    count = count_parameters(model)
    assert (count.adapter, count.head, count.backbone) == (example.size, 650, 306_240)


@every_example
def test_training_reaches_all_declared_parameters_and_no_other(model: nn.Module, images: Tensor, example: Example) -> None:
    declared = trainable(model)
    late = {name for name in declared if matches(example.unreached, name)}
    before = tensors_of(model)
    assert train(model, images) | late == declared
    assert changed(before, model) | late == declared


@every_example
def test_an_adapter_file_restores_the_logits(tiny_vit: nn.Module, model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    untrained = deepcopy(model)
    train(model, images)
    logits = model(images)
    save_adapter(model, tmp_path / "adapter.safetensors")
    assert not torch.equal(untrained(images), logits)
    assert torch.equal(load_adapter(untrained, tmp_path / "adapter.safetensors")(images), logits)
    assert torch.equal(load_adapter(tiny_vit, tmp_path / "adapter.safetensors")(images), logits)


@every_example
def test_state_dicts_round_trip_and_copy(model: nn.Module, images: Tensor) -> None:
    other = deepcopy(model)
    train(model, images)
    load_adapter_state_dict(other, adapter_state_dict(model))
    assert changed(tensors_of(model), other) == set()
    before = tensors_of(other)
    train(model, images)
    assert changed(before, other) == set()


@every_example
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_merging_leaves_a_plain_model_of_the_same_logits(
    tiny_vit: nn.Module, model: nn.Module, images: Tensor, example: Example, dtype: torch.dtype
) -> None:
    if refused := refusal(example):
        logits = model(images)
        with pytest.raises(ConfigError, match=refused):
            merge_method(model)
        assert torch.equal(model(images), logits)
        return
    train(model, images)
    model.to(dtype)
    images = images.to(dtype)
    plain = tiny_vit.to(dtype)
    logits = model(images)
    assert not torch.allclose(logits, plain(images), atol=1e-2)
    assert merge_method(model) is model
    assert_close(model(images), logits, example.merged_in)
    assert [(name, type(module)) for name, module in model.named_modules()] == [
        (name, type(module)) for name, module in plain.named_modules()
    ]
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(plain(images), model(images))


@every_example
def test_after_merging_a_method_can_be_applied_again(model: nn.Module, images: Tensor, example: Example) -> None:
    if refused := refusal(example):
        pytest.skip(refused)
    declared = trainable(model)
    train(model, images)
    logits = merge_method(model)(images)
    apply_method(model, example.config)
    if example.unchanged:
        assert torch.equal(model(images), logits)
    assert trainable(model) == declared
    assert count_parameters(model).backbone == 306_240


@every_example
def test_compiles_without_graph_breaks(images: Tensor, example: Example) -> None:
    if example.uncompiled:
        pytest.skip(example.uncompiled)
    images = images[..., :32, :32]
    torch.manual_seed(0)
    model = apply_method(timm.create_model("test_vit", depth=2, img_size=32, num_classes=10), example.config)
    train(model, images)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(compiled(images), model(images))


@every_example
def test_bf16_autocast_is_close_and_keeps_gradients_in_fp32(model: nn.Module, images: Tensor) -> None:
    train(model, images)
    logits = model(images)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(images)
        F.cross_entropy(rounded, torch.tensor([1, 2])).backward()
    assert rounded.dtype == torch.bfloat16
    assert_close(rounded, logits)
    for name in trainable(model):
        parameter = model.get_parameter(name)
        gradient = parameter.grad
        assert parameter.dtype == torch.float32
        assert gradient is not None
        assert gradient.dtype == torch.float32


@every_example
def test_deep_copies_are_independent(model: nn.Module, images: Tensor, example: Example) -> None:
    before, logits = tensors_of(model), model(images)
    copy = deepcopy(model)
    train(copy, images)
    assert changed(before, model) == set()
    assert torch.equal(model(images), logits)
    late = {name for name in trainable(model) if matches(example.unreached, name)}
    assert changed(before, copy) | late == trainable(model)
    assert not torch.equal(copy(images), logits)


@every_example
def test_the_same_seed_gives_the_same_weights(tiny_vit: nn.Module, example: Example) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(apply_method(deepcopy(tiny_vit), example.config))
    assert changed(tensors_of(models[0]), models[1]) == set()


@every_example
def test_applying_twice_is_an_error(model: nn.Module, example: Example) -> None:
    kind = spec_of(example.config).kind
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
