"""Images of a split together with what is known of their objects: the ground truth that maps are scored against."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import FileSource, ImageSource, SubsetSource, VisionDataset
from gift_vit.data.transforms import ImageTransform


@dataclass(frozen=True)
class Scene:
    """An image as the model is given it, before normalisation, (3, S, S), and the ground truth in its pixels.

    The truth is the object's mask, boolean (S, S), or its parts, (P, 4), as
    :func:`gift_vit.explain.scoring.object_parts.place_parts` gives them.
    """

    pixels: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Truth:
    """Ground truth of one kind.

    Attributes:
        kind: In the plural, for messages.
        covers: Whether an image, by its path, is annotated.
        place: The annotation of an image, by its path, in the pixels of what the model sees; None if it is outside of them.
        parts: The names of an object's parts; none for masks.
    """

    kind: str
    covers: Callable[[str], bool]
    place: Callable[[str, Image.Image, ImageTransform], Tensor | None]
    parts: tuple[str, ...] = ()


def read_scenes(data: VisionDataset, split: str, truth: Truth, transform: ImageTransform) -> Iterator[Scene]:
    """The images of a split whose annotated object is in the picture, in their order.

    Raises:
        ConfigError: If the dataset's images are no files, none of them is annotated, or all objects are outside the picture.
    """
    found = seen = False
    for source in data.parts(split):
        paths = _paths(source)
        if paths is None:
            raise ConfigError(f"there are no {truth.kind} for dataset {data.name}: its images are no files with a path")
        for index, path in enumerate(paths):
            if not truth.covers(path):
                continue
            found = True
            image, _ = source[index]
            placed = truth.place(path, image, transform)
            if placed is not None:
                seen = True
                yield Scene(transform.finish(transform.prepare(image)), placed)
    if not found:
        raise ConfigError(
            f"none of the {truth.kind} is of an image in the {split} split of dataset {data.name}; do the paths agree?"
        )
    if not seen:
        raise ConfigError(
            f"all {truth.kind} of images in the {split} split of dataset {data.name} lie outside of what the model sees of the "
            "picture; check their coordinates, which are pixels of the file"
        )


def read_table(file: Path, columns: tuple[str, ...], kind: str) -> Iterator[tuple]:
    """The rows of a Parquet file of annotations.

    Raises:
        ConfigError: If there is no such file, or it lacks a column.
    """
    if not file.is_file():
        raise ConfigError(
            f"there are no {kind}: {file} is not there; give annotations=<a folder with {file.name}, of the columns "
            f"{', '.join(columns)}> (python -m data_prep.fgvc makes it for datasets that have {kind})"
        )
    try:
        table = pq.read_table(file, columns=list(columns)).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{file} is no table of {kind}: {str(error).splitlines()[0]}") from error
    if set(table) != set(columns):
        raise ConfigError(f"{file} is no table of {kind}: it lacks {', '.join(sorted(set(columns) - set(table)))}")
    return zip(*(table[name] for name in columns), strict=True)


def _paths(source: ImageSource) -> list[str] | None:
    """The images' paths relative to their root, where they are files."""
    if isinstance(source, FileSource):
        return list(source.paths)
    if isinstance(source, SubsetSource):
        paths = _paths(source.source)
        return None if paths is None else [paths[index] for index in source.indices]
    return None
