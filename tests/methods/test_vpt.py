"""VPT against tokens put in by hand, its initialisation, its counts, and what it refuses."""

import math
from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from gift_vit.engine.config import OptimConfig
from gift_vit.engine.state import build_optimizer
from gift_vit.methods import apply_method
from gift_vit.methods.config import VptConfig

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
def test_prompts_stand_between_the_prefix_and_the_image(arguments: dict[str, Any], deep: bool) -> None:
    """Attention does not see the order of tokens, so the logits do not tell."""
    plain = vit(**arguments).eval()
    model = apply_method(deepcopy(plain), VptConfig(num_tokens=4, deep=deep)).double()
    assert [type(module) for module in (model, *model.blocks)] == [type(module) for module in (plain, *plain.blocks)]
    given: list[Tensor] = []
    for vision_transformer in (plain, model):
        vision_transformer.blocks[0].get_submodule("norm1").register_forward_pre_hook(lambda _, args: given.append(args[0]))
        vision_transformer(IMAGES)
    tokens, prompted = given
    start = tokens.shape[1] - 9  # 48 / 16 = 3 patches a side
    expected = [tokens[:, :start], model.get_parameter("vpt.prompts")[:1].expand(2, -1, -1), tokens[:, start:]]
    assert torch.equal(prompted, torch.cat(expected, dim=1))


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


def test_prompts_decay_as_the_authors(tiny_vit: nn.Module) -> None:
    optim = OptimConfig(1e-3, 0.01, [0.9, 0.999], 1e-8, 1, 1e-7, 1e-6, "epoch")
    groups = build_optimizer(apply_method(tiny_vit, VptConfig()), optim).param_groups
    assert [group["weight_decay"] for group in groups for p in group["params"] if p.ndim == 3] == [0.01]
