"""GIFT's schemas against numpy written out by hand, on layers, on slices and shared targets of a model; what is refused."""

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gift_vit.engine.config import OptimConfig
from gift_vit.engine.state import build_optimizer
from gift_vit.methods import GiftConfig, adapter_state_dict, apply_method, merge_method
from gift_vit.methods.config import SCHEMAS
from gift_vit.methods.gift import GiftLinear, GiftPair
from tests.methods.checks import assert_close, randomise, refused
from tests.methods.gift_by_hand import ByHand

D_IN, ROWS, RANK = 11, 7, 4
FORMS: dict[str, dict[str, Any]] = {
    "linear": {"schema": "linear"},
    "linear_phi_bias": {"schema": "linear", "phi_bias": True},
    "linear_biases": {"schema": "linear", "phi_bias": True, "psi_bias": True},
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
assert {options["schema"] for options in FORMS.values()} == set(SCHEMAS)
every_form = pytest.mark.parametrize("form", FORMS)


def trained_pair(form: str, rows: int = ROWS, seed: int = 5) -> GiftPair:
    """A pair with the form's schema for layers of some rows, every tensor away from its start."""
    cfg = GiftConfig(rank=RANK, **FORMS[form])
    pair = GiftPair(D_IN, cfg, torch.device("cpu"))
    pair.draw_schema(cfg, rows)
    randomise(pair, seed=seed)
    for name, parameter in pair.named_parameters():
        if "assign" in name:
            parameter.data *= 5  # hsigmoid is cut off at both ends
    return pair.double()


def some_weights(count: int = 3) -> Tensor:
    return torch.randn(count, ROWS, D_IN, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def by_hand(pair: GiftPair, form: str) -> ByHand:
    return ByHand(GiftConfig(rank=RANK, **FORMS[form]), pair.state_dict())


@every_form
def test_schemas_are_their_formulas(form: str) -> None:
    pair, weights = trained_pair(form), some_weights()
    hand = by_hand(pair, form)
    for weight, generated in zip(weights, pair.generate(list(weights)), strict=True):
        assert_close(generated.detach(), hand.generated(weight.numpy()))
        assert_close(pair.delta_weight(weight).detach(), hand.delta_weight(weight.numpy()))
        if not form.startswith("linear"):
            assert not torch.allclose(generated, pair.clusters(weight), atol=1e-2)


def trained_layer(form: str, parts: list[slice]) -> GiftLinear:
    """A frozen layer of three times ``ROWS`` rows with one trained pair per part; a third of its height is not its width."""
    torch.manual_seed(0)
    linear = nn.Linear(D_IN, 3 * ROWS, dtype=torch.float64).requires_grad_(False)
    pairs = [trained_pair(form, part.stop - part.start, seed) for seed, part in enumerate(parts)]
    return GiftLinear(linear, list(zip(pairs, parts, strict=True)))


QUERY, KEY, VALUE = (slice(start, start + ROWS) for start in (0, ROWS, 2 * ROWS))
PARTS = {"whole": [slice(0, 3 * ROWS)], "k": [KEY], "v_and_q": [VALUE, QUERY], "q_k_v": [QUERY, KEY, VALUE]}
every_layer = pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)


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


@every_layer
@every_form
def test_layers_compute_the_weight_form_and_its_gradients_without_an_update_matrix(form: str, parts: list[slice]) -> None:
    layer = trained_layer(form, parts)
    weight = layer.weight.numpy().copy()
    for pair, rows in layer.parts:
        weight[rows] = weight[rows] + by_hand(pair, form).delta_weight(weight[rows])
    x = torch.randn(2, 5, D_IN, dtype=torch.float64, requires_grad=True)
    expected = F.linear(x, torch.from_numpy(weight), layer.bias)
    assert not torch.allclose(expected, F.linear(x, layer.weight, layer.bias), atol=1e-2)
    assert_close(layer(x), expected)
    assert_close(layer(x[0, 0]), expected[0, 0])
    inputs = [x, *(parameter for pair, _ in layer.parts for parameter in pair.parameters())]
    direction = torch.randn(2, 5, 3 * ROWS)
    with Shapes(layer.weight) as trained:
        gradients = torch.autograd.grad((layer(x) * direction).sum(), inputs)
    with Shapes(layer.weight) as merged:
        weight_form = F.linear(x, layer.weight + layer.delta_weight(), layer.bias)
    assert_close(weight_form, expected)
    for gradient, other in zip(gradients, torch.autograd.grad((weight_form * direction).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-11, rtol=1e-11)
    assert (D_IN, RANK) in trained.seen, "the backward pass was watched"
    assert not trained.seen & {shape for rows in (ROWS, 3 * ROWS) for shape in ((rows, D_IN), (D_IN, rows))}
    assert (3 * ROWS, D_IN) in merged.seen, "the watch sees an update matrix"
    assert_close(layer.float()(x.float()), expected.float())
    layer.bias = None
    assert_close(layer(x.float()), F.linear(x, torch.from_numpy(weight)).float())


def test_equal_seeds_give_equal_phi_whatever_the_schema() -> None:
    drawn: dict[str, dict[str, Tensor]] = {}
    for schema in SCHEMAS:
        vit = timm.create_model("test_vit", depth=1)
        torch.manual_seed(3)
        apply_method(vit, GiftConfig(rank=4, target_modules=["attn.proj", "attn.q", "mlp.fc2"], schema=schema, phi_bias=True))
        state = adapter_state_dict(vit)
        drawn[schema] = {name: tensor for name, tensor in state.items() if name.endswith((".phi", ".phi_bias"))}
    assert len(drawn) == 8
    for tensors in drawn.values():
        assert len(tensors) == 6
        assert tensors.keys() == drawn["linear"].keys()
        assert all(torch.equal(own, drawn["linear"][name]) for name, own in tensors.items())


def test_phi_starts_as_a_linear_layer_and_psi_at_zero() -> None:
    torch.manual_seed(0)
    pair = GiftPair(768, GiftConfig(rank=96, phi_bias=True, psi_bias=True), torch.device("cpu"))
    torch.manual_seed(0)
    assert torch.equal(pair.phi, nn.Linear(768, 96, bias=False).weight.T)
    assert 0.95 / 768**0.5 < pair.get_parameter("phi_bias").abs().max() <= 1 / 768**0.5
    assert not pair.psi.any()
    assert not pair.get_parameter("psi_bias").any()


def test_inner_layers_start_as_pytorch_draws_them_and_positions_at_zero(tiny_vit: nn.Module) -> None:
    apply_method(tiny_vit, GiftConfig(schema="paca_transformer", num_clusters=200, pos_embed="learned"))
    schema = tiny_vit.get_submodule("gift.attn.proj.schema")
    assert not schema.get_parameter("pos_embed").any()
    layers = {name: layer for name, layer in schema.named_modules() if isinstance(layer, nn.Linear)}
    parts = ("attn.assign", "attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert set(layers) == {f"blocks.0.{part}" for part in parts}
    for layer in layers.values():
        bound = 1 / math.sqrt(layer.in_features)
        for tensor in (layer.weight, layer.bias):
            assert 0.5 * bound < tensor.abs().max() <= bound


def trained(model: nn.Module, **options: Any) -> nn.Module:
    apply_method(model, GiftConfig(rank=4, **options))
    randomise(model.get_submodule("gift"), std=0.2)
    return model


@pytest.mark.parametrize("share", [False, True], ids=["own", "share"])
def test_slices_and_whole_layers_are_tokens_of_their_own_rows(tiny_vit: nn.Module, share: bool) -> None:
    options: dict[str, Any] = {"schema": "paca_transformer", "num_clusters": 3}
    slices = {"attn.v": slice(128, 192), "attn.q": slice(0, 64), "mlp.fc1": slice(192)}
    model = trained(tiny_vit, target_modules=list(slices), share=share, **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = {name: tensor.double().numpy().copy() for name, tensor in before.items() if name.startswith("blocks")}
    for target, rows in slices.items():
        pair = model.get_submodule("gift.shared" if share else f"gift.{target}")
        hand = ByHand(GiftConfig(rank=4, **options), pair.state_dict())
        for block in range(6):
            weight = expected[f"blocks.{block}.{'mlp.fc1' if target == 'mlp.fc1' else 'attn.qkv'}.weight"]
            weight[rows] = weight[rows] + hand.delta_weight(weight[rows])
    changed = set()
    for name, tensor in merge_method(model).state_dict().items():
        if name in expected:
            np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-4, atol=1e-5)
        if not torch.equal(tensor, before[name]):
            changed.add(name)
        if name.endswith("qkv.weight"):
            assert torch.equal(tensor[64:128], before[name][64:128]), "keys are not a target"
    assert changed == {f"blocks.{block}.{layer}.weight" for block in range(6) for layer in ("attn.qkv", "mlp.fc1")}


SHARE_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    (
        "mlp.fc1",
        {"schema": "mlp_mixer"},
        "method.schema=mlp_mixer has parameters for each output row, so the layers of one "
        "(phi, psi) must have the same number, got blocks.0.attn.proj 64, blocks.0.mlp.fc1 192; drop some or set share=false",
    ),
    ("attn.qkv", {"schema": "mlp", "pos_embed": "learned"}, "method.pos_embed=learned has parameters for each output row"),
]


@pytest.mark.parametrize(("other", "options", "message"), SHARE_ERRORS)
def test_sharing_what_does_not_fit_is_an_error(tiny_vit: nn.Module, other: str, options: dict[str, Any], message: str) -> None:
    options["target_modules"] = ["attn.proj", other]
    with refused(message):
        apply_method(tiny_vit, GiftConfig(share=True, **options))
    apply_method(timm.create_model("test_vit"), GiftConfig(**options))


def test_weight_decay_spares_biases_and_the_cluster_assignment(tiny_vit: nn.Module) -> None:
    model = trained(tiny_vit, schema="paca_transformer", pos_embed="learned", phi_bias=True)
    groups = build_optimizer(model, OptimConfig(1e-3, 0.1, [0.9, 0.999], 1e-8, 0, 0.0, 0.0, "step")).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_decay = {group["weight_decay"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    spared = {name for name in trainable if name.endswith("bias")} | {"gift.attn.proj.schema.blocks.0.attn.assign.weight"}
    assert by_decay == {0.1: trainable - spared, 0.0: spared}
    decayed = {"gift.attn.proj.phi", "gift.attn.proj.psi", "head.weight", "gift.attn.proj.schema.blocks.0.attn.q.weight"}
    assert decayed <= by_decay[0.1]
