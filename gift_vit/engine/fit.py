"""The training loop, and score and loss over a loader: the same code for validation and test."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gift_vit.common import distributed
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.engine.config import OptimConfig, TrainerConfig
from gift_vit.engine.objective import CLASSES, Objective
from gift_vit.engine.observer import EpochRecord, Observer, StopTraining, best_epoch
from gift_vit.engine.state import (
    Precision,
    Schedule,
    TrainingState,
    build_optimizer,
    device_of,
    load_checkpoint,
    restore_state,
    save_checkpoint,
    trained_state,
)
from gift_vit.engine.step import Step, build_step

_CALMER = "lower optim.lr or lengthen optim.warmup_epochs, or use trainer.precision=fp32"
_CHEAP_SECONDS, _EPOCHS_SHARE = 0.2, 10  # a checkpoint that takes longer waits for ten times as much training
_WINDOW = 25  # steps whose losses a GPU sends together; they are looked at when the next ones are sent, and nothing waits


class TrainBatches(Protocol):
    """Training batches of the trainer's batch size, the last one perhaps smaller, drawn anew for each epoch.

    Of several processes each is given its share of every batch, as many shares as there are batches. Where a batch has no image
    for a process, its share is any image, labelled :data:`gift_vit.common.tensors.IGNORED`.
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
    """What a finished training hands back.

    Attributes:
        history: One record per epoch.
        seconds: Training time over all starts.
        captured: Whether its steps were repetitions of a recording.
        chosen: The setting of a method that is fitted and not trained.
        chosen_on: What chose it, as :class:`gift_vit.runs.result.RunRecord` says.
        val: The val split scored once more, with its logits where they are kept; None where top-1 is the only score, and they
            are not.
        kept_epoch: The epoch whose weights the model has, where val chose it; None: the last.
        commits: Of the code that trained it, where they are known.
    """

    history: list[EpochRecord]
    seconds: float
    captured: bool = False
    chosen: dict[str, float] | None = None
    chosen_on: str | None = None
    val: "Evaluation | None" = None
    kept_epoch: int | None = None
    commits: tuple[str, ...] = ()

    @property
    def val_score(self) -> float | None:
        """The score on val of the weights that the model has, in percent; None where it was not scored."""
        scored = [record for record in self.history if "val_top1" in record]
        if self.kept_epoch is not None:
            return self.history[self.kept_epoch].get("val_top1")
        return scored[-1].get("val_top1") if scored else None


@dataclass(frozen=True)
class FitInputs:
    """What :func:`fit` trains on; the test split is not among it.

    Attributes:
        train: Training batches.
        val: Validation batches, or None where the protocol trains on them.
        identity: Names the data; a checkpoint of other data is refused.
        objective: What is trained for, and scored.
        commit: Of the code that trains now; None: it is not known.
        keep_best: The model ends with the weights of the epoch that scored best on val, of equal ones the first; else with the
            last epoch's.
    """

    train: TrainBatches
    val: Iterable[tuple[Tensor, Tensor]] | None
    identity: str
    objective: Objective = CLASSES
    commit: str | None = None
    keep_best: bool = False


class EpochLosses:
    """The losses of an epoch's updates; one that is not finite ends the run.

    On a CPU each is looked at when it is noted. A GPU is not waited for: it sends those of :data:`_WINDOW` updates at a time,
    which are looked at when the next are sent, within 50 updates.
    """

    def __init__(self, epoch: int, device: torch.device) -> None:
        self._epoch = epoch
        self._on_cpu = device.type == "cpu"
        self._losses: list[Tensor] = []
        self._sizes: list[int] = []
        self._checked = 0
        self._arriving: Callable[[], Tensor] | None = None
        self._known: Tensor | None = None

    def __len__(self) -> int:
        """Number of updates."""
        return len(self._losses)

    def add(self, loss: Tensor, images: int) -> None:
        """Note the loss of an update, a detached scalar, which is the mean over ``images`` images.

        Raises:
            RunError: If this or an earlier loss is not finite.
        """
        self._losses.append(loss)
        self._sizes.append(images)
        if self._on_cpu:
            self._check([loss])
        elif len(self._losses) % _WINDOW == 0:
            if self._arriving is not None:
                losses = self._arriving()
                self._check(losses)
                self._known = losses[-1]
            self._arriving = _send(self._losses[-_WINDOW:])

    def to_show(self) -> Tensor | None:
        """The latest loss that can be read without waiting for the device; None: there is none yet."""
        return self._losses[-1] if self._on_cpu else self._known

    def mean(self) -> float:
        """The mean loss over the images; raises as :meth:`add` does."""
        losses = torch.stack(self._losses).double().cpu()
        self._check(losses[self._checked :])
        weights = torch.tensor(self._sizes, dtype=torch.float64)
        return float((losses * weights).sum() / weights.sum())

    def _check(self, losses: Iterable[Tensor]) -> None:
        for step, loss in enumerate(losses, self._checked):
            if not math.isfinite(loss):
                raise RunError(f"the loss became {float(loss)} in epoch {self._epoch}, step {step}; {_CALMER}")
            self._checked = step + 1


def _send(losses: list[Tensor]) -> Callable[[], Tensor]:
    """Send losses from their device to the host; what is returned waits for them."""
    sent = torch.stack(losses).to("cpu", non_blocking=True)
    arrived = torch.cuda.Event() if losses[0].is_cuda else None
    if arrived is not None:
        arrived.record(torch.cuda.current_stream(losses[0].device))  # which need not be the current device

    def receive() -> Tensor:
        if arrived is not None:
            arrived.synchronize()
        return sent

    return receive


class Checkpoints(AbstractContextManager["Checkpoints"]):
    """Writes a training's checkpoint after an epoch by calling ``write``, and at its end if an observer ended it.

    Those of adapters are small and written after every epoch. A whole model's takes seconds, longer than a GPU trains an epoch
    on a small dataset, and so may a slow disk: one that took over 0.2 s waits until ten times as long has been trained, and a
    run that is killed repeats that much. Several processes write after every epoch: all of them take part.
    """

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._cost, self._written_at, self._missing = 0.0, time.perf_counter(), False

    def epoch_done(self, is_last: bool) -> None:
        """Write it if it is time to."""
        waited = time.perf_counter() - self._written_at
        cheap = self._cost <= _CHEAP_SECONDS or waited >= _EPOCHS_SHARE * self._cost
        self._missing = True
        if is_last or cheap or distributed.world_size() > 1:
            self._write_now()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._missing and kind is StopTraining:
            self._write_now()

    def _write_now(self) -> None:
        started = time.perf_counter()
        self._write()
        self._written_at, self._missing = time.perf_counter(), False
        self._cost = self._written_at - started


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
        checkpoint: File that is written after every epoch, or less often where writing it takes long, see :class:`Checkpoints`.
        observers: Are told of every step and epoch, one after the other.
        stop_epoch: Epochs after which to stop; the schedule keeps its length. None: all.

    Raises:
        ConfigError: As :func:`load_checkpoint` does.
        RunError: If a loss, a trained weight or a logit is not finite; the last checkpoint remains.
    """
    device = next(model.parameters()).device
    precision = Precision(trainer.precision, device)
    optimizer = build_optimizer(model, optim)
    progress = TrainingState()
    last_epoch = (stop_epoch or trainer.epochs) - 1
    if checkpoint.is_file():
        progress = load_checkpoint(checkpoint, model, optimizer, precision.scaler, inputs.identity, last_epoch + 1)
        for observer in observers:
            observer.resumed(list(progress.history))
    progress.go_on_with(inputs.commit)
    schedule = Schedule(optimizer, optim, trainer.epochs, len(inputs.train))
    step, logits = build_step(model, optimizer, precision, trainer, inputs.objective)
    save = partial(save_checkpoint, checkpoint, progress, model, optimizer, precision.scaler, inputs.identity)
    with Checkpoints(save) as checkpoints:
        for epoch in range(progress.epochs_done, last_epoch + 1):
            started = time.perf_counter()
            for observer in observers:
                observer.epoch_started(epoch, last_epoch + 1, inputs.train.num_images)
            model.train()
            loss, lr, steps = _train_epoch(step, inputs.train, epoch, schedule, trainer.batch_size, observers)
            seconds = time.perf_counter() - started
            speed = inputs.train.num_images / seconds
            check_finite_weights(optimizer, epoch)
            record = EpochRecord(epoch=epoch, train_loss=loss, lr=lr, steps=steps, seconds=seconds, images_per_s=speed)
            if inputs.val is not None and is_scored(epoch, last_epoch, trainer.eval_every):
                where = f"on val after epoch {epoch}"
                scores = evaluate(model, inputs.val, device, precision, logits, where, inputs.objective)
                record["val_top1"], record["val_loss"] = scores.top1, scores.loss
            progress.history.append(record)
            if inputs.keep_best and best_epoch(progress.history) == epoch:
                progress.best = trained_state(model)
            progress.epochs_done = epoch + 1
            progress.seconds += seconds
            progress.captured = step.captured
            checkpoints.epoch_done(is_last=epoch == last_epoch)
            for observer in observers:
                observer.epoch_done(record)
    if progress.best is not None:
        restore_state(model, progress.best)
    val = None
    objective = inputs.objective.keeping(trainer.keep_predictions == "all")
    if inputs.val is not None and objective.needs_logits:
        val = evaluate(model, inputs.val, device, precision, logits, objective=objective)
    kept_epoch = best_epoch(progress.history) if inputs.keep_best else None
    own = {"val": val, "kept_epoch": kept_epoch, "commits": tuple(progress.commits)}
    return FitResult(progress.history, progress.seconds, progress.captured, **own)


def is_scored(epoch: int, last_epoch: int, eval_every: int) -> bool:
    """Whether the validation split is scored after an epoch."""
    return epoch == last_epoch or (eval_every > 0 and (epoch + 1) % eval_every == 0)


def _train_epoch(
    step: Step, batches: TrainBatches, epoch: int, schedule: Schedule, batch_size: int, observers: Sequence[Observer]
) -> tuple[float, float, int]:
    """One pass over the training images: the mean loss over images, the last learning rate, the number of updates."""
    losses = EpochLosses(epoch, device_of(schedule.optimizer))
    lr = 0.0
    for number, (images, labels) in enumerate(batches.epoch(epoch)):
        lr = schedule.set_lr(epoch, number)
        size = min(batch_size, batches.num_images - number * batch_size)  # of the batch, over all processes
        losses.add(step(images, labels, size), size)
        for observer in observers:
            observer.step_done(losses.to_show(), lr, size)
    return losses.mean(), lr, len(losses)


def check_finite_weights(optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """The last update of an epoch shows in no loss of that epoch; it must not get into the checkpoint either."""
    for group in optimizer.param_groups:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in group["params"]):
            raise RunError(f"a weight became NaN or infinite in the last update of epoch {epoch}; {_CALMER}")


@dataclass(frozen=True)
class Evaluation:
    """``top1`` in percent, ``loss`` the mean of the objective's loss, cross entropy in nats, over ``images`` examples.

    ``top1`` is top-1 accuracy, or the first of the objective's scores, and ``further`` the others. ``logits`` are the outputs
    (images, C) in the split's order, float32; None where they are not kept.
    """

    top1: float
    loss: float
    images: int
    logits: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    further: dict[str, float] = field(default_factory=dict)


class Tally:
    """Scores of an objective, added up batch by batch on a device."""

    def __init__(self, device: torch.device, objective: Objective = CLASSES) -> None:
        self._objective = objective
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._spoilt = torch.zeros((), dtype=torch.int64, device=device)  # images with a logit that is NaN or infinite
        self._images = 0
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch of logits (B, …, classes) and labels (B, …)."""
        logits = logits.float()
        self._correct += self._objective.correct(logits, labels).sum()
        self._loss += self._objective.loss(logits, labels).double()
        self._spoilt += (~logits.isfinite()).flatten(1).any(1).sum()
        self._images += len(labels)
        if self._objective.needs_logits:
            self._logits.append(logits.clone())
        if self._objective.scores:
            self._labels.append(labels)

    def evaluation(self, where: str = "") -> Evaluation:
        """The scores over all batches, of all processes; ``where`` says of what in an error.

        Raises:
            ConfigError: If there is no image.
            RunError: If a logit or the loss is not finite: there is no class to read from NaN.
        """
        images = torch.tensor(self._images, dtype=torch.float64, device=self._loss.device)
        totals = torch.stack([self._correct.double(), self._loss, self._spoilt.double(), images])
        distributed.sum_over_processes(totals)
        correct, loss, spoilt, images = totals.tolist()
        if images == 0:
            raise ConfigError("nothing to evaluate: the split has no examples")
        if spoilt or not math.isfinite(loss):
            what = f"logits of {int(spoilt)} of {int(images)} examples are NaN or infinite" if spoilt else f"the loss is {loss}"
            raise RunError(f"no score{where and f' {where}'}: {what}; {_CALMER}")
        top1, further, kept = 100 * int(correct) / int(images), {}, None
        if self._objective.needs_logits:
            logits = _gathered(self._logits)
            kept = logits if self._objective.keep_logits else None
            if self._objective.scores:
                (_, top1), *others = self._objective.scores(logits, _gathered(self._labels)).items()
                further = dict(others)
        return Evaluation(top1=top1, loss=loss / images, images=int(images), logits=kept, further=further)


def _gathered(batches: list[Tensor]) -> NDArray[Any]:
    """The rows of all batches of all processes, in the split's order."""
    return distributed.gather_rows(torch.cat(batches).cpu().numpy() if batches else None)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    precision: Precision,
    forward: Callable[[Tensor], Tensor] | None = None,
    where: str = "",
    objective: Objective = CLASSES,
) -> Evaluation:
    """Score a model on batches of images (B, 3, H, W) and labels (B,); its training flag is restored.

    Of several processes each scores the batches it is given; the evaluation is of all of them. ``forward`` gives the model's
    logits where they are computed in another way than by calling it. ``where`` says in an error what is scored.
    ``objective`` says what the scores are, and whether the logits are kept.

    Raises:
        ConfigError: If there is no image.
        RunError: If a logit is NaN or infinite.
    """
    was_training = model.training
    model.eval()
    tally = Tally(device, objective)
    for inputs, labels in batches:
        inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with precision.autocast():
            logits = model(inputs) if forward is None else forward(inputs)
        tally.add(logits, labels)
    model.train(was_training)
    return tally.evaluation(where)
