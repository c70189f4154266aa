"""The patch embedding as a product gives what the convolution gives."""

from typing import Any

import pytest
import torch
from torch import nn

from gift_vit.acceleration.patches import embed_by_product
from tests.acceleration.test_accelerate import tiny


@pytest.mark.parametrize("shape", [(32, 32), (32, 48)])
def test_tokens_and_gradients_are_the_convolutions(shape: tuple[int, int]) -> None:
    model = tiny(img_size=shape).double().eval()
    images = torch.randn(3, 3, *shape, dtype=torch.float64)
    expected = model.patch_embed(images)
    expected.square().sum().backward()
    gradient = model.get_parameter("patch_embed.proj.weight").grad
    names = list(model.state_dict())
    model.zero_grad()
    assert embed_by_product(model)
    found = model.patch_embed(images)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous()
    found.square().sum().backward()
    torch.testing.assert_close(model.get_parameter("patch_embed.proj.weight").grad, gradient)
    assert list(model.state_dict()) == names


def with_patches(convolution: nn.Conv2d) -> Any:
    model: Any = nn.Module()
    model.patch_embed = nn.Module()
    model.patch_embed.proj = convolution
    return model


def test_pixels_beyond_whole_patches_are_left_to_the_convolution() -> None:
    convolution, images = nn.Conv2d(3, 8, 4, 4), torch.randn(2, 3, 10, 9)
    expected = convolution(images)
    assert embed_by_product(with_patches(convolution))
    assert torch.equal(convolution(images), expected)


def test_overlapping_patches_and_models_without_patches_stay() -> None:
    assert not embed_by_product(with_patches(nn.Conv2d(3, 8, 7, 4, 3)))
    assert not embed_by_product(nn.Linear(2, 2))
