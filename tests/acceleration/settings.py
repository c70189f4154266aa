"""Accelerating by keys of ``trainer``, as a person types them."""

from dataclasses import fields
from typing import Any

from torch import nn

from gift_vit.acceleration.accelerate import accelerate
from gift_vit.acceleration.config import ComputeConfig
from gift_vit.engine.config import TrainerConfig

DEFAULTS = {
    **{"epochs": 1, "batch_size": 8, "grad_accumulation": 1, "eval_every": 1, "precision": "fp32", "compile": False},
    **{"device": "cpu", "drop_path_rate": 0.0, "cls_last_block": "auto", "memory": "fast", "speed": "exact"},
    **{"step_graph": "auto", "deterministic": False},
}


def configs(**values: Any) -> tuple[TrainerConfig, ComputeConfig]:
    """The two configs of these values, the rest as for a small run on a CPU."""
    own = {field.name for field in fields(ComputeConfig)}
    assert values.keys() <= DEFAULTS.keys()
    given = DEFAULTS | values
    trainer = {key: value for key, value in given.items() if key not in own}
    return TrainerConfig(**trainer), ComputeConfig(**{key: given[key] for key in own})


def accelerated(model: nn.Module, **values: Any) -> dict[str, Any]:
    """Accelerate a model; what is on."""
    trainer, compute = configs(**values)
    return accelerate(model, compute, trainer)
