"""Segmentations as masks of what a model sees: grey images beside the photographs, as CUB-200-2011 has them.

The mask of ``<class>/<image>.jpg`` is ``segmentations/<class>/<image>.png``, of the photograph's size. A pixel's grey level is
the part of the annotators who said that it is the object: CUB's five make it a multiple of 51.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gift_vit.data import ImageTransform
from gift_vit.data.sources import decode_named
from gift_vit.errors import ConfigError
from gift_vit.explain.scenes import Truth

FOLDER = "segmentations"
MASK_THRESHOLD = 0.5
"""More than half of the annotators: of CUB's five at least three."""


def segmentation_truth(folder: Path, threshold: float = MASK_THRESHOLD) -> Truth:
    """Masks out of the ``segmentations/`` of a dataset's folder.

    Args:
        folder: The dataset's folder.
        threshold: The part of the annotators, 0..1, above which a pixel is the object's.

    Raises:
        ConfigError: If there is no such folder, or the threshold is none.
    """
    if not 0 <= threshold < 1:
        raise ConfigError(f"mask_threshold={threshold}: give a number from 0 to below 1, the part of the annotators to exceed")
    masks = folder / FOLDER
    if not masks.is_dir():
        raise ConfigError(
            f"there are no segmentations: {masks} is not there; give annotations=<a folder with {FOLDER}/> (python -m "
            "data_prep.fgvc cub makes it from https://data.caltech.edu/records/w9d68-gec53/files/segmentations.tgz)"
        )
    return Truth("segmentations", lambda path: _mask_file(masks, path).is_file(), partial(_place, masks, threshold))


def _place(masks: Path, threshold: float, path: str, image: Image.Image, transform: ImageTransform) -> Tensor | None:
    """The pixels of which more than half is the object after the image's own resize and crop."""
    file = _mask_file(masks, path)
    votes = decode_named(file.read_bytes(), str(file))
    if votes.size != image.size:
        raise ConfigError(f"segmentation {file} is of {_by(votes)} pixels and its image of {_by(image)}; replace or remove it")
    above = Image.fromarray((np.asarray(votes) > 255 * threshold).astype(np.uint8) * 255)
    mask = transform.finish(transform.prepare(above))[0] > 127
    return mask if torch.any(mask) else None


def _mask_file(masks: Path, path: str) -> Path:
    return (masks / path).with_suffix(".png")


def _by(image: Image.Image) -> str:
    return "{} × {}".format(*image.size)
