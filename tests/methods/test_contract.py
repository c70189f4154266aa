"""Methods × the properties of the contract in gift_vit/methods/config.py.

Every label for what is at its core: unchanged outputs at the start, the declared parameters, training them, the adapter file,
merging. One label of a kind for the rest; `make test-all` has every label there too.
"""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.common.errors import ConfigError
from gift_vit.methods import (
    METHODS,
    LinearConfig,
    adapter_state_dict,
    apply_method,
    count_parameters,
    initialise_method,
    load_adapter,
    load_adapter_state_dict,
    merge_method,
    save_adapter,
)
from gift_vit.methods.config import spec_of
from tests.methods.checks import assert_close, assert_same_modules, train
from tests.methods.method_examples import SELECTED, Example, all_examples, matches, one_of_a_kind

HEAD = {"head.weight", "head.bias"}
EXAMPLES = all_examples()
every_example = pytest.mark.parametrize("label", EXAMPLES)
every_kind = one_of_a_kind()


@pytest.fixture
def example(label: str) -> Example:
    return EXAMPLES[label]


@pytest.fixture
def model(tiny_vit: nn.Module, example: Example, images: Tensor) -> nn.Module:
    torch.manual_seed(1)
    model = apply_method(deepcopy(tiny_vit), example.config)
    if getattr(example.config, "needs_start", False):
        initialise_method(model.eval(), [images])
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(2))


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
    kinds = {label: spec_of(example.config).kind for label, example in EXAMPLES.items()}
    trained = {kind for kind, spec in METHODS.items() if spec.fit is None and kind != "gift_hf"}  # which is for texts
    assert set(kinds.values()) == trained, "each kind of method has a YAML, or an example beside this file"
    assert {kinds[label] for label in SELECTED} == trained
    assert len(EXAMPLES) > 50


@every_example
def test_outputs_are_unchanged_at_the_start(tiny_vit: nn.Module, model: nn.Module, images: Tensor, example: Example) -> None:
    for training in (False, True):
        same = torch.equal(model.train(training)(images), tiny_vit.train(training)(images))
        assert same == example.unchanged
    assert example.unchanged or not spec_of(example.config).identity_at_init


@every_example
def test_exactly_the_declared_parameters_are_trainable(model: nn.Module, example: Example) -> None:
    expected = {name for name, _ in model.named_parameters() if name not in HEAD and matches(example.adapter, name)}
    assert trainable(model) == expected | HEAD
    state = {name for name in adapter_state_dict(model) if matches(example.state, name)}
    assert set(adapter_state_dict(model)) - state == expected | HEAD
    assert bool(state) == (example.state != Example.state)
    count = count_parameters(model)
    assert (count.adapter, count.head, count.backbone) == (example.size, 650, 306_240)


@every_example
def test_training_reaches_what_is_declared_and_a_file_restores_the_logits(
    tiny_vit: nn.Module, model: nn.Module, images: Tensor, example: Example, tmp_path: Path
) -> None:
    untrained, before, declared = deepcopy(model), tensors_of(model), trainable(model)
    late = {name for name in declared if matches(example.unreached, name)}
    assert train(model, images) | late == declared
    assert changed(before, model) | late == declared
    logits = model(images)
    save_adapter(model, tmp_path / "adapter.safetensors")
    assert not torch.equal(untrained(images), logits)
    for other in (untrained, tiny_vit):
        assert load_adapter(other, str(tmp_path / "adapter.safetensors")) is other
        assert torch.equal(other(images), logits)
        assert trainable(other) == declared


MERGED = [(label, torch.float64) for label in EXAMPLES] + [(label, torch.float32) for label in SELECTED]


@pytest.mark.parametrize(("label", "dtype"), MERGED, ids=[f"{label}-{str(dtype)[-2:]}" for label, dtype in MERGED])
def test_merging_leaves_a_plain_model_of_the_same_logits(
    tiny_vit: nn.Module, model: nn.Module, images: Tensor, example: Example, dtype: torch.dtype
) -> None:
    if refused := refusal(example):
        logits = model(images)
        with pytest.raises(ConfigError, match=refused):
            merge_method(model)
        assert torch.equal(model(images), logits)
        return
    declared = trainable(model)
    train(model, images)
    model.to(dtype)
    images = images.to(dtype)
    plain = tiny_vit.to(dtype)
    logits = model(images)
    assert not torch.allclose(logits, plain(images), atol=1e-2)
    assert merge_method(model) is model
    assert_close(model(images), logits, example.merged_in)
    assert_same_modules(model, plain)
    assert trainable(model) == HEAD | (declared & set(plain.state_dict()))
    assert set(vars(model)) == set(vars(plain))
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(plain(images), model(images))


@every_kind
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_applying_keeps_the_mode_and_the_weights(tiny_vit: nn.Module, example: Example, training: bool) -> None:
    before = tensors_of(tiny_vit)
    tiny_vit.train(training)
    assert apply_method(tiny_vit, example.config) is tiny_vit
    after = tensors_of(tiny_vit)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name in after)
    assert after.keys() >= HEAD
    if spec_of(example.config).kind not in {"lora", "peft"}:
        assert after.keys() >= before.keys(), "the backbone keeps its keys"
    assert {module.training for module in tiny_vit.modules()} == {training}
    if not refusal(example):
        assert {module.training for module in merge_method(tiny_vit).modules()} == {training}


@every_kind
def test_after_merging_a_method_can_be_applied_again(model: nn.Module, images: Tensor, example: Example) -> None:
    if refused := refusal(example):
        pytest.skip(refused)
    declared = trainable(model)
    train(model, images)
    tuned = model(images)
    merge_method(deepcopy(model))
    assert torch.equal(model(images), tuned), "merging a copy leaves the original"
    logits = merge_method(model)(images)
    apply_method(model, example.config)
    if example.unchanged:
        assert torch.equal(model(images), logits)
    assert trainable(model) == declared
    assert count_parameters(model).backbone == 306_240


@every_kind
def test_compiles_without_graph_breaks(images: Tensor, example: Example) -> None:
    images = images[..., :32, :32]
    torch.manual_seed(0)
    model = apply_method(timm.create_model("test_vit", depth=2, img_size=32, num_classes=10), example.config)
    train(model, images)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(compiled(images), model(images))


@every_kind
def test_bf16_autocast_is_close_and_keeps_gradients_in_fp32(model: nn.Module, images: Tensor) -> None:
    train(model, images)
    logits = model(images)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(images)
        F.cross_entropy(rounded, torch.tensor([1, 2])).backward()
    assert rounded.dtype == torch.bfloat16
    assert_close(rounded, logits)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {p.grad.dtype if p.grad is not None else None for p in trained} == {torch.float32}


@pytest.mark.parametrize(
    "label", ["adaptformer", "apla", "vpt_deep", "vpt_shallow", "lora_qv", "pissa", "pissa_qv", "repadapter"]
)
def test_half_precision_backbones_keep_the_adapter_in_fp32(tiny_vit: nn.Module, images: Tensor, example: Example) -> None:
    model = apply_method(tiny_vit.bfloat16(), example.config)
    logits = model(images.bfloat16())
    logits.sum().backward()
    assert logits.dtype == torch.bfloat16
    gradients = [model.get_parameter(name).grad for name in trainable(model) - HEAD]
    assert gradients
    assert all(gradient is not None and gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("label", ["lora_qv", "pissa", "repadapter"])
def test_double_precision_backbones_merge(tiny_vit: nn.Module, images: Tensor, example: Example) -> None:
    model = apply_method(tiny_vit.double(), example.config)
    with torch.no_grad():
        for name in trainable(model):
            model.get_parameter(name).normal_(std=0.1)
    expected = model(images.double())
    torch.testing.assert_close(merge_method(model)(images.double()), expected, atol=1e-6, rtol=0)


@every_kind
def test_copies_and_state_dicts_are_independent(model: nn.Module, images: Tensor, example: Example) -> None:
    before, logits = tensors_of(model), model(images)
    copy = deepcopy(model)
    train(copy, images)
    assert changed(before, model) == set()
    assert torch.equal(model(images), logits)
    late = {name for name in trainable(model) if matches(example.unreached, name)}
    assert changed(before, copy) | late == trainable(model)
    assert not torch.equal(copy(images), logits)
    load_adapter_state_dict(model, adapter_state_dict(copy))
    trained = tensors_of(model)
    assert changed(trained, copy) == set()
    train(copy, images)
    assert changed(trained, model) == set()


@every_kind
def test_the_same_seed_gives_the_same_weights(tiny_vit: nn.Module, example: Example) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(apply_method(deepcopy(tiny_vit), example.config))
    assert changed(tensors_of(models[0]), models[1]) == set()


def test_applying_twice_is_an_error(tiny_vit: nn.Module) -> None:
    model = apply_method(tiny_vit, EXAMPLES["gift"].config)
    before = tensors_of(model)
    with pytest.raises(ConfigError, match="method 'gift' is applied to this model already; merge it first"):
        apply_method(model, EXAMPLES["lora"].config)
    assert changed(before, model) == set()


ONLY_VIT = "needs a timm VisionTransformer"
OTHER_MODELS: list[tuple[str, str, dict[str, Any], str]] = [
    ("vpt_deep", "eva02_tiny_patch14_224", {}, f"'vpt' {ONLY_VIT}, .* not a Eva$"),
    ("vpt_deep", "beit_base_patch16_224", {}, f"'vpt' {ONLY_VIT}, .* not a Beit$"),
    ("vpt_deep", "vit_srelpos_small_patch16_224", {}, f"'vpt' {ONLY_VIT}, .* not a VisionTransformerRelPos$"),
    ("adaptformer", "beit_base_patch16_224", {}, f"'adaptformer' {ONLY_VIT}, not a Beit"),
    (
        "adaptformer",
        "test_vit",
        {"block_fn": ResPostBlock},
        "'adaptformer' needs blocks of timm's class Block, not ResPostBlock",
    ),
    *((label, "vit_small_patch16_dinov3", {}, f"{ONLY_VIT}, not a Eva$") for label in ("adapter_houlsby", "convpass", "toast")),
    *((label, "beit_base_patch16_224", {}, f"{ONLY_VIT}, not a Beit$") for label in ("adapter_houlsby", "convpass", "toast")),
    *(
        (label, "beit_base_patch16_224", {}, r"target 'attn\.qkv' cannot be adapted in Beit: .* attn\.proj, or another method$")
        for label in ("ssf", "repadapter", "fact_tk", "fact_tt")
    ),
    *(
        (label, "eva02_base_patch14_224", {}, r"'fact' needs MLPs of two layers, .* blocks\.0\.mlp, a gated SwiGLU$")
        for label in ("fact_tk", "fact_tt")
    ),
    ("repadapter", "eva02_base_patch14_224", {}, r"'attn\.qkv' matches no layer; name one of attn\.q_proj, .*, mlp\.fc2$"),
    ("convpass", "vit_base_patch16_224", {"patch_drop_rate": 0.5}, "'convpass' needs all image tokens, and this model drops"),
    ("lora_qv", "beit_base_patch16_224", {}, r"target 'attn\.q' cannot be adapted in Beit: .* directly"),
]


@pytest.mark.parametrize(("label", "name", "options", "message"), OTHER_MODELS)
def test_models_that_do_not_fit_are_refused(example: Example, name: str, options: dict[str, Any], message: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    keys = list(model.state_dict())
    with pytest.raises(ConfigError, match=message):
        apply_method(model, example.config)
    assert list(model.state_dict()) == keys


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
