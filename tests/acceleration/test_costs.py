"""What GIFT adds to a step and what the accelerations leave out, exactly: operations and saved bytes, on any machine."""

from typing import Any, cast

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench.cost import Cost, training_cost
from gift_vit.methods import GiftConfig, apply_method
from gift_vit.methods.gift import GiftLinear
from tests.acceleration.settings import accelerated

D, DEPTH, B, N, RANK, FLOAT = 192, 3, 4, 17, 4, 4
TOKENS = B * N


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=DEPTH, num_classes=10)
    return cast("VisionTransformer", model)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(B, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def forward_flops(model: VisionTransformer, images: Tensor) -> int:
    # as plain products: the counter of older releases of torch does not know the CPU's fused attention
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(images)
    return counter.get_total_flops()


def step_cost(images: Tensor, **values: Any) -> Cost:
    model = apply_method(vit(), GiftConfig(rank=RANK))
    accelerated(model, **values)
    return training_cost(model, images)


def test_inference_computes_the_class_token_alone_in_the_last_block(images: Tensor) -> None:
    model = vit()
    plain = forward_flops(model, images)
    accelerated(model)
    products = D + D + 2 * 4 * D  # query, projection and the MLP's two layers, for a token
    attention = 2 * N  # scores and their sums, for a token's channel
    assert plain - forward_flops(model, images) == 2 * B * (N - 1) * D * (products + attention)


def test_a_step_computes_and_saves_less(images: Tensor) -> None:
    off, on = (step_cost(images, cls_last_block=value) for value in ("off", "on"))
    # hidden activation; query, attention output, the inputs of both norms, the output of the last norm, which the head views
    wide = 4 * D + 5 * D
    narrow = 4 + 2 * 2 + 3  # x psi^T, both norms' statistics, attention's normaliser for each of three heads
    assert off.saved_bytes - on.saved_bytes == FLOAT * B * (N - 1) * (wide + narrow)
    last_block = 2 * B * N * D * 12 * D  # forward
    assert 1.3 * last_block < off.flops - on.flops < 2 * last_block


def test_lean_keeps_no_hidden_activation_and_computes_the_first_layer_twice(images: Tensor) -> None:
    fast, lean = (step_cost(images, memory=memory) for memory in ("fast", "lean"))
    tokens = (DEPTH - 1) * B * N + B  # of them one per image in the last block
    assert lean.flops - fast.flops == 2 * tokens * D * 4 * D
    assert lean.forward_flops == fast.forward_flops
    hidden, norm2_statistics = 4 * D, 2
    assert fast.saved_bytes - lean.saved_bytes == FLOAT * tokens * (hidden + norm2_statistics)


def test_minimal_keeps_the_input_of_every_block(images: Tensor) -> None:
    fast, minimal = (step_cost(images, memory=memory) for memory in ("fast", "minimal"))
    assert FLOAT * DEPTH * B * N * D <= minimal.saved_bytes < 0.25 * fast.saved_bytes
    assert fast.flops < minimal.flops < 4 / 3 * fast.flops + fast.forward_flops / DEPTH


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
    x = torch.randn(B, N, D, requires_grad=True)
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
