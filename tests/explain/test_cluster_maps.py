"""Cluster maps against a forward pass written out by hand in numpy."""

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.testing import assert_close

from gift_vit.errors import ConfigError
from gift_vit.explain.cluster_maps import Response, cluster_maps, cluster_responses, normalise_maps
from gift_vit.methods import GiftConfig, LinearConfig, apply_method

ALL_TARGETS = ["attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2"]
Array = NDArray[np.float64]


def with_gift(model: nn.Module, *targets: str, seed: int = 0, **options: Any) -> nn.Module:
    """GIFT in float64 with every parameter of adapter and backbone away from its initial value, biases away from zero."""
    apply_method(model, GiftConfig(rank=5, target_modules=list(targets) or ["attn.proj"], **options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return model.double()


def some_images(count: int = 2, size: int = 160) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class ByHand:
    """A pre-norm ViT of two heads and patch 16 with GIFT, from its state dict: C, and both outputs of each adapted layer."""

    def __init__(self, model: nn.Module, target_pairs: dict[str, str]) -> None:
        self.state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        self.pairs = target_pairs
        self.clusters: dict[tuple[str, int], Array] = {}
        self.tokens: dict[tuple[str, int, str], Array] = {}

    def linear(self, x: Array, block: int, target: str, rows: slice = slice(None)) -> Array:
        layer = "attn.qkv" if target in ("attn.q", "attn.k", "attn.v") else target
        weight = self.state[f"blocks.{block}.{layer}.weight"][rows]
        bias = self.state[f"blocks.{block}.{layer}.bias"][rows]
        frozen = np.einsum("bni,oi->bno", x, weight) + bias
        if target not in self.pairs:
            return frozen
        gift = {key: self.state.get(f"gift.{self.pairs[target]}.{key}") for key in ("phi", "psi", "phi_bias", "psi_bias")}
        assert gift["phi"] is not None
        assert gift["psi"] is not None
        clusters = np.einsum("oi,ir->or", weight, gift["phi"]) + (0 if gift["phi_bias"] is None else gift["phi_bias"])
        delta = np.einsum("or,ri->oi", clusters, gift["psi"]) + (0 if gift["psi_bias"] is None else gift["psi_bias"])
        adapted = np.einsum("bni,oi->bno", x, weight + delta) + bias
        self.clusters[target, block] = clusters
        self.tokens[target, block, "pre"], self.tokens[target, block, "post"] = frozen, adapted
        return adapted

    def norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def embed(self, images: Array) -> Array:
        b, _, height, width = images.shape
        patches = images.reshape(b, 3, height // 16, 16, width // 16, 16).transpose(0, 2, 4, 1, 3, 5)
        kernel = self.state["patch_embed.proj.weight"]
        x = patches.reshape(b, -1, kernel[0].size) @ kernel.reshape(len(kernel), -1).T + self.state["patch_embed.proj.bias"]
        return np.concatenate([np.repeat(self.state["cls_token"], b, axis=0), x], axis=1) + self.state["pos_embed"]

    def run(self, images: Array, depth: int) -> None:
        x = self.embed(images)
        d = x.shape[-1]
        for block in range(depth):
            u = self.norm(x, f"blocks.{block}.norm1")
            q, k, v = (
                self.linear(u, block, name, slice(i * d, (i + 1) * d)) for i, name in enumerate(("attn.q", "attn.k", "attn.v"))
            )
            heads = []
            for head in (slice(0, d // 2), slice(d // 2, d)):
                scores = np.exp(np.einsum("bnc,bmc->bnm", q[..., head], k[..., head]) / math.sqrt(d // 2))
                heads.append(np.einsum("bnm,bmc->bnc", scores / scores.sum(-1, keepdims=True), v[..., head]))
            x = x + self.linear(np.concatenate(heads, -1), block, "attn.proj")
            h = self.linear(self.norm(x, f"blocks.{block}.norm2"), block, "mlp.fc1")
            gelu = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
            x = x + self.linear(gelu, block, "mlp.fc2")

    def maps(self, target: str, block: int, response: str, prefix: int = 1) -> Array:
        tokens = self.tokens[target, block, response][:, prefix:]
        side = math.isqrt(tokens.shape[1])
        maps = np.stack([np.einsum("or,no->rn", self.clusters[target, block], image) for image in tokens])
        return maps.reshape(len(tokens), -1, side, side)


def assert_equals_by_hand(model: nn.Module, pairs: dict[str, str], blocks: tuple[int, ...]) -> int:
    images = some_images()
    hand = ByHand(model, pairs)
    hand.run(images.numpy(), max(blocks) + 1)
    checked = 0
    for target in pairs:
        for block in blocks:
            responses: tuple[Response, ...] = ("post", "pre")
            for response in responses:
                got = cluster_responses(model, images, target, block, response)
                assert got.shape == (2, 5, 10, 10)
                assert_close(got, torch.from_numpy(hand.maps(target, block, response)), atol=1e-10, rtol=1e-10)
                checked += 1
    return checked


def test_responses_equal_a_forward_by_hand(tiny_vit: nn.Module) -> None:
    model = with_gift(tiny_vit, *ALL_TARGETS)
    assert assert_equals_by_hand(model, {target: target for target in ALL_TARGETS}, (0, 2)) == 24


def test_responses_with_biases_and_a_shared_pair(tiny_vit: nn.Module) -> None:
    model = with_gift(tiny_vit, "attn.v", "attn.proj", share=True, phi_bias=True, psi_bias=True)
    assert assert_equals_by_hand(model, {"attn.v": "shared", "attn.proj": "shared"}, (1,)) == 4


def test_pre_and_post_agree_only_while_psi_is_zero(tiny_vit: nn.Module) -> None:
    model = with_gift(tiny_vit)
    images = some_images(1)
    assert not torch.allclose(cluster_responses(model, images), cluster_responses(model, images, response="pre"), rtol=0.1)
    with torch.no_grad():
        model.get_parameter("gift.attn.proj.psi").zero_()
    post, pre = cluster_responses(model, images), cluster_responses(model, images, response="pre")
    assert post.abs().max() > 1
    assert_close(post, pre, atol=1e-12, rtol=1e-12)


def test_last_block_is_the_default_and_nothing_records_gradients(tiny_vit: nn.Module) -> None:
    model = with_gift(tiny_vit)
    images = some_images(1)
    got = cluster_responses(model, images)
    assert torch.equal(got, cluster_responses(model, images, "attn.proj", 5))
    assert not torch.allclose(got, cluster_responses(model, images, block=-2))
    assert not got.requires_grad


def test_each_image_is_its_own(tiny_vit: nn.Module) -> None:
    model = with_gift(tiny_vit)
    images = some_images(3)
    assert_close(cluster_maps(model, images)[1:2], cluster_maps(model, images[1:2]), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("options", "prefix"), [({"reg_tokens": 4}, 5), ({"class_token": False, "global_pool": "avg"}, 0)])
def test_prefix_tokens_are_left_out(options: dict[str, Any], prefix: int) -> None:
    torch.manual_seed(0)
    model = with_gift(timm.create_model("test_vit", num_classes=3, **options))
    images = some_images(1)
    layer = model.get_submodule("blocks.5.attn.proj")
    outputs: list[Tensor] = []
    layer.register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
    got = cluster_responses(model.eval(), images)
    assert outputs[0].shape[1] == 100 + prefix
    clusters = layer.get_parameter("weight") @ model.get_parameter("gift.attn.proj.phi")
    for row in range(0, 10, 3):
        token = outputs[0][0, prefix + 10 * row + 7]
        assert_close(got[0, :, row, 7], clusters.detach().T @ token.detach())


def test_rectangular_input_keeps_its_orientation() -> None:
    torch.manual_seed(0)
    model = with_gift(timm.create_model("test_vit", img_size=(64, 128), dynamic_img_size=False, num_classes=3))
    images = some_images(1, 128)[..., :64, :]
    assert cluster_responses(model, images).shape == (1, 5, 4, 8)
    assert cluster_maps(model, images).shape == (1, 5, 64, 128)


def test_maps_are_the_normalised_responses(tiny_vit: nn.Module) -> None:
    model = with_gift(tiny_vit)
    images = some_images()
    maps = cluster_maps(model, images, block=2)
    assert maps.shape == (2, 5, 160, 160)
    assert torch.equal(maps, normalise_maps(cluster_responses(model, images, block=2), 160))
    assert ((maps == 0) | ((maps > 0.5) & (maps <= 1))).all()
    assert (maps.amax((-2, -1)) == 1).all()
    assert (maps == 0).any()


def test_positive_scale_of_the_clusters_changes_no_map(tiny_vit: nn.Module) -> None:
    model = with_gift(tiny_vit)
    images = some_images()
    before = cluster_maps(model, images)
    with torch.no_grad():
        model.get_parameter("gift.attn.proj.phi").mul_(4)  # powers of two are exact
        model.get_parameter("gift.attn.proj.psi").div_(4)
    assert torch.equal(cluster_maps(model, images), before)


def test_sign_of_phi_and_psi_flips_the_responses_but_not_the_model(tiny_vit: nn.Module) -> None:
    model = with_gift(tiny_vit)
    images = some_images()
    before, logits, shown = cluster_responses(model, images), model(images), cluster_maps(model, images)
    with torch.no_grad():
        model.get_parameter("gift.attn.proj.phi").neg_()
        model.get_parameter("gift.attn.proj.psi").neg_()
    assert torch.equal(model(images), logits)
    assert torch.equal(cluster_responses(model, images), -before)
    # what was in the zeroed lower half is now shown, and the other way round
    assert not ((cluster_maps(model, images) > 0) & (shown > 0)).any()


def bilinear_by_hand(source: Array, size: int) -> Array:
    """Half-pixel centres, edges clamped: ``align_corners=False``."""
    position = np.clip((np.arange(size) + 0.5) * len(source) / size - 0.5, 0, len(source) - 1)
    low = np.minimum(position.astype(int), len(source) - 2)
    weights = np.zeros((size, len(source)))
    weights[np.arange(size), low] = 1 - (position - low)
    weights[np.arange(size), low + 1] = position - low
    return weights @ source @ weights.T


def test_normalisation_by_hand() -> None:
    raw = np.random.default_rng(0).normal(size=(2, 3, 5, 5))
    expected = np.stack([[bilinear_by_hand(one, 20) for one in image] for image in raw])
    for one in expected.reshape(-1, 20, 20):
        one[:] = (one - one.min()) / (one.max() - one.min())
    expected[expected <= 0.5] = 0
    assert_close(normalise_maps(torch.from_numpy(raw), 20), torch.from_numpy(expected), atol=1e-12, rtol=1e-12)


def test_exactly_one_half_becomes_zero_and_values_above_are_kept() -> None:
    raw = torch.tensor([[[[0.0, 1.0], [1.25, 2.0]]]])
    assert normalise_maps(raw, 2).tolist() == [[[[0, 0], [0.625, 1]]]]


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3e5, 3e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_maps_are_zero(value: float, dtype: torch.dtype) -> None:
    maps = normalise_maps(torch.full((1, 2, 14, 14), value, dtype=dtype), 224)
    assert torch.equal(maps, torch.zeros(1, 2, 224, 224, dtype=dtype))


def test_faint_contrast_on_a_high_level_is_still_a_map() -> None:
    raw = torch.full((1, 1, 2, 2), 100.0)
    raw[..., 1, 1] += 0.1
    assert normalise_maps(raw, 2).tolist() == [[[[0, 0], [0, 1]]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_tokens_give_zero_maps(tiny_vit: nn.Module, dtype: torch.dtype) -> None:
    model = with_gift(tiny_vit).to(dtype)
    with torch.no_grad():
        model.get_parameter("pos_embed").zero_()
    maps = cluster_maps(model, torch.full((1, 3, 160, 160), 0.37, dtype=dtype), block=2)
    assert torch.equal(maps, torch.zeros_like(maps))


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_model_is_left_as_it_was(tiny_vit: nn.Module) -> None:
    model = with_gift(tiny_vit).train()
    model.get_submodule("blocks.3").eval()
    flags = [module.training for module in model.modules()]
    seen: list[bool] = []
    handle = model.get_submodule("blocks.0").register_forward_hook(lambda module, *_: seen.append(module.training))
    cluster_responses(model, some_images(1))
    handle.remove()
    assert seen == [False]
    assert [module.training for module in model.modules()] == flags
    assert hooks_of(model) == 0


def test_the_model_is_left_as_it_was_after_an_error(tiny_vit: nn.Module) -> None:
    model = with_gift(tiny_vit).train()
    with pytest.raises(RuntimeError, match="type"):
        cluster_responses(model, some_images(1).float())
    assert all(module.training for module in model.modules())
    assert hooks_of(model) == 0


def test_a_model_without_gift_is_an_error(tiny_vit: nn.Module) -> None:
    with pytest.raises(ConfigError, match="no method is applied"):
        cluster_maps(tiny_vit, some_images(1))
    apply_method(tiny_vit, LinearConfig())
    with pytest.raises(ConfigError, match="cluster maps explain GIFT; this model was given a LinearConfig"):
        cluster_maps(tiny_vit, some_images(1))


ERRORS = [
    ({"target": "attn.qkv"}, r"target 'attn.qkv' is not adapted in this model \(adapted: attn.v, mlp.fc1\)"),
    ({"target": "mlp.fc1", "block": 5}, "block=5: target 'mlp.fc1' is not adapted there; adapted of the 6 blocks: 1, 3"),
    ({"target": "mlp.fc1"}, "block=-1: .* adapted of the 6 blocks: 1, 3"),
    ({"target": "mlp.fc1", "block": 6}, "block=6: "),
    ({"target": "mlp.fc1", "block": -9}, "block=-9: "),
    ({"target": "attn.v", "block": 1, "response": "both"}, r"unknown response 'both' \(known: post, pre\)"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_what_is_not_there_is_an_error(tiny_vit: nn.Module, arguments: dict[str, Any], message: str) -> None:
    assert len(ERRORS) == 6
    model = with_gift(tiny_vit, "attn.v", "mlp.fc1", blocks=[1, 3])
    with pytest.raises(ConfigError, match=message):
        cluster_responses(model, some_images(1), **arguments)


@pytest.mark.parametrize("shape", [(3, 160, 160), (1, 1, 160, 160), (1, 3, 224, 224), (1, 3, 160, 80)])
def test_images_of_another_size_are_an_error(tiny_vit: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"images have shape \(.*\), the model expects \(B, 3, 160, 160\)"):
        cluster_responses(with_gift(tiny_vit), torch.zeros(shape, dtype=torch.float64))
