"""What data is told: the options of every kind of dataset, and how it is loaded. Imports no torch."""

import math
import os
import re
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from gift_vit.common.checks import Options, at_least, fulfils, matches, one_of
from gift_vit.common.errors import ConfigError, did_you_mean

SPLITS = ("train", "val", "test")
BENCHMARKS = ("fgvc", "vtab1k", "mini", "own")
PUBLISHED = ("fgvc", "vtab1k")  # benchmarks whose pixels stay those that published numbers rest on
RESIZES = ("bilinear", "bicubic", "tf1_bilinear")
CACHES = ("auto", "ram", "disk", "off")
JPEG_DECODERS = ("auto", "simplejpeg", "pillow")
_crop_ratio = fulfils(lambda ratio: 0 < ratio <= 1, "a number above 0 and up to 1, or null to squash")
_part_of_train = fulfils(lambda part: 0 < part < 1, "a number between 0 and 1, the part of train that becomes val")
_split_seed = fulfils(lambda seed: 0 <= seed < 2**32, f"a whole number from 0 to {2**32 - 1}")
_folder_name = matches(r"[a-z0-9._-]+", "lower-case letters, digits and . _ - only, for it names folders")
FOLDER_LAYOUT = "expected train/<class>/*.jpg and, if there are any, val/<class>/ and test/<class>/"


def colour_of(value: Any) -> tuple[int, int, int] | None:
    """Red, green and blue (0..255) of a colour as people write it: ``white``, ``#rrggbb``, ``[r, g, b]``, a grey level.

    None for ``drop``.

    Raises:
        ValueError: If it is none of these.
    """
    if value == "drop":
        return None
    if isinstance(value, str):
        from PIL import ImageColor

        red, green, blue, *_ = ImageColor.getrgb(value)
        return red, green, blue
    red, green, blue = [value] * 3 if isinstance(value, int) else value
    if not all(isinstance(part, int) and not isinstance(part, bool) and 0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"{value} is no colour")
    return red, green, blue


def _is_colour(value: Any) -> bool:
    try:
        colour_of(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_range(ends: list[float]) -> bool:
    return len(ends) == 2 and -math.inf < ends[0] < ends[1] < math.inf


@dataclass
class TransformConfig(Options, section="dataset.transform"):
    """From an image of any size to the backbone's square input.

    ``crop_ratio`` None squashes the image to the input size. Otherwise its shorter side is resized to input size over
    ``crop_ratio`` (0.875: 256 for 224) and a square is cropped: at the centre, or in training with ``random_crop`` anywhere.
    ``hflip`` is the probability of a horizontal flip in training. ``resize`` is Pillow's ``bilinear`` or ``bicubic``, or
    ``tf1_bilinear``, with which VTAB-1k's published numbers were made; None takes the backbone weights' own.

    Before that the image is decoded. ``exif`` turns it upright as its EXIF orientation says. ``background`` lies under what is
    transparent, a colour as :func:`colour_of` reads it; ``drop`` leaves alpha out. None is true and white, but for FGVC and
    VTAB-1k, which stay as published: false and ``drop``. ``value_range`` are the values that become black and white in images
    of more than 8 bits; None: the range of the file's format. ``max_pixels`` is the largest image; None: Pillow's limit.
    """

    crop_ratio: Annotated[float | None, _crop_ratio]
    random_crop: bool
    hflip: Annotated[float, fulfils(lambda chance: 0 <= chance <= 1, "a probability from 0 to 1")]
    resize: Annotated[str | None, one_of(RESIZES)]
    exif: bool | None = None
    background: Annotated[Any, fulfils(_is_colour, "a colour such as white, '#7f7f7f' or [255,255,255], or drop")] = None
    value_range: Annotated[list[float] | None, fulfils(_is_range, "two finite numbers, the lower first")] = None
    max_pixels: Annotated[int | None, at_least(1)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_crop and self.crop_ratio is None:
            raise ConfigError("dataset.transform.random_crop=true has nothing to crop; give a crop_ratio, or random_crop=false")
        if self.resize == "tf1_bilinear" and self.crop_ratio is not None:
            raise ConfigError("dataset.transform.resize=tf1_bilinear squashes to the input size; give crop_ratio=null with it")


@dataclass
class LoadingConfig(Options, section="trainer"):
    """How images reach training and evaluation; without influence on results but for rounding. Keys of ``trainer``.

    Attributes:
        workers: Processes that decode images, for each process that trains.
        eval_batch_size: Images per batch and process in evaluation.
    """

    workers: Annotated[int, at_least(0)]
    eval_batch_size: Annotated[int, at_least(1)]


@dataclass(frozen=True)
class CacheSettings:
    """Where prepared pixels are kept.

    Attributes:
        mode: ``off``; ``ram``: in memory, for one run; ``disk``: in a file, for all runs; ``auto``: in memory where they are
            few, on disk beyond, and nowhere if the disk has no room.
        folder: The folder of the files.
        workers: Processes that decode while a cache is built.
    """

    mode: str
    folder: Path
    workers: int


@dataclass
class DatasetConfig(Options, section="dataset"):
    """What every kind of dataset is told.

    ``num_classes`` None: as found in the data. ``cache`` says where decoded images are kept between epochs, as
    :mod:`gift_vit.data.cache` explains. ``prepare`` is the sentence a person reads when the data is not there.
    """

    name: Annotated[str, _folder_name]
    benchmark: Annotated[str, one_of(BENCHMARKS)]
    transform: TransformConfig
    num_classes: Annotated[int | None, fulfils(lambda count: count >= 1, "1 or more, or null for what is found")]
    cache: Annotated[str, one_of(CACHES)]
    prepare: str | None

    @property
    def as_published(self) -> bool:
        """Whether images are decoded as those behind published numbers, where ``transform`` does not say otherwise."""
        return self.benchmark in PUBLISHED

    def how_to_prepare(self) -> str:
        """``; `` and the sentence that tells how to get the data, for the end of an error line."""
        return f"; {self.prepare}" if self.prepare else ""

    def needed(self) -> list[Path]:
        """Folders and files without which there is no data, the outermost first."""
        return []

    def check_present(self) -> None:
        """Refuse data that is not there; a look at :meth:`needed` alone, so that nobody waits for torch to be told."""
        for path in self.needed():
            if not path.exists():
                kind = "file" if path.suffix == ".json" else "folder"
                raise ConfigError(f"dataset {self.name}: there is no {kind} {path}{self.how_to_prepare()}")


@dataclass
class SplitListsConfig(DatasetConfig):
    """``image_root`` (what the listed paths are relative to) and ``splits_dir`` (the lists) are relative to ``root``."""

    root: str
    image_root: str
    splits_dir: str

    def needed(self) -> list[Path]:
        """The folders, and the three lists."""
        root = Path(self.root).expanduser()
        return [root, root / self.image_root, *(root / self.splits_dir / f"{split}.json" for split in SPLITS)]


@dataclass
class FolderConfig(DatasetConfig):
    """An absent val is split off train: the part ``val_fraction``, stratified, drawn from ``split_seed``.

    The name ``folder`` becomes ``folder_<last part of root>``, so that two people's folders do not share one run folder.
    """

    root: str
    val_fraction: Annotated[float, _part_of_train]
    split_seed: Annotated[int, _split_seed]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == "folder":
            self.name = _name_after_root("folder", self.root)

    def needed(self) -> list[Path]:
        """The folder, and ``train/`` in it."""
        root = Path(self.root).expanduser()
        return [root, root / "train"]

    def how_to_prepare(self) -> str:
        """As for every dataset, after the layout that is expected."""
        return f"; {FOLDER_LAYOUT}{super().how_to_prepare()}"


@dataclass
class ParquetConfig(DatasetConfig):
    """Files or glob patterns per split, relative to ``root``.

    A file that is named must be there; a pattern of val or test that matches nothing means that the split is absent. An absent
    val is split off train: the part ``val_fraction``, stratified, drawn from ``split_seed``. The name ``parquet`` becomes
    ``parquet_<last part of root>``, so that two people's files do not share one run folder.
    """

    root: str
    files: dict[str, list[str]]
    val_fraction: Annotated[float, _part_of_train]
    split_seed: Annotated[int, _split_seed]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == "parquet":
            self.name = _name_after_root("parquet", self.root)
        unknown = [split for split in self.files if split not in SPLITS]
        if unknown or not self.files.get("train"):
            given = ", ".join(self.files) or "nothing"
            raise ConfigError(f"dataset.files names {given}: name train, and if there are any val and test")

    def needed(self) -> list[Path]:
        """The folder."""
        return [Path(self.root).expanduser()]


@dataclass
class Vtab1kConfig(DatasetConfig):
    """``root`` is the task's own folder; ``jpeg_decoder`` is explained at :func:`gift_vit.data.decode.settled_jpeg`."""

    root: str
    jpeg_decoder: Annotated[str, one_of(JPEG_DECODERS)]

    @property
    def as_published(self) -> bool:
        """Always."""
        return True

    def needed(self) -> list[Path]:
        """The record of the task's preparation, written last."""
        return [Path(self.root, "meta.json").expanduser()]


@dataclass
class DigitsConfig(DatasetConfig):
    """The split into train 800, val 200 and test 797 is drawn, stratified, from ``split_seed``."""

    split_seed: Annotated[int, _split_seed]


def _name_after_root(kind: str, root: str) -> str:
    """``<kind>_<last part of root>`` in the letters that may name folders."""
    last = os.path.basename(os.path.abspath(os.path.expanduser(root)))
    return f"{kind}_{re.sub('[^a-z0-9]+', '_', last.lower()).strip('_') or 'images'}"


CONFIGS: dict[str, type[DatasetConfig]] = {
    "split_lists": SplitListsConfig,
    "folder": FolderConfig,
    "parquet": ParquetConfig,
    "vtab1k": Vtab1kConfig,
    "digits": DigitsConfig,
}


def config_class(kind: str) -> type[DatasetConfig]:
    """The dataclass of a kind's options; an unknown kind is an error that lists the known ones.

    A kind that is not in :data:`CONFIGS` may be a file ``data/kinds/<kind>.py`` that registers options of its own.
    """
    if kind not in CONFIGS and kind.isidentifier() and find_spec(f"gift_vit.data.kinds.{kind}"):
        import_module(f"gift_vit.data.kinds.{kind}")
    if kind not in CONFIGS:
        hint = did_you_mean(kind, CONFIGS)
        raise ConfigError(f"unknown dataset kind {kind!r}{hint} (known: {', '.join(sorted(CONFIGS))})")
    return CONFIGS[kind]
