"""Adapters, Convpass and TOAST, which change blocks, against their formulas computed another way."""

from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.methods import apply_method, initialise_method
from gift_vit.methods.config import AdapterConfig, ConvpassConfig, ToastConfig, VptConfig
from gift_vit.methods.toast import initialise_toast
from tests.methods.checks import assert_dropout_acts, drawn, randomise, refused

TOKENS = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def vit(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", **{"depth": 2, "num_classes": 3, "img_size": (32, 48)} | options).double().eval()


def adapted(cfg: Any, **options: Any) -> tuple[Any, Any]:
    """The first block, plain and adapted."""
    plain = vit(**options)
    return plain.get_submodule("blocks.0"), drawn(deepcopy(plain), cfg).get_submodule("blocks.0")


def adapter_by_hand(adapter: Any, x: Tensor) -> Tensor:
    hidden = F.gelu(x @ adapter.down.weight.T + adapter.down.bias)
    return adapter.scale * (hidden @ adapter.up.weight.T + adapter.up.bias)


@pytest.mark.parametrize("position", ["post", "pre", "intermediate", "parallel", "houlsby"])
def test_an_adapter_stands_at_its_position(position: str) -> None:
    plain, block = adapted(AdapterConfig(position, 5), init_values=0.3)
    x = TOKENS

    def mlp(y: Tensor) -> Tensor:
        return plain.ls2(plain.mlp(plain.norm2(y)))

    def a(y: Tensor) -> Tensor:
        return adapter_by_hand(block.adapter, y)

    attention = plain.ls1(plain.attn(plain.norm1(x)))
    y = x + attention
    if position == "post":
        expected = y + mlp(y) + a(y + mlp(y))
    elif position == "pre":
        expected = y + a(y) + mlp(y + a(y))
    elif position == "intermediate":
        expected = y + mlp(y) + a(mlp(y))
    elif position == "parallel":
        expected = y + mlp(y) + a(y)
    else:
        y = y + adapter_by_hand(block.adapter_attn, attention)
        expected = y + mlp(y) + a(mlp(y))
    torch.testing.assert_close(block(x), expected, atol=1e-12, rtol=0)


def test_pfeiffer_is_post_with_a_norm() -> None:
    plain, block = adapted(AdapterConfig("post", 5, norm=True, scale="fixed", factor=2.0))
    z = plain(TOKENS)
    normed = F.layer_norm(z, (64,), block.adapter.norm.weight, block.adapter.norm.bias, 1e-6)
    torch.testing.assert_close(block(TOKENS), z + adapter_by_hand(block.adapter, normed), atol=1e-12, rtol=0)


def test_dropped_branches_still_have_houlsbys_adapter_of_zero() -> None:
    _, block = adapted(AdapterConfig("houlsby", 5, drop_path=0.0))
    block.drop_path1, block.drop_path2 = DropPath(1.0), DropPath(1.0)
    zero = torch.zeros(2, 7, 64, dtype=torch.float64)
    expected = TOKENS + adapter_by_hand(block.adapter_attn, zero) + adapter_by_hand(block.adapter, zero)
    torch.testing.assert_close(block.train()(TOKENS), expected, atol=1e-12, rtol=0)


def test_an_adapters_drop_path_is_its_own_and_the_same_in_every_block() -> None:
    model = apply_method(vit(drop_path_rate=0.3), AdapterConfig(drop_path=0.1))
    assert [model.get_submodule(f"blocks.{i}.adapter.drop_path").drop_prob for i in range(2)] == [0.1, 0.1]
    adapter: Any = model.get_submodule("blocks.1.adapter")
    adapter.drop_path = DropPath(1.0)
    assert adapter.eval()(TOKENS).any()
    assert not adapter.train()(TOKENS).any()


@torch.no_grad()
def test_an_adapters_dropout_stands_before_its_second_layer() -> None:
    adapter: Any = drawn(vit(), AdapterConfig(dropout=0.5, drop_path=0.0)).get_submodule("blocks.0.adapter")
    hidden = F.gelu(adapter.down.weight.sum(1) + adapter.down.bias)
    assert_dropout_acts(adapter, 64, ((adapter.scale[:, None] * adapter.up.weight).square() @ hidden.square()).sqrt())


@pytest.mark.parametrize(
    ("init", "bound", "std"), [("houlsby", 0.02, 0.0088), ("bert", 1.0, 0.02), ("lora", 0.125, 0.125 / 3**0.5)]
)
def test_adapters_start_as_said(init: str, bound: float, std: float) -> None:
    adapter: Any = apply_method(vit(), AdapterConfig(bottleneck=256, init=init)).get_submodule("blocks.0.adapter")
    assert adapter.down.weight.abs().max() <= bound
    assert adapter.down.weight.std().item() == pytest.approx(std, rel=0.05)
    assert adapter.up.weight.any() == (init != "lora")
    assert not adapter.up.bias.any()
    assert adapter.down.bias.any() == (init == "lora")
    assert (adapter.scale == 1).all()


def test_timm_s_intermediates_are_refused_where_they_are_others() -> None:
    with refused("a model with TOAST passes twice, and has no forward_intermediates"):
        toast().forward_intermediates(IMAGES)
    for deep in (True, False):
        model: Any = apply_method(vit(), VptConfig(deep=deep))
        for copied in (model, deepcopy(model)):
            with refused("a model with VPT has prompts among its tokens, and has no forward_intermediates; take"):
                copied.get_intermediate_layers(IMAGES)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}], ids=str)
def test_a_token_passes_its_neighbourhood_of_the_grid_and_prefixes_none(options: dict[str, Any]) -> None:
    block = drawn(vit(**options), ConvpassConfig(4, dropout=0.0)).get_submodule("blocks.0")
    convpass: Any = block.get_submodule("convpass_mlp")
    prefix, grid = convpass.prefix, [(i, j) for i in range(2) for j in range(3)]
    base = torch.randn(1, prefix + 6, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for index in range(prefix + 6):
        moved = base.clone()
        moved[0, index] += 1
        reached = (convpass(moved) - convpass(base)).abs().amax(-1)[0] > 1e-9
        near = [index == other for other in range(prefix)]
        row, column = grid[index - prefix] if index >= prefix else (9, 9)
        near += [abs(row - i) <= 1 and abs(column - j) <= 1 for i, j in grid]
        assert reached.tolist() == near


def test_convpass_of_an_image_and_of_a_class_token_is_the_formula() -> None:
    convpass: Any = drawn(vit(), ConvpassConfig(4, scale=3.0, dropout=0.0)).get_submodule("blocks.0.convpass_attn")
    x = torch.randn(2, 7, 64, dtype=torch.float64)
    hidden = convpass.down(x)
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    image = convpass.conv(hidden[:, 1:].mT.reshape(2, 4, 2, 3)).flatten(2).mT
    class_token = hidden[:, :1] @ convpass.conv.weight[:, :, 1, 1].T + convpass.conv.bias
    joined = torch.cat([class_token, image], dim=1)
    expected = 3 * convpass.up(joined * torch.sigmoid(1.702 * joined))
    torch.testing.assert_close(convpass(x), expected, atol=1e-12, rtol=0)
    with refused("method 'convpass' needs the tokens of a grid of 2 x 3, got 5"):
        convpass(x[:, :6])


def test_convpass_stands_beside_both_branches_with_their_norms_and_a_drop_path() -> None:
    _, block = adapted(ConvpassConfig(4), init_values=0.3)
    randomise(block.norm1)
    x = TOKENS
    y = x + block.ls1(block.attn(block.norm1(x))) + block.convpass_attn(block.norm1(x))
    expected = y + block.ls2(block.mlp(block.norm2(y))) + block.convpass_mlp(block.norm2(y))
    torch.testing.assert_close(block(x), expected, atol=1e-12, rtol=0)
    block.drop_path1, block.drop_path2 = DropPath(1.0), DropPath(1.0)
    assert torch.equal(block.train()(x), x)


def test_convpass_takes_the_grid_of_the_call() -> None:
    model = apply_method(vit(dynamic_img_size=True), ConvpassConfig())
    assert model(IMAGES.transpose(2, 3)).shape == (2, 3)
    assert model.get_submodule("blocks.1.convpass_mlp").grid == (3, 2)
    with refused("method 'convpass' needs all image tokens, and this model drops some in training"):
        apply_method(vit(patch_drop_rate=0.5), ConvpassConfig())


def toast(**options: Any) -> Any:
    model = drawn(vit(), ToastConfig(**options), std=0.3)
    qkv: Any = model.get_submodule("blocks.0.attn.qkv")
    qkv.bias.data.normal_(generator=torch.Generator().manual_seed(2))
    return model


def test_toast_without_feedback_has_the_values_bias_twice() -> None:
    model, plain = toast(), vit()
    for decoder in model.toast.decoders:
        decoder["out"].weight.data.zero_()
    for i in range(2):
        bias = model.get_parameter(f"blocks.{i}.attn.qkv.bias").detach().clone()
        bias[128:] *= 2
        plain.get_parameter(f"blocks.{i}.attn.qkv.bias").data.copy_(bias)
    plain.get_submodule("head").load_state_dict(model.head.state_dict())
    torch.testing.assert_close(model(IMAGES), plain(IMAGES), atol=1e-12, rtol=0)


def test_toast_feeds_back_from_the_top_and_selects_by_direction() -> None:
    model = toast()
    tokens = torch.randn(1, 7, 64, dtype=torch.float64)
    before = model.toast.feed_back(tokens)
    model.toast.prior.data *= 3
    torch.testing.assert_close(model.toast.feed_back(tokens), before)
    for name, index, changes in (("down", 1, [0, 1]), ("down", 0, [0]), ("out", 1, [1])):
        other = deepcopy(model.toast)
        other.decoders[index][name].weight.data += 1
        found = [i for i, (a, b) in enumerate(zip(other.feed_back(tokens), before, strict=True)) if not torch.equal(a, b)]
        assert found == changes
    assert not any(signal.any() for signal in model.toast.feed_back(-model.toast.prior.expand(1, 7, 64)))


def toast_pass(model: Any, added: list[Tensor]) -> Tensor:
    """Normed tokens of one pass, head by head, with what is added to the values of each block."""
    x = model.pos_drop(model._pos_embed(model.patch_embed(IMAGES)))
    for block, more in zip(model.blocks, added, strict=True):
        q, k, v = (block.norm1(x) @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(3, dim=-1)
        heads = zip(*(part.split(32, dim=-1) for part in (q, k, v + more)), strict=True)
        x = x + block.attn.proj(torch.cat([(q @ k.mT / 32**0.5).softmax(-1) @ v for q, k, v in heads], dim=-1))
        x = x + block.mlp(block.norm2(x))
    return model.norm(x)


def test_toast_lite_is_two_passes_of_its_formula() -> None:
    model = toast(lite_rank=4, train_transform=True)
    own = model.toast
    z = toast_pass(model, [torch.zeros(64, dtype=torch.float64)] * 2)
    cosine = z @ own.prior / (z.norm(dim=-1) * own.prior.norm())
    hidden, added = cosine.clamp(0, 1)[..., None] * z @ own.transform, []
    for block, decoder in zip(reversed(model.blocks), reversed(own.decoders), strict=True):
        down, out = (decoder[name].weight + decoder[name].lora_B @ decoder[name].lora_A / 4 for name in ("down", "out"))
        hidden = hidden @ down.T
        added.insert(0, hidden @ out.T @ block.attn.qkv.weight[128:].T + block.attn.qkv.bias[128:])
    torch.testing.assert_close(model(IMAGES), model.head(toast_pass(model, added)[:, 0]), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("options", "std"), [({}, 0.02), ({"decoder_std": 0.5}, 0.5)])
def test_toasts_decoders_start_as_said(options: dict[str, Any], std: float) -> None:
    model: Any = apply_method(vit(), ToastConfig(**options))
    for name in ("down", "out"):
        assert model.toast.decoders[0][name].weight.std().item() == pytest.approx(std, rel=0.05)
    assert torch.equal(model.toast.transform, torch.eye(64))


@pytest.mark.parametrize("options", [{}, {"lite_rank": 4, "train_transform": True}])
def test_toast_recomputes_its_blocks_with_what_was_fed_back(options: dict[str, Any]) -> None:
    model = toast(**options).train()
    gradients = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        model(IMAGES).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0])
    assert all(name.startswith(("toast.", "head.")) for name in gradients[0])


def test_toast_takes_tuned_decoders_of_the_authors(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    theirs = {"module.prompt": torch.full((64,), 2.0), "module.top_down_transform": torch.full((64, 64), 3.0)}
    for i in range(2):
        theirs |= {f"module.decoders.{i}.{name}.weight": torch.full((64, 64), 4.0 + i) for name in ("linear", "linear2")}
    torch.save({"state_dict": theirs}, tmp_path / "decoders.pth")
    model: Any = apply_method(vit(), ToastConfig(weights=str(tmp_path / "decoders.pth")))
    with refused("method 'toast' with {'weights': 'decoders.pth'} has not had its start; call initialise_method"):
        model.train()(IMAGES)
    with refused("method 'toast' starts from a first batch of training images, and there is none"):
        initialise_method(model, [])
    initialise_method(model, [IMAGES])
    model(IMAGES)
    assert (model.toast.prior == 2).all()
    assert (model.toast.transform == 3).all()
    assert (model.toast.decoders[1]["out"].weight == 5).all()
    torch.save({"prompt": theirs["module.prompt"]}, tmp_path / "half.pth")
    with refused(f"method.weights={tmp_path / 'half.pth'} has no transform of shape (64, 64)"):
        initialise_toast(model, ToastConfig(weights=str(tmp_path / "half.pth")), [IMAGES])
    model.toast.prior.data = -model.toast.prior.data.sign() * 0
    initialise_toast(model, ToastConfig(), [IMAGES])
    assert "random decoders" in caplog.text
    assert "selects no token" in caplog.text
