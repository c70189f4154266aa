"""GIFT's schemas on slices and shared targets, what is refused, and what the rest of the project makes of them."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gift_vit.engine import OptimConfig, build_optimizer
from gift_vit.errors import ConfigError
from gift_vit.explain.layers import MapChoice
from gift_vit.explain.maps import explain
from gift_vit.methods import (
    GiftConfig,
    adapter_state_dict,
    apply_method,
    count_parameters,
    load_adapter_state_dict,
    merge_method,
)
from gift_vit.methods.gift_config import SCHEMAS
from tests.methods.gift_by_hand import ByHand, randomise


def trained(model: nn.Module, **options: Any) -> nn.Module:
    apply_method(model, GiftConfig(rank=4, **options))
    randomise(model.get_submodule("gift"), std=0.2)
    return model


def expected_weights(
    model: nn.Module, targets: dict[str, tuple[str, str, slice]], **options: Any
) -> dict[str, NDArray[np.float64]]:
    """The merged weights after the formulas, for ``{target: (layer, pair, rows)}``."""
    weights = {name: tensor.double().numpy().copy() for name, tensor in model.state_dict().items() if name.startswith("blocks")}
    for layer, pair, rows in targets.values():
        hand = ByHand(GiftConfig(rank=4, **options), model.get_submodule(f"gift.{pair}").state_dict())
        for block in range(6):
            weight = weights[f"blocks.{block}.{layer}.weight"]
            weight[rows] = weight[rows] + hand.delta_weight(weight[rows])
    return weights


@pytest.mark.parametrize("share", [False, True], ids=["own", "share"])
def test_slices_and_whole_layers_are_tokens_of_their_own_rows(tiny_vit: nn.Module, share: bool) -> None:
    options: dict[str, Any] = {"schema": "paca_transformer", "num_clusters": 3}
    targets = {
        "attn.v": ("attn.qkv", slice(128, 192)),
        "attn.q": ("attn.qkv", slice(0, 64)),
        "mlp.fc1": ("mlp.fc1", slice(192)),
    }
    model = trained(tiny_vit, target_modules=list(targets), share=share, **options)
    pairs = {target: (layer, "shared" if share else target, rows) for target, (layer, rows) in targets.items()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = expected_weights(model, pairs, **options)
    changed = set()
    for name, tensor in merge_method(model).state_dict().items():
        if name in expected:
            np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-4, atol=1e-5)
        if not torch.equal(tensor, before[name]):
            changed.add(name)
        if name.endswith("qkv.weight"):
            assert torch.equal(tensor[64:128], before[name][64:128]), "keys are not a target"
    assert changed == {f"blocks.{block}.{layer}.weight" for block in range(6) for layer in ("attn.qkv", "mlp.fc1")}


@pytest.mark.parametrize("options", [{"schema": "mlp_mixer", "num_mixed_tokens": 5}, {"schema": "mlp", "pos_embed": "learned"}])
def test_what_depends_on_the_rows_has_those_of_one_slice(tiny_vit: nn.Module, options: dict[str, Any]) -> None:
    model = trained(tiny_vit, target_modules=["attn.k"], **options)
    schema = model.get_submodule("gift.attn.k.schema").state_dict()
    name = "pos_embed" if "pos_embed" in schema else "blocks.0.token_mlp.fc2.bias"
    assert len(schema[name]) == 64
    expected = expected_weights(model, {"attn.k": ("attn.qkv", "attn.k", slice(64, 128))}, **options)
    after = merge_method(model).state_dict()
    for block in range(6):
        weight = f"blocks.{block}.attn.qkv.weight"
        np.testing.assert_allclose(after[weight].numpy(), expected[weight], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_shared_schema_does_not_grow_with_the_targets(schema: str) -> None:
    sizes = []
    for targets in (["attn.proj"], ["attn.q", "attn.k", "attn.v", "attn.proj"]):
        vit = apply_method(
            timm.create_model("test_vit", depth=2, num_classes=10),
            GiftConfig(rank=4, target_modules=targets, share=True, schema=schema),
        )
        sizes.append(count_parameters(vit).adapter)
        assert sum(p.numel() for p in vit.parameters() if p.requires_grad) == sizes[-1] + 650, "nothing unused is trained"
    assert sizes[0] == sizes[1]


SHARE_ERRORS: list[tuple[dict[str, Any], str]] = [
    (
        {"schema": "transformer", "target_modules": ["attn.proj", "mlp.fc2"]},
        "targets of one input width, got attn.proj 64, mlp.fc2",
    ),
    (
        {"schema": "mlp_mixer", "target_modules": ["attn.proj", "mlp.fc1"]},
        "method.schema=mlp_mixer has parameters for each output row, so the layers of one (phi, psi) must have the same "
        "number, got blocks.0.attn.proj 64, blocks.0.mlp.fc1 192; drop some or set share=false",
    ),
    (
        {"schema": "mlp", "pos_embed": "learned", "target_modules": ["attn.qkv", "attn.proj"]},
        "method.pos_embed=learned has parameters for each output row",
    ),
]


@pytest.mark.parametrize(("options", "message"), SHARE_ERRORS)
def test_sharing_what_does_not_fit_is_an_error(tiny_vit: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        apply_method(tiny_vit, GiftConfig(share=True, **options))
    assert message in str(error.value)
    apply_method(timm.create_model("test_vit"), GiftConfig(**options))


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"schema": "identity"}, "unknown method.schema 'identity' (known: linear, gelu, sigmoid, transformer, paca_transformer, "),
    ({"schema": "mlp", "norm": "layer"}, "unknown method.norm 'layer' (known: l2, none)"),
    ({"schema": "mlp", "pos_embed": "sincos"}, "unknown method.pos_embed 'sincos' (known: none, learned)"),
    (
        {"schema": "paca_attn", "cluster_activation": "gelu"},
        "unknown method.cluster_activation 'gelu' (known: sigmoid, hsigmoid, softmax)",
    ),
    ({"schema": "transformer", "num_heads": 3}, "method.num_heads=3 does not divide method.rank=16"),
    ({"schema": "transformer", "num_heads": 0}, "method.num_heads=0: expected a whole number of 1 or more"),
    ({"schema": "mlp", "num_blocks": 0}, "method.num_blocks=0: expected"),
    ({"schema": "paca_attn", "num_clusters": 0}, "method.num_clusters=0: expected"),
    ({"schema": "mlp_mixer", "num_mixed_tokens": 0}, "method.num_mixed_tokens=0: expected"),
    ({"schema": "mlp", "mlp_ratio": 0.05}, "method.mlp_ratio=0.05 leaves no hidden width at rank 16; raise it"),
    ({"schema": "mlp_mixer", "channel_ratio": -1.0}, "method.channel_ratio=-1.0 leaves no hidden width"),
    ({"num_blocks": 2}, "method.num_blocks=2 has no effect with method.schema=linear; it belongs to transformer, paca_"),
    (
        {"schema": "transformer", "num_clusters": 32},
        "method.num_clusters=32 has no effect with method.schema=transformer; it belongs to paca_transformer, paca_attn",
    ),
    ({"schema": "paca_attn", "mlp_ratio": 4.0}, "method.mlp_ratio=4.0 has no effect with method.schema=paca_attn"),
    ({"schema": "mlp_mixer", "mlp_ratio": 4.0}, "method.mlp_ratio=4.0 has no effect with method.schema=mlp_mixer"),
    ({"schema": "gelu", "norm": "none"}, "method.norm=none has no effect with method.schema=gelu"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS)
def test_options_that_make_no_sense_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        GiftConfig(**options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_another_schema_s_adapter_is_refused(tiny_vit: nn.Module) -> None:
    model = trained(tiny_vit, schema="transformer")
    before = {name: tensor.clone() for name, tensor in adapter_state_dict(model).items()}
    other = apply_method(timm.create_model("test_vit", num_classes=10), GiftConfig(rank=4, schema="mlp"))
    with pytest.raises(ConfigError, match=r"4 missing \(gift.attn.proj.schema.blocks.0.attn.qkv.weight, .*\), 0 surplus"):
        load_adapter_state_dict(model, adapter_state_dict(other))
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_state_dict(model).items())


@pytest.mark.parametrize("copied", [False, True], ids=["model", "deepcopy"])
def test_weight_decay_spares_biases_and_the_cluster_assignment(tiny_vit: nn.Module, copied: bool) -> None:
    model = trained(tiny_vit, schema="paca_transformer", pos_embed="learned", phi_bias=True)
    model = deepcopy(model) if copied else model
    settings: dict[str, Any] = {
        "lr": 1e-3,
        "eps": 1e-8,
        "warmup_epochs": 0,
        "warmup_lr": 0.0,
        "min_lr": 0.0,
        "schedule": "step",
    }
    groups = build_optimizer(model, OptimConfig(weight_decay=0.1, betas=[0.9, 0.999], **settings)).param_groups
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
