"""The 19 tasks of VTAB-1k: which builder, which ranges of its splits, which label, which image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.vtab.rules import (
    LabelRule,
    as_stored,
    bin_of_orientation,
    bin_of_x_position,
    binary_to_grey,
    count_of_objects,
    distance_of_object,
    distance_of_vehicle,
    feature,
)
from gift_vit.errors import ConfigError


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
        label: Takes the builder's features.
        image: Takes the stored encoded image and returns the one to write.
        size: Height and width of every image, where all are alike.
    """

    name: str
    title: str
    group: str
    builder: Builder
    num_classes: int
    cuts: dict[str, Cut]
    label: Callable[[Mapping[str, Any]], int]
    image: Callable[[bytes], bytes]
    size: tuple[int, int] | None

    @property
    def grey_from_binary(self) -> bool:
        """Whether every pixel of the task's images is 0 or 255."""
        return self.image is binary_to_grey

    @property
    def label_is_builders(self) -> bool:
        """Whether the task's label is the builder's own ``label``, whose class names then apply."""
        return self.label is OWN_LABEL


OWN_LABEL: LabelRule = feature("label")

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
        Builder(
            "diabetic_retinopathy_detection",
            "3.0.0",
            "btgraham-300",
            {"train": 35126, "validation": 10906, "test": 42670},
        ),
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
_DSPRITES = _held_out(80, Cut("train", 90))
_SMALLNORB = _cuts(Cut("test", 0, 200), Cut("test", 50))

NATURAL, SPECIALIZED, STRUCTURED = "natural", "specialized", "structured"


def _task(
    names: tuple[str, str, str],
    builder: str,
    num_classes: int,
    cuts: dict[str, Cut],
    size: tuple[int, int] | None = None,
    label: LabelRule = OWN_LABEL,
    image: Callable[[bytes], bytes] = as_stored,
) -> Task:
    name, title, group = names
    return Task(name, title, group, BUILDERS[builder], num_classes, cuts, label, image, size)


def _dsprites(name: str, title: str, label: LabelRule) -> Task:
    return _task((name, title, STRUCTURED), "dsprites", 16, _DSPRITES, (64, 64), label, binary_to_grey)


def _smallnorb(name: str, title: str, num_classes: int, label: LabelRule) -> Task:
    return _task((name, title, STRUCTURED), "smallnorb", num_classes, _SMALLNORB, (96, 96), label)


TASKS: dict[str, Task] = {
    task.name: task
    for task in [
        _task(("cifar100", "CIFAR-100", NATURAL), "cifar100", 100, _held_out(90, _WHOLE_TEST), (32, 32)),
        _task(("caltech101", "Caltech101", NATURAL), "caltech101", 102, _held_out(90, _WHOLE_TEST)),
        _task(("dtd", "DTD", NATURAL), "dtd", 47, _VALIDATION),
        _task(("flowers102", "Flowers102", NATURAL), "oxford_flowers102", 102, _VALIDATION),
        _task(("pets", "Pets", NATURAL), "oxford_iiit_pet", 37, _held_out(80, _WHOLE_TEST)),
        _task(("svhn", "SVHN", NATURAL), "svhn_cropped", 10, _held_out(90, _WHOLE_TEST), (32, 32)),
        _task(("sun397", "Sun397", NATURAL), "sun397", 397, _VALIDATION),
        _task(("patch_camelyon", "Patch Camelyon", SPECIALIZED), "patch_camelyon", 2, _VALIDATION, (96, 96)),
        _task(("eurosat", "EuroSAT", SPECIALIZED), "eurosat", 10, _SIXTY_EIGHTY, (64, 64)),
        _task(("resisc45", "Resisc45", SPECIALIZED), "resisc45", 45, _SIXTY_EIGHTY, (256, 256)),
        _task(("retinopathy", "Retinopathy", SPECIALIZED), "diabetic_retinopathy_detection", 5, _VALIDATION),
        _task(("clevr_count", "Clevr/count", STRUCTURED), "clevr", 8, _CLEVR, (320, 480), count_of_objects),
        _task(("clevr_distance", "Clevr/distance", STRUCTURED), "clevr", 6, _CLEVR, (320, 480), distance_of_object),
        _task(("dmlab", "DMLab", STRUCTURED), "dmlab", 6, _VALIDATION, (360, 480)),
        _task(("kitti_distance", "KITTI/distance", STRUCTURED), "kitti", 4, _VALIDATION, None, distance_of_vehicle),
        _dsprites("dsprites_location", "dSprites/loc", bin_of_x_position),
        _dsprites("dsprites_orientation", "dSprites/ori", bin_of_orientation),
        _smallnorb("smallnorb_azimuth", "SmallNORB/azi", 18, feature("label_azimuth")),
        _smallnorb("smallnorb_elevation", "SmallNORB/ele", 9, feature("label_elevation")),
    ]
}

GROUPS: dict[str, list[str]] = {
    group: [task.name for task in TASKS.values() if task.group == group] for group in (NATURAL, SPECIALIZED, STRUCTURED)
}
