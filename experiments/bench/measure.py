"""Measuring variants in turns: what a step costs, how long it takes, what the device could do."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from experiments.bench.cost import inference_flops, training_cost
from experiments.bench.models import NUM_CLASSES, build
from experiments.bench.variants import Variant
from gift_vit.acceleration.compiling import compile_blocks
from gift_vit.engine.capture import CapturedStep, CudaCapture
from gift_vit.engine.state import Precision
from gift_vit.explain.maps import explain

log = logging.getLogger(__name__)

WARM_UP = 2  # steps of every variant before any is timed; the first of a compiled one compiles


@dataclass(frozen=True)
class Figures:
    """What was measured of one variant at one batch size.

    Attributes:
        flops: Floating-point operations of a step: forward and backward, or forward alone in inference.
        trained: Parameters that are trained, but for the head's.
        saved_bytes: Kept for the backward pass, each storage once, parameters left out; None in inference and when compiled.
        peak_bytes: Peak of the device's memory in a step, the model's own parameters included; None on a CPU.
        seconds: Of every round.
    """

    variant: Variant
    batch_size: int
    flops: int
    trained: int
    saved_bytes: int | None
    peak_bytes: int | None
    seconds: tuple[float, ...] = ()

    @property
    def step_seconds(self) -> float:
        """Median over the rounds."""
        return median(self.seconds)

    @property
    def spread_seconds(self) -> float:
        """Interquartile range over the rounds."""
        return float(np.ptp(np.quantile(self.seconds, (0.25, 0.75))))

    @property
    def images_per_second(self) -> float:
        """Images that go through a step in a second."""
        return self.batch_size / self.step_seconds


def measure(
    variants: Sequence[Variant], architecture: str, batch_size: int, rounds: int, device: torch.device
) -> Iterator[list[Figures]]:
    """Time the variants in turns, A B C A B C …, after a warm-up; the frozen weights are shared by all.

    Yields what is known after each round, so that a measurement that is cut off leaves what it has.
    """
    images = torch.randn(batch_size, 3, *input_size(architecture), generator=torch.Generator().manual_seed(0)).to(device)
    frozen = dict(build(Variant("", "plain"), architecture, device).named_parameters())
    prepared = []
    for number, variant in enumerate(variants, 1):
        log.info("batch %d: preparing %s (%d of %d)", batch_size, variant.name, number, len(variants))
        prepared.append(_prepare(variant, architecture, images, frozen))
    found = [figures for figures, _ in prepared]
    for number in range(1, rounds + 1):
        log.info("batch %d: round %d of %d", batch_size, number, rounds)
        for index, (_, step) in enumerate(prepared):
            own = found[index]
            Precision(own.variant.precision, device)  # the process's float32 precision, which the variant before has set too
            timed = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads()).timeit(1)
            found[index] = replace(own, seconds=(*own.seconds, timed.median))
        yield list(found)


def matmul_rate(precision: str, architecture: str, batch_size: int, device: torch.device) -> float:
    """Operations per second of the device in the ViT's largest product, (B N, d) × (d, 4 d), in a precision's number format."""
    with torch.device("meta"):
        model = timm.create_model(architecture)
    width, tokens = model.get_parameter("pos_embed").shape[-1], model.get_parameter("pos_embed").shape[-2]
    own = Precision(precision, device)
    dtype = own.autocast_dtype or torch.float32
    a = torch.randn(batch_size * tokens, width, device=device, dtype=dtype)
    b = torch.randn(width, 4 * width, device=device, dtype=dtype)
    timed = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads()).blocked_autorange(min_run_time=0.5)
    return 2 * a.shape[0] * width * 4 * width / timed.median


def input_size(architecture: str) -> tuple[int, int]:
    """Height and width in pixels of what a timm ViT was made for."""
    cfg = timm.get_pretrained_cfg(architecture)
    assert cfg is not None
    return cfg.input_size[1], cfg.input_size[2]


def _prepare(
    variant: Variant, architecture: str, images: Tensor, frozen: dict[str, nn.Parameter]
) -> tuple[Figures, Callable[[], object]]:
    """Build a variant, take what does not depend on time, and warm it up."""
    device = images.device
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    model = build(variant, architecture, device, frozen)
    flops, saved_bytes = step_cost(variant, model, images)
    if variant.compiled and variant.captured:
        assert compile_blocks(model)
    elif variant.compiled:
        model.compile(fullgraph=True, mode="reduce-overhead" if variant.cuda_graphs else None)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # what is recorded takes its memory when that is made
    step = training_step(variant, model, images) if variant.training else inference_step(variant, model, images)
    for _ in range(WARM_UP):
        step()
    peak_bytes = None
    if device.type == "cuda":
        if not (variant.captured or variant.cuda_graphs):
            torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        shared = sum(
            p.nbytes for name, p in model.named_parameters() if name in frozen and p.data_ptr() == frozen[name].data_ptr()
        )
        peak_bytes = torch.cuda.max_memory_allocated(device) - before + shared
    trained = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and not name.startswith("head."))
    return Figures(variant, len(images), flops, trained, saved_bytes, peak_bytes), step


def step_cost(variant: Variant, model: nn.Module, images: Tensor) -> tuple[int, int | None]:
    """Floating-point operations of a variant's step, and the bytes it keeps as :class:`Figures` has them."""
    precision = Precision(variant.precision, images.device)
    with precision.autocast():
        if not variant.training:
            return inference_flops(partial(inference_logits, variant, model), images), None
        cost = training_cost(model, images)
    return cost.flops, None if variant.compiled else cost.saved_bytes


def training_step(variant: Variant, model: nn.Module, images: Tensor) -> Callable[[], object]:
    """One update of the trainable parameters by AdamW, its result waited for."""
    precision = Precision(variant.precision, images.device)
    labels = torch.arange(len(images), device=images.device) % NUM_CLASSES
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3, fused=True)
    if variant.captured:
        repeat = CapturedStep(model, optimizer, precision, len(images), CudaCapture(images.device), images)
        return lambda: repeat(images, labels, len(images)).item()

    def step() -> None:
        with precision.autocast():
            loss = F.cross_entropy(model(images), labels)
        precision.scaler.scale(loss).backward()
        precision.scaler.step(optimizer)
        precision.scaler.update()
        optimizer.zero_grad()
        loss.item()

    return step


def inference_step(variant: Variant, model: nn.Module, images: Tensor) -> Callable[[], None]:
    """One forward pass, its result waited for."""
    precision = Precision(variant.precision, images.device)

    @torch.inference_mode()
    def step() -> None:
        with precision.autocast():
            inference_logits(variant, model, images).argmax(1).sum().item()

    return step


def inference_logits(variant: Variant, model: nn.Module, images: Tensor) -> Tensor:
    """The logits of a forward pass, together with the maps where the variant makes them."""
    return explain(model, images).logits if variant.explained else model(images)
