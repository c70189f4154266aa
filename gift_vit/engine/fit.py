"""The training loop, and top-1 accuracy and loss over a loader: the same code for validation and test."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from gift_vit.common import distributed
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.engine.config import OptimConfig, TrainerConfig
from gift_vit.engine.observer import EpochRecord, Observer
from gift_vit.engine.state import Precision, Schedule, TrainingState, build_optimizer, load_checkpoint, save_checkpoint

_CALMER = "lower optim.lr or lengthen optim.warmup_epochs, or use trainer.precision=fp32"
_LOSS_CHECK_STEPS = 50  # a GPU is asked for its losses this often, so that it does not wait for the host every step


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


@dataclass(frozen=True)
class FitResult:
    """What a finished training hands back: one record per epoch, and the training time over all starts in seconds."""

    history: list[EpochRecord]
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
    observers: Sequence[Observer],
    stop_epoch: int | None = None,
) -> FitResult:
    """Train the trainable parameters of a model in place, resuming from ``checkpoint`` where it exists.

    Args:
        model: On its device, with a method applied.
        inputs: Training and validation batches.
        optim: Optimiser and schedule.
        trainer: Everything else.
        checkpoint: File that is written after every epoch.
        observers: Are told of every step and epoch, one after the other.
        stop_epoch: Epochs after which to stop; the schedule keeps its length. None: all.

    Raises:
        RunError: If the loss is not finite; the checkpoint of the last good epoch remains.
    """
    device = next(model.parameters()).device
    precision = Precision(trainer.precision, device)
    optimizer = build_optimizer(model, optim)
    progress = TrainingState()
    if checkpoint.is_file():
        progress = load_checkpoint(checkpoint, model, optimizer, precision.scaler, inputs.identity)
        for observer in observers:
            observer.resumed(list(progress.history))
    schedule = Schedule(optimizer, optim, trainer.epochs, len(inputs.train))
    forward: nn.Module = torch.compile(model) if trainer.compile else model  # pyright: ignore[reportAssignmentType]
    last_epoch = (stop_epoch or trainer.epochs) - 1
    for epoch in range(progress.epochs_done, last_epoch + 1):
        started = time.perf_counter()
        for observer in observers:
            observer.epoch_started(epoch, last_epoch + 1, inputs.train.num_images)
        model.train()
        loss, lr, steps = _train_epoch(forward, inputs.train, epoch, schedule, precision, trainer, observers)
        seconds = time.perf_counter() - started
        speed = inputs.train.num_images / seconds
        record = EpochRecord(epoch=epoch, train_loss=loss, lr=lr, steps=steps, seconds=seconds, images_per_s=speed)
        if inputs.val is not None and is_scored(epoch, last_epoch, trainer.eval_every):
            scores = evaluate(forward, inputs.val, device, precision)
            record["val_top1"], record["val_loss"] = scores.top1, scores.loss
        check_finite_weights(optimizer, epoch)
        progress.history.append(record)
        progress.epochs_done = epoch + 1
        progress.seconds += seconds
        save_checkpoint(checkpoint, progress, model, optimizer, precision.scaler, inputs.identity)
        for observer in observers:
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
    observers: Sequence[Observer],
) -> tuple[float, float, int]:
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
        for observer in observers:
            observer.step_done(loss, lr, size)
    return losses.mean(), lr, len(losses)


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


@dataclass(frozen=True)
class Evaluation:
    """``top1`` in percent (0–100), ``loss`` the mean cross entropy in nats, over ``images`` images."""

    top1: float
    loss: float
    images: int


class Tally:
    """Scores added up batch by batch on a device."""

    def __init__(self, device: torch.device) -> None:
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._images = 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch of logits (B, classes) and labels (B,)."""
        logits = logits.float()
        self._correct += (logits.argmax(1) == labels).sum()
        self._loss += F.cross_entropy(logits, labels, reduction="sum").double()
        self._images += len(labels)

    def evaluation(self) -> Evaluation:
        """The scores over all batches, of all processes; no image is an error."""
        images = torch.tensor(self._images, dtype=torch.float64, device=self._loss.device)
        totals = torch.stack([self._correct.double(), self._loss, images])
        distributed.sum_over_processes(totals)
        correct, loss, images = totals.tolist()
        if images == 0:
            raise ConfigError("nothing to evaluate: the split has no images")
        return Evaluation(top1=100 * int(correct) / int(images), loss=loss / images, images=int(images))


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, precision: Precision
) -> Evaluation:
    """Score a model on batches of images (B, 3, H, W) and labels (B,); its training flag is restored.

    Of several processes each scores the batches it is given; the evaluation is of all of them.
    """
    was_training = model.training
    model.eval()
    tally = Tally(device)
    for inputs, labels in batches:
        inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with precision.autocast():
            logits = model(inputs)
        tally.add(logits, labels)
    model.train(was_training)
    return tally.evaluation()
