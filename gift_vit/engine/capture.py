"""Recording what a function launches on a device, to be launched again as one piece; a step and a forward pass as recordings.

What is recorded works on tensors that stay where they are: images, labels, the batch's size and the learning rate are copied
into them before each repetition.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from gift_vit.common.tensors import IGNORED
from gift_vit.engine.objective import cross_entropy
from gift_vit.engine.state import Precision, device_of

log = logging.getLogger(__name__)

_REHEARSALS = 3  # libraries set themselves up and optimisers make their state in the first of them

Launch: TypeAlias = Callable[[], object]


class Capture(Protocol):
    """Turns a function into one that does the same again, on the same tensors, without being run by Python."""

    def __call__(self, run: Launch) -> Launch:
        """Call ``run`` a few times, then record it; what is returned repeats it.

        Raises:
            RuntimeError: If it does something that cannot be recorded, such as asking the device for a value.
        """
        ...


class CudaCapture:
    """CUDA graphs, all of which share one pool of memory: none may run while another does.

    What one of them leaves in its output may be overwritten by the next one's run. A function that waits for the device is
    refused before it is recorded: after a recording that broke off, torch draws no more random numbers on the device.

    All rehearse and are recorded on one stream, for cuBLAS keeps memory of its own for each that it ever saw.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def __call__(self, run: Launch) -> Launch:
        """Record a function's kernels."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(self._stream):
                    for _ in range(_REHEARSALS - 1):
                        run()
                    with _waiting_refused():
                        run()
            finally:
                torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # of this thread alone: a loader's own thread goes on to pin memory meanwhile, which else would end both
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                run()
        return graph.replay


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Within it, what waits for the GPU is a RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that it does not know every way to wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class CapturedStep:
    """A recording of the whole step: forward pass, loss, backward pass and update.

    A batch with fewer images than the first one of its kind could have is filled up with images that do not count. Recording
    leaves parameters, moments and random state as they were.

    Args:
        model: In training mode.
        optimizer: AdamW, fused.
        precision: Without loss scaling.
        batch_size: The most images that a batch has.
        capture: What records.
        images: A batch (B, 3, H, W), for its shape and number format.

    Raises:
        RuntimeError: If the model cannot be recorded; all is then as it was.
    """

    captured = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        batch_size: int,
        capture: Capture,
        images: Tensor,
    ) -> None:
        self._model, self._optimizer, self._precision = model, optimizer, precision
        device = device_of(optimizer)
        self._images = torch.zeros(batch_size, *images.shape[1:], dtype=images.dtype, device=device)
        self._labels = torch.full((batch_size,), IGNORED, device=device)
        self._size, self._loss = torch.ones((), device=device), torch.zeros((), device=device)
        self._lrs = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._filled: dict[int, float] = {}
        self._images[: len(images)] = images.to(device)
        try:
            with undone(model, optimizer, device), _capturable(optimizer, self._lrs):
                self._repeat: Launch = capture(self._run)
        except RuntimeError:
            optimizer.zero_grad()
            raise

    def __call__(self, images: Tensor, labels: Tensor, size: int) -> Tensor:
        """As :class:`gift_vit.engine.step.Step` says."""
        count = len(images)
        self._images[:count].copy_(images, non_blocking=True)
        self._labels[:count].copy_(labels, non_blocking=True)
        if count < len(self._labels):
            self._labels[count:].fill_(IGNORED)
        self._fill(self._size, size)
        for lr, group in zip(self._lrs, self._optimizer.param_groups, strict=True):
            self._fill(lr, group["lr"])
        self._repeat()
        return self._loss.clone()

    def _fill(self, tensor: Tensor, value: float) -> None:
        if self._filled.get(id(tensor)) != value:
            tensor.fill_(value)
            self._filled[id(tensor)] = value

    def _run(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        with self._precision.autocast(keep_casts=False):  # what is kept from outside would not be cast anew in a repetition
            logits = self._model(self._images)
        loss = cross_entropy(logits.float(), self._labels) / self._size
        loss.backward()
        self._optimizer.step()
        self._loss.copy_(loss.detach())


class CapturedForward:
    """Logits of a model in evaluation mode, by repeating what was recorded with the first batch.

    That batch's size is the recording's; a smaller one is filled up, a larger one is computed without it, and so are all where
    the model cannot be recorded, which the log says.
    """

    def __init__(self, model: nn.Module, precision: Precision, capture: Capture) -> None:
        self._model, self._precision, self._capture = model, precision, capture
        self._images: Tensor | None = None
        self._logits = torch.empty(0)
        self._repeat: Launch | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W) on the model's device; to be used before the next call."""
        if self._images is None:
            self._images = images.clone()
            self._record()
        if self._repeat is None or len(images) > len(self._images):
            return self._model(images)
        self._images[: len(images)].copy_(images)
        self._repeat()
        return self._logits[: len(images)]

    def _record(self) -> None:
        try:
            self._repeat = self._capture(self._run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.info("evaluation is launched operation by operation: %s", str(error).strip().splitlines()[0])

    def _run(self) -> None:
        assert self._images is not None
        with torch.inference_mode(), self._precision.autocast(keep_casts=False):
            self._logits = self._model(self._images)


@contextmanager
def undone(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[None]:
    """Afterwards trained parameters, buffers, moments and random states are, in the memory they have now, what they are now.

    Moments that did not exist before are zero, as an optimiser makes them; gradients are none of this.
    """
    tensors = [*model.buffers(), *(parameter for group in optimizer.param_groups for parameter in group["params"])]
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]
    state = {p: {k: v.clone() for k, v in own.items() if isinstance(v, Tensor)} for p, own in optimizer.state.items()}
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
            for parameter, own in optimizer.state.items():
                for key, value in own.items():
                    if isinstance(value, Tensor):
                        value.copy_(state[parameter][key]) if parameter in state else value.zero_()


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer, lrs: list[Tensor]) -> Iterator[None]:
    """Let an optimiser read its groups' learning rates from tensors, and its count of steps stay on the device."""
    before = [{key: group[key] for key in ("lr", "capturable")} for group in optimizer.param_groups]
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        group |= {"lr": lr, "capturable": True}
    try:
        yield
    finally:
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group |= values
