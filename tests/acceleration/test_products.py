"""Products with frozen weights through oneDNN against torch's own, in float64 and on whole models."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import profile

from experiments.bench.cost import training_cost
from gift_vit.acceleration.products import OnednnProducts
from gift_vit.common import environment
from gift_vit.common.environment import onednn_is_faster
from gift_vit.methods import GiftConfig, apply_method, merge_method
from tests.acceleration.settings import accelerated
from tests.acceleration.test_accelerate import NOT_LEAN, step, tiny, trained
from tests.methods.method_examples import all_examples, one_of_a_kind
from tests.tolerance import TOLERANCE

EXAMPLES = all_examples()


@pytest.fixture
def on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cpu_vendor", lambda: "AuthenticAMD")


@pytest.fixture
def images() -> Tensor:
    """As many as make more tokens than a product is left to torch for."""
    return torch.randn(10, 3, 112, 112, generator=torch.Generator().manual_seed(1))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def convolutions(call: Callable[[], Any]) -> int:
    """How many convolutions torch makes in a call."""
    with profile() as seen:
        call()
    return sum(event.name in {"aten::conv2d", "aten::conv_transpose2d"} for event in seen.events() or [])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    with OnednnProducts():
        return F.linear(x, weight, bias)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 70, 48), (300, 48), (2, 2, 75, 48)])
def test_outputs_and_gradients_are_those_of_a_linear_layer(shape: tuple[int, ...], with_bias: bool) -> None:
    x, weight, bias = draw(*shape), draw(64, 48, seed=1), draw(64, seed=2) if with_bias else None
    leaves = [x.requires_grad_(), bias.requires_grad_()] if bias is not None else [x.requires_grad_()]
    doubled = [leaf.detach().double().requires_grad_() for leaf in leaves]
    y = linear(x, weight, bias)
    expected = F.linear(doubled[0], weight.double(), *doubled[1:])
    g = draw(*y.shape, seed=3)
    actual = [y, *torch.autograd.grad(y, leaves, g)]
    for one, other in zip(actual, [expected, *torch.autograd.grad(expected, doubled, g.double())], strict=True):
        torch.testing.assert_close(one, other.float(), atol=1e-4, rtol=1e-5)


def test_which_products_are_convolutions() -> None:
    x, weight = draw(300, 48), draw(64, 48)
    other_order = draw(48, 300).T
    torch.testing.assert_close(linear(other_order, weight), F.linear(other_order, weight), **TOLERANCE[torch.float32])
    trained_weight = weight.clone().requires_grad_()
    assert convolutions(lambda: linear(x, weight)) == 1
    assert convolutions(lambda: linear(x.clone().requires_grad_(), weight).sum().backward()) == 2
    with torch.no_grad():
        assert convolutions(lambda: linear(x, trained_weight)) == 1
    assert convolutions(lambda: linear(x, trained_weight)) == 0
    assert convolutions(lambda: linear(x[:200], weight)) == 0, "few tokens"
    assert convolutions(lambda: linear(x.double(), weight.double())) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
        assert convolutions(lambda: linear(x, weight)) == 0


@pytest.mark.usefixtures("on_amd")
@one_of_a_kind()
def test_every_method_is_computed_as_accurately(label: str, images: Tensor) -> None:
    start = trained(apply_method(tiny(img_size=112), EXAMPLES[label].config))
    if label in NOT_LEAN:
        assert not accelerated(start)["onednn_products"]
        return
    exact = step(deepcopy(start).double(), images.double())
    error_of_torch = distance(step(deepcopy(start), images), exact)
    for memory in ("fast", "lean", "minimal"):
        model = deepcopy(start)
        assert accelerated(model, memory=memory)["onednn_products"]
        assert distance(step(model, images), exact) < 2 * error_of_torch + 1e-6


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Euclidean, over all tensors, relative to the second's."""
    assert one.keys() == other.keys()
    flat, exact = (torch.cat([named[name].double().flatten() for name in other]) for named in (one, other))
    return float((flat - exact).norm() / exact.norm())


@pytest.mark.usefixtures("on_amd")
def test_it_saves_no_more_and_computes_nothing_twice(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    for memory in ("fast", "lean", "minimal"):
        costs = []
        for vendor in ("AuthenticAMD", "GenuineIntel"):
            monkeypatch.setattr(environment, "cpu_vendor", lambda vendor=vendor: vendor)
            model = apply_method(tiny(img_size=112, drop_path_rate=0.0), GiftConfig(rank=4))
            assert accelerated(model, memory=memory)["onednn_products"] == (vendor == "AuthenticAMD")
            costs.append(training_cost(model, images))
        assert costs[0] == costs[1]


@pytest.mark.usefixtures("on_amd")
def test_a_merged_model_s_weights_are_frozen_in_inference(images: Tensor) -> None:
    model = apply_method(tiny(img_size=112), GiftConfig(rank=4)).eval()
    accelerated(model)
    merged = merge_method(model)
    with torch.inference_mode():
        # patches; four products of the first block; keys and values of the last, where the class token is one of ten
        assert convolutions(lambda: merged(images)) == 1 + 4 + 1


@pytest.mark.usefixtures("on_amd")
@pytest.mark.parametrize("values", [{"precision": "bf16"}, {"compile": True}], ids=str)
def test_other_precisions_and_compiled_models_go_without(values: dict[str, Any]) -> None:
    assert not accelerated(tiny(), **values)["onednn_products"]
    assert not accelerated(tiny().double())["onednn_products"]
    assert not accelerated(nn.Linear(2, 2))["onednn_products"], "it has no blocks"


@pytest.mark.usefixtures("on_amd")
def test_whoever_compiles_an_accelerated_model_gets_one_graph(images: Tensor) -> None:
    model = trained(apply_method(tiny(img_size=112, drop_path_rate=0.0), GiftConfig(rank=4)))
    assert accelerated(model)["onednn_products"]
    expected = step(model, images)
    torch.compiler.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    actual = {name.removeprefix("_orig_mod."): tensor for name, tensor in step(compiled, images).items()}
    assert distance(actual, expected) < 1e-5


def test_only_where_mkl_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    for vendor, expected in (("AuthenticAMD", True), ("GenuineIntel", False), ("", False)):
        monkeypatch.setattr(environment, "cpu_vendor", lambda vendor=vendor: vendor)
        assert onednn_is_faster() == (expected and torch.backends.mkl.is_available())
        assert accelerated(tiny())["onednn_products"] == onednn_is_faster()
