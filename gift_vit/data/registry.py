"""The registry of dataset kinds: where the images of a dataset come from, one file per kind.

``build(cfg)`` reads what its config names and returns a :class:`gift_vit.data.VisionDataset`; it changes no random state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gift_vit.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from gift_vit.data.base import DatasetConfig, VisionDataset


@dataclass(frozen=True)
class DatasetSpec:
    """One kind of dataset: its config class and the function that reads it."""

    kind: str
    config_cls: "type[DatasetConfig]"
    build: "Callable[[Any], VisionDataset]"


DATASETS: dict[str, DatasetSpec] = {}


def register_dataset(
    kind: str, config_cls: "type[DatasetConfig]"
) -> "Callable[[Callable[[Any], VisionDataset]], Callable[[Any], VisionDataset]]":
    """Register the decorated build function under ``kind``; a kind or a config class is registered once."""

    def register(build: "Callable[[Any], VisionDataset]") -> "Callable[[Any], VisionDataset]":
        if kind in DATASETS or any(spec.config_cls is config_cls for spec in DATASETS.values()):
            raise ValueError(f"dataset kind {kind!r} or its {config_cls.__name__} is registered already")
        DATASETS[kind] = DatasetSpec(kind, config_cls, build)
        return build

    return register


def get_dataset(kind: str) -> DatasetSpec:
    """The spec of a kind; an unknown one is an error that lists the known kinds."""
    if kind not in DATASETS:
        hint = did_you_mean(kind, DATASETS)
        raise ConfigError(f"unknown dataset kind {kind!r}{hint} (known: {', '.join(sorted(DATASETS))})")
    return DATASETS[kind]


def spec_of(cfg: object) -> DatasetSpec:
    """The spec whose config class ``cfg`` is an instance of."""
    for spec in DATASETS.values():
        if type(cfg) is spec.config_cls:
            return spec
    known = ", ".join(sorted(spec.config_cls.__name__ for spec in DATASETS.values()))
    raise ConfigError(f"{type(cfg).__name__} is not a dataset config (known: {known})")
