"""Segmentations as masks of what a model sees: grey images beside the photographs, as CUB-200-2011 has them.

The mask of ``<class>/<image>.jpg`` is ``segmentations/<class>/<image>.png``, of the photograph's size. A pixel's grey level is
the share of annotators who marked it as the object: with CUB's five annotators it is a multiple of 51.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gift_vit.common.errors import ConfigError
from gift_vit.data.decode import Decoder
from gift_vit.data.transforms import ImageTransform
from gift_vit.explain.scoring.scenes import Truth

FOLDER = "segmentations"
_DECODE = Decoder(upright=False, ground=None)  # a mask lies beside an image that is decoded as published


def segmentation_truth(folder: Path, threshold: float) -> Truth:
    """Masks out of the ``segmentations/`` of a dataset's folder.

    Args:
        folder: The dataset's folder.
        threshold: A pixel belongs to the object if more than this share of the annotators say so, 0 to below 1. 0.5: at least
            three of CUB's five.

    Raises:
        ConfigError: If there is no such folder.
    """
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
    votes = _DECODE.decode(file.read_bytes(), str(file))
    if votes.size != image.size:
        raise ConfigError(f"segmentation {file} is of {_by(votes)} pixels and its image of {_by(image)}; replace or remove it")
    above = Image.fromarray((np.asarray(votes) > 255 * threshold).astype(np.uint8) * 255)
    mask = transform.finish(transform.prepare(above))[0] > 127
    return mask if torch.any(mask) else None


def _mask_file(masks: Path, path: str) -> Path:
    return (masks / path).with_suffix(".png")


def _by(image: Image.Image) -> str:
    return "{} × {}".format(*image.size)
