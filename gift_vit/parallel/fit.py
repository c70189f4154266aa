"""The training loop of several runs at once: that of :mod:`gift_vit.engine.fit`, with one forward pass for all of them.

Every run has its own optimiser, schedule, checkpoint, random numbers and observers, and its record is its own. What it cannot
have is a time of its own: seconds are those of all runs together, and each epoch's record says how many they were.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from gift_vit.engine import Evaluation, FitResult, Observer, OptimConfig, Precision, Schedule, TrainerConfig, build_optimizer
from gift_vit.engine.checkpoint import Progress, load_checkpoint, save_checkpoint
from gift_vit.engine.evaluate import Tally
from gift_vit.engine.fit import EpochLosses, FitInputs, check_finite_weights, is_scored
from gift_vit.parallel.stack import ModelStack, StepInputs

_Piece: TypeAlias = tuple[StepInputs, Tensor]
"""Of a batch: what the model is given, and the labels."""


@dataclass(frozen=True)
class Member:
    """One run among those that are trained together.

    Attributes:
        index: Of its model in the stack.
        seed: Of its random numbers.
        inputs: Runs of one seed may have the same ones.
        alone: A context in which an error ends this run and no other; it is swallowed there, and ``ended`` becomes true.
        ended: Whether the run has ended.
    """

    index: int
    seed: int
    inputs: FitInputs
    optim: OptimConfig
    checkpoint: Path
    observer: Observer
    alone: Callable[[], AbstractContextManager[None]]
    ended: Callable[[], bool]


class _Training:
    """A member with what :func:`gift_vit.engine.fit` would keep of it."""

    def __init__(self, member: Member, stack: ModelStack, trainer: TrainerConfig, device: torch.device) -> None:
        self.member, self.device = member, device
        self.model = stack.models[member.index]
        self.optimizer = build_optimizer(self.model, member.optim)
        self.schedule = Schedule(self.optimizer, member.optim, trainer.epochs, len(member.inputs.train))
        self.scaler = torch.amp.GradScaler(device.type, enabled=False)
        self.random = torch.Generator(device).manual_seed(member.seed)
        self.progress = Progress()
        if member.checkpoint.is_file():
            self.progress = load_checkpoint(member.checkpoint, self.model, self.optimizer, self.scaler, member.inputs.identity)
            self.random.set_state(_random_state(device))
            member.observer.resumed(list(self.progress.history))

    def save(self) -> None:
        """Write the checkpoint, with the random state that the run would have alone."""
        torch.manual_seed(self.member.seed)  # of the generators, that of the device alone moves while a run is trained
        _set_random_state(self.device, self.random.get_state())
        save_checkpoint(
            self.member.checkpoint, self.progress, self.model, self.optimizer, self.scaler, self.member.inputs.identity
        )


def fit_together(
    stack: ModelStack, members: Sequence[Member], trainer: TrainerConfig, stop_epoch: int | None = None
) -> dict[int, FitResult]:
    """Train the models of a stack in place, each resuming from its checkpoint; a run behind the others catches up first.

    Args:
        stack: The models, on their device.
        members: The runs, with the same number of images.
        trainer: Of all runs.
        stop_epoch: As that of :func:`gift_vit.engine.fit`.

    Returns:
        The results by the model's index; those of members that have ended are left out.
    """
    device = next(stack.models[0].parameters()).device
    runs: list[_Training] = []
    for member in members:
        with member.alone():
            runs.append(_Training(member, stack, trainer, device))
    last_epoch = (stop_epoch or trainer.epochs) - 1
    for epoch in range(min((run.progress.epochs_done for run in runs), default=0), last_epoch + 1):
        active = [run for run in _going(runs) if run.progress.epochs_done == epoch]
        if active:
            _Epoch(epoch, stack, active, trainer).run(last_epoch)
    return {run.member.index: FitResult(run.progress.history, run.progress.seconds) for run in _going(runs)}


class _Stream:
    """Runs that see the same images and drop the same paths: they have one seed, and are equally far."""

    def __init__(self, runs: Sequence[_Training], epoch: int) -> None:
        self.runs = runs
        self.random = runs[0].random
        self.batches = runs[0].member.inputs.train.epoch(epoch)

    def pieces(self, stack: ModelStack, images: Tensor, labels: Tensor, count: int) -> list[_Piece]:
        """A batch in as many pieces as the trainer accumulates gradients over."""
        cut = zip(images.chunk(count), labels.chunk(count), strict=True)
        return [(StepInputs(piece, stack.draw_masks(len(piece), self.random)), targets) for piece, targets in cut]

    def settle(self) -> None:
        """Give all runs the random state that one of them has come to."""
        for run in self.runs[1:]:
            run.random.set_state(self.random.get_state())


class _Epoch:
    """One epoch of the runs that have come to it."""

    def __init__(self, epoch: int, stack: ModelStack, runs: Sequence[_Training], trainer: TrainerConfig) -> None:
        self.epoch, self.stack, self.runs, self.trainer = epoch, stack, runs, trainer
        self.num_images, self.device = runs[0].member.inputs.train.num_images, runs[0].device
        self.precision = Precision(trainer.precision, self.device)
        self.losses = {run.member.index: EpochLosses(epoch, self.device) for run in runs}
        self.rates: dict[int, float] = {}

    def run(self, last_epoch: int) -> None:
        """Train, score, write checkpoints and tell the observers."""
        started = time.perf_counter()
        for run in self.runs:
            with run.member.alone():
                run.member.observer.epoch_started(self.epoch, last_epoch + 1, self.num_images)
        self._train()
        seconds = time.perf_counter() - started
        scores = self._scores() if is_scored(self.epoch, last_epoch, self.trainer.eval_every) else {}
        for run in _going(self.runs):
            with run.member.alone():
                record = self._record(run, seconds)
                if own := scores.get(run.member.index):
                    record |= {"val_top1": own.top1, "val_loss": own.loss}
                check_finite_weights(run.optimizer, self.epoch)
                run.progress.history.append(record)
                run.progress.epochs_done = self.epoch + 1
                run.progress.seconds += seconds
                run.save()
                run.member.observer.epoch_done(record)

    def _train(self) -> None:
        streams = [_Stream(runs, self.epoch) for runs in _same_inputs(self.runs)]
        for step, batches in enumerate(zip(*(stream.batches for stream in streams), strict=True)):
            given: dict[_Training, list[_Piece]] = {}
            for stream, (images, labels) in zip(streams, batches, strict=True):
                images, labels = (tensor.to(self.device, non_blocking=True) for tensor in (images, labels))
                pieces = stream.pieces(self.stack, images, labels, self.trainer.grad_accumulation)
                given |= dict.fromkeys(_going(stream.runs), pieces)
            if not given:
                return
            self._step(step, given)
        for stream in streams:
            stream.settle()

    def _step(self, step: int, given: Mapping[_Training, list[_Piece]]) -> None:
        """One update of every run on the pieces of its batch."""
        runs, size = list(given), min(self.trainer.batch_size, self.num_images - step * self.trainer.batch_size)
        for run in runs:
            self.rates[run.member.index] = run.schedule.set_lr(self.epoch, step)
        losses = torch.zeros(len(runs), device=self.device)
        for pieces in zip(*given.values(), strict=True):
            with self.precision.autocast():
                logits = self.stack.train_forward([run.member.index for run in runs], [inputs for inputs, _ in pieces])
            own = [F.cross_entropy(o.float(), t, reduction="sum") / size for o, (_, t) in zip(logits, pieces, strict=True)]
            torch.stack(own).sum().backward()
            losses += torch.stack(own).detach()
        for run, loss in zip(runs, losses.unbind(), strict=True):
            run.optimizer.step()
            run.optimizer.zero_grad()
            with run.member.alone():
                self.losses[run.member.index].add(loss, size)
                run.member.observer.step_done(loss, self.rates[run.member.index], size)

    def _scores(self) -> dict[int, Evaluation]:
        """On the validation split, where there is one, by the model's index."""
        runs, val = _going(self.runs), self.runs[0].member.inputs.val
        if val is None or not runs:
            return {}
        indices = [run.member.index for run in runs]
        return dict(zip(indices, evaluate_together(self.stack, indices, val, self.precision), strict=True))

    def _record(self, run: _Training, seconds: float) -> dict[str, float]:
        losses = self.losses[run.member.index]
        return {
            "epoch": self.epoch,
            "train_loss": losses.mean(),
            "lr": self.rates[run.member.index],
            "steps": len(losses),
            "seconds": seconds,
            "images_per_s": self.num_images / seconds,
            "parallel_runs": len(self.runs),
        }


@torch.inference_mode()
def evaluate_together(
    stack: ModelStack, indices: Sequence[int], batches: Iterable[tuple[Tensor, Tensor]], precision: Precision
) -> list[Evaluation]:
    """Score the models of these indices on the same batches, as :func:`gift_vit.engine.evaluate` scores one."""
    device = next(stack.models[0].parameters()).device
    tallies = [Tally(device) for _ in indices]
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with precision.autocast():
            logits = stack.eval_forward(indices, images)
        for tally, own in zip(tallies, logits, strict=True):
            tally.add(own, labels)
    return [tally.evaluation() for tally in tallies]


def _going(runs: Iterable[_Training]) -> list[_Training]:
    return [run for run in runs if not run.member.ended()]


def _same_inputs(runs: Iterable[_Training]) -> list[list[_Training]]:
    """The runs by seed and random state."""
    found: dict[tuple[int, bytes], list[_Training]] = {}
    for run in runs:
        found.setdefault((run.member.seed, run.random.get_state().numpy().tobytes()), []).append(run)
    return list(found.values())


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
