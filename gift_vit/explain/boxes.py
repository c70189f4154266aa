"""Bounding boxes as masks of what a model sees: read from the ``boxes.parquet`` that ``python -m data_prep.fgvc`` writes.

Its columns are ``path`` (as the split lists name the image) and ``x``, ``y``, ``width``, ``height`` in pixels of the file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from gift_vit.data import ImageSource, ImageTransform, VisionDataset
from gift_vit.data.sources import FileSource, SubsetSource
from gift_vit.data.transforms import Box
from gift_vit.errors import ConfigError

COLUMNS = ("path", "x", "y", "width", "height")
Boxes = Mapping[str, Sequence[Box]]


@dataclass(frozen=True)
class Scene:
    """An image as the model is given it, before normalisation, (3, S, S), and the mask of its object, (S, S)."""

    pixels: Tensor
    mask: Tensor


def read_boxes(file: Path) -> dict[str, list[Box]]:
    """The boxes of each image by its path.

    Raises:
        ConfigError: If there is no such file, or it is no table of boxes.
    """
    if not file.is_file():
        raise ConfigError(
            f"there are no boxes: {file} is not there; give boxes=<a Parquet file with the columns {', '.join(COLUMNS)}> "
            "(python -m data_prep.fgvc writes one for cub, nabirds, dogs and cars)"
        )
    try:
        table = pq.read_table(file, columns=list(COLUMNS)).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{file} is no table of boxes: {str(error).splitlines()[0]}") from error
    if set(table) != set(COLUMNS):
        raise ConfigError(f"{file} is no table of boxes: it lacks {', '.join(sorted(set(COLUMNS) - set(table)))}")
    boxes: dict[str, list[Box]] = {}
    for path, *box in zip(*(table[name] for name in COLUMNS), strict=True):
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


def read_scenes(data: VisionDataset, split: str, boxes: Boxes, transform: ImageTransform) -> Iterator[Scene]:
    """The images of a split that have a box of which something is in the picture, in order.

    Raises:
        ConfigError: If the dataset's images are no files, or none of them has a box.
    """
    found = False
    for source in data.parts(split):
        paths = _paths(source)
        if paths is None:
            raise ConfigError(f"there are no boxes for dataset {data.name}: its images are no files with a path")
        for index, path in enumerate(paths):
            if path not in boxes:
                continue
            found = True
            image, _ = source[index]
            placed = [transform.place_box(box, *image.size) for box in boxes[path]]
            mask = object_mask(placed, transform.size)
            if mask.any():
                yield Scene(transform.finish(transform.prepare(image)), mask)
    if not found:
        raise ConfigError(f"none of the boxes is of an image in the {split} split of dataset {data.name}; do the paths agree?")


def _paths(source: ImageSource) -> list[str] | None:
    """The images' paths relative to their root, where they are files."""
    if isinstance(source, FileSource):
        return list(source.paths)
    if isinstance(source, SubsetSource):
        paths = _paths(source.source)
        return None if paths is None else [paths[index] for index in source.indices]
    return None
