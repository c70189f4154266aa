"""Kaggle's diabetic retinopathy images, put there by hand, and the winner's preparation of 2015 (Benjamin Graham)."""

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.vtab.original.origin import Entry, OriginalOrigin, Row, Table, file_table
from data_prep.vtab.original.places import FolderFiles, Place
from gift_vit.common.cores import cores
from gift_vit.common.errors import ConfigError

RADIUS = 300  # of the eye, in pixels, after scaling
_KEPT_RADIUS = int(0.9 * RADIUS)
_GREY = 128
_JPEG_QUALITY = 72
_AHEAD = 64  # images prepared at once by all cores


def retinopathy(place: Place) -> OriginalOrigin:
    """Kaggle's training images, and its test images by leaderboard: public is validation, private is test.

    The key is ``10_left``. Expected in the folder pointed at, else in ``downloads/diabetic_retinopathy_detection``:
    ``train/*.jpeg``, ``test/*.jpeg``, ``trainLabels.csv``.

    Raises:
        ConfigError: If the files that have to be put there by hand are not.
    """
    try:
        cv2 = import_module("cv2")  # which only this builder needs
    except ImportError as error:
        raise ConfigError("the retinopathy images are prepared with OpenCV: pip install opencv-python-headless") from error
    own = place.downloads / place.builder.name
    roots = [own] if place.folder is None else [place.folder, own]
    root = next((root for root in roots if (root / "trainLabels.csv").exists()), roots[0])
    for needed in ("trainLabels.csv", "train", "test"):
        if not (root / needed).exists():
            raise ConfigError(
                f"{root / needed} is missing: the images have to be fetched by hand (an account is needed) from "
                "https://www.kaggle.com/c/diabetic-retinopathy-detection/data; join the parts (cat train.zip.* > train.zip), "
                f"and unpack so that {root} holds train/*.jpeg, test/*.jpeg and trainLabels.csv; "
                "or point at their folder with archives=<folder>"
            )
    place.used.append("train/, test/, trainLabels.csv (by hand)")
    solution = place.file("retinopathy_solution.csv")
    table = partial(_table, cv2, FolderFiles(root))
    tables = {
        "train": partial(table, "train", root / "trainLabels.csv", None),
        "validation": partial(table, "test", solution, "Public"),
        "test": partial(table, "test", solution, "Private"),
    }
    return OriginalOrigin(place, tables)


def _table(cv2: Any, files: FolderFiles, folder: str, listing: Path, usage: str | None) -> Table:
    entries = _entries(folder, listing, usage)

    def prepared(row: int) -> bytes:
        name = entries[row].file
        try:
            return prepare(cv2, files.read(name))
        except cv2.error as error:
            raise ConfigError(f"{files.where(name)} is not a readable image ({error.err or error}); unpack it again") from error

    def read(rows: Sequence[int]) -> Iterator[Row]:
        with ThreadPool(cores()) as pool:
            for begin in range(0, len(rows), _AHEAD):
                part = rows[begin : begin + _AHEAD]
                for row, image in zip(part, pool.imap(prepared, part), strict=True):
                    yield image, entries[row].features

    return Table(file_table(files, entries, str(listing)).keys, read)


def _entries(folder: str, listing: Path, usage: str | None) -> list[Entry]:
    """The images of ``folder`` that are listed, and listed for ``usage`` where that is given."""
    with listing.open(newline="") as file:
        try:
            return [
                Entry(line["image"], f"{folder}/{line['image']}.jpeg", {"label": int(line["level"])})
                for line in csv.DictReader(file)
                if usage in {None, line.get("Usage")}
            ]
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(f"{listing} is not Kaggle's list of images and levels ({error}); fetch it again") from error


def prepare(cv2: Any, data: bytes) -> bytes:
    """Scale the eye to radius 300, subtract the local average, keep nine tenths of the radius, encode as JPEG of quality 72."""
    image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise cv2.error("it cannot be decoded")
    scale = RADIUS / _eye_radius(image)
    image = cv2.resize(image, dsize=None, fx=scale, fy=scale)
    image = cv2.addWeighted(image, 4, cv2.GaussianBlur(image, (0, 0), RADIUS / 30), -4, _GREY)
    height, width = image.shape[:2]
    disc = np.zeros((height, width), dtype=np.uint8)
    cv2.circle(disc, center=(width // 2, height // 2), radius=_KEPT_RADIUS, color=1, thickness=-1)
    image = np.where(disc[..., None] == 1, image, np.uint8(_GREY))
    rows, columns = _square(height), _square(width)
    _, encoded = cv2.imencode(".jpg", image[rows, columns], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return encoded.tobytes()


def _eye_radius(image: np.ndarray) -> float:
    """Half the number of bright pixels in the middle row; half the height where that row is dark (damaged images)."""
    brightness = image[image.shape[0] // 2].sum(axis=1)
    radius = np.count_nonzero(brightness > brightness.mean() / 10) / 2
    return radius if radius >= 1 else image.shape[0] / 2


def _square(size: int) -> slice:
    """What the disc spans along one axis."""
    return slice(max(size // 2 - _KEPT_RADIUS, 0), min(size // 2 + _KEPT_RADIUS, size))
