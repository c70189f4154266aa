"""A run's backbone before and after fine-tuning."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from gift_vit.backbones.build import input_statistics
from gift_vit.common.errors import ConfigError
from gift_vit.common.tensors import tensors_digest
from gift_vit.invariance.representations import open_layers
from gift_vit.methods.adapter import applied_method, describe_method, merge_method
from gift_vit.runs.build import build_pretrained
from gift_vit.runs.run import Run


@dataclass(frozen=True)
class Pair:
    """Two models without heads, in eval mode and frozen, on one device.

    Attributes:
        pretrained: The run's backbone as it was before.
        tuned: The same after fine-tuning; an adapter that can be merged is.
        facts: Beside its weights, what the function of ``pretrained`` depends on, as JSON has it.
        tuned_facts: The same of ``tuned``.
        unchanged: Whether the two are the same: training has changed the head alone.
    """

    pretrained: nn.Module
    tuned: nn.Module
    facts: list[Any]
    tuned_facts: list[Any]
    unchanged: bool


def open_pair(run: Run, device: torch.device) -> Pair:
    """The models of a finished run.

    Raises:
        ConfigError: If its weights are others now, its method cannot be separated from its backbone, or it takes texts.
    """
    cfg = run.config
    tuned, method = run.model(), None
    try:
        side = input_statistics(tuned).input_size
    except ConfigError as error:
        raise ConfigError(f"{run.folder}: {error}") from error
    try:
        merge_method(tuned)
    except ConfigError:  # it cannot be: the adapter stays beside the weights
        method = describe_method(applied_method(tuned).config)
    pretrained = headless(build_pretrained(cfg, run.num_classes), device)
    tuned = headless(tuned, device)
    try:
        with torch.no_grad():  # refuses what has no one representation
            open_layers(tuned).rows(torch.zeros(1, 3, side, side, device=device))
    except ConfigError as error:
        raise ConfigError(f"{run.folder}: {error}; leave this run out") from error
    shared = [cfg.backbone.model, cfg.backbone.img_size, str(getattr(pretrained, "global_pool", None))]
    before, after = (tensors_digest(model.state_dict()) for model in (pretrained, tuned))
    unchanged = before == after  # so of a method that replaces the head, merged or not
    return Pair(pretrained, tuned, [*shared, None], [*shared, None if unchanged else method], unchanged)


def headless(model: nn.Module, device: torch.device) -> nn.Module:
    """A model in eval mode on its device, from which its head is taken; the same one."""
    cast(Any, model).reset_classifier(0)
    return model.eval().requires_grad_(False).to(device)
