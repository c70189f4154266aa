"""Bounding boxes, part locations and segmentations, kept beside the images in one form for all datasets.

Coordinates are pixels as the archive gives them; a box given by its corners becomes ``x = xmin``, ``width = xmax - xmin``.
"""

import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.archives import reading
from data_prep.fgvc.images import ensure_folders
from data_prep.fgvc.lists import CARS_MATS, find_mat, read_cars_mat
from data_prep.fgvc.tables import read_image_rows, read_rows
from data_prep.fgvc.workspace import Workspace
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import atomic_path

_NUMBERS = [(name, pa.float64()) for name in ("x", "y", "width", "height")]
BOXES = pa.schema([("path", pa.string()), *_NUMBERS])
PARTS = pa.schema([("path", pa.string()), ("part", pa.string()), *_NUMBERS[:2], ("visible", pa.bool_())])


def write_annotations(work: Workspace, listed: Collection[str]) -> tuple[dict[str, int], dict[str, Any], list[str]]:
    """Write ``boxes.parquet``, ``parts.parquet`` and ``segmentations/``, whichever the dataset has.

    Returns rows (of the folder: files) by name, the sources by file name, and notes for a person.

    Raises:
        ConfigError: If annotations are unreadable, or one of the ``listed`` images has none.
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
    names = dict(read_rows(work.first_folder / "parts" / "parts.txt", (str, str), work.start_afresh))
    types = (names.__getitem__, float, float, lambda text: bool(int(text)))
    return read_image_rows(work.first_folder, "parts/part_locs.txt", types, work.start_afresh)


def _dog_boxes(work: Workspace) -> Iterator[tuple[Any, ...]]:
    """One XML file without extension per image, in the form of Pascal VOC; an image may have several boxes."""
    archive = work.extra("annotation.tar")
    with reading(archive), tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                folder, name = Path(member.name).parts[-2:]
                try:
                    for box in ET.fromstring(file.read()).iter("bndbox"):
                        corners = (float(box.findtext(corner, "")) for corner in ("xmin", "ymin", "xmax", "ymax"))
                        yield f"{folder}/{name}.jpg", *_from_corners(*corners)
                except (ET.ParseError, ValueError) as error:
                    raise tarfile.ReadError(f"{member.name}: {error}") from error


_CAR_CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def _car_boxes(work: Workspace) -> Iterator[tuple[Any, ...]]:
    """From what the devkit's MATLAB files that are there hold."""
    for split in CARS_MATS:
        file = find_mat(work, CARS_MATS[split]) or find_mat(work, f"cars_{split}_annos.mat")
        if file is not None:
            for path, row in read_cars_mat(work, file, split, _CAR_CORNERS):
                yield path, *_from_corners(*(float(row[name]) for name in _CAR_CORNERS))


def _from_corners(xmin: float, ymin: float, xmax: float, ymax: float) -> tuple[float, float, float, float]:
    return xmin, ymin, xmax - xmin, ymax - ymin


_BOXES: dict[str, Callable[[Workspace], Iterable[tuple[Any, ...]]]] = {
    "cub": _bird_boxes,
    "nabirds": _bird_boxes,
    "dogs": _dog_boxes,
    "cars": _car_boxes,
}
_PARTS: dict[str, Callable[[Workspace], list[tuple[Any, ...]]]] = {"cub": _bird_parts, "nabirds": _bird_parts}
