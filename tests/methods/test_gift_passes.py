"""Once per forward pass of the model: when GIFT's schemas generate, what they keep, and what may come in between."""

import gc
import io
import weakref
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gift_vit.methods import GiftConfig, apply_method, merge_method
from gift_vit.methods.config import SCHEMAS
from gift_vit.methods.gift import GiftLinear
from tests.acceleration.test_accelerate import tiny
from tests.methods.checks import assert_close, randomise
from tests.tolerance import TOLERANCE

TARGETS = ["attn.proj", "attn.v", "mlp.fc1"]


def with_schema(schema: str = "paca_transformer", **options: Any) -> VisionTransformer:
    """A small model in eval mode whose adapter has values away from its start."""
    vit = apply_method(tiny(drop_path_rate=0.0).eval(), GiftConfig(rank=4, target_modules=TARGETS, schema=schema, **options))
    randomise(vit.get_submodule("gift"), std=0.2)
    return vit


def some_images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of all trainable parameters, which are then cleared."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    torch.testing.assert_close(one, other, **TOLERANCE[torch.float32])


def backward(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    F.cross_entropy(model(images), torch.arange(len(images))).backward()
    return gradients(model)


def held(model: nn.Module) -> list[Tensor]:
    """What the layers hold at this moment."""
    layers = [module for module in model.modules() if isinstance(module, GiftLinear)]
    assert layers
    return [tensor for layer in layers for tensor in layer.generated if tensor is not None]


@pytest.fixture
def model() -> VisionTransformer:
    return with_schema()


@pytest.fixture
def calls(model: VisionTransformer) -> list[Tensor]:
    """The outputs of every call of a schema."""
    outputs: list[Tensor] = []
    for target in TARGETS:
        model.get_submodule(f"gift.{target}.schema").register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
    return outputs


def plain_gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Gradients through ω + Δω of each layer, without any of the forward passes under test."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, GiftLinear)}
    weights = {f"{name}.weight": layer.weight + layer.delta_weight() for name, layer in layers.items()}
    vit = tiny(drop_path_rate=0.0).eval()
    vit.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if not name.startswith("gift.")})
    head = {name: parameter for name, parameter in model.named_parameters() if name.startswith("head.")}
    logits = torch.func.functional_call(vit, weights | head, (images,))
    F.cross_entropy(logits, torch.arange(len(images))).backward()
    return gradients(model)


@pytest.mark.parametrize("twice", [False, True], ids=["each_layer_once", "a_layer_used_twice"])
def test_a_pass_generates_once_for_all_layers_of_a_target(model: VisionTransformer, calls: list[Tensor], twice: bool) -> None:
    if twice:
        cast("nn.Sequential", model.blocks).append(model.blocks[0])
    model(some_images())
    assert sorted(tuple(output.shape) for output in calls) == [(2, 64, 4), (2, 64, 4), (2, 192, 4)]
    model(some_images())
    assert len(calls) == 6
    assert "forward" not in vars(with_schema("linear")), "nothing to generate"


def test_shared_targets_of_one_height_are_generated_together() -> None:
    model = with_schema(share=True)
    shapes: list[tuple[int, ...]] = []
    model.get_submodule("gift.shared.schema").register_forward_hook(lambda *arguments: shapes.append(tuple(arguments[2].shape)))
    model(some_images())
    assert sorted(shapes) == [(2, 192, 4), (4, 64, 4)]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_gradients_of_the_whole_model_are_those_of_the_weight_form(schema: str) -> None:
    model = with_schema(schema, num_clusters=5) if schema.startswith("paca") else with_schema(schema)
    expected = plain_gradients(model, some_images())
    assert_same(backward(model, some_images()), expected)
    assert expected["gift.attn.v.phi"].abs().max() > 1e-4


def test_nothing_is_held_after_a_pass(model: VisionTransformer, calls: list[Tensor]) -> None:
    logits = model(some_images())
    assert held(model) == []
    references = [weakref.ref(output) for output in calls]
    calls.clear()
    logits.sum().backward()
    del logits
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_nothing_is_held_after_an_error(model: VisionTransformer) -> None:
    def fail(*_: object) -> None:
        assert len(held(model)) == 6
        raise KeyboardInterrupt

    handle = model.get_submodule("blocks.1").register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        model(some_images())
    handle.remove()
    assert held(model) == []


def test_two_passes_before_two_backwards(model: VisionTransformer) -> None:
    first, second = some_images(5)[:2], some_images(5)[2:]
    expected = [backward(model, first), backward(model, second)]
    losses = [F.cross_entropy(model(images), torch.arange(len(images))) for images in (first, second)]
    for loss, one in zip(losses, expected, strict=True):
        loss.backward()
        assert_same(gradients(model), one)


def test_parts_of_the_model_called_directly(model: VisionTransformer, calls: list[Tensor]) -> None:
    expected = model(some_images())
    calls.clear()
    features = model.forward_features(some_images())
    assert len(calls) == 6, "each layer generates its own"
    assert_close(model.forward_head(features), expected)
    model.forward_intermediates(some_images(), indices=[0], stop_early=True)
    assert held(model) == []


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluating_first_does_not_disturb_training(model: VisionTransformer, calls: list[Tensor], mode: Any) -> None:
    expected = backward(model, some_images())
    calls.clear()
    model.set_grad_checkpointing()
    with mode():
        logits = model(some_images())
    assert len(calls) == 3, "nothing is recomputed here, so that generating once is right"
    assert not logits.requires_grad
    model.set_grad_checkpointing(False)
    assert_same(backward(model, some_images()), expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("whole", [True, False], ids=["forward", "forward_features"])
def test_gradient_checkpointing(
    model: VisionTransformer, monkeypatch: pytest.MonkeyPatch, reentrant: bool, whole: bool
) -> None:
    checkpointed: list[object] = []

    def run(function: Any, x: Tensor, **_: object) -> Any:
        checkpointed.append(function)
        return checkpoint(function, x, use_reentrant=reentrant)

    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", run)
    images = some_images().requires_grad_()
    expected = backward(model, images)
    model.set_grad_checkpointing()
    logits = model(images) if whole else model.forward_head(model.forward_features(images))
    F.cross_entropy(logits, torch.arange(3)).backward()
    assert len(checkpointed) == 2
    assert_same(gradients(model), expected)


def test_autocast_does_not_reach_the_generation(model: VisionTransformer, calls: list[Tensor]) -> None:
    projection = cast("GiftLinear", model.get_submodule("blocks.0.attn.proj"))
    model(some_images())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(some_images()).dtype == torch.bfloat16
        model.forward_features(some_images())
        delta = projection.delta_weight()
    full, rounded, alone = calls[:3], calls[3:6], calls[6:]
    assert {tensor.dtype for tensor in calls} == {torch.float32}
    assert all(torch.equal(one, other) for one, other in zip(full, rounded, strict=True))
    assert len(alone) == 7
    assert torch.equal(delta, projection.delta_weight())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("adapter_too", [True, False], ids=["all_cast", "fp32_adapter"])
@pytest.mark.parametrize("schema", ["linear", "paca_transformer"])
def test_half_precision_backbones(schema: str, dtype: torch.dtype, adapter_too: bool) -> None:
    model = with_schema(schema, phi_bias=True, psi_bias=True)
    expected = model(some_images()).detach()
    adapter = model.get_submodule("gift")
    model.to(dtype)
    if not adapter_too:
        adapter.float()
        randomise(adapter, std=0.2)
    logits = model(some_images().to(dtype))
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), expected, atol=5e-2, rtol=5e-2)
    logits.sum().backward()
    assert {p.grad.dtype for p in adapter.parameters() if p.grad is not None} == {dtype if adapter_too else torch.float32}
    layer: Any = next(module for module in model.modules() if isinstance(module, GiftLinear))
    once = deepcopy(layer).double().merged_weight().to(dtype)
    assert (layer.merged_weight().to(dtype) != once).double().mean() < (0.2 if adapter_too else 1e-3), "rounded once"
    merged = merge_method(model)(some_images().to(dtype))
    torch.testing.assert_close(merged.float(), logits.float(), atol=5e-2, rtol=5e-2)


def test_copies_and_pickles_generate_for_themselves(model: VisionTransformer) -> None:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    expected = model(some_images())
    for other in (deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(some_images()), expected)
        randomise(other.get_submodule("gift"), std=0.3, seed=8)
        assert not torch.allclose(other(some_images()), expected, atol=1e-2)
        assert torch.equal(model(some_images()), expected)
        with torch.no_grad():
            other.get_submodule("gift").load_state_dict(model.get_submodule("gift").state_dict())
        assert torch.equal(other(some_images()), expected)


def test_training_a_compiled_model(model: VisionTransformer) -> None:
    expected = backward(model, some_images())
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    F.cross_entropy(compiled(some_images()), torch.arange(3)).backward()
    assert_same(gradients(model), expected)
    assert held(model) == []


def test_distributed_data_parallel(model: VisionTransformer, tmp_path: Path) -> None:
    expected = backward(model, some_images())
    init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            F.cross_entropy(parallel(some_images()), torch.arange(3)).backward()
            assert_same(gradients(model), expected)
    finally:
        destroy_process_group()
