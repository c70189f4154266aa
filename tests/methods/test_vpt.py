"""VPT against tokens put in by hand, its initialisation, its counts, and what it refuses."""

import math
from copy import deepcopy
from dataclasses import astuple
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from gift_vit.engine.optim import OptimConfig, build_optimizer
from gift_vit.errors import ConfigError
from gift_vit.methods import apply_method, count_parameters, merge_method
from gift_vit.methods.vpt import VptConfig

IMAGES = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
POOLS: dict[str, dict[str, Any]] = {
    "token": {"global_pool": "token"},
    "avg": {"global_pool": "avg"},
    "max": {"global_pool": "max"},
    "avg_without_class_token": {"global_pool": "avg", "class_token": False},
    "map": {"global_pool": "map"},
    "registers": {"global_pool": "token", "reg_tokens": 4, "no_embed_class": True},
    "avg_registers": {"global_pool": "avg", "reg_tokens": 4},
    "layer_scale_and_norm_before": {"global_pool": "token", "pre_norm": True, "init_values": 0.3},
    "drop_path": {"global_pool": "token", "drop_path_rate": 0.5},
}
both = pytest.mark.parametrize("deep", [True, False], ids=["deep", "shallow"])
every_pool = pytest.mark.parametrize("arguments", POOLS.values(), ids=POOLS)


def vit(**arguments: Any) -> VisionTransformer:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=48, depth=3, num_classes=10, **arguments).double()
    assert isinstance(model, VisionTransformer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def logits_by_hand(model: VisionTransformer, prompts: Tensor, images: Tensor) -> Tensor:
    """A plain ViT's forward pass with the prompts (depth or 1, p, d) put in block by block."""
    size, width = images.shape[0], model.embed_dim
    patches = model.patch_embed.proj(images).reshape(size, width, -1).transpose(1, 2)
    first: list[Tensor] = [token for token in (model.cls_token, model.reg_token) if token is not None]
    prefix = torch.cat(first, dim=1).expand(size, -1, -1) if first else patches[:, :0]
    position: Any = model.pos_embed
    if position.shape[1] == patches.shape[1]:
        patches = patches + position
    else:
        prefix = prefix + position[:, : prefix.shape[1]]
        patches = patches + position[:, prefix.shape[1] :]
    prefix, patches = model.norm_pre(prefix), model.norm_pre(patches)
    before, after = prefix.shape[1], prefix.shape[1] + prompts.shape[1]
    own = prompts[0].repeat(size, 1, 1)
    for index, block in enumerate(model.blocks):
        if len(prompts) > 1:
            own = prompts[index].repeat(size, 1, 1)
        tokens = block(torch.cat((prefix, own, patches), dim=1))
        prefix, own, patches = tokens[:, :before], tokens[:, before:after], tokens[:, after:]
    prefix, patches = model.norm(prefix), model.norm(patches)
    if model.attn_pool is not None:
        return model.head(model.attn_pool(patches))
    pooled = {"token": lambda: prefix[:, 0], "avg": lambda: patches.mean(dim=1), "max": lambda: patches.amax(dim=1)}
    return model.head(model.fc_norm(pooled[model.global_pool]()))


@both
@every_pool
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_logits_and_gradients_are_those_of_tokens_put_in_by_hand(arguments: dict[str, Any], deep: bool, training: bool) -> None:
    plain = vit(**arguments).train(training)
    model = apply_method(deepcopy(plain), VptConfig(num_tokens=4, deep=deep))
    prompts = model.get_parameter("vpt.prompts")
    prompts.data = torch.randn(3 if deep else 1, 4, 64, dtype=torch.float64)
    copy = prompts.detach().clone().requires_grad_()
    torch.manual_seed(5)  # of drop path
    actual = model(IMAGES)
    torch.manual_seed(5)
    expected = logits_by_hand(plain, copy, IMAGES)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), copy)
    actual.square().sum().backward()
    torch.testing.assert_close(prompts.grad, expected_gradient, atol=1e-10, rtol=1e-10)
    assert not torch.allclose(actual, plain(IMAGES), atol=1e-3)


@both
@every_pool
def test_prompts_have_no_order(arguments: dict[str, Any], deep: bool) -> None:
    model = apply_method(vit(**arguments).eval(), VptConfig(num_tokens=6, deep=deep)).double()
    before = model(IMAGES)
    prompts = model.get_parameter("vpt.prompts")
    prompts.data = prompts.data.flip(1)
    torch.testing.assert_close(model(IMAGES), before, atol=1e-12, rtol=1e-12)


@both
@every_pool
def test_prompts_stand_between_the_prefix_and_the_image(arguments: dict[str, Any], deep: bool) -> None:
    """Attention does not see the order of tokens, so the logits do not tell."""
    plain = vit(**arguments).eval()
    model = apply_method(deepcopy(plain), VptConfig(num_tokens=4, deep=deep)).double()
    given: list[Tensor] = []
    for vision_transformer in (plain, model):
        vision_transformer.blocks[0].get_submodule("norm1").register_forward_pre_hook(lambda _, args: given.append(args[0]))
        vision_transformer(IMAGES)
    tokens, prompted = given
    start = tokens.shape[1] - 9  # 48 / 16 = 3 patches a side
    expected = [tokens[:, :start], model.get_parameter("vpt.prompts")[:1].expand(2, -1, -1), tokens[:, start:]]
    assert torch.equal(prompted, torch.cat(expected, dim=1))


@both
def test_gradient_checkpointing_changes_nothing(deep: bool) -> None:
    model = apply_method(vit(), VptConfig(deep=deep)).double().train()
    gradients = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        model(IMAGES).square().sum().backward()
        gradients.append(model.get_parameter("vpt.prompts").grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-12, rtol=1e-12)


@both
def test_the_class_the_blocks_and_the_keys_are_timm_s(deep: bool) -> None:
    plain = vit()
    model = apply_method(deepcopy(plain), VptConfig(deep=deep))
    assert type(model) is type(plain)
    assert [type(block) for block in model.blocks] == [type(block) for block in plain.blocks]
    assert set(model.state_dict()) == {*plain.state_dict(), "vpt.prompts"}


def test_other_image_sizes() -> None:
    model = apply_method(timm.create_model("test_vit", num_classes=10), VptConfig())
    assert model(torch.randn(2, 3, 96, 128)).shape == (2, 10)


def test_prompts_start_uniform_between_the_authors_bounds() -> None:
    model = timm.create_model("vit_base_patch16_224", img_size=32, depth=1, num_classes=2)
    prompts = apply_method(model, VptConfig(num_tokens=100)).get_parameter("vpt.prompts")
    assert prompts.abs().max().item() == pytest.approx(0.0625, rel=1e-3)
    assert prompts.abs().max() <= 0.0625
    assert prompts.mean().item() == pytest.approx(0, abs=1e-3)
    assert prompts.std().item() == pytest.approx(0.0625 / math.sqrt(3), rel=1e-2)
    narrow = apply_method(timm.create_model("test_vit", patch_size=8), VptConfig(num_tokens=500))
    assert narrow.get_parameter("vpt.prompts").max().item() == pytest.approx(math.sqrt(6 / (3 * 8 * 8 + 64)), rel=1e-3)


def test_dropout_zeroes_values_of_each_image_s_prompts_on_its_own() -> None:
    model = apply_method(vit(), VptConfig(num_tokens=50, dropout=0.25)).double()
    seen: list[Tensor] = []
    block = model.blocks[1]
    block.norm1 = nn.Identity()
    block.get_submodule("attn").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.train()(IMAGES)
    model.eval()(IMAGES)
    dropped, kept = (tokens[:, 1:51] for tokens in seen)
    prompts = model.get_parameter("vpt.prompts")[1].expand(2, -1, -1)
    assert torch.equal(kept, prompts)
    zero = dropped == 0
    torch.testing.assert_close(dropped, torch.where(zero, 0, prompts / 0.75))
    assert zero.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(zero[0], zero[1])


@pytest.mark.parametrize(("deep", "size", "percent"), [(True, 46_080, 0.0537), (False, 3_840, 0.0045)], ids=["deep", "shallow"])
def test_counts_on_vit_b16(deep: bool, size: int, percent: float) -> None:
    with torch.device("meta"):
        model = apply_method(timm.create_model("vit_base_patch16_224", num_classes=200), VptConfig(deep=deep))
    count = count_parameters(model)
    assert astuple(count) == (size, 153_800, 85_798_656)
    assert count.percent == pytest.approx(percent, abs=5e-5)
    assert model.get_parameter("vpt.prompts").shape == (12 if deep else 1, 5, 768)


def test_prompts_decay_as_the_authors(tiny_vit: nn.Module) -> None:
    model = apply_method(tiny_vit, VptConfig())
    optim = OptimConfig(1e-3, 0.01, [0.9, 0.999], 1e-8, 1, 1e-7, 1e-6, "epoch")
    decay = [
        group["weight_decay"] for group in build_optimizer(model, optim).param_groups for p in group["params"] if p.ndim == 3
    ]
    assert decay == [0.01]


@both
def test_half_precision_backbones_keep_prompts_in_fp32(tiny_vit: nn.Module, deep: bool) -> None:
    model = apply_method(tiny_vit.bfloat16(), VptConfig(deep=deep))
    logits = model(IMAGES.bfloat16())
    logits.sum().backward()
    gradient = model.get_parameter("vpt.prompts").grad
    assert logits.dtype == torch.bfloat16
    assert gradient is not None
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()


def test_merging_is_refused(tiny_vit: nn.Module) -> None:
    model = apply_method(tiny_vit, VptConfig())
    with pytest.raises(ConfigError, match="method 'vpt' cannot be merged"):
        merge_method(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tokens": 0}, "method.num_tokens=0: expected 1 or more"),
        ({"dropout": 1.0}, "method.dropout=1.0: expected a number from 0 to below 1"),
        ({"dropout": -0.1}, "method.dropout=-0.1: expected a number from 0 to below 1"),
    ],
)
def test_wrong_values(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VptConfig(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "beit_base_patch16_224", "vit_srelpos_small_patch16_224"])
def test_blocks_that_place_their_tokens_are_refused(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    keys = list(model.state_dict())
    with pytest.raises(ConfigError, match=f"'vpt' needs a timm VisionTransformer, .* not a {type(model).__name__}$"):
        apply_method(model, VptConfig())
    assert list(model.state_dict()) == keys
