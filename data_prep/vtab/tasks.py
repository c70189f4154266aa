"""The 19 tasks of VTAB-1k: which builder, which ranges of its splits, which label, which image.

At the top are the rules by which a builder's features become a label, and its stored image the task's.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from gift_vit.common.errors import ConfigError

LabelRule: TypeAlias = Callable[[Mapping[str, Any]], int]

_OBJECT_DISTANCES = (8.0, 8.5, 9.0, 9.5, 10.0)
_VEHICLE_DISTANCES = (8.0, 20.0, 999.0)
_NO_VEHICLE = 1000.0
_VEHICLE_TYPES = 3  # 0 car, 1 van, 2 truck; pedestrians, cyclists, trams … follow
_FEWEST_OBJECTS = 3


def feature(name: str) -> LabelRule:
    """The rule that takes an integer feature as it is."""
    return lambda features: int(features[name])


def count_of_objects(features: Mapping[str, Any]) -> int:
    """CLEVR: 3 to 10 objects are the classes 0 to 7."""
    return len(features["objects"]["pixel_coords"]) - _FEWEST_OBJECTS


def distance_of_object(features: Mapping[str, Any]) -> int:
    """CLEVR: the nearest object's distance from the camera; one exactly on a bound belongs to the nearer class."""
    coords = np.asarray(features["objects"]["pixel_coords"], dtype=np.float32).reshape(-1, 3)
    return _bounds_below(coords[:, 2].min(), _OBJECT_DISTANCES)


def distance_of_vehicle(features: Mapping[str, Any]) -> int:
    """KITTI: the nearest car's, van's or truck's distance along the camera's axis (metres); 3 where there is none."""
    objects = features["objects"]
    depth = np.asarray(objects["location"], dtype=np.float32).reshape(-1, 3)[:, 2]
    vehicles = depth[np.asarray(objects["type"], dtype=np.int64) < _VEHICLE_TYPES]
    return _bounds_below(vehicles.min() if vehicles.size else _NO_VEHICLE, _VEHICLE_DISTANCES)


def bin_of_x_position(features: Mapping[str, Any]) -> int:
    """DSprites: 32 x-positions in 16 bins of two."""
    return int(features["label_x_position"]) // 2


def bin_of_orientation(features: Mapping[str, Any]) -> int:
    """DSprites: 40 orientations in 16 bins of 2.5, that is of three and two by turns."""
    return 2 * int(features["label_orientation"]) // 5


def as_stored(image: bytes) -> bytes:
    """The encoded image as it is: what training reads is what the dataset holds."""
    return image


def binary_to_grey(image: bytes) -> bytes:
    """DSprites stores pixels 0 and 1; the benchmark multiplies them by 255.

    Returns a PNG, which is lossless. Other pixels wrap around, which the checks of the export find.
    """
    with Image.open(io.BytesIO(image)) as opened:
        pixels = np.asarray(opened.convert("L"), dtype=np.uint8)
    return encode_png(pixels * np.uint8(255))


def encode_png(pixels: np.ndarray) -> bytes:
    """A lossless PNG of uint8 pixels (h, w), (h, w, 1) or (h, w, 3)."""
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _bounds_below(distance: float, bounds: tuple[float, ...]) -> int:
    return sum(bound < distance for bound in bounds)


OWN_LABEL: LabelRule = feature("label")


@dataclass(frozen=True)
class Cut:
    """A range of the stored order of a source split, from ``start_percent * size // 100`` on.

    Attributes:
        count: How many examples; None: all that follow.
    """

    split: str
    start_percent: int = 0
    count: int | None = None

    def positions(self, size: int) -> range:
        """The positions of this cut in a split of ``size`` examples.

        Raises:
            ConfigError: If the split ends too early.
        """
        start = self.start_percent * size // 100
        stop = size if self.count is None else start + self.count
        if not start < stop <= size:
            raise ConfigError(f"the cut {self.split}[{start}:{stop}] needs more examples than the split's {size}")
        return range(start, stop)

    def expression(self, size: int) -> str:
        """This cut of a split of ``size`` examples as TFDS writes it: ``train[:800]``, ``test``."""
        positions = self.positions(size)
        start = positions.start or ""
        stop = positions.stop if positions.stop < size else ""
        return f"{self.split}[{start}:{stop}]" if start or stop else self.split


@dataclass(frozen=True)
class Builder:
    """A TFDS dataset.

    Attributes:
        version: The version that TFDS 4.9.10 can prepare.
        counts: The official sizes of the source splits that the benchmark uses.
    """

    name: str
    version: str
    config: str | None
    counts: dict[str, int]


@dataclass(frozen=True)
class Task:
    """One task of the benchmark.

    Attributes:
        title: Its name in papers.
        group: ``natural``, ``specialized`` or ``structured``.
        cuts: What ``train800``, ``val200`` and ``test`` are made of.
        size: Height and width of every image, where all are alike.
        label: Takes the builder's features.
        image: Takes the stored encoded image and returns the one to write.
    """

    name: str
    title: str
    group: str
    builder: Builder
    num_classes: int
    cuts: dict[str, Cut]
    size: tuple[int, int] | None = None
    label: LabelRule = OWN_LABEL
    image: Callable[[bytes], bytes] = as_stored

    @property
    def grey_from_binary(self) -> bool:
        """Whether every pixel of the task's images is 0 or 255."""
        return self.image is binary_to_grey

    @property
    def label_is_builders(self) -> bool:
        """Whether the task's label is the builder's own ``label``, whose class names then apply."""
        return self.label is OWN_LABEL


_RETINOPATHY = "diabetic_retinopathy_detection"

BUILDERS: dict[str, Builder] = {
    builder.name: builder
    for builder in [
        Builder("cifar100", "3.0.2", None, {"train": 50000, "test": 10000}),
        Builder("caltech101", "3.0.2", None, {"train": 3060, "test": 6084}),
        Builder("dtd", "3.0.1", None, {"train": 1880, "validation": 1880, "test": 1880}),
        Builder("oxford_flowers102", "2.1.1", None, {"train": 1020, "validation": 1020, "test": 6149}),
        Builder("oxford_iiit_pet", "4.0.0", None, {"train": 3680, "test": 3669}),
        Builder("svhn_cropped", "3.1.0", None, {"train": 73257, "test": 26032}),
        Builder("sun397", "4.0.0", "tfds", {"train": 76128, "validation": 10875, "test": 21750}),
        Builder("patch_camelyon", "2.0.0", None, {"train": 262144, "validation": 32768, "test": 32768}),
        Builder("eurosat", "2.0.0", "rgb", {"train": 27000}),
        Builder("resisc45", "3.0.0", None, {"train": 31500}),
        Builder(_RETINOPATHY, "3.0.0", "btgraham-300", {"train": 35126, "validation": 10906, "test": 42670}),
        Builder("clevr", "3.1.0", None, {"train": 70000, "validation": 15000}),
        Builder("dmlab", "2.0.1", None, {"train": 65550, "validation": 22628, "test": 22735}),
        Builder("kitti", "3.3.0", None, {"train": 6347, "validation": 423, "test": 711}),
        Builder("dsprites", "2.1.0", None, {"train": 737280}),
        Builder("smallnorb", "2.1.0", None, {"train": 24300, "test": 24300}),
    ]
}


def _cuts(val: Cut, test: Cut) -> dict[str, Cut]:
    return {"train800": Cut("train", 0, 800), "val200": val, "test": test}


def _held_out(percent: int, test: Cut) -> dict[str, Cut]:
    """val200 from the rest of the train split."""
    return _cuts(Cut("train", percent, 200), test)


_WHOLE_TEST = Cut("test")
_VALIDATION = _cuts(Cut("validation", 0, 200), _WHOLE_TEST)
_SIXTY_EIGHTY = _held_out(60, Cut("train", 80))
_CLEVR = _held_out(90, Cut("validation"))

NATURAL, SPECIALIZED, STRUCTURED = "natural", "specialized", "structured"


def _dsprites(name: str, title: str, label: LabelRule) -> Task:
    cuts = _held_out(80, Cut("train", 90))
    return Task(name, title, STRUCTURED, BUILDERS["dsprites"], 16, cuts, (64, 64), label, binary_to_grey)


def _smallnorb(name: str, title: str, num_classes: int, label: str) -> Task:
    cuts = _cuts(Cut("test", 0, 200), Cut("test", 50))
    return Task(name, title, STRUCTURED, BUILDERS["smallnorb"], num_classes, cuts, (96, 96), feature(label))


TASKS: dict[str, Task] = {
    task.name: task
    for task in [
        Task("cifar100", "CIFAR-100", NATURAL, BUILDERS["cifar100"], 100, _held_out(90, _WHOLE_TEST), (32, 32)),
        Task("caltech101", "Caltech101", NATURAL, BUILDERS["caltech101"], 102, _held_out(90, _WHOLE_TEST)),
        Task("dtd", "DTD", NATURAL, BUILDERS["dtd"], 47, _VALIDATION),
        Task("flowers102", "Flowers102", NATURAL, BUILDERS["oxford_flowers102"], 102, _VALIDATION),
        Task("pets", "Pets", NATURAL, BUILDERS["oxford_iiit_pet"], 37, _held_out(80, _WHOLE_TEST)),
        Task("svhn", "SVHN", NATURAL, BUILDERS["svhn_cropped"], 10, _held_out(90, _WHOLE_TEST), (32, 32)),
        Task("sun397", "Sun397", NATURAL, BUILDERS["sun397"], 397, _VALIDATION),
        Task("patch_camelyon", "Patch Camelyon", SPECIALIZED, BUILDERS["patch_camelyon"], 2, _VALIDATION, (96, 96)),
        Task("eurosat", "EuroSAT", SPECIALIZED, BUILDERS["eurosat"], 10, _SIXTY_EIGHTY, (64, 64)),
        Task("resisc45", "Resisc45", SPECIALIZED, BUILDERS["resisc45"], 45, _SIXTY_EIGHTY, (256, 256)),
        Task("retinopathy", "Retinopathy", SPECIALIZED, BUILDERS[_RETINOPATHY], 5, _VALIDATION),
        Task("clevr_count", "Clevr/count", STRUCTURED, BUILDERS["clevr"], 8, _CLEVR, (320, 480), count_of_objects),
        Task("clevr_distance", "Clevr/distance", STRUCTURED, BUILDERS["clevr"], 6, _CLEVR, (320, 480), distance_of_object),
        Task("dmlab", "DMLab", STRUCTURED, BUILDERS["dmlab"], 6, _VALIDATION, (360, 480)),
        Task("kitti_distance", "KITTI/distance", STRUCTURED, BUILDERS["kitti"], 4, _VALIDATION, None, distance_of_vehicle),
        _dsprites("dsprites_location", "dSprites/loc", bin_of_x_position),
        _dsprites("dsprites_orientation", "dSprites/ori", bin_of_orientation),
        _smallnorb("smallnorb_azimuth", "SmallNORB/azi", 18, "label_azimuth"),
        _smallnorb("smallnorb_elevation", "SmallNORB/ele", 9, "label_elevation"),
    ]
}

GROUPS: dict[str, list[str]] = {
    group: [task.name for task in TASKS.values() if task.group == group] for group in (NATURAL, SPECIALIZED, STRUCTURED)
}
