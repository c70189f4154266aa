"""Attention and gradient maps against computations of their own, and insertion and deletion on models whose answer is known."""

from typing import Any

import pytest
import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn
from torch.testing import assert_close

from gift_vit.common.errors import ConfigError
from gift_vit.explain.scoring.baselines import attention_maps, centre_map, gradient_map
from gift_vit.explain.scoring.perturbation import perturbation_curves
from gift_vit.methods import GiftConfig, apply_method
from tests.explain.conftest import some_images, watched


def attention_by_hand(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The matrix of every block, from the block's own weights and input, (B, N, N) each."""
    state, matrices = model.state_dict(), []
    for index in range(6):
        x, _ = watched(model, f"blocks.{index}.attn", images)
        qkv = x @ state[f"blocks.{index}.attn.qkv.weight"].T + state[f"blocks.{index}.attn.qkv.bias"]
        heads = [(qkv[..., at : at + 32], qkv[..., 64 + at : 96 + at]) for at in (0, 32)]
        scores = torch.stack([(torch.einsum("bnc,bmc->bnm", q, k) / 32**0.5).exp() for q, k in heads])
        matrices.append((scores / scores.sum(-1, keepdim=True)).mean(0))
    return matrices


def test_attention_of_the_class_token_and_rollout(tiny_vit: nn.Module) -> None:
    images = some_images().float()
    matrices = attention_by_hand(tiny_vit, images)
    maps = attention_maps(apply_method(tiny_vit, GiftConfig(rank=4)), images)
    assert_close(maps["cls_attention"].flatten(1), matrices[-1][:, 0, 1:], atol=1e-6, rtol=1e-4)
    joint = torch.eye(101)
    for matrix in matrices:
        half = 0.5 * matrix + 0.5 * torch.eye(101)
        joint = half / half.sum(-1, keepdim=True) @ joint
    assert_close(maps["rollout"].flatten(1), joint[:, 0, 1:], atol=1e-6, rtol=1e-4)
    assert maps["rollout"].shape == (2, 10, 10)
    assert not any(module._forward_hooks for module in tiny_vit.modules())


def test_attention_needs_a_class_token() -> None:
    model = timm.create_model("test_vit", num_classes=3, class_token=False, global_pool="avg")
    eva = timm.create_model("eva02_tiny_patch14_224", img_size=28, depth=1, num_classes=3)
    unread = timm.create_model("test_vit", num_classes=3, global_pool="avg")
    for own, size in ((model, 160), (eva, 28), (unread, 160)):
        with pytest.raises(ConfigError, match=f"that the head reads, and its attention; {type(own).__name__} shows none"):
            attention_maps(own, some_images(size=size))


def test_gradient_map_by_finite_differences(tiny_vit: nn.Module) -> None:
    model, images = tiny_vit.double().requires_grad_(False), some_images(1)
    got = gradient_map(model, images, torch.tensor([3]))
    _, tokens = watched(model, "blocks.5.norm1", images)
    # in each of 128 images a channel of all patches is moved at once: the sum of their gradients
    steps = 1e-4 * torch.cat([torch.eye(64), -torch.eye(64)]).double()[:, None]
    norm = model.get_submodule("blocks.5.norm1")
    handle = norm.register_forward_hook(lambda *hooked: torch.cat([hooked[2][:, :1], hooked[2][:, 1:] + steps], 1))
    higher, lower = model(images.expand(128, -1, -1, -1))[:, 3].split(64)
    handle.remove()
    weights = (higher - lower) / 2e-4 / 100
    expected = (tokens[0, 1:] @ weights).clamp(min=0).reshape(1, 10, 10)
    assert expected.max() > 0
    assert_close(got, expected, atol=1e-9, rtol=1e-5)
    assert not torch.equal(got, gradient_map(model, images, torch.tensor([4])))
    assert torch.equal(gradient_map(model, images), gradient_map(model, images, model(images).argmax(1)))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cait_xxs24_224", {"depth": 2}),
        ("samvit_base_patch16", {"depth": 1, "embed_dim": 32, "num_heads": 2, "global_attn_indexes": (0,)}),
    ],
)
def test_gradient_map_of_blocks_without_class_token(name: str, options: dict[str, Any]) -> None:
    """CaiT adds its class token after these blocks, and SAM's tokens stand on their grid."""
    torch.manual_seed(0)
    model, images = timm.create_model(name, img_size=32, num_classes=3, **options).eval(), torch.rand(2, 3, 32, 32)
    seen: list[Tensor] = []
    norm = model.get_submodule(f"blocks.{options['depth'] - 1}.norm1")
    handle = norm.register_forward_hook(lambda *hooked: seen.append(hooked[2]))
    logits = model(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), seen)
    rows, gradient = seen[0].detach().reshape(2, 4, -1), gradient.reshape(2, 4, -1)
    expected = torch.einsum("bnd,bd->bn", rows, gradient.mean(1)).clamp(min=0).reshape(2, 2, 2)
    assert expected.max() > 0
    assert_close(gradient_map(model, images, torch.tensor([1, 1])), expected)


def test_the_centre_is_a_box_above_a_threshold() -> None:
    heat, expected = centre_map((20, 40)), torch.zeros(20, 40)
    expected[5:15, 10:30] = 1
    assert torch.equal((heat > 0.5).float(), expected)
    assert 0 < heat.min() < heat.max() < 1


class OnePatch(nn.Module):
    """Answers class 1 with the logit of one patch's brightness, class 0 with 0."""

    num_prefix_tokens = 1

    def __init__(self, pads: bool) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed((8, 12), patch_size=4, embed_dim=2, strict_img_size=not pads, dynamic_img_pad=pads)

    def forward(self, images: Tensor) -> Tensor:
        score = images[:, :, 4:8, 8:12].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.mark.parametrize(("pads", "size"), [(False, (8, 12)), (True, (5, 10))])
def test_insertion_and_deletion_of_the_one_patch_that_counts(pads: bool, size: tuple[int, int]) -> None:
    model, images = OnePatch(pads), torch.full((2, 3, *size), 3.0)
    maps = torch.zeros(2, 2, 3)
    maps[0, 1, 2] = 1  # the right patch first
    maps[1, 1, 2] = -1  # and last
    curves = perturbation_curves(model, images, maps)
    high, low = torch.sigmoid(torch.tensor(3.0)), 0.5
    assert_close(curves.fractions, torch.arange(7) / 6)
    assert_close(curves.insertion, torch.tensor([[low, *[high] * 6], [*[low] * 6, high]]))
    assert_close(curves.deletion, torch.tensor([[high, *[low] * 6], [*[high] * 6, low]]))
    areas = torch.stack([(low + 11 * high) / 12, (11 * low + high) / 12])
    assert_close(curves.areas(), (areas, areas.flip(0)))
    assert perturbation_curves(model, images, maps, steps=2).fractions.tolist() == [0, 0.5, 1]
    assert_close(perturbation_curves(model, images, maps, steps=5).fractions, torch.tensor([0, 1, 2, 4, 5, 6]) / 6)
    with pytest.raises(ConfigError, match=r"maps have shape \(2, 3, 2\); these images need \(2, 2, 3\)"):
        perturbation_curves(model, images, maps.mT)
