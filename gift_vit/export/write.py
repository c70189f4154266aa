"""Export a finished run: merge, record, write, run what was written, compare."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gift_vit.backbones.build import input_statistics
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import atomic_path
from gift_vit.data.transforms import ImageTransform, build_eval_transform
from gift_vit.export.formats import FORMATS, quiet
from gift_vit.export.graph import Graph, adapter_inputs, to_program
from gift_vit.methods.adapter import merge_method, read_adapter
from gift_vit.runs.run import ADAPTER, Run

log = logging.getLogger(__name__)

FORMAT = "gift_vit export 1"
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}  # of a logit, relative to the largest one, or to 1
IMAGES = 32  # that are compared
_BATCHES = (1, 3, IMAGES - 4)  # sizes, each of which the file must take


@dataclass(frozen=True)
class Comparison:
    """The file's logits beside the model's.

    Attributes:
        images: Which ones, in words.
        difference: The largest one of a logit.
        largest: The model's largest logit, in absolute value.
        equal: Share of images with the same prediction, 0 to 1.
    """

    images: str
    difference: float
    largest: float
    equal: float

    def __str__(self) -> str:
        return (
            f"largest difference {self.difference:.1e} of logits up to {self.largest:.2g}, "
            f"{100 * self.equal:.1f} % equal predictions on {self.images}"
        )


def export_run(run: Run, out: Path, precision: str = "fp32", preprocessing: bool = False, inputs: bool = False) -> str:
    """Write a finished run's model to ``out`` (.onnx or .pt2); returns what was written, for a person.

    Models are built for it, and thrown away. Whatever fails, there is no file that was not compared.

    Args:
        run: A finished run; its data need not be there.
        out: The file; its suffix names the format.
        precision: ``fp32`` or ``fp16``, of what is inside.
        preprocessing: Whether the file takes pixels, (B, S, S, 3), and normalises them.
        inputs: Whether adapter and head are inputs; they are then written beside the file too, as ``.safetensors``.

    Raises:
        ConfigError: If the run is not finished, or its weights are no longer what they were.
        RunError: If the model cannot be exported, or the file computes something else.
    """
    model = run.model().eval()
    transform = build_eval_transform(run.config.dataset.transform, input_statistics(model))
    pixels, which = _pixels(run, transform)
    with torch.no_grad():
        expected = torch.cat([model(transform.normalise(batch.clone())) for batch in pixels.split(_BATCHES)])
    model, merged = (model, False) if inputs else _merged(run, model)
    others = adapter_inputs(model) if inputs else None
    if precision == "fp16":
        model = model.half()
    names = tuple(others.tensors) if others else ()
    graph = Graph(model, transform.stats if preprocessing else None, names).eval()
    images = pixels.permute(0, 2, 3, 1).contiguous() if preprocessing else transform.normalise(pixels)
    facts = _facts(run, transform, precision, merged, inputs, str(images.dtype) if preprocessing else None)
    write, read = FORMATS[out.suffix]
    tensors = list(others.tensors.values()) if others else []
    with atomic_path(out) as partial:
        try:
            with torch.no_grad(), quiet():
                write(to_program(graph, images, others), partial, ("images", *names), facts)
                compute = read(partial)
                found = torch.cat([compute(batch, tensors) for batch in images.split(_BATCHES)])
        except (ConfigError, OSError):
            raise
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RunError(f"{out} is not written: method={run.config.method_name} cannot be exported ({first})") from error
        compared = _compare(expected, found, which)
        if not compared.difference <= TOLERANCE[precision] * max(1.0, compared.largest):
            raise RunError(f"{out} is not written, for it would not compute what the model does: {compared}")
    kind = f"{out.stat().st_size / 2**20:.1f} MiB, {'merged' if merged else 'not merged'}, {precision}"
    done = f"wrote {out} ({kind}): {compared}"
    if not inputs:
        return done
    beside = out.with_suffix(".safetensors")
    with atomic_path(beside) as partial:
        partial.write_bytes((run.folder / ADAPTER).read_bytes())
    return f"{done}\nwrote {beside}: this run's inputs by name; other runs of this backbone and method have theirs in {ADAPTER}"


def _merged(run: Run, model: nn.Module) -> tuple[nn.Module, bool]:
    """The model merged, and True; where the method or this backbone does not allow it, a model as it was, and False."""
    try:
        return merge_method(model).eval(), True
    except ConfigError as reason:
        log.info("%s: exported as it is", reason)
        return run.model().eval(), False  # half of the other one may be merged


def _pixels(run: Run, transform: ImageTransform) -> tuple[Tensor, str]:
    """Pixels (images, 3, S, S), as they are before they are normalised, and which ones they are."""
    try:
        split = run.split()
        source = run.data().split(split)
    except ConfigError as reason:
        log.info("%s; drawn images are compared", reason)
        shape = (IMAGES, 3, transform.size, transform.size)
        return torch.randint(
            256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8
        ), f"{IMAGES} drawn images"
    chosen = np.linspace(0, len(source) - 1, IMAGES).astype(int)
    return torch.stack(
        [transform.finish(transform.prepare(source[index][0])) for index in chosen]
    ), f"{IMAGES} images of {split}"


def _compare(expected: Tensor, found: Tensor, which: str) -> Comparison:
    same = (expected.argmax(1) == found.argmax(1)).float().mean()
    return Comparison(which, float((expected - found).abs().max()), float(expected.abs().max()), float(same))


def _facts(
    run: Run, transform: ImageTransform, precision: str, merged: bool, inputs: bool, pixels: str | None
) -> dict[str, Any]:
    """What a program must know to use the file."""
    stored, stats = read_adapter(run.folder / ADAPTER).metadata, transform.stats
    names = stored.get("class_names") or (run.result.data.class_names if run.result else None)
    return {
        "format": FORMAT,
        "backbone": stored["backbone"],
        "method": stored["method"],
        "dataset": None if inputs else run.config.dataset.name,
        "class_names": None if inputs else names,  # those of the run whose head is put in
        "input_size": stats.input_size,
        "mean": stats.mean,
        "std": stats.std,
        "interpolation": run.config.dataset.transform.resize or stats.interpolation,
        "crop_ratio": run.config.dataset.transform.crop_ratio,
        "normalise": "outside" if pixels is None else "in graph",
        "pixels": pixels,
        "precision": precision,
        "merged": merged,
    }
