"""Checkpoints for resuming: everything the next epoch depends on, written atomically."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from gift_vit import distributed
from gift_vit.errors import ConfigError
from gift_vit.files import atomic_path


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        epochs_done: Finished epochs.
        history: One record per finished epoch, as in ``metrics.jsonl``.
        seconds: Training time so far, over all starts.
    """

    epochs_done: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def save_checkpoint(
    path: Path,
    progress: Progress,
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
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    identity: str,
) -> Progress:
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
    return Progress(**state["progress"])


def _random_state() -> dict[str, Any]:
    return {
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["rng"])
    if torch.cuda.is_available():
        # the machine that resumes may have fewer devices than the one that was interrupted
        torch.cuda.set_rng_state_all(state["cuda_rng"][: torch.cuda.device_count()])


def _mutable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Everything in the state dict that training can change: trainable parameters and buffers."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}
