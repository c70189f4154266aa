"""A finished run's model on image files, which other processes read and prepare as in its evaluation while it computes."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gift_vit.backbones.build import input_statistics
from gift_vit.common.cores import cores
from gift_vit.common.errors import ConfigError
from gift_vit.data.decode import Decoder
from gift_vit.data.loaders import in_lists
from gift_vit.data.transforms import ImageTransform, build_eval_transform
from gift_vit.engine.state import Precision
from gift_vit.runs.build import finished_model
from gift_vit.runs.predict import Prediction

if TYPE_CHECKING:
    from gift_vit.runs.run import Run

BATCH = 64
_FEW = 16  # files that are read sooner than a worker has started


def _read(
    files: Sequence[Path], transform: ImageTransform, decode: Decoder, indices: list[int]
) -> tuple[list[int], Tensor | None, dict[int, str]]:
    """Indices and pixels (B, 3, S, S) of what was read, and the errors of the rest."""
    pixels: dict[int, Tensor] = {}
    errors: dict[int, str] = {}
    for index in indices:
        file = files[index]
        try:
            pixels[index] = transform.finish(transform.prepare(decode.decode_file(file), str(file)))
        except ConfigError as error:
            errors[index] = str(error)
    return list(pixels), torch.stack(list(pixels.values())) if pixels else None, errors


@torch.inference_mode()
def classify_files(run: "Run", files: Sequence[Path], topk: int, device: str = "auto") -> Iterator[Prediction]:
    """The ``topk`` most probable classes of each file, in the order of the files.

    Raises:
        ConfigError: If the run is not finished, or its pretrained weights are others now.
    """
    model, _ = finished_model(run, device)
    model.eval()
    cfg, where = run.config, next(model.parameters()).device
    transform = build_eval_transform(cfg.dataset.transform, input_statistics(model))
    precision = Precision(cfg.trainer.precision, where)
    decode = Decoder.of_dataset(cfg.dataset)
    workers = max(1, min(cfg.loading.workers, cores())) if len(files) > _FEW else 0
    read, at_a_time = partial(_read, files, transform, decode), min(BATCH, cfg.loading.eval_batch_size)
    names: list[str] | None = None
    for indices, pixels, errors in in_lists(read, len(files), at_a_time, workers, pinned=where.type == "cuda"):
        found = {index: Prediction(files[index], [], [], error) for index, error in errors.items()}
        if pixels is not None:
            with precision.autocast():
                logits = model(transform.normalise(pixels.to(where, non_blocking=True))).float()
            names = names or run.class_names(logits.shape[1])
            order = logits.argsort(dim=1, descending=True, stable=True)[:, :topk]
            chances = logits.softmax(1).gather(1, order).tolist()
            for index, best, likely in zip(indices, order.tolist(), chances, strict=True):
                found[index] = Prediction(files[index], [names[label] for label in best], likely)
        yield from (found[index] for index in sorted(found))
