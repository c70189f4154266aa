"""One update of a training, as an object that is called; how it is run is its own matter.

:class:`EagerStep` lets Python launch every operation. On a GPU the whole step is recorded and repeated instead, see
``capture.py``: a small model, or a fast device, would otherwise wait for Python most of the time.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from gift_vit.common import distributed
from gift_vit.common.errors import ConfigError
from gift_vit.engine.config import TrainerConfig
from gift_vit.engine.objective import CLASSES, Objective
from gift_vit.engine.state import Precision, device_of

if TYPE_CHECKING:
    from gift_vit.engine.capture import Capture

log = logging.getLogger(__name__)


class Step(Protocol):
    """One update of the trained parameters.

    Attributes:
        captured: Whether the device repeats a recording.
    """

    captured: bool

    def __call__(self, images: Tensor, labels: Tensor, size: int) -> Tensor:
        """Train on images (B, 3, H, W) and labels (B,) with the learning rate that the optimiser's groups name.

        Args:
            images: This process's share of a batch; on any device.
            labels: Their classes; −100 for an image that does not count.
            size: Images of the whole batch, over all processes.

        Returns:
            The mean loss over the batch, a detached scalar on the model's device, perhaps still being computed.
        """
        ...


class EagerStep:
    """Every operation launched by Python, in as many pieces as gradients are accumulated over."""

    captured = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        pieces: int = 1,
        objective: Objective = CLASSES,
    ) -> None:
        self._model, self._optimizer, self._precision, self._pieces = model, optimizer, precision, pieces
        self._loss = objective.loss
        self._device = device_of(optimizer)

    def __call__(self, images: Tensor, labels: Tensor, size: int) -> Tensor:
        """As :class:`Step` says."""
        precision, optimizer = self._precision, self._optimizer
        images, labels = images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)
        loss = torch.zeros((), device=self._device)
        for piece, targets in zip(images.chunk(self._pieces), labels.chunk(self._pieces), strict=True):
            with precision.autocast():
                logits = self._model(piece)
            piece_loss = self._loss(logits.float(), targets) / size
            precision.scaler.scale(piece_loss).backward()
            loss += piece_loss.detach()
        _sum_over_processes(loss, optimizer)
        precision.scaler.unscale_(optimizer)  # a fused optimiser would do so after its norm is clipped
        precision.scaler.step(optimizer)
        precision.scaler.update()
        optimizer.zero_grad()
        return loss


class _RecordedAtFirst:
    """Recorded with the first batch, whose shape it takes; if that fails, steps go on eagerly and the log says why."""

    captured = False

    def __init__(self, eager: EagerStep, record: Callable[[Tensor], Step], insist: bool) -> None:
        self._eager, self._record, self._insist = eager, record, insist
        self._step: Step | None = None

    def __call__(self, images: Tensor, labels: Tensor, size: int) -> Tensor:
        """As :class:`Step` says."""
        if self._step is None:
            self._step = self._choose(images)
            self.captured = self._step.captured
        return self._step(images, labels, size)

    def _choose(self, images: Tensor) -> Step:
        try:
            return self._record(images)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _refuse(f"model or method cannot be recorded ({str(error).strip().splitlines()[0]})", self._insist, error)
            return self._eager


def build_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    trainer: TrainerConfig,
    objective: Objective = CLASSES,
) -> tuple[Step, Callable[[Tensor], Tensor]]:
    """The step of a training, and what gives the model's logits in evaluation.

    Both are recorded where ``trainer.step_graph`` wants it and it can be; the log says why where not. Where
    ``trainer.compile`` wants it and blocks are not compiled by themselves, the step compiles the whole model, and evaluation
    does not.

    Raises:
        ConfigError: If ``step_graph`` is ``on`` and it cannot be; for reasons that the model has, at the first step.
    """
    whole = trainer.compile and not getattr(model, "compiled_by_block", False)
    trained: nn.Module = torch.compile(model) if whole else model  # pyright: ignore[reportAssignmentType]
    eager = EagerStep(trained, optimizer, precision, trainer.grad_accumulation, objective)
    insist = trainer.step_graph == "on"
    if trainer.step_graph == "off":
        return eager, model
    capture = build_capture(device_of(optimizer))
    obstacle = _obstacle(model, precision, trainer) if objective.loss is CLASSES.loss else "its labels are no classes"
    if capture is None or obstacle is not None:
        _refuse(obstacle or f"the device is a {precision.device_type.upper()}", insist)
        return eager, model
    from gift_vit.engine.capture import CapturedForward, CapturedStep  # a CPU has no use for it

    def record(images: Tensor) -> Step:
        return CapturedStep(trained, optimizer, precision, trainer.batch_size, capture, images)

    return _RecordedAtFirst(eager, record, insist), CapturedForward(model, precision, capture)


def build_capture(device: torch.device) -> "Capture | None":
    """How a device's work is recorded; None: it cannot be."""
    if device.type != "cuda":
        return None
    from gift_vit.engine.capture import CudaCapture  # a CPU has no use for it

    return CudaCapture(device)


def _obstacle(model: nn.Module, precision: Precision, trainer: TrainerConfig) -> str | None:
    """Why a step cannot be recorded, whatever the device; None: it may be."""
    if precision.scaler.is_enabled():
        return "precision=fp16 asks after every step whether its gradients are finite"
    if trainer.grad_accumulation > 1:
        return f"grad_accumulation={trainer.grad_accumulation} makes one step out of several pieces"
    if getattr(model, "recomputes", False):
        return "trainer.memory wants a second computation in the backward pass, which sets the random state from Python"
    if getattr(model, "draws_on_cpu", False):
        return "its method draws on the CPU which layers to leave out of a step"
    if getattr(model, "varies", False):
        return "its batches differ in length"
    if distributed.world_size() > 1:
        return "several processes meet in every step"
    return None


def _refuse(reason: str, insist: bool, error: Exception | None = None) -> None:
    if insist:
        raise ConfigError(f"trainer.step_graph=on is not possible: {reason}; set it to auto") from error
    log.info("steps are launched operation by operation, not as one graph: %s", reason)


def _sum_over_processes(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Turn a process's part of the loss (a scalar) and of the gradients into those of the whole batch, in place.

    One sum after the backward pass instead of DistributedDataParallel, whose overlap of the two has nothing to gain from an
    adapter's few kilobytes. In return layers may share parameters, parameters may have no gradient, here or anywhere, and
    accumulation and ``torch.compile`` see the bare model.
    """
    if distributed.world_size() == 1:
        return
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    there = loss.new_ones(len(trained))
    for index, p in enumerate(trained):
        if p.grad is None:
            there[index] = 0  # nothing that a GPU would be waited for
    own = [loss, there, *(torch.zeros_like(p) if p.grad is None else p.grad for p in trained)]
    flat = parameters_to_vector(own)
    distributed.sum_over_processes(flat)
    for part, tensor in zip(flat.split([tensor.numel() for tensor in own]), own, strict=True):
        tensor.copy_(part.view_as(tensor))  # in its own precision, which need not be the sum's
    if any(p.grad is None for p in trained):  # a method may leave out other layers in each process
        for p, gradient, processes in zip(trained, own[2:], there.tolist(), strict=True):
            p.grad = gradient if processes else None
