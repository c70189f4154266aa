"""Bounding boxes, part locations and segmentations, kept beside the images in one form for all datasets.

Coordinates are pixels as the archive gives them; a box given by its corners becomes ``x = xmin``, ``width = xmax - xmin``.
"""

import logging
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.archives import reading
from data_prep.fgvc.images import ensure_folders
from data_prep.fgvc.official import CARS_MATS, find_mat
from data_prep.fgvc.tables import read_image_rows, read_mat, read_rows
from data_prep.fgvc.workspace import Workspace
from gift_vit.errors import ConfigError
from gift_vit.files import atomic_path

logger = logging.getLogger(__name__)

_NUMBERS = [(name, pa.float64()) for name in ("x", "y", "width", "height")]
BOXES = pa.schema([("path", pa.string()), *_NUMBERS])
PARTS = pa.schema([("path", pa.string()), ("part", pa.string()), *_NUMBERS[:2], ("visible", pa.bool_())])
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def write_annotations(work: Workspace, listed: Collection[str]) -> tuple[dict[str, int], dict[str, Any], list[str]]:
    """Write ``boxes.parquet``, ``parts.parquet`` and ``segmentations/``, whichever the dataset has.

    Args:
        work: The dataset.
        listed: Every image of its splits.

    Returns:
        Rows (of the folder: files) by name, the sources by file name, and notes for a person.

    Raises:
        ConfigError: If annotations are unreadable, or a listed image has none.
    """
    name, found, sources, notes = work.facts.name, {}, {}, []
    if name in _BOXES:
        rows = list(_BOXES[name](work))
        notes = _uncovered(work, listed, {path for path, *_ in rows})
        if rows:
            found["boxes.parquet"] = _write(work.folder / "boxes.parquet", rows, BOXES)
    if name in _PARTS:
        found["parts.parquet"] = _write(work.folder / "parts.parquet", _PARTS[name](work), PARTS)
    if work.facts.segmentations is not None:
        sources = ensure_folders(work, work.facts.segmentations)
        for folder in work.facts.segmentations.folders:
            found[folder] = sum(path.is_file() for path in (work.folder / folder).rglob("*"))
    return found, sources, notes


def _write(path: Path, rows: list[tuple[Any, ...]], schema: pa.Schema) -> int:
    columns = [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)]
    with atomic_path(path) as partial:
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), partial)
    return len(rows)


def _uncovered(work: Workspace, listed: Collection[str], covered: set[str]) -> list[str]:
    """A note, or an error, on listed images without a box."""
    without = sorted(set(listed) - covered)
    if not without:
        return []
    text = f"{len(without)} of {len(listed)} images have no bounding box, the first is {without[0]}"
    if work.facts.missing_boxes is None:
        raise ConfigError(f"{work.facts.title}: {text}; {work.start_afresh}")
    return [f"{text}; to have them, {work.facts.missing_boxes.format(folder=work.folder)}"]


def _bird_boxes(work: Workspace) -> list[tuple[Any, ...]]:
    return read_image_rows(work.first_folder, "bounding_boxes.txt", (float,) * 4, work.start_afresh)


def _bird_parts(work: Workspace) -> list[tuple[Any, ...]]:
    folder, remedy = work.first_folder, work.start_afresh
    names = dict(read_rows(folder / "parts" / "parts.txt", (str, str), remedy))
    types = (names.__getitem__, float, float, _flag)
    return read_image_rows(folder, "parts/part_locs.txt", types, remedy)


def _flag(text: str) -> bool:
    return bool(int(text))


def _dog_boxes(work: Workspace) -> Iterator[tuple[Any, ...]]:
    """One XML file without extension per image, in the form of Pascal VOC; an image may have several boxes."""
    archive = work.extra("annotation.tar")
    with reading(archive), tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                folder, name = Path(member.name).parts[-2:]
                try:
                    yield from _voc_boxes(f"{folder}/{name}.jpg", file.read())
                except (ET.ParseError, ValueError) as error:
                    raise tarfile.ReadError(f"{member.name}: {error}") from error


def _voc_boxes(path: str, xml: bytes) -> Iterator[tuple[Any, ...]]:
    for box in ET.fromstring(xml).iter("bndbox"):
        yield path, *_from_corners(*(float(box.findtext(name, "")) for name in _CORNERS))


def _car_boxes(work: Workspace) -> Iterator[tuple[Any, ...]]:
    """From what the devkit's MATLAB files that are there hold."""
    for split in CARS_MATS:
        file = find_mat(work, CARS_MATS[split]) or find_mat(work, f"cars_{split}_annos.mat")
        if file is not None:
            remedy = f"replace or remove it, then type: {work.command}"
            for row in read_mat(file, "annotations", file, remedy):
                corners = (float(row[f"bbox_{name}"]) for name in ("x1", "y1", "x2", "y2"))
                yield f"cars_{split}/cars_{split}/{row['fname']}", *_from_corners(*corners)


def _from_corners(xmin: float, ymin: float, xmax: float, ymax: float) -> tuple[float, float, float, float]:
    return xmin, ymin, xmax - xmin, ymax - ymin


_BOXES: dict[str, Callable[[Workspace], Any]] = {
    "cub": _bird_boxes,
    "nabirds": _bird_boxes,
    "dogs": _dog_boxes,
    "cars": _car_boxes,
}
_PARTS: dict[str, Callable[[Workspace], list[tuple[Any, ...]]]] = {"cub": _bird_parts, "nabirds": _bird_parts}
