"""The training loop."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from gift_vit import distributed
from gift_vit.engine.checkpoint import Progress, load_checkpoint, save_checkpoint
from gift_vit.engine.evaluate import evaluate
from gift_vit.engine.optim import OptimConfig, Schedule, build_optimizer
from gift_vit.engine.precision import PRECISIONS, Precision
from gift_vit.errors import ConfigError, RunError

_CALMER = "lower optim.lr or lengthen optim.warmup_epochs, or use trainer.precision=fp32"
CLS_LAST_BLOCK = ("auto", "on", "off")
MEMORY = ("fast", "lean", "minimal")
SPEED = ("exact", "auto")
_LOSS_CHECK_STEPS = 50  # a GPU is asked for its losses this often, so that it does not wait for the host every step


@dataclass
class TrainerConfig:
    """How training runs.

    Attributes:
        epochs: Length of the schedule.
        batch_size: Images per update, over all processes.
        grad_accumulation: Pieces a process computes its share of a batch in; lowers memory, not the batch size.
        drop_path_rate: Stochastic depth of the backbone, rising linearly over the blocks.
        eval_every: Score the validation split after every so many epochs, and after the last; 0: after the last only.
        precision: fp32, tf32, bf16 or fp16.
        compile: Run the model through ``torch.compile``.
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda``, ``cuda:1`` ….
        workers: Processes that decode images, for each process that trains.
        eval_batch_size: Images per batch and process in evaluation; without influence on results but for rounding.
        cls_last_block: Let the last block compute the class token alone, ``on`` or ``off``; ``auto``: where that is exact.
        memory: ``fast``, ``lean`` (the insides of MLPs are computed twice) or ``minimal`` (all blocks are); same gradients.
        speed: ``exact``: ``precision`` and ``compile`` as given; ``auto``: the fastest that is safe on the machine.
    """

    epochs: int
    batch_size: int
    grad_accumulation: int
    drop_path_rate: float
    eval_every: int
    precision: str
    compile: bool
    device: str
    workers: int
    eval_batch_size: int
    cls_last_block: str = "auto"  # these have values for the configs of runs that are older than they
    memory: str = "fast"
    speed: str = "exact"

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "grad_accumulation", "eval_batch_size"):
            if getattr(self, key) < 1:
                raise ConfigError(f"trainer.{key}={getattr(self, key)}: expected 1 or more")
        for key in ("eval_every", "workers"):
            if getattr(self, key) < 0:
                raise ConfigError(f"trainer.{key}={getattr(self, key)}: expected 0 or more")
        if self.grad_accumulation > self.batch_size:
            raise ConfigError(
                f"trainer.grad_accumulation={self.grad_accumulation} exceeds trainer.batch_size={self.batch_size}; lower it"
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ConfigError(f"trainer.drop_path_rate={self.drop_path_rate}: expected a number in [0, 1)")
        choices = {"precision": PRECISIONS, "cls_last_block": CLS_LAST_BLOCK, "memory": MEMORY, "speed": SPEED}
        for key, known in choices.items():
            if getattr(self, key) not in known:
                raise ConfigError(f"unknown trainer.{key} {getattr(self, key)!r} (known: {', '.join(known)})")


class TrainBatches(Protocol):
    """Training batches of the trainer's batch size, the last one perhaps smaller, drawn anew for each epoch.

    Of several processes each is given its share of every batch, as many shares as there are batches. Where a batch has no image
    for a process, its share is any image, labelled so that ``F.cross_entropy`` ignores it.
    """

    num_images: int

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 3, H, W) and labels (B,); the same for the same epoch, whatever came before."""
        ...


class Observer(Protocol):
    """Whoever wants to see training happen: progress display, metrics file, tracker."""

    def resumed(self, history: list[dict[str, float]]) -> None:
        """Training goes on after the epochs whose records these are."""
        ...

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:
        """Epoch ``epoch`` (from 0) of ``epochs`` begins; it has ``images`` images."""
        ...

    def step_done(self, loss: Tensor, lr: float, images: int) -> None:
        """An update was made; ``loss`` is a detached scalar, perhaps still being computed."""
        ...

    def epoch_done(self, record: Mapping[str, float]) -> None:
        """An epoch is finished, scored and checkpointed."""
        ...


@dataclass(frozen=True)
class FitResult:
    """What a finished training hands back: one record per epoch, and the training time over all starts in seconds."""

    history: list[dict[str, float]]
    seconds: float


@dataclass(frozen=True)
class FitInputs:
    """What :func:`fit` trains on; the test split is not among it.

    Attributes:
        train: Training batches.
        val: Validation batches, or None where the protocol trains on them.
        identity: Names the data; a checkpoint of other data is refused.
    """

    train: TrainBatches
    val: Iterable[tuple[Tensor, Tensor]] | None
    identity: str


class EpochLosses:
    """The losses of an epoch's updates; one that is not finite ends the run."""

    def __init__(self, epoch: int, device: torch.device) -> None:
        self._epoch = epoch
        self._check_every = 1 if device.type == "cpu" else _LOSS_CHECK_STEPS
        self._losses: list[Tensor] = []
        self._sizes: list[int] = []
        self._checked = 0

    def __len__(self) -> int:
        """Number of updates."""
        return len(self._losses)

    def add(self, loss: Tensor, images: int) -> None:
        """Note the loss of an update, a detached scalar, which is the mean over ``images`` images.

        Raises:
            RunError: If this or an earlier loss is not finite; a GPU is asked now and then only.
        """
        self._losses.append(loss)
        self._sizes.append(images)
        if len(self._losses) % self._check_every == 0:
            self._check()

    def mean(self) -> float:
        """The mean loss over the images; raises as :meth:`add` does."""
        self._check()
        weights = torch.tensor(self._sizes, dtype=torch.float64)
        return float((torch.stack(self._losses).double().cpu() * weights).sum() / weights.sum())

    def _check(self) -> None:
        for step, loss in enumerate(self._losses[self._checked :], self._checked):
            if not math.isfinite(loss):
                raise RunError(f"the loss became {float(loss)} in epoch {self._epoch}, step {step}; {_CALMER}")
        self._checked = len(self._losses)


def fit(
    model: nn.Module,
    inputs: FitInputs,
    optim: OptimConfig,
    trainer: TrainerConfig,
    checkpoint: Path,
    observer: Observer,
    stop_epoch: int | None = None,
) -> FitResult:
    """Train the trainable parameters of a model in place, resuming from ``checkpoint`` where it exists.

    Args:
        model: On its device, with a method applied.
        inputs: Training and validation batches.
        optim: Optimiser and schedule.
        trainer: Everything else.
        checkpoint: File that is written after every epoch.
        observer: Is told of every step and epoch.
        stop_epoch: Epochs after which to stop; the schedule keeps its length. None: all.

    Raises:
        RunError: If the loss is not finite; the checkpoint of the last good epoch remains.
    """
    device = next(model.parameters()).device
    precision = Precision(trainer.precision, device)
    optimizer = build_optimizer(model, optim)
    progress = Progress()
    if checkpoint.is_file():
        progress = load_checkpoint(checkpoint, model, optimizer, precision.scaler, inputs.identity)
        observer.resumed(list(progress.history))
    schedule = Schedule(optimizer, optim, trainer.epochs, len(inputs.train))
    forward: nn.Module = torch.compile(model) if trainer.compile else model  # pyright: ignore[reportAssignmentType]
    last_epoch = (stop_epoch or trainer.epochs) - 1
    for epoch in range(progress.epochs_done, last_epoch + 1):
        started = time.perf_counter()
        observer.epoch_started(epoch, last_epoch + 1, inputs.train.num_images)
        model.train()
        record = {"epoch": epoch} | _train_epoch(forward, inputs.train, epoch, schedule, precision, trainer, observer)
        seconds = time.perf_counter() - started
        record |= {"seconds": seconds, "images_per_s": inputs.train.num_images / seconds}
        if inputs.val is not None and is_scored(epoch, last_epoch, trainer.eval_every):
            scores = evaluate(forward, inputs.val, device, precision)
            record |= {"val_top1": scores.top1, "val_loss": scores.loss}
        check_finite_weights(optimizer, epoch)
        progress.history.append(record)
        progress.epochs_done = epoch + 1
        progress.seconds += seconds
        save_checkpoint(checkpoint, progress, model, optimizer, precision.scaler, inputs.identity)
        observer.epoch_done(record)
    return FitResult(progress.history, progress.seconds)


def is_scored(epoch: int, last_epoch: int, eval_every: int) -> bool:
    """Whether the validation split is scored after an epoch."""
    return epoch == last_epoch or (eval_every > 0 and (epoch + 1) % eval_every == 0)


def _train_epoch(
    model: nn.Module,
    batches: TrainBatches,
    epoch: int,
    schedule: Schedule,
    precision: Precision,
    trainer: TrainerConfig,
    observer: Observer,
) -> dict[str, float]:
    """One pass over the training images: the mean loss over images, the last learning rate, the number of updates."""
    optimizer = schedule.optimizer
    device = optimizer.param_groups[0]["params"][0].device
    losses = EpochLosses(epoch, device)
    lr = 0.0
    for step, (images, labels) in enumerate(batches.epoch(epoch)):
        lr = schedule.set_lr(epoch, step)
        size = min(trainer.batch_size, batches.num_images - step * trainer.batch_size)  # of the batch, over all processes
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        loss = torch.zeros((), device=device)
        pieces = zip(images.chunk(trainer.grad_accumulation), labels.chunk(trainer.grad_accumulation), strict=True)
        for piece, targets in pieces:
            with precision.autocast():
                logits = model(piece)
            piece_loss = F.cross_entropy(logits.float(), targets, reduction="sum") / size
            precision.scaler.scale(piece_loss).backward()
            loss += piece_loss.detach()
        _sum_over_processes(loss, optimizer)
        precision.scaler.step(optimizer)
        precision.scaler.update()
        optimizer.zero_grad()
        losses.add(loss, size)
        observer.step_done(loss, lr, size)
    return {"train_loss": losses.mean(), "lr": lr, "steps": len(losses)}


def _sum_over_processes(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Turn a process's part of the loss (a scalar) and of the gradients into those of the whole batch, in place.

    One sum after the backward pass instead of DistributedDataParallel, whose overlap of the two has nothing to gain from an
    adapter's few kilobytes. In return layers may share parameters, parameters may have no gradient, and accumulation and
    ``torch.compile`` see the bare model.
    """
    if distributed.world_size() == 1:
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    flat = parameters_to_vector([loss, *gradients])
    distributed.sum_over_processes(flat)
    vector_to_parameters(flat, [loss, *gradients])


def check_finite_weights(optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """The last update of an epoch shows in no loss of that epoch; it must not get into the checkpoint either."""
    for group in optimizer.param_groups:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in group["params"]):
            raise RunError(f"a weight became NaN or infinite in the last update of epoch {epoch}; {_CALMER}")
