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
from torch.utils.flop_counter import FlopCounterMode

from gift_vit.acceleration import accelerate
from gift_vit.engine import TrainerConfig
from gift_vit.errors import ConfigError
from gift_vit.explain.layers import LayerName, MapChoice
from gift_vit.explain.maps import Response, explain, join_maps, normalise_maps, threshold_maps
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


def cluster_responses(
    model: nn.Module, images: Tensor, target: str = "attn.proj", block: int = -1, response: Response = "post"
) -> Tensor:
    """The raw maps of one layer, (B, r, h, w)."""
    return explain(model, images, MapChoice([target], [block])).raw(response)[:, 0]


def cluster_maps(model: nn.Module, images: Tensor, block: int = -1) -> Tensor:
    """The thresholded maps of one layer, (B, r, H, W)."""
    return explain(model, images, MapChoice(blocks=[block])).thresholded()[:, 0]


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
    assert torch.equal(maps, threshold_maps(normalise_maps(cluster_responses(model, images, block=2), 160)))
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
    assert_close(threshold_maps(normalise_maps(torch.from_numpy(raw), 20)), torch.from_numpy(expected), atol=1e-12, rtol=1e-12)


def test_exactly_one_half_becomes_zero_and_values_above_are_kept() -> None:
    raw = torch.tensor([[[[0.0, 1.0], [1.25, 2.0]]]])
    assert normalise_maps(raw, 2).tolist() == [[[[0, 0.5], [0.625, 1]]]]
    assert threshold_maps(normalise_maps(raw, 2)).tolist() == [[[[0, 0], [0.625, 1]]]]


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


@pytest.mark.parametrize("shape", [(3, 160, 160), (1, 1, 160, 160), (1, 3, 168, 160), (1, 3, 160, 90)])
def test_images_that_the_model_does_not_take_are_an_error(tiny_vit: nn.Module, shape: tuple[int, ...]) -> None:
    expected = r"the model expects \(B, 3, a multiple of 16, a multiple of 16\)"
    with pytest.raises(ConfigError, match=r"images have shape \(.*\), " + expected):
        explain(with_gift(tiny_vit), torch.zeros(shape, dtype=torch.float64))


def test_images_of_another_size_than_a_fixed_one_are_an_error() -> None:
    model = apply_method(timm.create_model("test_vit", num_classes=3, dynamic_img_size=False), GiftConfig(rank=4))
    assert explain(model, torch.zeros(1, 3, 160, 160)).post.shape == (1, 6, 4, 10, 10)
    with pytest.raises(ConfigError, match=r"\(1, 3, 160, 144\), the model expects \(B, 3, 160, 160\)"):
        explain(model, torch.zeros(1, 3, 160, 144))


def test_one_forward_pass_gives_the_maps_of_all_layers_and_clusters(tiny_vit: nn.Module) -> None:
    model = with_gift(tiny_vit, "attn.q", "mlp.fc1")
    images = some_images()
    passes: list[int] = []
    handle = model.get_submodule("blocks.2").register_forward_hook(lambda *_: passes.append(1))
    maps = explain(model, images)
    handle.remove()
    assert passes == [1]
    assert maps.layers == tuple(LayerName(target, block) for target in ("attn.q", "mlp.fc1") for block in range(6))
    assert maps.post.shape == maps.pre.shape == (2, 12, 5, 10, 10)
    assert maps.clusters == (0, 1, 2, 3, 4)
    assert torch.equal(maps.logits, model(images))
    some = explain(model, images, MapChoice(["mlp.fc1"], [-2, 0], [3, 1]))
    assert some.layers == (LayerName("mlp.fc1", 4), LayerName("mlp.fc1", 0))
    for response in ("post", "pre"):
        assert_close(some.raw(response), maps.raw(response)[:, [10, 6]][:, :, [3, 1]], atol=1e-12, rtol=1e-12)
    halves = join_maps([explain(model, image.unsqueeze(0)) for image in images])
    assert_close(halves.post, maps.post, atol=1e-12, rtol=1e-12)
    assert len(halves) == 2
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
    torch.manual_seed(0)
    options: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    wide = timm.create_model("vit_tiny_patch16_224", img_size=(32, 80), **options)
    dynamic = timm.create_model("vit_tiny_patch16_224", img_size=(32, 80), dynamic_img_size=True, **options)
    for model in (wide, dynamic):
        apply_method(model, GiftConfig(rank=4))
    dynamic.load_state_dict(wide.state_dict())
    images = torch.randn(2, 3, 32, 80)
    maps = explain(wide, images)
    assert maps.post.shape == (2, 2, 4, 2, 5)
    assert maps.normalised().shape == (2, 2, 4, 32, 80)
    assert_close(explain(dynamic, images).post, maps.post)
    assert explain(dynamic, torch.randn(1, 3, 48, 32)).post.shape == (1, 2, 4, 3, 2)


def test_the_canonical_basis_is_the_same_for_every_equal_model(tiny_vit: nn.Module) -> None:
    model = with_gift(tiny_vit)
    images, choice = some_images(1), MapChoice(basis="canonical")
    canonical, trained = explain(model, images, choice), explain(model, images)
    mix = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        phi, psi = model.get_parameter("gift.attn.proj.phi"), model.get_parameter("gift.attn.proj.psi")
        left = np.linalg.svd((phi @ psi).numpy())[0][:, :5]
        phi.copy_(phi @ mix)
        psi.copy_(torch.linalg.solve(mix, psi))
    again = explain(model, images, choice)
    assert_close(again.logits, canonical.logits, atol=1e-9, rtol=1e-9)
    assert_close(again.post, canonical.post, atol=1e-8, rtol=1e-8)
    assert not torch.allclose(explain(model, images).post, trained.post, rtol=0.1)
    left = left * np.sign(left[np.abs(left).argmax(0), range(5)])
    weight = model.state_dict()["blocks.5.attn.proj.weight"].numpy()
    tokens: list[Tensor] = []
    handle = model.get_submodule("blocks.5.attn.proj").register_forward_hook(lambda *seen: tokens.append(seen[2]))
    model(images)
    handle.remove()
    by_hand = np.einsum("or,no->rn", weight @ left, tokens[0][0, 1:].detach().numpy()).reshape(5, 10, 10)
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
    seen: list[tuple[Tensor, Tensor]] = []
    layer = model.get_submodule("blocks.3.attn.qkv")
    handle = layer.register_forward_hook(lambda *arguments: seen.append((arguments[1][0], arguments[2])))
    model(images)
    handle.remove()
    x, y = seen[0]
    expected = (y[0, 1:, 128:] @ assigned).T.unflatten(-1, (10, 10))
    assert_close(maps.post[0, 0], expected.detach(), atol=1e-9, rtol=1e-9)
    before = x[0, 1:] @ weight.T + model.get_parameter("blocks.3.attn.qkv.bias")[128:]
    assert_close(maps.pre[0, 0], (before @ assigned).T.unflatten(-1, (10, 10)).detach(), atol=1e-9, rtol=1e-9)


CHOICE_ERRORS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"basis": "svd"}, r"unknown basis 'svd' \(known: trained, canonical, assignment, random\)"),
    ({}, {"clusters": [1, 5]}, r"clusters=\[1, 5\]: give indices from 0 to 4"),
    ({}, {"clusters": []}, r"clusters=\[\]: give distinct values, at least one"),
    ({}, {"blocks": [1, 1]}, r"blocks=\[1, 1\]: give distinct values"),
    ({}, {"basis": "assignment"}, "basis=assignment needs schema=paca_transformer or paca_attn"),
    ({"schema": "transformer"}, {"basis": "assignment"}, "basis=assignment needs"),
    ({"schema": "paca_attn"}, {"basis": "assignment", "schema_block": 1}, "schema_block=1: the schema has blocks 0 to 0"),
    ({"schema": "gelu"}, {"basis": "canonical"}, "basis=canonical is of φ ψ and needs schema=linear"),
]


@pytest.mark.parametrize(("options", "choice", "message"), CHOICE_ERRORS)
def test_a_choice_that_does_not_fit_is_an_error(
    tiny_vit: nn.Module, options: dict[str, Any], choice: dict[str, Any], message: str
) -> None:
    assert len(CHOICE_ERRORS) == 8
    with pytest.raises(ConfigError, match=message):
        explain(with_gift(tiny_vit, **options), some_images(1), MapChoice(**choice))


@pytest.mark.parametrize("target", ["attn.q", "attn.proj", "mlp.fc2"])
def test_an_accelerated_model_has_the_same_maps(tiny_vit: nn.Module, target: str) -> None:
    model = with_gift(tiny_vit, target).eval()
    expected = cluster_responses(model, some_images(), target)
    logits = model(some_images())
    values = {"epochs": 1, "batch_size": 2, "grad_accumulation": 1, "drop_path_rate": 0.0, "eval_every": 1, "precision": "fp32"}
    trainer = TrainerConfig(compile=False, device="cpu", workers=0, eval_batch_size=2, cls_last_block="on", **values)
    accelerate(model, trainer)
    assert_close(cluster_responses(model, some_images(), target), expected)
    assert_close(model(some_images()), logits)
    assert model.get_submodule("blocks")(torch.zeros(2, 5, 64, dtype=torch.float64)).shape == (2, 1, 64), "it is on again"
