"""GIFT's mathematics against independent computations, and the counts of the paper."""

from copy import deepcopy
from dataclasses import astuple

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gift_vit.methods import GiftConfig, ParameterCount, adapter_state_dict, apply_method, count_parameters, merge_method
from gift_vit.methods.gift import GiftLinear, GiftPair
from tests.tolerance import TOLERANCE

D_IN, D_OUT, RANK = 11, 21, 3  # a fused layer has three slices of 7 rows
WHOLE = slice(0, D_OUT)
QUERY, KEY, VALUE = (slice(start, start + 7) for start in (0, 7, 14))
ROWS = {
    "whole": [WHOLE],
    "q": [QUERY],
    "k": [KEY],
    "v": [VALUE],
    "v_and_q": [VALUE, QUERY],
    "q_k_v": [QUERY, KEY, VALUE],
}
BIASES = {"plain": (False, False), "phi_bias": (True, False), "psi_bias": (False, True), "both_biases": (True, True)}

every_form = pytest.mark.parametrize(
    ("rows", "biases"),
    [pytest.param(rows, biases, id=f"{r}-{b}") for r, rows in ROWS.items() for b, biases in BIASES.items()],
)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal within the tolerance of ``actual``'s dtype."""
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected.to(actual.dtype), atol=tolerance["atol"], rtol=tolerance["rtol"])


def trained_pair(biases: tuple[bool, bool] = (False, False), d_in: int = D_IN, dtype: torch.dtype = torch.float64) -> GiftPair:
    """A pair whose four tensors are all away from their start."""
    pair = GiftPair(d_in, GiftConfig(rank=RANK, phi_bias=biases[0], psi_bias=biases[1]), torch.device("cpu")).to(dtype)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.normal_(std=0.3)
    return pair


def gift_linear(
    rows: list[slice], biases: tuple[bool, bool], dtype: torch.dtype = torch.float64, bias: bool = True
) -> tuple[GiftLinear, list[GiftPair]]:
    """A frozen layer with one trained pair per slice."""
    torch.manual_seed(0)
    linear = nn.Linear(D_IN, D_OUT, bias=bias, dtype=dtype).requires_grad_(False)
    pairs = [trained_pair(biases, dtype=dtype) for _ in rows]
    return GiftLinear(linear, list(zip(pairs, rows, strict=True))), pairs


def weight_form(layer: GiftLinear, pairs: list[GiftPair], rows: list[slice]) -> Tensor:
    """ω + Δω, Δω written out row by row as the paper defines it; differentiable in the pairs."""
    weight = list(layer.weight.unbind())
    for pair, part in zip(pairs, rows, strict=True):
        for index in range(part.start, part.stop):
            cluster = layer.weight[index] @ pair.phi
            if pair.phi_bias is not None:
                cluster = cluster + pair.phi_bias
            update = cluster @ pair.psi
            if pair.psi_bias is not None:
                update = update + pair.psi_bias
            weight[index] = layer.weight[index] + update
    return torch.stack(weight)


def set_pairs(model: nn.Module, seed: int = 3) -> None:
    """Give every tensor of the pairs values away from the start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.get_submodule("gift").parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_all_forms_are_covered() -> None:
    assert len(ROWS) * len(BIASES) == 24


@every_form
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_activation_form_is_weight_form(rows: list[slice], biases: tuple[bool, bool], bias: bool, dtype: torch.dtype) -> None:
    layer, pairs = gift_linear(rows, biases, dtype, bias)
    x = torch.randn(2, 5, D_IN, dtype=dtype)
    expected = F.linear(x, weight_form(layer, pairs, rows), layer.bias)
    assert not torch.allclose(expected, F.linear(x, layer.weight, layer.bias), atol=1e-2)
    assert_close(layer(x), expected)
    assert_close(layer(x), F.linear(x, layer.weight + layer.delta_weight(), layer.bias))
    assert_close(layer(x[0, 0]), expected[0, 0])


@every_form
def test_gradients_are_those_of_the_weight_form(rows: list[slice], biases: tuple[bool, bool]) -> None:
    layer, pairs = gift_linear(rows, biases)
    x = torch.randn(2, 5, D_IN, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 5, D_OUT, dtype=torch.float64)
    inputs = [x, *(parameter for pair in pairs for parameter in pair.parameters())]
    assert len(inputs) == 1 + len(rows) * (2 + sum(biases))
    gradients = torch.autograd.grad((layer(x) * direction).sum(), inputs)
    expected = torch.autograd.grad((F.linear(x, weight_form(layer, pairs, rows), layer.bias) * direction).sum(), inputs)
    for gradient, other in zip(gradients, expected, strict=True):
        assert other.abs().max() > 1e-3
        assert_close(gradient, other)


@pytest.mark.parametrize(("d_out", "rank"), [(21, 3), (7, 3), (2, 3)], ids=["tall", "wide", "fewer_rows_than_rank"])
def test_delta_weight_is_the_product_and_has_low_rank(d_out: int, rank: int) -> None:
    torch.manual_seed(0)
    weight, pair = torch.randn(d_out, D_IN, dtype=torch.float64), trained_pair()
    delta = pair.delta_weight(weight).detach().numpy()
    expected = weight.numpy() @ pair.phi.detach().numpy() @ pair.psi.detach().numpy()
    np.testing.assert_allclose(delta, expected, rtol=1e-12, atol=1e-12)
    assert np.linalg.matrix_rank(delta) == min(d_out, rank)
    np.testing.assert_allclose(pair.clusters(weight).detach().numpy(), weight.numpy() @ pair.phi.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("biases", BIASES.values(), ids=BIASES)
def test_delta_weight_with_biases(biases: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    weight, pair = torch.randn(D_OUT, D_IN, dtype=torch.float64), trained_pair(biases)
    phi, psi, phi_bias, psi_bias = (
        0 if tensor is None else tensor.detach().numpy() for tensor in (pair.phi, pair.psi, pair.phi_bias, pair.psi_bias)
    )
    expected = (weight.numpy() @ phi + phi_bias) @ psi + psi_bias
    np.testing.assert_allclose(pair.delta_weight(weight).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_clusters_are_identified_up_to_an_invertible_matrix() -> None:
    torch.manual_seed(0)
    weight, pair = torch.randn(D_OUT, D_IN, dtype=torch.float64), trained_pair()
    before, clusters = pair.delta_weight(weight).detach(), pair.clusters(weight).detach()
    mixing = torch.randn(RANK, RANK, dtype=torch.float64) + 3 * torch.eye(RANK, dtype=torch.float64)
    with torch.no_grad():
        pair.phi.copy_(pair.phi @ mixing)
        pair.psi.copy_(torch.linalg.solve(mixing, pair.psi))
    assert_close(pair.delta_weight(weight), before)
    assert not torch.allclose(pair.clusters(weight), clusters, atol=1e-2)


@pytest.mark.parametrize(("target", "index"), [("attn.q", 0), ("attn.k", 1), ("attn.v", 2)])
@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
def test_a_slice_changes_its_own_rows_only(tiny_vit: nn.Module, target: str, index: int, biases: bool) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_vit.state_dict().items()}
    apply_method(tiny_vit, GiftConfig(rank=4, target_modules=[target], blocks=[0, 3], phi_bias=biases, psi_bias=biases))
    set_pairs(tiny_vit)
    after = merge_method(tiny_vit).state_dict()
    mine = torch.zeros(192, dtype=torch.bool)
    mine[index * 64 : (index + 1) * 64] = True
    adapted = {"blocks.0.attn.qkv.weight", "blocks.3.attn.qkv.weight"}
    for name in adapted:
        assert torch.equal(after[name][~mine], before[name][~mine])
        assert (after[name] != before[name])[mine].any(dim=1).all()
    assert {name for name in before if not torch.equal(before[name], after[name])} == adapted


def test_merged_weight_is_the_paper_s_product_in_every_block(tiny_vit: nn.Module) -> None:
    before = {name: tensor.clone().numpy() for name, tensor in tiny_vit.state_dict().items()}
    apply_method(tiny_vit, GiftConfig(rank=4, target_modules=["attn.proj", "mlp.fc2"]))
    set_pairs(tiny_vit)
    pairs = {name: tensor.clone().numpy() for name, tensor in adapter_state_dict(tiny_vit).items()}
    after = merge_method(tiny_vit).state_dict()
    for block in range(6):
        for target in ("attn.proj", "mlp.fc2"):
            weight = before[f"blocks.{block}.{target}.weight"]
            phi, psi = pairs[f"gift.{target}.phi"], pairs[f"gift.{target}.psi"]
            expected = weight @ (np.eye(weight.shape[1]) + phi @ psi)
            np.testing.assert_allclose(after[f"blocks.{block}.{target}.weight"].numpy(), expected, rtol=1e-5, atol=1e-6)
            assert np.array_equal(after[f"blocks.{block}.{target}.bias"].numpy(), before[f"blocks.{block}.{target}.bias"])


def test_sharing_equals_equal_pairs_per_target(tiny_vit: nn.Module) -> None:
    targets = ["attn.proj", "attn.q", "mlp.fc1"]
    separate = apply_method(deepcopy(tiny_vit), GiftConfig(rank=4, target_modules=targets))
    shared = apply_method(tiny_vit, GiftConfig(rank=4, target_modules=targets, share=True))
    set_pairs(shared)
    with torch.no_grad():
        for name, tensor in adapter_state_dict(separate).items():
            if name.startswith("gift."):
                tensor.copy_(shared.get_parameter(f"gift.shared.{name.rpartition('.')[2]}"))
    images = torch.randn(2, 3, 160, 160)
    assert torch.equal(separate(images), shared(images))
    assert count_parameters(separate).adapter == 3 * count_parameters(shared).adapter == 3 * 2 * 64 * 4


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (GiftConfig(rank=4), {"gift.attn.proj.phi": (64, 4), "gift.attn.proj.psi": (4, 64)}),
        (GiftConfig(rank=4, target_modules=["mlp.fc2"]), {"gift.mlp.fc2.phi": (192, 4), "gift.mlp.fc2.psi": (4, 192)}),
        (
            GiftConfig(rank=4, target_modules=["attn.q"], share=True, phi_bias=True, psi_bias=True),
            {
                "gift.shared.phi": (64, 4),
                "gift.shared.psi": (4, 64),
                "gift.shared.phi_bias": (4,),
                "gift.shared.psi_bias": (64,),
            },
        ),
    ],
    ids=["default", "fc2", "share_biases"],
)
def test_names_and_shapes_of_the_adapter(tiny_vit: nn.Module, config: GiftConfig, shapes: dict[str, tuple[int, ...]]) -> None:
    state = adapter_state_dict(apply_method(tiny_vit, config))
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes | {
        "head.weight": (10, 64),
        "head.bias": (10,),
    }


COUNTS = {
    "paper": (GiftConfig(), 24_576),
    "rank_96": (GiftConfig(rank=96), 147_456),
    "fc1": (GiftConfig(target_modules=["mlp.fc1"]), 2 * 768 * 16),
    "fc2": (GiftConfig(target_modules=["mlp.fc2"]), 2 * 3072 * 16),
    "qkv": (GiftConfig(target_modules=["attn.qkv"]), 2 * 768 * 16),
    "q_k_v": (GiftConfig(target_modules=["attn.q", "attn.k", "attn.v"]), 3 * 2 * 768 * 16),
    "share": (GiftConfig(target_modules=["attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1"], share=True), 24_576),
    "one_block": (GiftConfig(blocks=[11]), 24_576),
    "biases": (GiftConfig(phi_bias=True, psi_bias=True), 24_576 + 16 + 768),
    "all": (GiftConfig(target_modules=["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]), 3 * 24_576 + 98_304),
}


@pytest.mark.parametrize(("config", "adapter"), COUNTS.values(), ids=COUNTS)
def test_parameter_counts_on_vit_b16(config: GiftConfig, adapter: int) -> None:
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224.augreg_in21k", num_classes=200)
    count = count_parameters(apply_method(vit, config))
    assert count == ParameterCount(adapter=adapter, head=153_800, backbone=85_798_656)
    assert astuple(count) == (adapter, 153_800, 85_798_656)
    assert {parameter.device.type for parameter in vit.parameters()} == {"meta"}


@pytest.mark.parametrize(("adapter", "percent"), [(24_576, 0.0286), (147_456, 0.1719)], ids=["r16", "r96"])
def test_percentages_of_the_paper(adapter: int, percent: float) -> None:
    assert round(ParameterCount(adapter, head=153_800, backbone=85_798_656).percent, 4) == percent


def test_initial_values() -> None:
    d_in, rank = 768, 96
    torch.manual_seed(0)
    pair = GiftPair(d_in, GiftConfig(rank=rank, phi_bias=True, psi_bias=True), torch.device("cpu"))
    bound = 1 / np.sqrt(d_in)
    assert pair.phi_bias is not None
    assert pair.psi_bias is not None
    for tensor in (pair.phi, pair.phi_bias):
        assert tensor.abs().max() <= bound
        assert tensor.abs().max() > 0.95 * bound
    assert pair.phi.std().item() == pytest.approx(1 / np.sqrt(3 * d_in), rel=0.01)
    assert pair.phi.mean().item() == pytest.approx(0, abs=5 * bound / np.sqrt(3 * d_in * rank))
    assert not pair.psi.any()
    assert not pair.psi_bias.any()


def test_phi_is_drawn_as_a_linear_layer_draws_its_weight() -> None:
    torch.manual_seed(0)
    pair = GiftPair(48, GiftConfig(rank=5), torch.device("cpu"))
    torch.manual_seed(0)
    assert torch.equal(pair.phi, nn.Linear(48, 5, bias=False).weight.T)


def test_phi_waits_one_step_for_psi(tiny_vit: nn.Module) -> None:
    apply_method(tiny_vit, GiftConfig(rank=4, target_modules=["attn.proj", "attn.v"]))
    optimizer = torch.optim.AdamW([p for p in tiny_vit.parameters() if p.requires_grad], lr=1e-3)
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    for step in range(2):
        optimizer.zero_grad()
        F.cross_entropy(tiny_vit(images), torch.tensor([0, 1])).backward()
        for target in ("attn.proj", "attn.v"):
            phi, psi = (tiny_vit.get_parameter(f"gift.{target}.{name}").grad for name in ("phi", "psi"))
            assert phi is not None
            assert psi is not None
            assert psi.any()
            assert phi.any() == (step == 1)
        optimizer.step()


class Shapes(TorchDispatchMode):
    """Records the shape of every tensor that is computed, other than views of a frozen weight."""

    def __init__(self, frozen: Tensor) -> None:
        super().__init__()
        self.frozen = frozen.untyped_storage().data_ptr()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for output in outputs if isinstance(outputs, (tuple, list)) else [outputs]:
            if isinstance(output, Tensor) and output.untyped_storage().data_ptr() != self.frozen:
                self.seen.add(tuple(output.shape))
        return outputs


@every_form
def test_no_update_matrix_is_formed_in_training(rows: list[slice], biases: tuple[bool, bool]) -> None:
    layer, pairs = gift_linear(rows, biases, torch.float32)
    x = torch.randn(1, 5, D_IN, requires_grad=True)
    with Shapes(layer.weight) as shapes:
        layer(x).sum().backward()
    heights = {D_OUT, *(part.stop - part.start for part in rows)}
    assert (1, 5, D_OUT) in shapes.seen
    assert (D_IN, RANK) in shapes.seen  # the gradient of phi: the backward pass was watched
    assert pairs[0].phi.grad is not None
    assert not shapes.seen & {shape for height in heights for shape in ((height, D_IN), (D_IN, height))}


def test_the_watch_for_update_matrices_sees_one() -> None:
    layer, _ = gift_linear([WHOLE], (False, False), torch.float32)
    with Shapes(layer.weight) as shapes:
        F.linear(torch.randn(5, D_IN), layer.weight + layer.delta_weight()).sum().backward()
    assert (D_OUT, D_IN) in shapes.seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("adapter_too", [True, False], ids=["all_cast", "fp32_adapter"])
def test_half_precision_backbones(tiny_vit: nn.Module, dtype: torch.dtype, adapter_too: bool) -> None:
    config = GiftConfig(rank=4, target_modules=["attn.proj", "attn.v", "mlp.fc1"], phi_bias=True, psi_bias=True)
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    reference = apply_method(deepcopy(tiny_vit), config)
    set_pairs(reference)
    model = apply_method(tiny_vit if adapter_too else tiny_vit.to(dtype), config)
    set_pairs(model)
    if adapter_too:
        model.to(dtype)
    logits = model(images.to(dtype))
    assert logits.dtype == dtype
    assert_close(logits.bfloat16(), reference(images))
    logits.sum().backward()
    for parameter in model.get_submodule("gift").parameters():
        assert parameter.dtype == (dtype if adapter_too else torch.float32)
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    merged = merge_method(model)(images.to(dtype))
    assert_close(merged.bfloat16(), logits)
