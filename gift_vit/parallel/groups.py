"""Which runs of a sweep are trained together."""

from collections.abc import Sequence
from typing import Any

from gift_vit.config import RunConfig
from gift_vit.errors import ConfigError
from gift_vit.keys import flatten
from gift_vit.methods.registry import spec_of

MAY_DIFFER = ("optim.lr", "optim.weight_decay", "seed", "run_name")


def group_runs(runs: Sequence[RunConfig], size: int) -> list[list[int]]:
    """Indices of the runs in groups of ``size`` at most, whose configurations differ in :data:`MAY_DIFFER` alone.

    Runs of one seed come together: they see the same images, and share what is computed before their models begin to differ.

    Raises:
        ConfigError: If a run cannot be trained beside others, by its configuration.
    """
    alike: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        _check(run)
        alike.setdefault(_common(run), []).append(index)
    groups = []
    for indices in alike.values():
        ordered = sorted(indices, key=lambda index: runs[index].seed)
        groups += [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return groups


def _common(run: RunConfig) -> str:
    values: dict[str, Any] = {key: value for key, value in flatten(run.values) if key not in MAY_DIFFER}
    return repr(sorted(values.items()))


def _check(run: RunConfig) -> None:
    trainer, reason = run.trainer, None
    if spec_of(run.method).kind == "full":
        reason = f"method={run.method_name} has no frozen weights that runs could share"
    elif trainer.precision == "fp16":
        reason = "trainer.precision=fp16 scales the losses of a run by what its own gradients were; use bf16"
    elif trainer.memory != "fast":
        reason = f"trainer.memory={trainer.memory} computes activations a second time; use fast and fewer runs at a time"
    elif trainer.speed == "auto":
        reason = "trainer.speed=auto may compile the model of one run; use exact, and trainer.precision=bf16"
    elif trainer.compile:
        reason = "trainer.compile=true compiles the model of one run; use false"
    if reason:
        raise ConfigError(f"trainer.parallel_runs cannot be used: {reason}")
