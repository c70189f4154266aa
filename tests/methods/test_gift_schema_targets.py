"""GIFT's schemas on slices and shared targets, what is refused, and what the rest of the project makes of them."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from gift_vit.engine.config import OptimConfig
from gift_vit.engine.state import build_optimizer
from gift_vit.explain.layers import MapChoice
from gift_vit.explain.maps import explain
from gift_vit.methods import GiftConfig, apply_method, merge_method
from tests.methods.checks import randomise, refused
from tests.methods.gift_by_hand import ByHand


def trained(model: nn.Module, **options: Any) -> nn.Module:
    apply_method(model, GiftConfig(rank=4, **options))
    randomise(model.get_submodule("gift"), std=0.2)
    return model


@pytest.mark.parametrize("share", [False, True], ids=["own", "share"])
def test_slices_and_whole_layers_are_tokens_of_their_own_rows(tiny_vit: nn.Module, share: bool) -> None:
    options: dict[str, Any] = {"schema": "paca_transformer", "num_clusters": 3}
    slices = {"attn.v": slice(128, 192), "attn.q": slice(0, 64), "mlp.fc1": slice(192)}
    model = trained(tiny_vit, target_modules=list(slices), share=share, **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = {name: tensor.double().numpy().copy() for name, tensor in before.items() if name.startswith("blocks")}
    for target, rows in slices.items():
        pair = model.get_submodule("gift.shared" if share else f"gift.{target}")
        hand = ByHand(GiftConfig(rank=4, **options), pair.state_dict())
        for block in range(6):
            weight = expected[f"blocks.{block}.{'mlp.fc1' if target == 'mlp.fc1' else 'attn.qkv'}.weight"]
            weight[rows] = weight[rows] + hand.delta_weight(weight[rows])
    changed = set()
    for name, tensor in merge_method(model).state_dict().items():
        if name in expected:
            np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-4, atol=1e-5)
        if not torch.equal(tensor, before[name]):
            changed.add(name)
        if name.endswith("qkv.weight"):
            assert torch.equal(tensor[64:128], before[name][64:128]), "keys are not a target"
    assert changed == {f"blocks.{block}.{layer}.weight" for block in range(6) for layer in ("attn.qkv", "mlp.fc1")}


SHARE_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    (
        "mlp.fc1",
        {"schema": "mlp_mixer"},
        "method.schema=mlp_mixer has parameters for each output row, so the layers of one "
        "(phi, psi) must have the same number, got blocks.0.attn.proj 64, blocks.0.mlp.fc1 192; drop some or set share=false",
    ),
    ("attn.qkv", {"schema": "mlp", "pos_embed": "learned"}, "method.pos_embed=learned has parameters for each output row"),
]


@pytest.mark.parametrize(("other", "options", "message"), SHARE_ERRORS)
def test_sharing_what_does_not_fit_is_an_error(tiny_vit: nn.Module, other: str, options: dict[str, Any], message: str) -> None:
    options["target_modules"] = ["attn.proj", other]
    with refused(message):
        apply_method(tiny_vit, GiftConfig(share=True, **options))
    apply_method(timm.create_model("test_vit"), GiftConfig(**options))


def test_weight_decay_spares_biases_and_the_cluster_assignment(tiny_vit: nn.Module) -> None:
    model = trained(tiny_vit, schema="paca_transformer", pos_embed="learned", phi_bias=True)
    groups = build_optimizer(model, OptimConfig(1e-3, 0.1, [0.9, 0.999], 1e-8, 0, 0.0, 0.0, "step")).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_decay = {group["weight_decay"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    spared = {name for name in trainable if name.endswith("bias")} | {"gift.attn.proj.schema.blocks.0.attn.assign.weight"}
    assert by_decay == {0.1: trainable - spared, 0.0: spared}
    decayed = {"gift.attn.proj.phi", "gift.attn.proj.psi", "head.weight", "gift.attn.proj.schema.blocks.0.attn.q.weight"}
    assert decayed <= by_decay[0.1]


@pytest.mark.parametrize("share", [False, True], ids=["own", "share"])
@pytest.mark.parametrize("target", ["attn.k", "attn.proj"])
def test_cluster_maps_explain_every_schema_by_its_clusters(tiny_vit: nn.Module, target: str, share: bool) -> None:
    model = trained(tiny_vit, target_modules=["attn.k", "attn.proj"], share=share, schema="paca_transformer", phi_bias=True)
    layer = "attn.qkv" if target == "attn.k" else target
    outputs: list[Tensor] = []
    handle = model.get_submodule(f"blocks.3.{layer}").register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
    maps = explain(model, torch.randn(2, 3, 160, 160), MapChoice([target], [3])).post[:, 0]
    handle.remove()
    rows = slice(64, 128) if target == "attn.k" else slice(64)
    pair = model.get_submodule("gift.shared" if share else f"gift.{target}")
    weight = model.get_parameter(f"blocks.3.{layer}.weight")[rows]
    clusters = weight @ pair.get_parameter("phi") + pair.get_parameter("phi_bias")
    expected = outputs[0][:, 1:, rows] @ clusters
    torch.testing.assert_close(maps.flatten(2).mT, expected.detach(), atol=1e-4, rtol=1e-4)
