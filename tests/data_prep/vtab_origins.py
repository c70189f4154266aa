"""Made-up origins for the tests of VTAB-1k: any builder, as small or as large as wanted."""

import io
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from data_prep.vtab.records import Key, Record, tfds_order
from data_prep.vtab.tasks import BUILDERS, Task
from tests.data.conftest import encode

# Sizes of the source splits: just enough for train800, val200 and a test split of every task.
SIZES: dict[str, dict[str, int]] = {
    **{name: {"train": 820, "validation": 210, "test": 30} for name in BUILDERS},
    **{name: {"train": 2000, "test": 30} for name in ("cifar100", "caltech101", "svhn_cropped")},
    **{name: {"train": 1500} for name in ("eurosat", "resisc45")},
    "oxford_iiit_pet": {"train": 1000, "test": 30},
    "clevr": {"train": 2000, "validation": 30},
    "dsprites": {"train": 2000},
    "smallnorb": {"train": 820, "test": 420},
}


def decode(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)))


def png(mode: str = "RGB", size: tuple[int, int] = (4, 4), colour: Any = None) -> bytes:
    """An encoded image of one colour; ``size`` is (width, height)."""
    return encode(Image.new(mode, size, colour if colour is not None else 0))


def features_of(seed: int) -> dict[str, Any]:
    """Random features as the builders have them, those of all builders."""
    draw = random.Random(seed)
    depths = [draw.uniform(1, 30) for _ in range(draw.randint(3, 10))]
    places, types = np.array([[0, 0, depth] for depth in depths], np.float32), [draw.randint(0, 7) for _ in depths]
    largest = {"label": 1, "label_x_position": 31, "label_orientation": 39, "label_azimuth": 17, "label_elevation": 8}
    labels = {name: draw.randint(0, most) for name, most in largest.items()}
    return {**labels, "objects": {"pixel_coords": places, "location": places, "type": np.array(types, np.int64)}}


@dataclass
class FakeOrigin:
    """An origin whose keys, image and features are given by functions."""

    stored: dict[str, list[Key]]
    image: Callable[[str, Key], bytes]
    features: Callable[[str, Key], Mapping[str, Any]]
    class_names: list[str] | None = None
    source: str = "original"
    description: dict[str, str] = field(default_factory=lambda: {"builder": "fake"})

    def __post_init__(self) -> None:
        self.stored = {split: tfds_order(split, some) for split, some in self.stored.items()}

    def keys(self, split: str) -> list[Key]:
        return self.stored[split]

    def records(self, split: str, positions: range) -> Iterator[Record]:
        for key in (self.stored[split][position] for position in positions):
            yield Record(key, self.image(split, key), self.features(split, key))

    def describe(self) -> dict[str, str]:
        return self.description


def number_of(key: Key) -> int:
    return int(str(key).split("_")[1].removesuffix(".png"))


def colour_of(key: Key) -> tuple[int, int, int]:
    return number_of(key) % 256, number_of(key) // 256, 7


def small_origin(task: Task, class_names: list[str] | None = None, source: str = "original") -> FakeOrigin:
    """A small origin of the task's builder with an image of its own for each key."""
    name = task.builder.name
    keys: dict[str, list[Key]] = {split: [f"{split}_{i}.png" for i in range(size)] for split, size in SIZES[name].items()}

    def image(split: str, key: Key) -> bytes:
        return png("L", colour=number_of(key) % 2) if name == "dsprites" else png(colour=colour_of(key))

    return FakeOrigin(keys, image, lambda _, key: features_of(number_of(key)), class_names, source)
