"""Cluster maps against computations of their own."""

import re
from itertools import product
from typing import Any

import numpy as np
import pytest
import timm
import torch
from scipy.ndimage import zoom
from timm.models.eva import Eva
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from gift_vit.acceleration.accelerate import accelerate
from gift_vit.acceleration.config import ComputeConfig
from gift_vit.common.errors import ConfigError
from gift_vit.engine.config import TrainerConfig
from gift_vit.explain.config import MapChoice
from gift_vit.explain.layers import LayerName
from gift_vit.explain.maps import explain, join, normalise_maps, threshold_maps
from gift_vit.methods import GiftConfig, LinearConfig, apply_method
from tests.explain.conftest import noise, some_images, watched

ALL_TARGETS = ["attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2"]


def with_gift(model: nn.Module, *targets: str, **options: Any) -> nn.Module:
    """GIFT in float64 with every parameter of adapter and backbone away from its initial value, biases away from zero."""
    apply_method(model, GiftConfig(rank=5, target_modules=list(targets) or ["attn.proj"], **options)).double()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(noise(*parameter.shape, seed=number), alpha=0.15)
    return model


BY_HAND: list[tuple[dict[str, Any], list[str], dict[str, Any], list[int]]] = [
    ({}, ALL_TARGETS, {}, [0, 2]),
    ({}, ["attn.v", "attn.proj"], {"share": True, "phi_bias": True, "psi_bias": True}, [1]),
    ({"reg_tokens": 4}, ["attn.proj"], {}, [5]),
    ({"class_token": False, "global_pool": "avg"}, ["attn.proj"], {}, [5]),
    ({}, ["attn.k", "attn.proj"], {"schema": "paca_transformer", "phi_bias": True}, [3]),
    ({}, ["attn.k", "attn.proj"], {"schema": "paca_transformer", "phi_bias": True, "share": True}, [3]),
]


@pytest.mark.parametrize(("backbone", "targets", "options", "blocks"), BY_HAND)
def test_responses_by_hand(backbone: dict[str, Any], targets: list[str], options: dict[str, Any], blocks: list[int]) -> None:
    """From the state dict, and from what goes into each layer and comes out, of which the last 100 tokens are patches."""
    model, images = with_gift(timm.create_model("test_vit", **backbone).eval(), *targets, **options), some_images()
    state, maps = model.state_dict(), explain(model, images, MapChoice(blocks=blocks))
    assert maps.layers == tuple(LayerName(*names) for names in product(targets, blocks))
    for index, (target, block) in enumerate(maps.layers):
        place = ALL_TARGETS.index(target)
        rows, name = (slice(64 * place, 64 * place + 64), "attn.qkv") if place < 3 else (slice(None), target)
        weight, bias = (state[f"blocks.{block}.{name}.{key}"][rows] for key in ("weight", "bias"))
        pair = f"gift.{'shared' if options.get('share') else target}"
        clusters = weight @ state[f"{pair}.phi"] + state.get(f"{pair}.phi_bias", 0)
        patches, tokens = watched(model, f"blocks.{block}.{name}", images)
        for response, own in (("pre", patches @ weight.T + bias), ("post", tokens[..., rows])):
            expected = torch.einsum("bno,or->brn", own[:, -100:], clusters).unflatten(-1, (10, 10))
            assert_close(maps.raw(response)[:, index], expected, atol=1e-10, rtol=1e-10)


def test_cait_has_no_class_token_in_its_blocks() -> None:
    model = with_gift(timm.create_model("cait_xxs24_224", img_size=32, depth=2, num_classes=3).eval())
    images = some_images(size=32)
    layer, seen = model.get_submodule("blocks.1.attn.proj"), []
    handle = layer.register_forward_hook(lambda *hooked: seen.append(hooked[2]))
    maps = explain(model, images, MapChoice(blocks=[1]))
    handle.remove()
    assert seen[0].shape[1] == 4
    clusters = model.state_dict()["blocks.1.attn.proj.weight"] @ model.state_dict()["gift.attn.proj.phi"]
    assert_close(maps.post[:, 0].flatten(2), (seen[0] @ clusters).transpose(1, 2))


@pytest.mark.parametrize(("window", "shape"), [(2, "8, 4, 32"), (7, "2, 49, 32")], ids=["several", "one, padded"])
def test_attention_in_windows_is_refused(window: int, shape: str) -> None:
    options: dict[str, Any] = {
        "img_size": 64,
        "depth": 1,
        "embed_dim": 32,
        "num_heads": 2,
        "window_size": window,
        "num_classes": 3,
    }
    model = timm.create_model("samvit_base_patch16", global_attn_indexes=(), **options).eval()
    apply_method(model, GiftConfig(rank=2))
    with pytest.raises(ConfigError, match=rf"attn.proj.* gives \({shape}\) for 16 patches; maps need tokens"):
        explain(model, some_images(size=64).float())


def test_eva02_has_a_layer_for_each_of_q_k_v() -> None:
    eva = Eva(
        img_size=160, patch_size=16, embed_dim=64, depth=2, num_heads=2, qkv_fused=False, num_classes=3, use_rot_pos_emb=True
    )
    model, images = with_gift(eva.eval(), "attn.q", "attn.v"), some_images()
    state, maps = model.state_dict(), explain(model, images, MapChoice(blocks=[1]))
    for index, (target, layer) in enumerate((("attn.q", "q_proj"), ("attn.v", "v_proj"))):
        tokens = watched(model, f"blocks.1.attn.{layer}", images)[1]
        clusters = state[f"blocks.1.attn.{layer}.weight"] @ state[f"gift.{target}.phi"]
        expected = torch.einsum("bno,or->brn", tokens[:, -100:], clusters).unflatten(-1, (10, 10))
        assert_close(maps.raw("post")[:, index], expected, atol=1e-10, rtol=1e-10)


def test_a_target_may_be_a_full_name(tiny_vit: nn.Module) -> None:
    maps = explain(with_gift(tiny_vit, "blocks.1.attn.proj").eval(), some_images(), MapChoice())
    assert maps.layers == (LayerName("blocks.1.attn.proj", 1),)


def test_normalisation_by_hand() -> None:
    raw = np.random.default_rng(0).normal(size=(2, 3, 5, 5))
    large = np.asarray(zoom(raw, (1, 1, 4, 4), order=1, mode="nearest", grid_mode=True))  # bilinear, with half-pixel centres
    low, high = large.min((2, 3), keepdims=True), large.max((2, 3), keepdims=True)
    expected = (large - low) / (high - low)
    expected[expected <= 0.5] = 0
    assert_close(threshold_maps(normalise_maps(torch.from_numpy(raw), 20)), torch.from_numpy(expected), atol=1e-12, rtol=1e-12)


def test_exactly_one_half_is_not_shown_and_a_faint_contrast_on_a_high_level_is() -> None:
    maps = normalise_maps(torch.tensor([[[[0.0, 1.0], [1.25, 2.0]], [[100.0, 100.0], [100.0, 100.1]]]]), 2)
    assert maps.tolist() == [[[[0, 0.5], [0.625, 1]], [[0, 0], [0, 1]]]]
    assert threshold_maps(maps).tolist() == [[[[0, 0], [0.625, 1]], [[0, 0], [0, 1]]]]


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3e5, 3e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_maps_are_zero(value: float, dtype: torch.dtype) -> None:
    maps = normalise_maps(torch.full((1, 2, 14, 14), value, dtype=dtype), 224)
    assert torch.equal(maps, torch.zeros(1, 2, 224, 224, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_tokens_give_zero_maps(tiny_vit: nn.Module, dtype: torch.dtype) -> None:
    model = with_gift(tiny_vit).to(dtype)
    with torch.no_grad():
        model.get_parameter("pos_embed").zero_()
    maps = explain(model, torch.full((1, 3, 160, 160), 0.37, dtype=dtype), MapChoice(blocks=[2])).thresholded()
    assert torch.equal(maps, torch.zeros_like(maps))


def test_the_model_is_left_as_it_was_also_after_an_error(tiny_vit: nn.Module) -> None:
    model = with_gift(tiny_vit).train()
    model.get_submodule("blocks.3").eval()
    flags = [module.training for module in model.modules()]
    seen: list[bool] = []
    handle = model.get_submodule("blocks.0").register_forward_hook(lambda module, *_: seen.append(module.training))
    explain(model, some_images(1))
    handle.remove()
    with pytest.raises(RuntimeError, match="type"):
        explain(model, some_images(1).float())
    assert seen == [False]
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_gift_is_an_error(tiny_vit: nn.Module) -> None:
    with pytest.raises(ConfigError, match="cluster maps explain GIFT; this model was given a LinearConfig"):
        explain(apply_method(tiny_vit, LinearConfig()), some_images(1))


@pytest.mark.parametrize("shape", [(3, 160, 160), (1, 1, 160, 160), (1, 3, 168, 160), (1, 3, 160, 90), (1, 3, 160, 144)])
def test_images_that_the_model_does_not_take_are_an_error(shape: tuple[int, ...]) -> None:
    is_fixed = shape == (1, 3, 160, 144)  # which is of whole patches
    model = apply_method(timm.create_model("test_vit", dynamic_img_size=not is_fixed), GiftConfig(rank=4))
    assert explain(model, torch.zeros(1, 3, 160, 160)).post.shape == (1, 6, 4, 10, 10)
    expected = "160, 160" if is_fixed else "a multiple of 16, a multiple of 16"
    with pytest.raises(ConfigError, match=re.escape(f"images have shape {shape}, the model expects (B, 3, {expected})")):
        explain(model, torch.zeros(shape))


def test_one_forward_pass_gives_the_maps_of_all_layers_and_clusters(tiny_vit: nn.Module) -> None:
    model = with_gift(tiny_vit, "attn.q", "mlp.fc1")
    images, passes = some_images(), []
    handle = model.get_submodule("blocks.2").register_forward_hook(lambda *_: passes.append(1))
    maps = explain(model, images)
    handle.remove()
    assert passes == [1]
    assert maps.layers == tuple(LayerName(target, block) for target in ("attn.q", "mlp.fc1") for block in range(6))
    assert maps.post.shape == maps.pre.shape == (2, 12, 5, 10, 10)
    assert maps.clusters == (0, 1, 2, 3, 4)
    assert not maps.post.requires_grad
    assert torch.equal(maps.logits, model(images))
    some = explain(model, images, MapChoice(["mlp.fc1"], [-2, 0], [3, 1]))
    assert some.layers == (LayerName("mlp.fc1", 4), LayerName("mlp.fc1", 0))
    for response in ("post", "pre"):
        assert_close(some.raw(response), maps.raw(response)[:, [10, 6]][:, :, [3, 1]], atol=1e-12, rtol=1e-12)
    halves = join([explain(model, image[None]) for image in images], "post", "pre", "logits")
    assert_close(halves.post, maps.post, atol=1e-12, rtol=1e-12)
    assert len(halves) == 2
    with pytest.raises(ConfigError, match=r"unknown response 'both' \(known: post, pre\)"):
        maps.raw("both")
    assert_close(maps.images([1]).layer(7).post, maps.post[1:, 7:8])


def test_explaining_costs_little_more_than_the_forward_pass() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", depth=2, num_classes=10)
        images = torch.zeros(32, 3, 224, 224)
    apply_method(model, GiftConfig(rank=16, target_modules=ALL_TARGETS))
    operations = []
    for run in (model, lambda images: explain(model, images)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(images)
        operations.append(counter.get_total_flops())
    assert 1 < operations[1] / operations[0] < 1.05


def test_a_grid_that_is_not_square() -> None:
    options: dict[str, Any] = {"img_size": (32, 80), "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    wide, dynamic = (
        apply_method(timm.create_model("vit_tiny_patch16_224", dynamic_img_size=is_dynamic, **options), GiftConfig(rank=4))
        for is_dynamic in (False, True)
    )
    dynamic.load_state_dict(wide.state_dict())
    images = noise(2, 3, 32, 80).float()
    maps = explain(wide, images)
    assert maps.post.shape == (2, 2, 4, 2, 5)
    assert maps.normalised().shape == (2, 2, 4, 32, 80)
    assert_close(explain(dynamic, images).post, maps.post)
    assert explain(dynamic, noise(1, 3, 48, 32).float()).post.shape == (1, 2, 4, 3, 2)


def test_the_canonical_basis_is_the_same_for_every_equal_model(tiny_vit: nn.Module) -> None:
    model, images, choice, mix = with_gift(tiny_vit), some_images(1), MapChoice(basis="canonical"), noise(5, 5, seed=3)
    canonical, trained = explain(model, images, choice), explain(model, images)
    with torch.no_grad():
        phi, psi = (model.get_parameter(f"gift.attn.proj.{name}") for name in ("phi", "psi"))
        left, *_ = np.linalg.svd((phi @ psi).numpy(), full_matrices=False)
        phi.copy_(phi @ mix)
        psi.copy_(torch.linalg.solve(mix, psi))
    again = explain(model, images, choice)
    assert_close(again.logits, canonical.logits, atol=1e-9, rtol=1e-9)
    assert_close(again.post, canonical.post, atol=1e-8, rtol=1e-8)
    assert not torch.allclose(explain(model, images).post, trained.post, rtol=0.1)
    left = left[:, :5] * np.sign(left[np.abs(left).argmax(0), range(64)])[:5]
    weight = model.state_dict()["blocks.5.attn.proj.weight"].numpy()
    _, tokens = watched(model, "blocks.5.attn.proj", images)
    by_hand = np.einsum("or,no->rn", weight @ left, tokens[0, 1:].numpy()).reshape(5, 10, 10)
    assert_close(canonical.post[0, -1], torch.from_numpy(by_hand), atol=1e-8, rtol=1e-8)


def test_a_random_basis_is_that_of_its_seed(tiny_vit: nn.Module) -> None:
    model, images = with_gift(tiny_vit), some_images(1)
    first, second, third = (explain(model, images, MapChoice(basis="random", seed=seed)).post for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert first.shape == (1, 6, 5, 10, 10)
    assert not torch.allclose(first, third, rtol=0.1)
    assert not torch.allclose(first, explain(model, images).post, rtol=0.1)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "hsigmoid"])
def test_assignment_maps_by_hand(tiny_vit: nn.Module, activation: str) -> None:
    options: dict[str, Any] = {
        "schema": "paca_transformer",
        "num_clusters": 7,
        "num_blocks": 2,
        "cluster_activation": activation,
    }
    model, images = with_gift(tiny_vit, "attn.v", "attn.proj", **options), some_images(1)
    maps = explain(model, images, MapChoice(["attn.v"], [3], basis="assignment", schema_block=1))
    assert maps.post.shape == (1, 1, 7, 10, 10)
    weight = model.get_parameter("blocks.3.attn.qkv.weight")[128:]
    pair = model.get_submodule("gift.attn.v")
    first, second = pair.get_submodule("schema.blocks").children()
    tokens = first((weight @ pair.get_parameter("phi")).unsqueeze(0))[0]
    tokens = tokens / tokens.norm(dim=-1, keepdim=True)
    scores = tokens @ second.get_parameter("attn.assign.weight").T + second.get_parameter("attn.assign.bias")
    assigned = {
        "sigmoid": lambda: 1 / (1 + (-scores).exp()) / 64,
        "hsigmoid": lambda: (scores / 6 + 0.5).clamp(0, 1) / 64,
        "softmax": lambda: scores.exp() / scores.exp().sum(0),
    }[activation]()
    x, after = watched(model, "blocks.3.attn.qkv", images)
    before = x @ weight.T + model.get_parameter("blocks.3.attn.qkv.bias")[128:]
    for got, tokens in ((maps.post, after[..., 128:]), (maps.pre, before)):
        expected = (tokens[0, 1:] @ assigned).T.unflatten(-1, (10, 10)).detach()
        assert_close(got[0, 0], expected, atol=1e-9, rtol=1e-9)


FEW = {"target_modules": ["attn.v", "mlp.fc1"], "blocks": [1, 3]}
ERRORS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (FEW, {"targets": ["attn.qkv"]}, r"target 'attn.qkv' is not adapted in this model \(adapted: attn.v, mlp.fc1\)"),
    (FEW, {"blocks": [5]}, "block=5: target 'attn.v' is not adapted there; adapted of the 6 blocks: 1, 3"),
    (FEW, {"blocks": [-1]}, "block=-1: .* adapted of the 6 blocks: 1, 3"),
    (FEW, {"blocks": [-9]}, "block=-9: "),
    ({}, {"basis": "svd"}, r"unknown basis 'svd' \(known: trained, canonical, assignment, random\)"),
    ({}, {"clusters": [1, 5]}, r"clusters=\[1, 5\]: give indices from 0 to 4"),
    ({}, {"clusters": []}, r"clusters=\[\]: give distinct values, at least one"),
    ({}, {"basis": "assignment"}, "basis=assignment needs schema=paca_transformer or paca_attn"),
    ({"schema": "transformer"}, {"basis": "assignment"}, "basis=assignment needs"),
    ({"schema": "paca_attn"}, {"basis": "assignment", "schema_block": 1}, "schema_block=1: the schema has blocks 0 to 0"),
    ({"schema": "gelu"}, {"basis": "canonical"}, "basis=canonical is of φ ψ and needs schema=linear"),
]


@pytest.mark.parametrize(("options", "choice", "message"), ERRORS)
def test_a_choice_that_does_not_fit_is_an_error(
    tiny_vit: nn.Module, options: dict[str, Any], choice: dict[str, Any], message: str
) -> None:
    apply_method(tiny_vit, GiftConfig(rank=5, **options))
    with pytest.raises(ConfigError, match=message):
        explain(tiny_vit, some_images(1).float(), MapChoice(**choice))


@pytest.mark.parametrize("target", ["attn.q", "attn.proj", "mlp.fc2"])
def test_an_accelerated_model_has_the_same_maps(tiny_vit: nn.Module, target: str) -> None:
    model, images = with_gift(tiny_vit, target).eval(), some_images()
    expected, logits = explain(model, images).post, model(images)
    accelerate(model, ComputeConfig("cpu", 0.0, "on", "fast", "exact"), TrainerConfig(1, 2, 1, 1, "fp32", False, "off", False))
    assert_close(explain(model, images).post, expected)
    assert_close(model(images), logits)
    assert model.get_submodule("blocks")(torch.zeros(2, 5, 64, dtype=torch.float64)).shape == (2, 1, 64), "it is on again"
