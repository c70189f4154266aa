"""RepAdapter, APLA and FacT, which change linear layers, against their formulas computed another way."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers.mlp import GluMlp, SwiGLU
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.methods import apply_method, merge_method
from gift_vit.methods.config import AplaConfig, FactConfig, RepAdapterConfig
from gift_vit.methods.fact import Fact
from tests.methods.checks import assert_dropout_acts, drawn, randomise, refused

X = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_repadapter_is_a_grouped_convolution_scaled_with_its_bias(tiny_vit: nn.Module) -> None:
    plain = deepcopy(tiny_vit).double().get_submodule("blocks.1.mlp.fc1")
    model = drawn(tiny_vit, RepAdapterConfig(scale=3.0))
    a, a_bias, b, b_bias = (p.detach() for p in model.get_submodule("blocks.1.mlp.fc1.repadapter").parameters())
    hidden = X @ a.T + a_bias
    convolved = F.conv1d(hidden.mT, b.unsqueeze(-1), b_bias, groups=2).mT
    torch.testing.assert_close(model.get_submodule("blocks.1.mlp.fc1")(X), plain(X + 3 * convolved), atol=1e-12, rtol=0)
    up = model.get_submodule("blocks.1.mlp.fc1.repadapter.up")
    first = torch.cat([hidden[..., :4], torch.zeros_like(hidden[..., 4:])], dim=-1)
    torch.testing.assert_close(up(first)[..., 32:], b_bias[32:].expand(2, 5, 32))


def test_repadapter_leaves_layer_scale_alone_and_needs_a_bias_to_merge() -> None:
    scaled = timm.create_model("test_vit", num_classes=3, init_values=0.1).eval()
    images = torch.randn(1, 3, 160, 160)
    expected = scaled(images)
    assert torch.equal(apply_method(scaled, RepAdapterConfig())(images), expected)
    unbiased = apply_method(timm.create_model("test_vit", qkv_bias=False), RepAdapterConfig())
    with refused("method 'repadapter' cannot be merged into this backbone: blocks.0.attn.qkv has no bias"):
        merge_method(unbiased)


def test_apla_trains_rows_as_the_whole_layer_would(tiny_vit: nn.Module) -> None:
    whole: Any = deepcopy(tiny_vit).double().get_submodule("blocks.2.attn.proj")
    layer: Any = apply_method(tiny_vit, AplaConfig(rank=5)).double().get_submodule("blocks.2.attn.proj")
    seen = []
    for one in (whole, layer):
        x = X.clone().requires_grad_(True)
        one(x).square().sum().backward()
        seen.append(x.grad)
    torch.testing.assert_close(seen[1], seen[0])
    torch.testing.assert_close(layer.apla_weight.grad, whole.weight.grad[layer.apla_rows])
    torch.testing.assert_close(layer.apla_bias.grad, whole.bias.grad[layer.apla_rows])
    assert layer.weight.grad is None


def test_apla_draws_distinct_rows_by_its_own_seed(tiny_vit: nn.Module) -> None:
    def rows(seed: int) -> list[list[int]]:
        torch.manual_seed(seed + 10)
        model = apply_method(deepcopy(tiny_vit), AplaConfig(rank=60, seed=seed))
        return [model.get_buffer(f"blocks.{i}.attn.proj.apla_rows").tolist() for i in range(6)]

    first = rows(0)
    assert all(len(set(own)) == 60 for own in first)
    assert first[0] != first[1]
    assert rows(0) == first != rows(1)
    with refused("method.rank=65: expected 1 to 64, the output channels of blocks.0.attn.proj, or null"):
        apply_method(tiny_vit, AplaConfig(rank=65))


@pytest.mark.parametrize("ratio", [3, 4])
@pytest.mark.parametrize("order", ["reference", "paper"])
def test_fact_tk_orders_the_mlps_entries_as_said(ratio: int, order: str) -> None:
    r = 4
    fact = Fact(8, 2, ratio, FactConfig("tk", r, order=order), torch.device("cpu"))
    randomise(fact)
    core, p = fact.core.detach().numpy(), fact.p.detach().numpy().reshape(2, 4 + 2 * ratio, r)
    for target, rows in (("mlp.fc1", slice(4, 4 + ratio)), ("mlp.fc2", slice(4 + ratio, None))):
        tensor = np.einsum("ijk,ck->ijc", core, p[1, rows])
        expected = np.empty((ratio, r, r), dtype=np.float32)
        for a, i, b in np.ndindex(ratio, r, r):
            if order == "paper":
                expected[a, i, b] = tensor[i, b, a]
            elif target == "mlp.fc1":
                expected[a, i, b] = tensor[i, (a * r + b) // ratio, (a * r + b) % ratio]
            else:
                expected[a, i, b] = tensor[b, (a * r + i) // ratio, (a * r + i) % ratio]
        np.testing.assert_allclose(fact.sigmas(torch.tensor([1]), target).detach().numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(
        fact.sigmas(torch.tensor([0]), "attn.proj")[0].detach(), np.einsum("ijk,k->ij", core, p[0, 3]), atol=1e-6
    )


def test_fact_merges_the_pieces_of_the_stacked_update(tiny_vit: nn.Module) -> None:
    plain = deepcopy(tiny_vit).double()
    model = drawn(tiny_vit, FactConfig("tt", 4, scale=2.0))
    u, v, sigma = (model.get_parameter(f"fact.{name}").detach() for name in ("u", "v", "sigma"))
    update = 2 * torch.einsum("dr,lmrs,es->lmed", u, sigma, v)  # of W: output channels first
    merge_method(model)

    def change(block: int, name: str) -> Tensor:
        weight = f"blocks.{block}.{name}.weight"
        return (model.get_parameter(weight) - plain.get_parameter(weight)).detach()

    for block in (0, 5):
        torch.testing.assert_close(change(block, "attn.qkv"), update[block, :3].flatten(0, 1))
        torch.testing.assert_close(change(block, "attn.proj"), update[block, 3])
        torch.testing.assert_close(change(block, "mlp.fc1"), update[block, 4:7].flatten(0, 1))
        torch.testing.assert_close(change(block, "mlp.fc2"), torch.cat(list(update[block, 7:]), dim=1))


@torch.no_grad()
def test_repadapters_dropout_stands_between_its_layers(tiny_vit: nn.Module) -> None:
    layer: Any = drawn(tiny_vit, RepAdapterConfig(dropout=0.5)).get_submodule("blocks.1.mlp.fc1")
    hidden = layer.repadapter.down.weight.sum(1) + layer.repadapter.down.bias
    assert_dropout_acts(layer, 64, ((layer.weight @ layer.repadapter.up.dense()).square() @ hidden.square()).sqrt())


@torch.no_grad()
@pytest.mark.parametrize(("target", "width", "pieces"), [("fc1", 64, slice(4, 7)), ("fc2", 192, slice(7, 10))])
def test_facts_dropout_is_drawn_for_each_piece_of_the_output(
    tiny_vit: nn.Module, target: str, width: int, pieces: slice
) -> None:
    model: Any = drawn(tiny_vit, FactConfig("tt", 4, dropout=0.5))
    hidden = torch.einsum("dr,mrs->ms", model.fact.u, model.fact.sigma[1, pieces])
    hidden = hidden.sum(0, keepdim=True) if target == "fc2" else hidden
    spread = (hidden.square() @ model.fact.v.square().T).sqrt().flatten()
    assert_dropout_acts(model.get_submodule(f"blocks.1.mlp.{target}"), width, spread)


@pytest.mark.parametrize(
    ("cfg", "name", "bound"),
    [
        (RepAdapterConfig(), "blocks.1.mlp.fc1.repadapter.down.weight", (6 / (64 + 8)) ** 0.5),
        (FactConfig("tk", 16), "fact.core", (6 / (16**2 + 16**2)) ** 0.5),
        (FactConfig("tk", 16), "fact.p", (6 / (16 + 60)) ** 0.5),
        (FactConfig("tk", 16), "fact.u", 1 / 8),
    ],
)
def test_factors_start_uniform_between_their_bounds(tiny_vit: nn.Module, cfg: Any, name: str, bound: float) -> None:
    drawn_at_first = apply_method(tiny_vit, cfg).get_parameter(name)
    assert 0.98 * bound < drawn_at_first.abs().max() <= bound
    assert drawn_at_first.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlp_layer": SwiGLU}, "method 'fact' needs MLPs of two layers, fc1 and fc2, and not blocks.0.mlp, a gated SwiGLU"),
        ({"mlp_layer": GluMlp}, "method 'fact' needs MLPs of two layers, fc1 and fc2, and not blocks.0.mlp, a gated GluMlp"),
        ({"mlp_ratio": 2.5}, "method 'fact' needs MLPs that are a whole number of times as wide as the tokens (64), not 2.5"),
    ],
)
def test_fact_refuses_other_mlps(options: dict[str, Any], message: str) -> None:
    with refused(message):
        apply_method(timm.create_model("test_vit", depth=1, **options), FactConfig())
