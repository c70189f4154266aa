"""Attention and gradient maps against computations of their own, and insertion and deletion on models whose answer is known."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn
from torch.testing import assert_close

from gift_vit.errors import ConfigError
from gift_vit.explain.baselines import attention_maps, centre_map, gradient_map
from gift_vit.explain.perturbation import perturbation_curves
from gift_vit.methods import GiftConfig, apply_method


def some_images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 160, 160, generator=torch.Generator().manual_seed(1))


def attention_by_hand(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The matrix of every block, from the block's own weights and input, (B, N, N) each."""
    inputs: list[Tensor] = []
    hooks = [
        block.get_submodule("attn").register_forward_hook(lambda *arguments: inputs.append(arguments[1][0]))
        for block in model.get_submodule("blocks").children()
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    matrices = []
    for index, x in enumerate(inputs):
        state = model.state_dict()
        qkv = x @ state[f"blocks.{index}.attn.qkv.weight"].T + state[f"blocks.{index}.attn.qkv.bias"]
        heads = []
        for head in range(2):
            q, k = qkv[..., 32 * head : 32 * head + 32], qkv[..., 64 + 32 * head : 96 + 32 * head]
            scores = (torch.einsum("bnc,bmc->bnm", q, k) / 32**0.5).exp()
            heads.append(scores / scores.sum(-1, keepdim=True))
        matrices.append((heads[0] + heads[1]) / 2)
    return matrices


def test_attention_of_the_class_token_and_rollout(tiny_vit: nn.Module) -> None:
    images = some_images()
    matrices = attention_by_hand(tiny_vit, images)
    maps = attention_maps(apply_method(tiny_vit, GiftConfig(rank=4)), images)
    assert_close(maps["cls_attention"].flatten(1), matrices[-1][:, 0, 1:], atol=1e-6, rtol=1e-4)
    for image in range(2):
        joint = np.eye(101)
        for matrix in matrices:
            half = 0.5 * matrix[image].numpy() + 0.5 * np.eye(101)
            joint = half / half.sum(-1, keepdims=True) @ joint
        assert_close(maps["rollout"][image].flatten(), torch.from_numpy(joint[0, 1:]).float(), atol=1e-6, rtol=1e-4)
    assert maps["rollout"].shape == (2, 10, 10)
    assert not any(module._forward_hooks for module in tiny_vit.modules())


def test_attention_needs_a_class_token() -> None:
    model = timm.create_model("test_vit", num_classes=3, class_token=False, global_pool="avg")
    with pytest.raises(ConfigError, match="attention maps need a class token"):
        attention_maps(model, some_images())


def test_gradient_map_by_finite_differences(tiny_vit: nn.Module) -> None:
    model, images = tiny_vit.double(), some_images(1).double()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    got = gradient_map(model, images, torch.tensor([3]))
    norm = model.get_submodule("blocks.5.norm1")
    tokens: list[Tensor] = []
    handle = norm.register_forward_hook(lambda *arguments: tokens.append(arguments[2]))
    model(images)
    handle.remove()

    def logit(channel: int, step: float) -> float:
        # all patches moved at once: the sum of their gradients
        def move(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            moved = output.clone()
            moved[:, 1:, channel] += step
            return moved

        handle = norm.register_forward_hook(move)
        value = float(model(images)[0, 3])
        handle.remove()
        return value

    weights = torch.tensor([(logit(c, 1e-4) - logit(c, -1e-4)) / 2e-4 / 100 for c in range(64)], dtype=torch.float64)
    expected = (tokens[0][0, 1:] @ weights).clamp(min=0).reshape(1, 10, 10)
    assert expected.max() > 0
    assert_close(got, expected, atol=1e-9, rtol=1e-5)
    assert not torch.equal(got, gradient_map(model, images, torch.tensor([4])))
    chosen = model(images).argmax(1)
    assert torch.equal(gradient_map(model, images), gradient_map(model, images, chosen))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_centre_is_a_box_above_a_threshold() -> None:
    heat = centre_map((20, 40))
    expected = torch.zeros(20, 40, dtype=torch.bool)
    expected[5:15, 10:30] = True
    assert torch.equal(heat > 0.5, expected)
    assert 0 < heat.min() < heat.max() < 1


class OnePatch(nn.Module):
    """Answers class 1 with the logit of one patch's brightness, class 0 with 0."""

    num_prefix_tokens = 1

    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(img_size=(8, 12), patch_size=4, embed_dim=2)
        self.row, self.column = row, column

    def forward(self, images: Tensor) -> Tensor:
        top, left = 4 * self.row, 4 * self.column
        score = images[:, :, top : top + 4, left : left + 4].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], 1)


def test_insertion_and_deletion_of_the_one_patch_that_counts() -> None:
    model, images = OnePatch(1, 2), torch.full((2, 3, 8, 12), 3.0)
    maps = torch.zeros(2, 2, 3)
    maps[0, 1, 2] = 1  # the right patch first
    maps[1, 1, 2] = -1  # and last
    curves = perturbation_curves(model, images, maps)
    high, low = torch.sigmoid(torch.tensor(3.0)), 0.5
    assert_close(curves.fractions, torch.arange(7) / 6)
    assert_close(curves.insertion, torch.tensor([[low, *[high] * 6], [*[low] * 6, high]]))
    assert_close(curves.deletion, torch.tensor([[high, *[low] * 6], [*[high] * 6, low]]))
    insertion, deletion = curves.areas()
    assert_close(insertion, torch.stack([(low + 11 * high) / 12, (11 * low + high) / 12]))
    assert_close(deletion, torch.stack([(11 * low + high) / 12, (low + 11 * high) / 12]))
    assert perturbation_curves(model, images, maps, steps=2).fractions.tolist() == [0, 0.5, 1]
    with pytest.raises(ConfigError, match=r"maps have shape \(2, 3, 2\); these images need \(2, 2, 3\)"):
        perturbation_curves(model, images, maps.mT)
