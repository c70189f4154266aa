"""Parameter groups, AdamW and the learning-rate schedule."""

from dataclasses import dataclass

import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from gift_vit.errors import ConfigError


@dataclass
class OptimConfig:
    """AdamW with a cosine schedule.

    Attributes:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of matrices; vectors, scalars and modules that say so have none.
        betas: Decay rates of the two moments.
        eps: Added to the denominator.
        warmup_epochs: Epochs of linear warm-up from ``warmup_lr``; the cosine runs over all epochs, so warm-up cuts into it.
        warmup_lr: Learning rate of the first update.
        min_lr: Learning rate the cosine ends at.
        schedule: ``epoch``: one learning rate per epoch, as the authors; ``step``: a new one for every update.
    """

    lr: float
    weight_decay: float
    betas: list[float]
    eps: float
    warmup_epochs: int
    warmup_lr: float
    min_lr: float
    schedule: str

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"optim.lr={self.lr}: expected a number above 0")
        if self.weight_decay < 0:
            raise ConfigError(f"optim.weight_decay={self.weight_decay}: expected 0 or more")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas={list(self.betas)}: expected two numbers in [0, 1)")
        if self.schedule not in {"epoch", "step"}:
            raise ConfigError(f"unknown optim.schedule {self.schedule!r} (known: epoch, step)")
        if self.warmup_epochs < 0:
            raise ConfigError(f"optim.warmup_epochs={self.warmup_epochs}: expected 0 or more")


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters in two groups, as the authors': decay for ndim ≥ 2, none for vectors and scalars.

    A module with a true attribute ``exempt_from_weight_decay`` keeps all its own parameters from decay.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError("nothing to train: no parameter is trainable; apply a method to the model first")
    exempt = {
        parameter
        for module in model.modules()
        if getattr(module, "exempt_from_weight_decay", False)
        for parameter in module.parameters(recurse=False)
    }
    groups = [
        {"params": [p for p in trainable if p.ndim > 1 and p not in exempt], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1 or p in exempt], "weight_decay": 0.0},
    ]
    beta1, beta2 = cfg.betas
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=cfg.lr, betas=(beta1, beta2), eps=cfg.eps, fused=True
    )


class Schedule:
    """The learning rate of every update: timm's cosine scheduler, by epoch or by update, as a pure function of the position."""

    def __init__(self, optimizer: torch.optim.Optimizer, cfg: OptimConfig, epochs: int, steps_per_epoch: int) -> None:
        self.per_epoch = cfg.schedule == "epoch"
        unit = 1 if self.per_epoch else steps_per_epoch
        self.steps_per_epoch = steps_per_epoch
        self.optimizer = optimizer
        self.scheduler = CosineLRScheduler(
            optimizer,
            t_initial=epochs * unit,
            lr_min=cfg.min_lr,
            warmup_t=cfg.warmup_epochs * unit,
            warmup_lr_init=cfg.warmup_lr,
            t_in_epochs=self.per_epoch,
        )

    def set_lr(self, epoch: int, step: int) -> float:
        """Set and return the learning rate of update ``step`` of ``epoch``, both counted from 0."""
        if self.per_epoch:
            self.scheduler.step(epoch)
        else:
            self.scheduler.step_update(epoch * self.steps_per_epoch + step)
        return self.optimizer.param_groups[0]["lr"]
