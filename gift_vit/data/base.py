"""What a prepared dataset is, whatever it is read from: named splits of labelled RGB images under one class map."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from gift_vit.data.registry import spec_of
from gift_vit.errors import ConfigError

SPLITS = ("train", "val", "test")
BENCHMARKS = ("fgvc", "vtab1k", "mini", "own")
RESIZES = ("bilinear", "bicubic", "tf1_bilinear")
CACHES = ("auto", "ram", "disk", "off")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass
class TransformConfig:
    """From an image of any size to the backbone's square input.

    ``crop_ratio`` None squashes the image to the input size. Otherwise its shorter side is resized to input size over
    ``crop_ratio`` (0.875: 256 for 224) and a square is cropped: at the centre, or in training with ``random_crop`` anywhere.
    ``hflip`` is the probability of a horizontal flip in training. ``resize`` is Pillow's ``bilinear`` or ``bicubic``, or
    ``tf1_bilinear``, with which VTAB-1k's published numbers were made; None takes the backbone weights' own.
    """

    crop_ratio: float | None
    random_crop: bool
    hflip: float
    resize: str | None

    def __post_init__(self) -> None:
        if self.crop_ratio is not None and not 0 < self.crop_ratio <= 1:
            raise ConfigError(
                f"dataset.transform.crop_ratio={self.crop_ratio}: give a number above 0 and up to 1, or null to squash"
            )
        if self.random_crop and self.crop_ratio is None:
            raise ConfigError("dataset.transform.random_crop=true has nothing to crop; give a crop_ratio, or random_crop=false")
        if not 0 <= self.hflip <= 1:
            raise ConfigError(f"dataset.transform.hflip={self.hflip}: give a probability from 0 to 1")
        if self.resize is not None and self.resize not in RESIZES:
            known = ", ".join(RESIZES)
            raise ConfigError(f"dataset.transform.resize={self.resize}: give null (the weights' own) or one of {known}")
        if self.resize == "tf1_bilinear" and self.crop_ratio is not None:
            raise ConfigError("dataset.transform.resize=tf1_bilinear squashes to the input size; give crop_ratio=null with it")


@dataclass
class DatasetConfig:
    """What every kind of dataset is told.

    ``num_classes`` None: as found in the data. ``cache`` says where decoded images are kept between epochs, as
    :mod:`gift_vit.data.cache` explains. ``prepare`` is the sentence a person reads when the data is not there.
    """

    name: str
    benchmark: str
    transform: TransformConfig
    num_classes: int | None
    cache: str
    prepare: str | None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9._-]+", self.name):
            raise ConfigError(f"dataset.name={self.name!r} names folders: use lower-case letters, digits and . _ - only")
        if self.benchmark not in BENCHMARKS:
            raise ConfigError(f"dataset.benchmark={self.benchmark}: give one of {', '.join(BENCHMARKS)}")
        if self.cache not in CACHES:
            raise ConfigError(f"dataset.cache={self.cache}: give one of {', '.join(CACHES)}")
        if self.num_classes is not None and self.num_classes < 1:
            raise ConfigError(f"dataset.num_classes={self.num_classes}: give a positive number, or null for what is found")

    def how_to_prepare(self) -> str:
        """``; `` and the sentence that tells how to get the data, for the end of an error line."""
        return f"; {self.prepare}" if self.prepare else ""


def name_after_root(kind: str, root: str) -> str:
    """``<kind>_<last part of root>`` in the letters that may name folders."""
    last = os.path.basename(os.path.abspath(os.path.expanduser(root)))
    return f"{kind}_{re.sub('[^a-z0-9]+', '_', last.lower()).strip('_') or 'images'}"


class LabelledSource(Protocol[T_co]):
    """Images in some form, with their labels known without decoding."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """All labels, (len,)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[T_co, int]:
        """An image and its label.

        Raises:
            ConfigError: If the image cannot be read; names it.
        """
        ...


class ImageSource(LabelledSource[Image.Image], Protocol):
    """RGB images, decoded on access, that can be identified without decoding them."""

    def content(self, index: int, /) -> bytes:
        """What an image is: its encoded bytes or pixels, or its relative path and size."""
        ...

    def version(self, index: int, /) -> bytes:
        """What a cache is keyed by: as :meth:`content`, and for a file also when it was last written."""
        ...


class ConcatSource(Generic[T]):
    """Several sources one after the other."""

    def __init__(self, sources: Sequence[LabelledSource[T]]) -> None:
        self.sources = sources
        self.ends = np.cumsum([len(source) for source in sources])
        self.labels: NDArray[np.int64] = np.concatenate([source.labels for source in sources])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[T, int]:
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[which][index - int(self.ends[which]) + len(self.sources[which])]


def concatenate(sources: Sequence[LabelledSource[T]]) -> LabelledSource[T]:
    """One source out of one or several."""
    return sources[0] if len(sources) == 1 else ConcatSource(sources)


@dataclass(frozen=True)
class VisionDataset:
    """A dataset ready for use.

    ``fingerprint`` is the SHA-256 (hex) of what the splits hold, as :func:`gift_vit.data.sources.fingerprint` defines it;
    ``decoder`` names what decodes the images, with its version; ``source`` says where they come from, if that is known.
    """

    name: str
    num_classes: int
    class_names: list[str] | None
    splits: dict[str, ImageSource]
    fingerprint: str
    decoder: str = f"Pillow {PIL.__version__}"
    source: str | None = None

    def __post_init__(self) -> None:
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            found = len(self.class_names)
            raise ConfigError(f"dataset {self.name}: num_classes={self.num_classes}, but the data names {found} classes")
        for split, source in self.splits.items():
            if len(source) == 0:
                raise ConfigError(f"dataset {self.name}: its {split} split holds no images")
            wrong = np.flatnonzero((source.labels < 0) | (source.labels >= self.num_classes))
            if len(wrong):
                index = int(wrong[0])
                raise ConfigError(
                    f"dataset {self.name}: label {source.labels[index]} of image {index} in its {split} split is outside "
                    f"0..{self.num_classes - 1} ({self.num_classes} classes)"
                )

    def parts(self, name: str) -> list[ImageSource]:
        """The sources of ``train``, ``val`` or ``test``, or of ``trainval``: train, then val.

        Raises:
            ConfigError: If the split is absent; names those there are.
        """
        parts = ("train", "val") if name == "trainval" else (name,)
        absent = [part for part in parts if part not in self.splits]
        if absent:
            raise ConfigError(f"dataset {self.name} has no {absent[0]} split (it has {', '.join(self.splits)})")
        return [self.splits[part] for part in parts]

    def split(self, name: str) -> LabelledSource[Image.Image]:
        """All images of a split, one after the other; raises as :meth:`parts` does."""
        return concatenate(self.parts(name))


def build_dataset(cfg: DatasetConfig) -> VisionDataset:
    """Read the dataset a config describes.

    Raises:
        ConfigError: If it is not there or not what the config says.
    """
    return spec_of(cfg).build(cfg)
