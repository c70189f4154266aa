"""Nothing is left on the CPU where a model and its inputs lie on another device, and nothing asks that device for a value."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import gift_vit.explain.maps as maps_module
import gift_vit.invariance.inversion as inversion_module
from gift_vit.acceleration.patches import embed_by_product
from gift_vit.backbones.config import BackboneConfig
from gift_vit.backbones.text import build_text_model
from gift_vit.engine.fit import Tally
from gift_vit.engine.objective import CLASSES, SEQUENCES, Objective, squared_error
from gift_vit.explain.config import MapChoice
from gift_vit.explain.maps import explain, normalise_maps
from gift_vit.explain.scoring.baselines import attention_maps, centre_map, gradient_map
from gift_vit.explain.scoring.object_parts import score_parts
from gift_vit.invariance.inversion import Descent, invert_layers
from gift_vit.invariance.representations import open_layers
from gift_vit.methods import GiftConfig, apply_method, merge_method
from gift_vit.methods.config import GiftHfConfig, spec_of
from tests.acceleration.settings import accelerated
from tests.elsewhere import ELSEWHERE, elsewhere
from tests.methods.method_examples import all_examples, one_of_a_kind
from tests.text_models import text_model

# methods of peft that draw on the CPU, keep a tensor there, or ask the device for a value in every step
NOT_SO = {"loha", "lokr", "fourierft", "vblora"}


def vit(config: Any = None, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=10, img_size=64, **{"depth": 1, **options})
    return model if config is None else apply_method(model, config)


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 64, 64, device=ELSEWHERE)


def train(model: nn.Module) -> None:
    loss = CLASSES.loss(model.train()(images()), torch.zeros(2, dtype=torch.int64, device=ELSEWHERE))
    loss.backward()
    assert loss.device == ELSEWHERE
    assert {p.grad.device for p in model.parameters() if p.requires_grad and p.grad is not None} == {ELSEWHERE}


@one_of_a_kind()
def test_a_method_trains_evaluates_and_merges_there(label: str) -> None:
    example = all_examples()[label]
    model = vit(example.config, depth=2 if getattr(example.config, "blocks", None) else 1)
    with elsewhere(model):
        if label in NOT_SO:
            with pytest.raises((AssertionError, RuntimeError)):
                train(model)
            return
        train(model)
        with torch.inference_mode():
            assert model.eval()(images()).device == ELSEWHERE
        if spec_of(example.config).merge is not None and example.unmergeable is None:
            assert merge_method(model)(images()).device == ELSEWHERE


def test_a_tensor_that_was_left_behind_is_found() -> None:
    """Made before the model was sent there, and made in a forward pass."""
    model, kept = vit(GiftConfig(rank=2)), torch.ones(10)
    head = model.get_submodule("head")
    hook = head.register_forward_hook(lambda *arguments: arguments[2] * kept)
    with elsewhere(model):
        with pytest.raises(AssertionError, match="FakeTensor"):
            train(model)
        hook.remove()
        head.register_forward_hook(lambda *arguments: arguments[2] * torch.ones(10))
        with pytest.raises(RuntimeError, match="same device"):
            train(model)


def test_an_accelerated_model_trains_and_evaluates_there() -> None:
    model = vit(GiftConfig(rank=2), drop_path_rate=0.3)
    assert accelerated(model)["cls_last_block"]
    assert embed_by_product(model)
    with elsewhere(model):
        train(model)
        model.eval()(images())


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_a_model_of_texts_trains_there(pooling: str, tmp_path: Path) -> None:
    folder = text_model(tmp_path / "bert")
    model = build_text_model(BackboneConfig(name="hf", model=str(folder), kind="transformers", pooling=pooling), 3)
    apply_method(model, GiftHfConfig(rank=2, target_modules=["query", "value"]))
    with elsewhere(model):
        tokens = torch.ones(2, 3, 7, dtype=torch.int64, device=ELSEWHERE)
        CLASSES.loss(model.train()(tokens), torch.zeros(2, dtype=torch.int64, device=ELSEWHERE)).backward()
        assert model.get_parameter("head.weight" if pooling == "mean" else "model.classifier.weight").grad is not None


OBJECTIVES: dict[str, tuple[Objective, tuple[int, ...], tuple[int, ...], torch.dtype]] = {
    "classes": (CLASSES, (4, 10), (4,), torch.int64),
    "numbers": (Objective(squared_error), (4, 1), (4,), torch.float32),
    "sequences": (SEQUENCES, (4, 3, 10), (4, 5), torch.int64),
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_an_objective_is_counted_there(kind: str) -> None:
    objective, outputs, labels, dtype = OBJECTIVES[kind]
    with elsewhere():
        tally = Tally(ELSEWHERE, objective)
        tally.add(torch.zeros(outputs, device=ELSEWHERE), torch.zeros(labels, dtype=dtype, device=ELSEWHERE))
        assert {tally._loss.device, tally._correct.device, tally._spoilt.device} == {ELSEWHERE}


LOOKS: dict[str, Callable[[nn.Module], Any]] = {
    **{
        basis: lambda model, basis=basis: normalise_maps(explain(model, images(), MapChoice(basis=basis)).post, 64)
        for basis in ("trained", "canonical", "random")
    },
    "attention": lambda model: attention_maps(model, images())["rollout"],
    "gradient": lambda model: gradient_map(model, images()),
    "centre": lambda _: centre_map((64, 64)).to(images()),
    "parts": lambda _: score_parts(images(), torch.ones(2, 5, 4, device=ELSEWHERE)).hits,
    "inversion": lambda model: invert_layers(open_layers(model), images(), images(), Descent(2, optimizer="adam")).images,
}


@pytest.mark.parametrize("what", LOOKS)
def test_what_looks_at_a_model_looks_there(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (maps_module, inversion_module):  # which asks once whether what was found is finite
        monkeypatch.setattr(module, "check_finite", lambda *_, **__: None)
    model = vit(GiftConfig(rank=2)).eval()
    with elsewhere(model):
        assert LOOKS[what](model).device == ELSEWHERE
