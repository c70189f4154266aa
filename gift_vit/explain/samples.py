"""The images to explain: read from files or from a dataset's split, and as a person sees them."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gift_vit.common.errors import ConfigError, did_you_mean
from gift_vit.data.base import VisionDataset
from gift_vit.data.decode import Decoder
from gift_vit.data.layout import one_form

log = logging.getLogger(__name__)
T = TypeVar("T")
_STEM = 200  # bytes of a file's name that leave room for what is put around them
_NAME = 22  # characters of a class name that fit beside the mark


@dataclass(frozen=True)
class Sample:
    """One image by a name that can stand in a file's, and its label if it has one."""

    name: str
    image: Image.Image
    label: int | None


@dataclass(frozen=True)
class Pictures:
    """N images as people see them.

    Attributes:
        images: (N, H, W, 3) in 0..1.
        true: The N class names; empty where an image has none.
        predicted: The N names that the model answered.
    """

    images: NDArray[np.floating]
    true: Sequence[str]
    predicted: Sequence[str]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) == 0:
            raise ConfigError(f"expected images (N, H, W, 3), at least one, got {self.images.shape}")
        counts = (len(self.images), len(self.true), len(self.predicted))
        if len(set(counts)) > 1:
            raise ConfigError("got {} images, {} true and {} predicted names; expected one each".format(*counts))

    def some(self, which: slice) -> "Pictures":
        """Some of the images alone."""
        return Pictures(self.images[which], self.true[which], self.predicted[which])

    def is_wrong(self, index: int) -> bool:
        """Whether the model's answer is known to be wrong."""
        return bool(self.true[index]) and self.true[index] != self.predicted[index]

    def caption(self, index: int) -> str:
        """The true and the predicted name and a mark, on two lines where one is too short."""
        answer = _shortened(self.predicted[index])
        if not self.true[index]:
            return f"→ {answer}"
        first, second = _shortened(self.true[index]), f"→ {answer} {'✗' if self.is_wrong(index) else '✓'}"
        return f"{first} {second}" if len(first) + len(second) < _NAME else f"{first}\n{second}"


def read_samples(files: Sequence[Path], decode: Decoder, unread: list[str]) -> Iterator[Sample]:
    """The images of files, which have no label; those that cannot be read are told of, and added to ``unread``.

    Raises:
        ConfigError: If none can be read.
    """
    for file in files:
        try:
            image = decode.decode_file(file)
        except ConfigError as error:  # noqa: PERF203 - one picture is not the next one's matter
            unread.append(str(error))
            if len(unread) == len(files):
                raise ConfigError(unread[0]) from error
            log.warning("%s", unread[-1])
        else:
            yield Sample(file.stem, image, None)


def split_samples(data: VisionDataset, split: str, label: int | None) -> Iterator[Sample]:
    """The images of a split in its order, of one class or all.

    Raises:
        ConfigError: If the split is absent, or has no image of the class.
    """
    source = data.split(split)
    indices = np.arange(len(source)) if label is None else np.flatnonzero(source.labels == label)
    if len(indices) == 0:
        named = f" ({data.class_names[label]})" if data.class_names and label is not None else ""
        raise ConfigError(f"dataset {data.name} has no image of class {label}{named} in its {split} split")
    for index in indices.tolist():
        image, own = source[index]
        yield Sample(f"{split}{index:05}", image, own)


def spread_samples(data: VisionDataset, split: str, count: int) -> Iterator[Sample]:
    """``count`` images of a split, or all if there are fewer, at equal distances: many a split is sorted by class."""
    source = data.split(split)
    for index in np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int).tolist():
        yield Sample(f"{split}{index:05}", *source[index])


def find_class(wanted: str, class_names: list[str]) -> int:
    """The index (from 0) of a class given by index or name; one that does not exist is an error that says which do."""
    forms = [one_form(name) for name in class_names]
    if one_form(wanted) in forms:
        return forms.index(one_form(wanted))
    if wanted.isdecimal() and int(wanted) < len(class_names):
        return int(wanted)
    shown = ", ".join(class_names[:5]) + (", …" if len(class_names) > 5 else "")
    hint = did_you_mean(wanted, class_names)
    raise ConfigError(f"unknown class {wanted!r}: give an index from 0 to {len(class_names) - 1} or a name ({shown}){hint}")


def distinct(names: Sequence[str]) -> Iterator[str]:
    """The names, numbered where several are alike, as those of files that differ in their suffix only."""
    counts, taken = Counter(names), set(names)
    for index, name in enumerate(names):
        candidates = (f"{name}_{number}" for number in count(index))
        given = name if counts[name] == 1 else next(other for other in candidates if other not in taken)
        taken.add(given)
        yield given


def file_stems(names: Sequence[str]) -> list[str]:
    """The names in the characters that may stand in a file's, no two alike; of great length their beginnings."""
    plain = [re.sub(r"[^\w.-]+", "_", name).strip("_") or "image" for name in names]
    return list(distinct([name.encode()[:_STEM].decode(errors="ignore") for name in plain]))


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of ``size``, of which the last may be shorter."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"
