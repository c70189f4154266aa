"""Following a run while it trains: progress on the terminal or in the log, and Weights & Biases by choice."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from gift_vit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("none", "wandb")
MODES = ("offline", "online")


@dataclass
class TrackerConfig:
    """The tracker of a run.

    Attributes:
        kind: ``none`` or ``wandb``.
        project: W&B project.
        entity: W&B user or team; None: the account's own.
        mode: ``offline`` (files only, uploaded later with ``wandb sync``, no account needed) or ``online``.
        log_adapter: Whether the adapter file becomes a W&B artifact.
    """

    kind: str
    project: str
    entity: str | None
    mode: str
    log_adapter: bool

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, KINDS), ("mode", self.mode, MODES)):
            if value not in known:
                raise ConfigError(f"tracker.{name} is {value!r}; expected {' or '.join(known)}")
        for name, value in (("project", self.project), ("entity", self.entity)):
            if value is not None and (not value.strip() or set(value) & set("/\\#?%:")):
                raise ConfigError(f"tracker.{name} is {value!r}; expected a W&B name: not empty, without any of / \\ # ? % :")


@dataclass
class RunDescription:
    """What a tracker records about a run before it starts.

    Attributes:
        name: Shown to people.
        folder: The run's own folder; the tracker's files go there.
        config: What :func:`gift_vit.tracking.fields.config_fields` makes of the resolved configuration.
        group: ``<dataset>/<method>``.
        job_type: The phase.
        tags: Protocol, benchmark, backbone, seed.
        run_id: The same for every start of the same run, so that a resumed run continues its curves.
    """

    name: str
    folder: Path
    config: dict[str, object]
    group: str
    job_type: str
    tags: list[str]
    run_id: str


class Observer(Protocol):
    """What the training loop tells; the engine declares the same protocol."""

    def resumed(self, history: list[dict[str, float]]) -> None:
        """Training goes on after the epochs whose records these are."""
        ...

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:
        """Epoch ``epoch`` (from 0) of ``epochs`` begins; it has ``images`` images."""
        ...

    def step_done(self, loss: "Tensor", lr: float, images: int) -> None:
        """An update was made; reading ``loss`` waits for the device."""
        ...

    def epoch_done(self, record: Mapping[str, float]) -> None:
        """An epoch is finished; ``val_*`` are there only if it was scored."""
        ...


class Tracker(Observer, Protocol):
    """An observer that also records how a run ends. Entering it starts the record; no method raises."""

    def finish(self, summary: Mapping[str, object], adapter: Path | None) -> None:
        """The run is complete: final numbers, flat or in sections, and the adapter file if there is one."""
        ...

    def fail(self, reason: str) -> None:
        """The run ended early; leaving the context through an exception does this too."""
        ...

    def __enter__(self) -> "Tracker": ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class NullTracker:
    """Records nothing."""

    def resumed(self, history: list[dict[str, float]]) -> None:
        """Nothing to record."""

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:
        """Nothing to record."""

    def step_done(self, loss: "Tensor", lr: float, images: int) -> None:
        """Nothing to record."""

    def epoch_done(self, record: Mapping[str, float]) -> None:
        """Nothing to record."""

    def finish(self, summary: Mapping[str, object], adapter: Path | None) -> None:
        """Nothing to record."""

    def fail(self, reason: str) -> None:
        """Nothing to record."""

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


class Observers:
    """Several observers as one; each is told in the order given."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def resumed(self, history: list[dict[str, float]]) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.resumed(history)

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.epoch_started(epoch, epochs, images)

    def step_done(self, loss: "Tensor", lr: float, images: int) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.step_done(loss, lr, images)

    def epoch_done(self, record: Mapping[str, float]) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.epoch_done(record)


def build_tracker(cfg: TrackerConfig, run: RunDescription) -> Tracker:
    """The tracker a configuration asks for, not yet started; ``WANDB_MODE=disabled`` in the environment switches W&B off."""
    if cfg.kind == "none" or os.environ.get("WANDB_MODE") == "disabled":
        return NullTracker()
    from gift_vit.tracking.wandb_run import WandbTracker

    return WandbTracker(cfg, run)
