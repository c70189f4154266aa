"""Frozen products held in bf16: the bits of autocast, and float32 again wherever a model leaves training."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gift_vit.acceleration.frozen import hold_frozen_products
from gift_vit.common.errors import ConfigError
from gift_vit.methods import FullConfig, apply_method, merge_method
from tests.acceleration.settings import accelerated
from tests.acceleration.test_accelerate import EXAMPLES, step, tiny, trained
from tests.methods.method_examples import one_of_a_kind

# all layers are trained, or the method's own
NOTHING_TO_HOLD = {"full", "gift_all_targets", "gift_schema_targets", "fact_tt", "fact_tk", "fact_tk_paper"}
IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def model_of(label: str) -> nn.Module:
    model = trained(apply_method(tiny(), EXAMPLES[label].config))
    accelerated(model, precision="bf16")
    return model


@torch.autocast("cpu", torch.bfloat16)
def cast_step(model: nn.Module) -> dict[str, Tensor]:
    """Loss, gradients and logits of one step in autocast."""
    return step(model, IMAGES)


@one_of_a_kind(*sorted(NOTHING_TO_HOLD))
def test_every_method_computes_the_same_bits(label: str) -> None:
    plain = model_of(label)
    held = deepcopy(plain)
    names = list(held.state_dict())
    assert hold_frozen_products(held) == (label not in NOTHING_TO_HOLD)
    found, expected = cast_step(held), cast_step(plain)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert list(held.state_dict()) == names


def test_error_is_no_larger_than_that_of_autocast() -> None:
    """Against float64, by the norm, over logits and gradients; the bound is a tenth more, and what is found is the same."""
    plain = model_of("gift")
    held, exact = deepcopy(plain), deepcopy(plain).double()
    hold_frozen_products(held)
    truth, cast, found = step(exact, IMAGES.double()), cast_step(plain), cast_step(held)
    for name in truth.keys() - {"loss"}:
        error, bound = ((own[name] - truth[name]).norm() / truth[name].norm() for own in (found, cast))
        assert 0 < error <= 1.1 * bound < 0.1


def test_what_is_rounded_and_what_is_not() -> None:
    model = model_of("gift")
    hold_frozen_products(model)
    rounded = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    layers = ("attn.qkv", "mlp.fc1", "mlp.fc2")
    assert rounded == {f"blocks.{i}.{layer}.{own}" for i in range(2) for layer in layers for own in ("weight", "bias")}
    assert not hold_frozen_products(apply_method(tiny(), FullConfig())), "all of it is trained"


def test_merging_uses_the_weights_of_the_file() -> None:
    plain = model_of("gift")
    held = deepcopy(plain)
    hold_frozen_products(held)
    held = deepcopy(held)  # as a trial would
    merged, expected = merge_method(held), merge_method(plain)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(merged.state_dict()[name], tensor), name
    assert not hasattr(merged, "held_in_bf16")


def test_a_step_keeps_no_copies_of_what_is_held() -> None:
    """The copies that autocast makes of frozen weights are kept for the backward pass; of the first layer, no gradient asks."""

    def kept(model: nn.Module) -> int:
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages: dict[int, Any] = {}

        def note(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
            model.train()(IMAGES)
        return sum(storage.nbytes() for place, storage in storages.items() if place not in own)

    plain = model_of("gift")
    held = deepcopy(plain)
    hold_frozen_products(held)
    weights = sum(p.nbytes for n, p in held.named_parameters() if p.dtype == torch.bfloat16 and n.endswith("weight"))
    assert kept(plain) - kept(held) >= 0.8 * weights > 0


def test_refusing_to_merge_leaves_it_held() -> None:
    model = model_of("vpt_deep")
    hold_frozen_products(model)
    with pytest.raises(ConfigError):
        merge_method(model)
    assert hasattr(model, "held_in_bf16")
