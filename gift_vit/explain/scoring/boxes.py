"""Bounding boxes as masks of what a model sees: read from the ``boxes.parquet`` that ``python -m data_prep.fgvc`` writes.

Its columns are ``path`` (as the split lists name the image) and ``x``, ``y``, ``width``, ``height`` in pixels of the file.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gift_vit.data.transforms import Box, ImageTransform
from gift_vit.explain.scoring.scenes import Truth, read_table

COLUMNS = ("path", "x", "y", "width", "height")


def box_truth(folder: Path) -> Truth:
    """Masks of the boxes in a folder's ``boxes.parquet``; a bad file is an error."""
    boxes = read_boxes(folder / "boxes.parquet")

    def place(path: str, image: Image.Image, transform: ImageTransform) -> Tensor | None:
        mask = object_mask([transform.place_box(box, *image.size) for box in boxes[path]], transform.size)
        return mask if mask.any() else None

    return Truth("boxes", boxes.__contains__, place)


def read_boxes(file: Path) -> dict[str, list[Box]]:
    """The boxes of each image by its path.

    Raises:
        ConfigError: If there is no such file, or it is no table of boxes.
    """
    boxes: dict[str, list[Box]] = {}
    for path, *box in read_table(file, COLUMNS, "boxes"):
        boxes.setdefault(path, []).append((box[0], box[1], box[2], box[3]))
    return boxes


def object_mask(boxes: Sequence[Box], size: int) -> Tensor:
    """The pixels of a picture of ``size`` × ``size`` whose centres lie in one of the boxes, boolean (size, size)."""
    centres = torch.arange(size) + 0.5
    mask = torch.zeros(size, size, dtype=torch.bool)
    for x, y, width, height in boxes:
        rows, columns = (centres >= y) & (centres < y + height), (centres >= x) & (centres < x + width)
        mask |= rows[:, None] & columns[None]
    return mask
