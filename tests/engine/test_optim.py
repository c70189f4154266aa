import math
from typing import Any

import pytest
import torch
from torch import nn

from gift_vit.common.errors import ConfigError
from gift_vit.engine.config import OptimConfig
from gift_vit.engine.state import Schedule, build_optimizer


def optim(**changes: Any) -> OptimConfig:
    values = {"lr": 1e-4, "weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-8}
    schedule = {"warmup_epochs": 10, "warmup_lr": 1e-7, "min_lr": 1e-6, "schedule": "epoch"}
    return OptimConfig(**(values | schedule | changes))


def scheduled(config: OptimConfig, epochs: int = 100, steps: int = 5) -> Schedule:
    return Schedule(build_optimizer(nn.Linear(3, 3), config), config, epochs, steps)


def shapes(model: nn.Module) -> dict[float, set[tuple[int, ...]]]:
    """Of the parameters by weight decay."""
    groups = build_optimizer(model, optim()).param_groups
    return {group["weight_decay"]: {tuple(p.shape) for p in group["params"]} for group in groups}


# the authors' learning rate by epoch, as a fraction of the peak (absolute where it is no fraction)
PAPER_EPOCHS = {9: 0.90, 10: 0.9755, 24: 0.8645, 49: 0.5157}


@pytest.mark.parametrize("lr", [1e-3, 5e-3])
def test_schedule_by_epoch_is_the_authors_table(lr: float) -> None:
    schedule = scheduled(optim(lr=lr))
    rates = [schedule.set_lr(epoch, step=3) for epoch in range(100)]
    assert rates[0] == 1e-7
    for epoch in range(100):
        warmup = 1e-7 + epoch * (lr - 1e-7) / 10
        cosine = 1e-6 + 0.5 * (lr - 1e-6) * (1 + math.cos(math.pi * epoch / 100))
        assert rates[epoch] == pytest.approx(warmup if epoch < 10 else cosine, rel=1e-9)
    assert max(rates) < lr, "the nominal peak is never reached"


def test_schedule_gives_the_published_epoch_table_to_four_digits() -> None:
    schedule = scheduled(optim(lr=1.0))  # a peak far above min_lr, so that the fractions show the cosine alone
    for epoch, published in PAPER_EPOCHS.items():
        assert schedule.set_lr(epoch, 0) == pytest.approx(published, abs=5e-5)


def test_schedule_by_step_changes_every_update_and_agrees_with_epochs_at_their_start() -> None:
    first, second = scheduled(optim(schedule="epoch")), scheduled(optim(schedule="step"))
    for epoch in (0, 3, 10, 57, 99):
        assert second.set_lr(epoch, 0) == pytest.approx(first.set_lr(epoch, 0), rel=1e-12)
    rates = [second.set_lr(20, step) for step in range(5)]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 5


def test_schedule_is_a_function_of_the_position_alone() -> None:
    config = optim(schedule="step")
    through, resumed = scheduled(config, 20, 4), scheduled(config, 20, 4)
    rates = [through.set_lr(epoch, step) for epoch in range(20) for step in range(4)]
    assert [resumed.set_lr(12, step) for step in range(4)] == rates[48:52]


def test_groups_decay_matrices_only_and_hold_every_trainable_parameter_once(tiny_vit: nn.Module) -> None:
    tiny_vit.requires_grad_(False)
    for name in ("head.weight", "head.bias", "cls_token", "blocks.0.norm1.weight"):
        tiny_vit.get_parameter(name).requires_grad_(True)
    assert shapes(tiny_vit) == {0.01: {(10, 64), (1, 1, 64)}, 0.0: {(10,), (64,)}}


class NoDecay(nn.Linear):
    exempt_from_weight_decay = True


def test_a_module_can_exempt_its_own_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 3), NoDecay(3, 4), nn.Linear(4, 5, bias=False))
    model[1].add_module("inner", nn.Linear(6, 7))
    assert shapes(model) == {0.01: {(3, 2), (5, 4), (7, 6)}, 0.0: {(3,), (4, 3), (4,), (7,)}}


class Scaled(nn.Linear):
    lr_scale = 16.0


def test_a_module_with_a_rate_of_its_own_has_decay_on_its_matrices_alone() -> None:
    groups = build_optimizer(nn.Sequential(nn.Linear(2, 3), Scaled(3, 4)), optim()).param_groups
    found = {tuple(p.shape): (group["weight_decay"], group["lr"]) for group in groups for p in group["params"]}
    assert found == {(3, 2): (0.01, 1e-4), (3,): (0.0, 1e-4), (4, 3): (0.01, 16e-4), (4,): (0.0, 16e-4)}


@pytest.mark.parametrize(("betas", "eps"), [([0.9, 0.999], 1e-8), ([0.8, 0.95], 0.5)])
def test_adamw_steps_are_the_formula(betas: list[float], eps: float) -> None:
    """Algorithm 2 of Loshchilov and Hutter (ICLR 2019), for two updates."""
    layer = nn.Linear(2, 2, bias=False).double()
    expected = layer.weight.detach().clone()
    optimizer = build_optimizer(layer, optim(lr=0.1, weight_decay=0.5, betas=betas, eps=eps))
    (beta1, beta2), m, v = betas, 0.0, 0.0
    for step, gradient in enumerate((3.0, -1.0), 1):
        layer.weight.grad = torch.full((2, 2), gradient, dtype=torch.float64)
        optimizer.step()
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2
        moved = m / (1 - beta1**step) / (math.sqrt(v / (1 - beta2**step)) + eps)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * moved
        torch.testing.assert_close(layer.weight.detach(), expected, atol=1e-12, rtol=0)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parameter is trainable"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), optim())


@pytest.mark.parametrize(("first", "last"), [(0.0, 0.0), (1e-6, 1e-5)])
@pytest.mark.parametrize(("ratio", "warmup"), [(0.1, 3), (0.06, 1), (0.0, 0), (None, 0)])
def test_a_linear_schedule_is_that_of_transformers(ratio: float | None, warmup: int, first: float, last: float) -> None:
    """Which knows no first and last rate but 0."""
    epochs, steps = 6, 5
    config = optim(warmup_epochs=0, warmup_lr=first, min_lr=last, schedule="step", decay="linear", warmup_ratio=ratio)
    schedule, total = scheduled(config, epochs, steps), epochs * steps
    for step in range(total):
        share = step / warmup if step < warmup else (total - step) / (total - warmup)
        end = first if step < warmup else last
        assert schedule.set_lr(*divmod(step, steps)) == pytest.approx(end + (1e-4 - end) * share, rel=1e-9)


@pytest.mark.parametrize("changes", [{"warmup_epochs": 3}, {"warmup_epochs": 0, "schedule": "epoch"}])
def test_warm_up_is_a_part_of_updates_alone(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"optim.warmup_ratio=0.1 is a part of all updates; give optim.warmup_epochs=0"):
        optim(warmup_ratio=0.1, **changes)


@pytest.mark.parametrize("norm", [None, 0.5, 1e3])
def test_gradients_are_clipped_by_their_norm_over_all_parameters(norm: float | None) -> None:
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, optim(clip_norm=norm))
    given = [torch.full_like(parameter, 2.0) for parameter in model.parameters()]
    for parameter, gradient in zip(model.parameters(), given, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()
    factor = min(1.0, (norm or 1e9) / math.sqrt(8 * 4.0))
    for parameter, gradient in zip(model.parameters(), given, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * factor, rtol=1e-5, atol=1e-6)
