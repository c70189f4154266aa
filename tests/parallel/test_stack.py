"""Models computed in one pass against each of them alone."""

import warnings

import pytest
import timm
import torch
from torch import Tensor, nn

from gift_vit.acceleration import accelerate, products
from gift_vit.compose import compose_config
from gift_vit.config import RunConfig, load_config
from gift_vit.methods import apply_method
from gift_vit.parallel.stack import ModelStack, StepInputs
from tests.tolerance import TOLERANCE

IMAGES = torch.randn(2, 4, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def config(method: str) -> RunConfig:
    return load_config(compose_config([f"method={method}"]))


def draw_models(cfg: RunConfig, moved: bool = True) -> list[nn.Module]:
    """Two models of one backbone, with what the method trains moved from its start."""
    models = []
    for seed in (0, 1):
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=10, drop_path_rate=0.5)
        torch.manual_seed(seed)
        apply_method(model, cfg.method)
        for parameter in model.parameters():
            if parameter.requires_grad and moved:
                parameter.data += 0.05 * torch.randn_like(parameter)
        models.append(model.train())
    return models


def alone(model: nn.Module, images: Tensor, seed: int, precision: torch.dtype | None) -> tuple[Tensor, list[Tensor]]:
    """Logits and gradients, from the random numbers of a seed."""
    torch.manual_seed(seed)
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        logits = model(images)
    logits.float().square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]
    model.zero_grad()
    return logits.detach(), gradients


@pytest.mark.parametrize(
    ("precision", "vendor"),
    [(None, "GenuineIntel"), (None, "AuthenticAMD"), (torch.bfloat16, "AuthenticAMD")],
    ids=["fp32", "fp32 by oneDNN", "bf16"],
)
@pytest.mark.parametrize("seeds", [(3, 3), (3, 4)], ids=["one seed", "two seeds"])
@pytest.mark.parametrize("method", ["gift", "bitfit", "vpt_deep", "ln_tuning", "lora_qv"])
def test_logits_and_gradients_are_those_of_each_model_alone(
    method: str, seeds: tuple[int, int], precision: torch.dtype | None, vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "cpu_vendor", lambda: vendor)
    cfg = config(method)
    models = draw_models(cfg)
    expected = [alone(model, IMAGES[seed - 3], seed, precision) for model, seed in zip(models, seeds, strict=True)]
    stack = ModelStack(models, cfg.trainer)
    drawn = {s: StepInputs(IMAGES[s - 3], stack.draw_masks(4, torch.Generator().manual_seed(s))) for s in set(seeds)}
    assert len(drawn[3].masks) == 2 * 5, "the first block drops nothing"
    with warnings.catch_warnings(), torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        warnings.simplefilter("error")  # vmap warns where it computes model by model
        logits = stack.train_forward([0, 1], [drawn[seed] for seed in seeds])
    logits.float().square().sum().backward()
    tolerance = TOLERANCE[precision or torch.float32]
    for model, own, (other, gradients) in zip(models, logits, expected, strict=True):
        assert own.dtype == other.dtype
        torch.testing.assert_close(own, other, **tolerance)
        trained = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
        for gradient, wanted in zip(trained, gradients, strict=True):
            scale = max(1.0, float(wanted.abs().max()))
            torch.testing.assert_close(gradient / scale, wanted / scale, atol=5 * tolerance["atol"], rtol=0)


def test_evaluation_of_some_and_frozen_weights_held_once() -> None:
    cfg = config("gift")
    models = draw_models(cfg)
    stack = ModelStack(models, cfg.trainer)
    with torch.inference_mode():
        [logits] = stack.eval_forward([1], IMAGES[0])
        torch.testing.assert_close(logits, models[1].eval()(IMAGES[0]), **TOLERANCE[torch.float32])
    first, second, skeleton = (dict(model.named_parameters()) for model in (*models, stack._skeleton))
    for name, parameter in first.items():
        shared = parameter.data_ptr() == second[name].data_ptr()
        assert shared != parameter.requires_grad
        assert parameter.requires_grad or skeleton[name].data_ptr() == parameter.data_ptr()
    assert stack.acceleration["cls_last_block"]
    assert accelerate(models[0], cfg.trainer)["drop_path_on_kept"], "the models remain timm's"
