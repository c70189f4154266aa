"""What a training step with GIFT costs above the least that ordinary execution needs: FLOPs and saved bytes, exactly."""

from typing import cast

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from experiments.bench.cost import Cost, training_cost
from gift_vit.methods import GiftConfig, apply_method
from gift_vit.methods.gift import GiftLinear

D, DEPTH, TOKENS, RANK, FLOAT = 192, 3, 4 * 17, 4, 4


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=DEPTH, num_classes=10)
    return cast("VisionTransformer", model)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def floor(images: Tensor) -> Cost:
    """A frozen backbone through which a gradient only passes, down to the first projection."""
    model = vit().requires_grad_(False)
    model.head.requires_grad_(True)
    model.get_parameter("blocks.0.attn.proj.bias").requires_grad_(True)
    return training_cost(model, images)


def test_a_step_costs_the_products_through_r_channels_and_saves_nothing_of_a_weight_s_size(images: Tensor, floor: Cost) -> None:
    cost = training_cost(apply_method(vit(), GiftConfig(rank=RANK)), images)
    token_product, weight_product = 2 * TOKENS * D * RANK, 2 * D * D * RANK
    assert cost.forward_flops - floor.forward_flops == DEPTH * (2 * token_product + weight_product)
    # backward: z, H(C), psi and phi of every layer; the input of every layer but the first
    assert cost.flops - floor.flops == DEPTH * (5 * token_product + 2 * weight_product) + (DEPTH - 1) * token_product
    # attention saves its output, which is the projection's input, wherever a gradient passes; in the first block none does
    assert cost.saved_bytes - floor.saved_bytes == FLOAT * (TOKENS * D + DEPTH * (TOKENS * RANK + D * RANK))


@pytest.mark.parametrize("target", ["attn.qkv", "attn.k", "mlp.fc1"])
def test_every_form_saves_its_input_once(target: str) -> None:
    model = apply_method(vit(), GiftConfig(rank=RANK, target_modules=[target]))
    layer = next(module for module in model.modules() if isinstance(module, GiftLinear))
    rows = layer.parts[0][1].stop - layer.parts[0][1].start
    x = torch.randn(4, 17, D, requires_grad=True)
    frozen = nn.Linear(layer.in_features, layer.out_features).requires_grad_(False)
    cost, plain = (training_cost(nn.Sequential(module, Total(model.get_submodule("gift"))), x) for module in (layer, frozen))
    assert cost.saved_bytes - plain.saved_bytes == FLOAT * (TOKENS * D + TOKENS * RANK + rows * RANK)


class Total(nn.Module):
    """Sums the tokens of each image to logits, and saves nothing of them; holds the parameters that layers share."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1)
