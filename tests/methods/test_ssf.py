"""SSF against its formula layer by layer, folding into the weights, its counts, and what it refuses."""

from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.common.errors import ConfigError
from gift_vit.methods import GiftConfig, LoraConfig, PeftConfig, apply_method, count_parameters, merge_method
from gift_vit.methods.config import SsfConfig
from tests.methods.checks import drawn, refused

LAYERS = ("patch_embed.proj", "blocks.1.norm1", "blocks.1.attn.qkv", "blocks.1.attn.proj", "blocks.1.mlp.fc2", "norm")
IMAGES = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def trained(std: float = 0.3) -> tuple[nn.Module, nn.Module]:
    """A plain ViT in float64, and the same one with scales and shifts far from their start."""
    torch.manual_seed(0)
    plain = timm.create_model("test_vit", img_size=48, depth=2, num_classes=10).double().eval()
    return plain, apply_method(deepcopy(plain), SsfConfig(init_std=std)).double()


def input_and_output(model: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """What a layer of the model is given and what it returns, its hooks included, for IMAGES."""
    seen: list[tuple[Any, Any]] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    model(IMAGES)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_scaled_and_shifted_by_channel(name: str) -> None:
    plain, model = trained()
    given, output = input_and_output(model, name)
    unscaled = plain.get_submodule(name)(given)
    scale, shift = (model.get_parameter(f"{name}.ssf.{kind}") for kind in ("scale", "shift"))
    channel = 1 if name == "patch_embed.proj" else -1
    for index in range(len(scale)):
        expected = scale[index] * unscaled.select(channel, index) + shift[index]
        torch.testing.assert_close(output.select(channel, index), expected, atol=1e-12, rtol=1e-12)
    assert not torch.allclose(output, unscaled, atol=0.1)


def test_a_layer_without_bias_trains_and_says_that_it_does_not_merge() -> None:
    model = apply_method(timm.create_model("test_vit", qkv_bias=False, num_classes=10), SsfConfig()).eval()
    images = torch.randn(1, 3, 160, 160)
    before = model(images)
    before.sum().backward()
    assert model.get_parameter("blocks.0.attn.qkv.ssf.shift").grad is not None
    with refused("method 'ssf' cannot be merged into this backbone: blocks.0.attn.qkv has no bias to take the shift"):
        merge_method(model)
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("config", [SsfConfig(), LoraConfig(4), PeftConfig("LOHA", ["attn.proj"])])
def test_a_weight_that_two_layers_share_is_not_merged(config: Any) -> None:
    """In place, it would be changed twice. GIFT makes a weight of its own for each layer."""
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    layers = [model.get_submodule(f"blocks.{index}.attn.proj") for index in (0, 2)]
    layers[1].weight = layers[0].weight
    other, images = deepcopy(model), torch.randn(2, 3, 32, 32)
    with pytest.raises(
        ConfigError, match=r"cannot be merged into this backbone: another layer has the weight of blocks.0.attn"
    ):
        merge_method(apply_method(model, config))
    adapted = drawn(other, GiftConfig(rank=2)).eval()
    expected = adapted(images.double())
    torch.testing.assert_close(merge_method(adapted)(images.double()), expected)


def test_initialisation_is_the_authors() -> None:
    with torch.no_grad():
        vit = timm.create_model("vit_base_patch16_224", img_size=32, depth=1, num_classes=2)
    model = apply_method(vit, SsfConfig())
    for kind, mean in (("scale", 1), ("shift", 0)):
        values = torch.cat([p for name, p in model.named_parameters() if name.endswith(f"ssf.{kind}")])
        assert len(values) == 768 + (768 + 2304 + 768 + 768 + 3072 + 768) + 768
        assert values.mean().item() == pytest.approx(mean, abs=1e-3)
        assert values.std().item() == pytest.approx(0.02, rel=3e-2)


def test_small_scales_survive_bf16() -> None:
    """A scale of 1 + 2⁻¹⁰ is 1 in bf16, so the product is taken in float32 and rounded once."""
    model = apply_method(timm.create_model("test_vit").bfloat16(), SsfConfig(init_std=0))
    layer = model.get_submodule("blocks.0.mlp.fc1")
    nn.init.constant_(layer.get_parameter("ssf.scale"), 1 + 2**-7.5)
    x = torch.randn(50, 64).bfloat16()
    output = layer(x)
    plain = F.linear(x, layer.get_parameter("weight"), layer.get_parameter("bias"))
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, (plain.float() * (1 + 2**-7.5)).bfloat16())
    assert not torch.equal(output, plain * torch.tensor(1 + 2**-7.5).bfloat16())


def test_hybrid_and_image_layers() -> None:
    """The ResNet before a hybrid's patch embedding is left alone; channels of image layers are their second dimension."""
    with torch.device("meta"):
        hybrid = apply_method(timm.create_model("vit_base_r50_s16_224", num_classes=200), SsfConfig())
        sam = apply_method(timm.create_model("samvit_base_patch16_224", num_classes=2), SsfConfig())
        assert sam(torch.zeros(1, 3, 224, 224)).shape == (1, 2)
    assert count_parameters(hybrid).adapter == 205_824
