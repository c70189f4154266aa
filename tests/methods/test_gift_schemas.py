"""GIFT's schemas against numpy written out by hand, their symmetries, and the parameter counts of the paper's ablation."""

import math
from typing import Any

import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.methods import GiftConfig, adapter_state_dict, apply_method, count_parameters
from gift_vit.methods.gift import GiftLinear, GiftPair
from gift_vit.methods.gift_config import SCHEMAS
from gift_vit.methods.gift_schemas import PacaAttention
from gift_vit.paths import conf_dir
from tests.methods.gift_by_hand import ByHand, randomise
from tests.methods.method_examples import yaml_config
from tests.methods.test_gift import Shapes
from tests.tolerance import TOLERANCE

D_IN, ROWS, RANK = 11, 7, 4
FORMS: dict[str, dict[str, Any]] = {
    "linear": {"schema": "linear"},
    "gelu": {"schema": "gelu"},
    "sigmoid": {"schema": "sigmoid", "phi_bias": True},
    "transformer": {"schema": "transformer"},
    "transformer_heads": {"schema": "transformer", "num_heads": 2, "mlp_ratio": 1.5, "num_blocks": 2},
    "transformer_no_norm": {"schema": "transformer", "norm": "none", "psi_bias": True},
    "paca": {"schema": "paca_transformer", "num_clusters": 5},
    "paca_hsigmoid": {"schema": "paca_transformer", "num_clusters": 5, "cluster_activation": "hsigmoid", "num_blocks": 2},
    "paca_softmax": {"schema": "paca_transformer", "num_clusters": 3, "cluster_activation": "softmax", "num_heads": 4},
    "paca_attn": {"schema": "paca_attn", "num_clusters": 5, "num_heads": 2, "norm": "none"},
    "mlp": {"schema": "mlp", "mlp_ratio": 3},
    "mlp_mixer": {"schema": "mlp_mixer", "num_mixed_tokens": 3, "channel_ratio": 0.5},
    "positions": {"schema": "paca_transformer", "num_clusters": 2, "pos_embed": "learned"},
}
every_form = pytest.mark.parametrize("form", FORMS)
every_schema = pytest.mark.parametrize("schema", SCHEMAS)


def assert_close(actual: Tensor, expected: Tensor | NDArray[Any]) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, torch.as_tensor(expected), atol=tolerance["atol"], rtol=tolerance["rtol"])


def trained_pair(form: str, rows: int = ROWS, seed: int = 5) -> GiftPair:
    """A pair with the form's schema for layers of some rows, every tensor away from its start."""
    cfg = GiftConfig(rank=RANK, **FORMS[form])
    pair = GiftPair(D_IN, cfg, torch.device("cpu"))
    pair.draw_schema(cfg, rows)
    randomise(pair, seed=seed)
    return pair.double()


def some_weights(count: int = 3) -> Tensor:
    return torch.randn(count, ROWS, D_IN, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def by_hand(pair: GiftPair, form: str) -> ByHand:
    return ByHand(GiftConfig(rank=RANK, **FORMS[form]), pair.state_dict())


def test_every_schema_has_a_form_and_a_yaml() -> None:
    assert {options["schema"] for options in FORMS.values()} == set(SCHEMAS)
    files = {file.stem for file in (conf_dir() / "method").glob("gift*.yaml")}
    assert files == {"gift", "gift_v1", *(f"gift_{name}" for name in SCHEMAS if name not in {"linear", "paca_transformer"})}
    schemas = {name: yaml_config(name).schema for name in files}
    assert schemas.pop("gift") == "linear"
    assert schemas.pop("gift_v1") == "paca_transformer"
    assert all(name == f"gift_{schema}" for name, schema in schemas.items())


@every_form
def test_schemas_are_their_formulas(form: str) -> None:
    pair, weights = trained_pair(form), some_weights()
    hand = by_hand(pair, form)
    for weight, generated in zip(weights, pair.generate(list(weights)), strict=True):
        assert_close(generated.detach(), hand.generated(weight.numpy()))
        assert_close(pair.delta_weight(weight).detach(), hand.delta_weight(weight.numpy()))
        if form != "linear":
            assert not torch.allclose(generated, pair.clusters(weight), atol=1e-2)


@every_form
def test_one_call_for_all_layers_equals_one_call_per_layer(form: str) -> None:
    pair, weights = trained_pair(form), some_weights()
    alone = torch.stack([pair.generate([weight])[0] for weight in weights])
    assert_close(pair.generate(list(weights)), alone)
    assert pair.generate(list(weights)).shape == (3, ROWS, RANK)


def trained_layer(form: str, parts: list[slice]) -> GiftLinear:
    """A frozen layer of three times ``ROWS`` rows with one trained pair per part; a third of its height is not its width."""
    torch.manual_seed(0)
    linear = nn.Linear(D_IN, 3 * ROWS, dtype=torch.float64).requires_grad_(False)
    pairs = [trained_pair(form, part.stop - part.start, seed) for seed, part in enumerate(parts)]
    return GiftLinear(linear, list(zip(pairs, parts, strict=True)))


PARTS = {"whole": [slice(0, 21)], "k": [slice(7, 14)], "v_and_q": [slice(14, 21), slice(0, 7)]}
every_layer = pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)


@every_layer
@every_form
def test_layers_compute_the_weight_form(form: str, parts: list[slice]) -> None:
    layer = trained_layer(form, parts)
    weight = layer.weight.numpy().copy()
    for pair, rows in layer.parts:
        weight[rows] = weight[rows] + by_hand(pair, form).delta_weight(weight[rows])
    x = torch.randn(2, 5, D_IN, dtype=torch.float64)
    expected = F.linear(x, torch.from_numpy(weight), layer.bias)
    assert not torch.allclose(expected, F.linear(x, layer.weight, layer.bias), atol=1e-2)
    assert_close(layer(x), expected)
    assert_close(F.linear(x, layer.weight + layer.delta_weight(), layer.bias), expected)
    assert_close(layer(x[0, 0]), expected[0, 0])
    assert_close(layer.float()(x.float()), expected.float())


@every_layer
@every_form
def test_gradients_are_those_of_the_weight_form(form: str, parts: list[slice]) -> None:
    layer = trained_layer(form, parts)
    x = torch.randn(2, 5, D_IN, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 5, 3 * ROWS, dtype=torch.float64)
    inputs = [x, *(parameter for pair, _ in layer.parts for parameter in pair.parameters())]
    gradients = torch.autograd.grad((layer(x) * direction).sum(), inputs)
    expected = torch.autograd.grad((F.linear(x, layer.weight + layer.delta_weight()) * direction).sum(), inputs)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-11, rtol=1e-11)


@every_layer
@every_form
def test_no_update_matrix_is_formed_in_training(form: str, parts: list[slice]) -> None:
    layer = trained_layer(form, parts)
    x = torch.randn(1, 5, D_IN, dtype=torch.float64, requires_grad=True)
    with Shapes(layer.weight) as shapes:
        layer(x).sum().backward()
    assert (D_IN, RANK) in shapes.seen, "the backward pass was watched"
    assert not shapes.seen & {shape for rows in (ROWS, 3 * ROWS) for shape in ((rows, D_IN), (D_IN, rows))}


@every_form
def test_permuting_rows_permutes_the_update_except_where_rows_have_a_place(form: str) -> None:
    pair, weight = trained_pair(form), some_weights(1)[0]
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    moved, expected = pair.delta_weight(weight[order]), pair.delta_weight(weight)[order]
    if form in {"mlp_mixer", "positions"}:
        assert not torch.allclose(moved, expected, atol=1e-2)
    else:
        assert_close(moved, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("num_heads", [1, 2])
def test_fused_attention_equals_explicit_softmax(num_heads: int, dtype: torch.dtype) -> None:
    cfg = GiftConfig(rank=8, schema="transformer", num_heads=num_heads)
    pair = GiftPair(D_IN, cfg, torch.device("cpu"))
    pair.draw_schema(cfg, 30)
    randomise(pair, seed=num_heads)
    weight = torch.randn(30, D_IN, generator=torch.Generator().manual_seed(1), dtype=dtype)
    fused = pair.to(dtype).generate([weight])
    pair.get_submodule("schema.blocks.0.attn").fused_attn = False  # pyright: ignore[reportArgumentType]
    assert_close(pair.generate([weight]), fused.detach())


def test_paca_stands_alone() -> None:
    attention = PacaAttention(RANK)
    assert attention(torch.randn(2, ROWS, RANK)).shape == (2, ROWS, RANK)
    assert sum(parameter.numel() for parameter in attention.parameters()) == 4 * (RANK**2 + RANK) + 64 * (RANK + 1)


@pytest.mark.parametrize("activation", ["sigmoid", "hsigmoid", "softmax"])
def test_assignments_and_centres(activation: str) -> None:
    attention = PacaAttention(RANK, num_clusters=6, cluster_activation=activation).double()
    randomise(attention, std=2)
    tokens = torch.randn(2, ROWS, RANK, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assignment = attention.assignment(tokens)
    assert assignment.shape == (2, 6, ROWS)
    if activation == "softmax":
        assert_close(assignment.sum(-1), torch.ones(2, 6, dtype=torch.float64))
        assert not torch.allclose(assignment.sum(-2), torch.ones(2, ROWS, dtype=torch.float64), atol=1e-2)
    else:
        assert (assignment >= 0).all()
        assert (assignment <= 1 / ROWS).all()
        assert (assignment == 0).any() == (assignment == 1 / ROWS).any() == (activation == "hsigmoid")
    assert assignment.std(dim=-2).min() > 1e-3, "clusters differ"
    assert_close(attention.centres(tokens).norm(dim=-1), torch.ones(2, 6, dtype=torch.float64))


def test_with_one_cluster_all_tokens_get_the_same() -> None:
    attention = PacaAttention(RANK, num_clusters=1).double()
    out = attention(torch.randn(2, ROWS, RANK, dtype=torch.float64))
    assert_close(out, out[:, :1].expand_as(out))
    assert not torch.allclose(out[0, 0], out[1, 0], atol=1e-3)


# schema: parameters of the block alone, in total and in percent of ViT-B/16, at rank 16 and at rank 96
COUNTS = {
    "linear": ((0, 24_576, 0.0286), (0, 147_456, 0.1719)),
    "gelu": ((0, 24_576, 0.0286), (0, 147_456, 0.1719)),
    "sigmoid": ((0, 24_576, 0.0286), (0, 147_456, 0.1719)),
    "mlp": ((1_072, 25_648, 0.0299), (37_152, 184_608, 0.2152)),
    "paca_attn": ((2_176, 26_752, 0.0312), (43_456, 190_912, 0.2225)),
    "transformer": ((2_160, 26_736, 0.0312), (74_400, 221_856, 0.2586)),
    "paca_transformer": ((3_248, 27_824, 0.0324), (80_608, 228_064, 0.2658)),
    "mlp_mixer": ((100_208, 124_784, 0.1454), (136_288, 283_744, 0.3307)),
}


@pytest.mark.parametrize("rank", [16, 96])
@every_schema
def test_parameter_counts_on_vit_b16(schema: str, rank: int) -> None:
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224", num_classes=10)
    apply_method(vit, GiftConfig(rank=rank, schema=schema))
    block = sum(parameter.numel() for parameter in vit.get_submodule("gift.attn.proj.schema").parameters())
    count = count_parameters(vit)
    assert (block, count.adapter, round(count.percent, 4)) == COUNTS[schema][rank == 96]
    assert count.backbone == 85_798_656
    assert {parameter.device.type for parameter in vit.parameters()} == {"meta"}


def test_heads_change_no_count_and_the_first_version_has_96_clusters(tiny_vit: nn.Module) -> None:
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224", num_classes=10)
    assert count_parameters(apply_method(vit, yaml_config("gift_v1"))).adapter == 27_824 + 32 * 17
    apply_method(tiny_vit, GiftConfig(schema="transformer", num_heads=4))
    assert count_parameters(tiny_vit).adapter == 2 * 64 * 16 + 2_160


def test_equal_seeds_give_equal_phi_whatever_the_schema() -> None:
    drawn: dict[str, list[Tensor]] = {}
    for schema in SCHEMAS:
        vit = timm.create_model("test_vit", depth=1)
        torch.manual_seed(3)
        apply_method(vit, GiftConfig(rank=4, target_modules=["attn.proj", "attn.q", "mlp.fc2"], schema=schema, phi_bias=True))
        drawn[schema] = [tensor for name, tensor in adapter_state_dict(vit).items() if name.endswith((".phi", ".phi_bias"))]
    assert len(drawn) == 8
    for tensors in drawn.values():
        assert len(tensors) == 6
        assert all(torch.equal(own, linear) for own, linear in zip(tensors, drawn["linear"], strict=True))


def test_inner_layers_start_as_pytorch_draws_them_and_positions_at_zero(tiny_vit: nn.Module) -> None:
    apply_method(tiny_vit, GiftConfig(schema="paca_transformer", num_clusters=200, pos_embed="learned"))
    schema = tiny_vit.get_submodule("gift.attn.proj.schema")
    assert not schema.get_parameter("pos_embed").any()
    layers = {name: layer for name, layer in schema.named_modules() if isinstance(layer, nn.Linear)}
    assert {name.removeprefix("blocks.0.") for name in layers} == {
        *(f"attn.{part}" for part in ("assign", "q", "k", "v", "proj")),
        "mlp.fc1",
        "mlp.fc2",
    }
    for layer in layers.values():
        bound = 1 / math.sqrt(layer.in_features)
        for tensor in (layer.weight, layer.bias):
            assert 0.5 * bound < tensor.abs().max() <= bound
