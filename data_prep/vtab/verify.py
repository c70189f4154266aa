"""The checks of an export. Each raises ConfigError in one line: what was expected, what was found, what to do."""

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data_prep.vtab.facts import CLASS_COUNTS, HISTOGRAMS, ID_HASHES, LOCAL_KEYS, NUM_BYTES, OTHER_COUNTS
from data_prep.vtab.records import Key, tfds_order
from data_prep.vtab.tasks import Builder, Task
from gift_vit.common.errors import ConfigError

ImageCheck: TypeAlias = Callable[[bytes, str], None]

_RETINOPATHY_SIDE = 540
_GREY, _JPEG_NOISE = 128, 16
_REMEDY = "the data is incomplete or not the official one; get it anew"


def allowed_counts(builder: Builder, split: str) -> set[int]:
    """The sizes of a source split that are right: the official one, and where TFDS leaves an image out, one less."""
    return {builder.counts[split]} | OTHER_COUNTS.get(builder.name, {}).get(split, set())


def check_source(builder: Builder, split: str, keys: list[Key], official: bool) -> None:
    """Check number, uniqueness and order of the keys of a source split; the number only of official data."""
    right = allowed_counts(builder, split)
    if official and len(keys) not in right:
        expected = " or ".join(str(count) for count in sorted(right))
        raise ConfigError(f"{builder.name}'s split {split} holds {len(keys)} images, expected {expected}; {_REMEDY}")
    if len(set(keys)) != len(keys):
        twice = next(key for key, after in zip(sorted(keys), sorted(keys)[1:], strict=False) if key == after)
        raise ConfigError(f"{builder.name}'s split {split} holds {twice!r} twice, expected every image once; {_REMEDY}")
    for position, (found, expected) in enumerate(zip(keys, tfds_order(split, keys), strict=True)):
        if found != expected:
            raise ConfigError(
                f"{builder.name}'s split {split} is not in the order in which TFDS stores it: "
                f"position {position} holds {found!r}, expected {expected!r}; prepare it again"
            )


def check_cuts(task: Task, keys: Mapping[str, list[Key]], official: bool) -> None:
    """Check that train800, val200 and test share no image, and of official data that they hold the known ids.

    ``keys`` are those of the source splits, in stored order.
    """
    chosen = {name: [keys[cut.split][i] for i in cut.positions(len(keys[cut.split]))] for name, cut in task.cuts.items()}
    for first, second in combinations(task.cuts, 2):
        one_split = task.cuts[first].split == task.cuts[second].split
        named = isinstance(chosen[first][0], str) and task.builder.name not in LOCAL_KEYS  # row numbers count from 0 in each
        shared = set(chosen[first]) & set(chosen[second]) if one_split or named else set()
        if shared:
            raise ConfigError(f"{first} and {second} share {len(shared)} images, among them {min(shared)!r}; expected none")
    for name, expected in ID_HASHES.get(task.builder.name, {}).items() if official else ():
        found = ids_sha256(chosen[name])
        if found != expected:
            raise ConfigError(
                f"{name} holds other images than the benchmark's: its ids begin with {chosen[name][0]} and have the "
                f"SHA-256 {found[:12]}…, expected {expected[:12]}…; {_REMEDY}"
            )


def ids_sha256(keys: Iterable[Key]) -> str:
    """SHA-256 (hex) of the keys as text, joined by newlines."""
    return hashlib.sha256("\n".join(str(key) for key in keys).encode()).hexdigest()


def check_label(task: Task, label: int, name: str) -> None:
    """Check that an image's label is one of the task's classes."""
    if not 0 <= label < task.num_classes:
        raise ConfigError(f"image {name} has the label {label}, expected 0 to {task.num_classes - 1}")


def check_labels(task: Task, labels: Mapping[str, NDArray[np.int64]], canonical: bool = True) -> None:
    """Check which classes occur in official data, and how often where that is known.

    ``labels`` are by split, (images,). Where they are not ``canonical``, as in a local split of caltech101, the published class
    counts do not apply.
    """
    together = {**labels, "train800val200": np.concatenate([labels["train800"], labels["val200"]])}
    highest = "test"
    if task.name == "kitti_distance":  # images without a vehicle are rare: any split will do
        highest, together["all"] = "all", np.concatenate(list(labels.values()))
    if together[highest].max() != task.num_classes - 1:
        raise ConfigError(
            f"the highest label in {highest} is {together[highest].max()}, expected {task.num_classes - 1}; {_REMEDY}"
        )
    for split, expected in CLASS_COUNTS.get(task.name, {}).items() if canonical else ():
        found = len(np.unique(together[split]))
        if found != expected:
            raise ConfigError(f"{found} classes occur in {split}, expected {expected}; {_REMEDY}")
    histogram = np.bincount(together["train800val200"], minlength=task.num_classes).tolist()
    if histogram != HISTOGRAMS.get(task.name, histogram):
        raise ConfigError(
            f"train800 and val200 hold {histogram} images of the classes, expected {HISTOGRAMS[task.name]}; {_REMEDY}"
        )


def image_check(task: Task, official: bool) -> ImageCheck:
    """The check of each image (encoded bytes, name): that it decodes, and of official data its size and kind."""

    def check(image: bytes, name: str) -> None:
        try:
            with Image.open(io.BytesIO(image)) as opened:
                pixels = np.asarray(opened.convert("RGB"))
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more for broken files
            reason = "it is of no known format" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
            raise ConfigError(f"cannot decode image {name}: {reason}; {_REMEDY}") from error
        if official:
            _check_pixels(task, pixels, name)

    return check


def check_byte_counts(builder: Builder, description: Mapping[str, str]) -> list[str]:
    """Compare the bytes of the source splits, where the origin tells them, with those on record; a difference is an error.

    For caltech101, whose split is drawn at preparation time, warnings are returned instead: it may not be the canonical one.
    """
    expected = {f"num_bytes_{split}": number for split, number in NUM_BYTES.get(builder.name, {}).items()}
    wrong = {key: description.get(key, "unknown") for key, number in expected.items() if description.get(key) != str(number)}
    if builder.name == "caltech101" and wrong:
        found = ", ".join(f"{key} is {value} (canonical: {expected[key]})" for key, value in wrong.items())
        return [
            f"this split into train and test is a local one, as TFDS draws it from a folder's listing: {found}; its results "
            "are not exactly comparable with others'"
        ]
    for key, value in wrong.items():
        if key in description:
            raise ConfigError(f"{builder.name}'s {key} is {value}, expected {expected[key]}; {_REMEDY}")
    return []


def _check_pixels(task: Task, pixels: NDArray[np.uint8], name: str) -> None:
    """Check an image's pixels, (height, width, 3), against what the task's images are known to be."""
    height, width = pixels.shape[:2]
    if task.size is not None and (height, width) != task.size:
        raise ConfigError(f"image {name} is {height}×{width} pixels, expected {task.size[0]}×{task.size[1]}; {_REMEDY}")
    if task.grey_from_binary and not np.isin(pixels, (0, 255)).all():
        wrong = sorted(set(np.unique(pixels).tolist()) - {0, 255})
        raise ConfigError(f"image {name} has pixels of {wrong[0]}, expected only 0 and 255; {_REMEDY}")
    if task.name == "retinopathy":
        if max(height, width) > _RETINOPATHY_SIDE:
            raise ConfigError(
                f"image {name} is {height}×{width} pixels, expected at most {_RETINOPATHY_SIDE} each way; {_REMEDY}"
            )
        corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
        if np.abs(corners - _GREY).max() > _JPEG_NOISE:  # the disc around the eye never reaches them
            raise ConfigError(f"image {name} has corners of {corners.tolist()}, expected the grey {_GREY}; {_REMEDY}")
