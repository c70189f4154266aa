"""What a training changes beside the weights: optimiser, learning-rate schedule, number format; and its checkpoints.

A checkpoint holds everything the next epoch depends on, and is written atomically. Behind what torch writes stands the SHA-256
of it: a file that is damaged, cut short or changed is never gone on with.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from torch import nn

from gift_vit.common import distributed
from gift_vit.common.checks import one_of
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import atomic_path, sha256_of
from gift_vit.engine.config import PRECISIONS, OptimConfig
from gift_vit.engine.observer import EpochRecord

log = logging.getLogger(__name__)

_FORMAT = 2  # 1, of versions before 0.2, had no digest
_SEAL = b"\nsha256 "  # before the digest, at the end of the file
_SEAL_BYTES = len(_SEAL) + 64


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
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=cfg.lr, betas=(beta1, beta2), eps=cfg.eps, fused=True
    )
    if cfg.clip_norm is not None:
        optimizer.register_step_pre_hook(partial(_clip, trainable, cfg.clip_norm))
    return optimizer


def _clip(trained: list[nn.Parameter], norm: float, *_: object) -> None:
    """Before an update, of gradients that all processes and pieces have been summed into."""
    nn.utils.clip_grad_norm_(trained, norm)


class Schedule:
    """The learning rate of every update: timm's schedulers, by epoch or by update, as a pure function of the position."""

    def __init__(self, optimizer: torch.optim.Optimizer, cfg: OptimConfig, epochs: int, steps_per_epoch: int) -> None:
        self.per_epoch = cfg.schedule == "epoch"
        unit = 1 if self.per_epoch else steps_per_epoch
        self.steps_per_epoch = steps_per_epoch
        self.optimizer = optimizer
        length = epochs * unit
        warmup = cfg.warmup_epochs * unit if cfg.warmup_ratio is None else int(cfg.warmup_ratio * length)
        shared: dict[str, Any] = {
            "lr_min": cfg.min_lr,
            "warmup_t": warmup,
            "warmup_lr_init": cfg.warmup_lr,
            "t_in_epochs": self.per_epoch,
        }
        if cfg.decay == "linear":
            self.scheduler = PolyLRScheduler(optimizer, length - warmup, power=1.0, warmup_prefix=True, **shared)
        else:
            self.scheduler = CosineLRScheduler(optimizer, length, **shared)

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

    Creating one sets torch's process-wide float32 product precision. The first ``bf16`` or ``fp16`` on a CPU that has no
    instructions for it is warned of, as ``bf16`` on a GPU without units for it: it is right, and slower than ``fp32``.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        one_of(PRECISIONS)("trainer.precision", name)
        self.device_type = device.type
        self.autocast_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        set_product_precision(name, device)
        if self.autocast_dtype is not None:
            _warn_if_slow(name, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self, keep_casts: bool = True) -> torch.autocast:
        """Context of the forward pass; ``keep_casts``: a trained parameter that is used twice in it is cast once."""
        dtype = self.autocast_dtype
        return torch.autocast(self.device_type, dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=keep_casts)


@cache
def _warn_if_slow(name: str, device: torch.device) -> None:
    if device.type == "cuda":
        if name == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            log.warning("trainer.precision=bf16, but this GPU has no units for it: fp16 and fp32 are faster")
    # oneDNN's own answer; a build of torch without oneDNN multiplies by other means and is not judged
    elif torch.backends.mkldnn.is_available() and not getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")():
        log.warning("trainer.precision=%s, but this CPU has no instructions for it: fp32 is many times as fast", name)


def set_product_precision(name: str, device: torch.device) -> None:
    """Set torch's process-wide precision of float32 products, and of a GPU's convolutions, to that of :data:`PRECISIONS`."""
    on_gpu = device.type == "cuda"
    # what a GPU's autocast leaves in float32 is rounded to bf16 right after
    torch.set_float32_matmul_precision("high" if name == "tf32" or (name == "bf16" and on_gpu) else "highest")
    if on_gpu:
        torch.backends.cudnn.allow_tf32 = name == "tf32"  # convolutions have a switch of their own, on by default


@contextmanager
def product_precision_kept() -> Iterator[None]:
    """Afterwards what :func:`set_product_precision` sets is what it is now.

    Raises:
        ConfigError: If this process uses torch's newer switches for it, which cannot be read beside the older ones.
    """
    try:
        products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError as error:
        raise ConfigError(
            "this process has set fp32_precision of torch.backends, beside which a run cannot set its own; set "
            "torch.set_float32_matmul_precision instead, or train in another process"
        ) from error
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Within it, torch takes deterministic algorithms alone, the backward pass of attention included, or raises.

    Raises:
        ConfigError: If a GPU is to compute whose library of products, which reads its setting when it is first used, has been
            used in this process with another setting.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        _check_products(device)
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]


def _check_products(device: torch.device) -> None:
    try:
        torch.mm(torch.zeros(1, 1, device=device), torch.zeros(1, 1, device=device))
    except RuntimeError as error:
        if "CUBLAS_WORKSPACE_CONFIG" not in str(error):
            raise
        raise ConfigError(
            "trainer.deterministic=true comes too late for this process, which has used the GPU without it; start a new one, "
            "with CUBLAS_WORKSPACE_CONFIG=:4096:8 in its environment"
        ) from error


@dataclass
class TrainingState:
    """How far a training is.

    Attributes:
        epochs_done: Finished epochs.
        history: One record per finished epoch, as in ``metrics.jsonl``.
        seconds: Training time so far, over all starts.
        best: What :func:`trained_state` was after the best epoch so far, where that is kept; else None.
        captured: Whether the steps of the last epoch were recorded ones.
        commits: Of the code that its starts ran, each once, the first one first.
    """

    epochs_done: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    seconds: float = 0.0
    best: dict[str, torch.Tensor] | None = None
    captured: bool = False
    commits: list[str] = field(default_factory=list)

    def go_on_with(self, commit: str | None) -> None:
        """Note the code of this start; other code than that of the epochs so far is warned of. None: it is not known."""
        if commit is None or commit in self.commits:
            return
        if self.epochs_done:
            log.warning("goes on with commit %s, and was trained with %s so far", commit, ", ".join(self.commits) or "another")
        self.commits.append(commit)


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
    random_states = distributed.gather(_random_state(device_of(optimizer)))
    if not distributed.is_main():
        return
    state = {
        "format": _FORMAT,
        "identity": identity,
        "progress": vars(progress),
        "model": _mutable_state(model),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        **random_states[0],
        "other_processes": random_states[1:],
    }
    with atomic_path(path) as partial:
        torch.save(state, partial)
        digest = sha256_of(partial)
        with partial.open("ab") as file:
            file.write(_SEAL + digest.encode())


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, identity: str, epochs: int
) -> TrainingState:
    """Restore what :func:`save_checkpoint` wrote into freshly built objects; all of it or, on an error, nothing of the model.

    A process beyond those that wrote it keeps the random state it has.

    Args:
        path: The file.
        model: Takes the trained tensors.
        optimizer: Takes its moments.
        scaler: Takes its scale.
        identity: Names the data that the run trains on.
        epochs: The most that can be done.

    Raises:
        ConfigError: If the file is unreadable, damaged or changed, or belongs to other data or another run.
    """
    try:
        state = _read(path)
        problem = _misfit(state, _mutable_state(model), identity, epochs)
        progress = TrainingState() if problem else _restore_progress(state, optimizer, scaler)
    except Exception as error:  # readers of zip and pickle raise classes of many kinds, as does other content
        line = next(iter(str(error).splitlines()), type(error).__name__)
        reason = f"it has no {line}" if isinstance(error, KeyError) else line
        raise ConfigError(f"{path} cannot be read ({reason}); delete it to start the run over") from error
    if problem is not None:
        raise ConfigError(f"{path} {problem}; delete it to start the run over")
    restore_state(model, state["model"])
    return progress


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of everything in the state dict that training can change."""
    return {name: tensor.detach().clone() for name, tensor in _mutable_state(model).items()}


@torch.no_grad()
def restore_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Give a model what :func:`trained_state` took of it."""
    for name, tensor in _mutable_state(model).items():
        tensor.copy_(state[name])


def _restore_progress(state: dict[str, Any], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> TrainingState:
    """All of a checkpoint but the model."""
    optimizer.load_state_dict(state["optimizer"])
    _check_moments(optimizer)
    scaler.load_state_dict(state["scaler"])
    random_states = [state, *state.get("other_processes", [])]
    if distributed.rank() < len(random_states):
        _set_random_state(random_states[distributed.rank()], device_of(optimizer))
    return TrainingState(**state["progress"])


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint's content; what is damaged is an error."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _SEAL_BYTES))
        end = file.read()
    if size == 0:
        raise ValueError("it is empty")
    sealed = end.startswith(_SEAL)
    if sealed and end[len(_SEAL) :] != sha256_of(path, size - _SEAL_BYTES).encode():
        raise ValueError("it is damaged: its SHA-256 is not the one that it was written with")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not sealed and state.get("format", 1) >= _FORMAT:
        raise ValueError("it is cut short or changed: its SHA-256 is missing")
    return state


def _misfit(state: dict[str, Any], own: dict[str, torch.Tensor], identity: str, epochs: int) -> str | None:
    """In what a checkpoint is not one of this run; None: it is."""
    if not identity.startswith(state["identity"]):  # earlier versions named less of data and weights
        return "was trained on other data or other pretrained weights than there are now"
    held = state["model"]
    if own.keys() != held.keys():
        return "holds other tensors than this run trains"
    for name, tensor in own.items():
        if (held[name].shape, held[name].dtype) != (tensor.shape, tensor.dtype):
            return f"holds {name} as {_described(held[name])}, this run trains {_described(tensor)}"
    done, history = state["progress"]["epochs_done"], state["progress"]["history"]
    if not 1 <= done <= epochs or [record["epoch"] for record in history] != list(range(done)):
        return f"says that {done} epochs are done and has records of {len(history)}; this run has {epochs}"
    return None


def _check_moments(optimizer: torch.optim.Optimizer) -> None:
    """A moment is as large as its parameter; a count of updates is one number."""
    for parameter, moments in optimizer.state.items():
        wrong = [key for key, value in moments.items() if value.shape not in (parameter.shape, ())]
        if wrong:
            raise ValueError(f"the optimiser's {wrong[0]} has shape {tuple(moments[wrong[0]].shape)}, its parameter another")


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def device_of(optimizer: torch.optim.Optimizer) -> torch.device:
    """Where the trained parameters lie."""
    return optimizer.param_groups[0]["params"][0].device


def _random_state(device: torch.device) -> dict[str, Any]:
    return {"rng": torch.get_rng_state(), "cuda_rng": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []}


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """The device may be another than the one that was trained on."""
    torch.set_rng_state(state["rng"])
    if device.type == "cuda" and (states := state["cuda_rng"]):
        # once those of all devices were kept, and not which of them had trained
        torch.cuda.set_rng_state(states[min(device.index, len(states) - 1)], device)


def _mutable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Everything in the state dict that training can change: trainable parameters and buffers."""
    every = model.named_parameters(remove_duplicate=False)  # tied ones by all their names
    frozen = {name for name, parameter in every if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}
