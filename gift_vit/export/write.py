"""Export a finished run: merge, record, write, run what was written, compare."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gift_vit.backbones.build import input_statistics
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import atomic_path, explained, sha256_of
from gift_vit.data.transforms import ImageTransform, build_eval_transform
from gift_vit.export.formats import FORMATS, quiet
from gift_vit.export.graph import Graph, adapter_inputs, to_program
from gift_vit.methods.adapter import merge_method, read_adapter
from gift_vit.methods.config import spec_of
from gift_vit.runs.finished import preparation
from gift_vit.runs.run import ADAPTER, Run

log = logging.getLogger(__name__)

FORMAT = "gift_vit export 1"
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}  # of a logit, relative to the largest one, or to 1
IMAGES = 32  # that are compared
_BATCHES = (1, 2, IMAGES - 3)  # sizes, each of which the file must take


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
    beside = out.with_suffix(".safetensors") if inputs else None
    if beside is not None and beside.exists() and sha256_of(beside) != sha256_of(run.folder / ADAPTER):
        raise ConfigError(
            f"{beside} holds other tensors than this run's, which adapter_inputs=true puts there; give another out="
        )
    model = run.model()
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
    class_names = None if inputs else run.class_names(expected.shape[1])  # else those of the run whose head is put in
    facts = _facts(run, transform, precision, merged, class_names, str(images.dtype) if preprocessing else None)
    write, read = FORMATS[out.suffix]
    tensors = list(others.tensors.values()) if others else []
    with atomic_path(out) as partial:
        try:
            with torch.no_grad(), quiet():
                write(to_program(graph, images, others), partial, ("images", *names), facts)
                compute = read(partial)
                found = torch.cat([compute(batch, tensors) for batch in images.split(_BATCHES)])
        except Exception as error:
            if isinstance(error, ConfigError) or explained(error, out):
                raise
            raise RunError(f"{out} is not written: {_in_words(error, run, inputs)}") from error
        compared = _compare(expected, found, which)
        if not compared.difference <= TOLERANCE[precision] * max(1.0, compared.largest):
            hint = "; precision=fp32 is closer" if precision == "fp16" else ""
            raise RunError(f"{out} is not written, for it would not compute what the model does: {compared}{hint}")
    kind = f"{out.stat().st_size / 2**20:.1f} MiB, {'merged' if merged else 'not merged'}, {precision}"
    done = f"wrote {out} ({kind}): {compared}"
    if beside is None:
        return done
    with atomic_path(beside) as partial:
        partial.write_bytes((run.folder / ADAPTER).read_bytes())
    others = "runs that differ in data, seed or GIFT's rank"
    return f"{done}\nwrote {beside}: this run's inputs by name; {others} have theirs in {ADAPTER}"


def _in_words(error: Exception, run: Run, inputs: bool) -> str:
    """What stands in the way of a file, and what can be done about it; the library's own words in brackets."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    first = re.sub(r"\x1b\[[0-9;]*m", "", (str(cause).strip() or type(cause).__name__).splitlines()[0])
    mergeable = spec_of(run.config.method).merge is not None
    remedy = "; without adapter_inputs=true it is merged first" if inputs and mergeable else ""
    return f"method={run.config.method_name} cannot be exported like this: no graph holds what it computes ({first}){remedy}"


def _merged(run: Run, model: nn.Module) -> tuple[nn.Module, bool]:
    """The model merged, and True; where the method or this backbone does not allow it, a model as it was, and False."""
    try:
        return merge_method(model), True
    except ConfigError as reason:
        log.info("%s; the file computes both", str(reason).removesuffix("; keep the adapter beside it"))
        return run.model(), False  # half of the other one may be merged


def _pixels(run: Run, transform: ImageTransform) -> tuple[Tensor, str]:
    """Pixels (images, 3, S, S), as they are before they are normalised, and which ones they are."""
    try:
        split = run.split()
        source = run.data().split(split)
        chosen = np.linspace(0, len(source) - 1, IMAGES).astype(int)
        pictures, which = [source[index][0] for index in chosen], f"{len(np.unique(chosen))} images of {split}"
    except ConfigError as reason:
        log.info("%s; drawn images are compared", reason)
        drawn = np.random.default_rng(0).integers(256, size=(IMAGES, transform.size, transform.size, 3), dtype=np.uint8)
        pictures, which = [Image.fromarray(pixels) for pixels in drawn], f"{IMAGES} drawn images"
    return torch.stack([transform.finish(transform.prepare(picture)) for picture in pictures]), which


def _compare(expected: Tensor, found: Tensor, which: str) -> Comparison:
    same = (expected.argmax(1) == found.argmax(1)).float().mean()
    return Comparison(which, float((expected - found).abs().max()), float(expected.abs().max()), float(same))


def _facts(
    run: Run, transform: ImageTransform, precision: str, merged: bool, class_names: list[str] | None, pixels: str | None
) -> dict[str, Any]:
    """What a program must know to use the file."""
    stored = read_adapter(run.folder / ADAPTER).metadata
    return {
        "format": FORMAT,
        "backbone": stored["backbone"],
        "method": stored["method"],
        "dataset": run.config.dataset.name if class_names else None,
        "class_names": class_names,
        **preparation(run, transform.stats),
        "normalise": "outside" if pixels is None else "in graph",
        "pixels": pixels,
        "precision": precision,
        "merged": merged,
    }
