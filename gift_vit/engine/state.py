"""What a training changes beside the weights: optimiser, learning-rate schedule, number format; and its checkpoints.

A checkpoint holds everything the next epoch depends on, and is written atomically.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from gift_vit.common import distributed
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import atomic_path
from gift_vit.engine.config import PRECISIONS, OptimConfig
from gift_vit.engine.observer import EpochRecord


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters in two groups, as the authors': decay for ndim ≥ 2, none for vectors and scalars.

    Modules have a say about their own parameters by two attributes: with a true ``exempt_from_weight_decay`` they are kept from
    decay, and ``lr_scale`` is their learning rate over ``cfg.lr``, through warm-up and all: two more groups for each value.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError("nothing to train: no parameter is trainable; apply a method to the model first")
    exempt: set[nn.Parameter] = set()
    scales: dict[nn.Parameter, float] = {}
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        exempt.update(own if getattr(module, "exempt_from_weight_decay", False) else [])
        scale = getattr(module, "lr_scale", None)
        if scale is not None:
            scales.update({parameter: float(scale) for parameter in own})
    groups: list[dict[str, Any]] = []
    for scale in sorted({1.0, *scales.values()}, key=lambda scale: (scale != 1, scale)):  # the first group's rate is shown
        scaled = [p for p in trainable if scales.get(p, 1.0) == scale]
        # timm's scheduler sets lr_scale times its learning rate, which starts from initial_lr
        rate = {} if scale == 1 else {"lr": cfg.lr * scale, "initial_lr": cfg.lr, "lr_scale": scale}
        decayed, kept = ([p for p in scaled if (p.ndim > 1 and p not in exempt) == decays] for decays in (True, False))
        groups += [{"params": decayed, "weight_decay": cfg.weight_decay, **rate}, {"params": kept, "weight_decay": 0.0, **rate}]
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


class Precision:
    """One of :data:`PRECISIONS` on a device.

    ``fp32`` computes products in full float32; ``tf32`` lets a GPU round the factors of float32 products to TF32 (without
    effect where there is no such unit); ``bf16`` and ``fp16`` use autocast with float32 parameters, ``fp16`` with loss scaling;
    with ``bf16`` a GPU computes in TF32 what autocast leaves in float32.

    Creating one sets torch's process-wide float32 product precision.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name not in PRECISIONS:
            raise ConfigError(f"unknown trainer.precision {name!r} (known: {', '.join(PRECISIONS)})")
        self.device_type = device.type
        self.autocast_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        on_gpu = device.type == "cuda"
        # what a GPU's autocast leaves in float32 is rounded to bf16 right after
        torch.set_float32_matmul_precision("high" if name == "tf32" or (name == "bf16" and on_gpu) else "highest")
        if on_gpu:
            torch.backends.cudnn.allow_tf32 = name == "tf32"  # convolutions have a switch of their own, on by default
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self, keep_casts: bool = True) -> torch.autocast:
        """Context of the forward pass; ``keep_casts``: a trained parameter that is used twice in it is cast once."""
        dtype = self.autocast_dtype
        return torch.autocast(self.device_type, dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=keep_casts)


@contextmanager
def deterministic() -> Iterator[None]:
    """Within it, torch takes deterministic algorithms alone, the backward pass of attention included, or raises.

    cuBLAS reads its setting when a GPU is first used: enter before that.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]


@dataclass
class TrainingState:
    """How far a training is.

    Attributes:
        epochs_done: Finished epochs.
        history: One record per finished epoch, as in ``metrics.jsonl``.
        seconds: Training time so far, over all starts.
    """

    epochs_done: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    seconds: float = 0.0


def save_checkpoint(
    path: Path,
    progress: TrainingState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    identity: str,
) -> None:
    """Write the trained tensors, the optimiser, the loss scaler, the random state of every process and the history.

    Frozen parameters are left out: the run rebuilds them. ``identity`` names what the run trains on (a data fingerprint).
    All processes take part, the main one writes.
    """
    random_states = distributed.gather(_random_state())
    if not distributed.is_main():
        return
    state = {
        "identity": identity,
        "progress": asdict(progress),
        "model": _mutable_state(model),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        **random_states[0],
        "other_processes": random_states[1:],
    }
    with atomic_path(path) as partial:
        torch.save(state, partial)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, identity: str
) -> TrainingState:
    """Restore what :func:`save_checkpoint` wrote into freshly built objects.

    A process beyond those that wrote it keeps the random state it has.

    Raises:
        ConfigError: If the file is unreadable or belongs to other data.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({str(error).splitlines()[0]}); delete it to start the run over") from error
    if state["identity"] != identity:
        raise ConfigError(f"{path} was trained on other data than the dataset holds now; delete it to start the run over")
    own = _mutable_state(model)
    if own.keys() != state["model"].keys():
        raise ConfigError(f"{path} holds other tensors than this run trains; delete it to start the run over")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state["model"][name])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    random_states = [state, *state.get("other_processes", [])]
    if distributed.rank() < len(random_states):
        _set_random_state(random_states[distributed.rank()])
    return TrainingState(**state["progress"])


def _random_state() -> dict[str, Any]:
    return {"rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["rng"])
    if torch.cuda.is_available():
        # the machine that resumes may have fewer devices than the one that was interrupted
        torch.cuda.set_rng_state_all(state["cuda_rng"][: torch.cuda.device_count()])


def _mutable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Everything in the state dict that training can change: trainable parameters and buffers."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}
