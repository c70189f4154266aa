"""Made-up origins for the tests of VTAB-1k: any builder, as small or as large as wanted."""

import io
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from data_prep.vtab.order import tfds_order
from data_prep.vtab.records import Key, Record
from data_prep.vtab.tasks import Task

# sizes of the source splits that leave room for 800 + 200 training images, and a few for the test
SMALL_SIZES = {
    "cifar100": {"train": 2000, "test": 30},
    "caltech101": {"train": 2000, "test": 30},
    "svhn_cropped": {"train": 2000, "test": 30},
    "oxford_iiit_pet": {"train": 1000, "test": 30},
    "eurosat": {"train": 1500},
    "resisc45": {"train": 1500},
    "clevr": {"train": 2000, "validation": 30},
    "dsprites": {"train": 2000},
    "smallnorb": {"train": 800, "test": 420},
}
OTHERS_SMALL = {"train": 800, "validation": 200, "test": 30}


def png(mode: str = "RGB", size: tuple[int, int] = (4, 4), colour: Any = None) -> bytes:
    """An encoded image of one colour; ``size`` is (width, height)."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour if colour is not None else 0).save(buffer, "PNG")
    return buffer.getvalue()


def small_sizes(builder: str) -> dict[str, int]:
    return SMALL_SIZES.get(builder, OTHERS_SMALL)


def features_of(builder: str, seed: int) -> dict[str, Any]:
    """Random features as the builder has them."""
    draw = random.Random(seed)
    if builder == "clevr":
        count = draw.randint(3, 10)
        return {"objects": {"pixel_coords": np.array([[0, 0, draw.uniform(7, 11)] for _ in range(count)], np.float32)}}
    if builder == "kitti":
        count = draw.randint(0, 3)
        location = np.array([[0, 0, draw.uniform(1, 60)] for _ in range(count)], np.float32).reshape(count, 3)
        return {"objects": {"type": np.array([draw.randint(0, 7) for _ in range(count)], np.int64), "location": location}}
    if builder == "dsprites":
        return {"label_x_position": draw.randint(0, 31), "label_orientation": draw.randint(0, 39)}
    if builder == "smallnorb":
        return {"label_azimuth": draw.randint(0, 17), "label_elevation": draw.randint(0, 8)}
    return {"label": draw.randint(0, 1)}


class FakeOrigin:
    """An origin whose keys, image and features are given by functions."""

    def __init__(
        self,
        keys: Mapping[str, list[Key]],
        image: Callable[[str, Key], bytes],
        features: Callable[[str, Key], Mapping[str, Any]],
        class_names: list[str] | None = None,
        description: Mapping[str, str] | None = None,
        source: str = "original",
    ) -> None:
        self.source = source
        self.class_names = class_names
        self.stored = {split: tfds_order(split, some) for split, some in keys.items()}
        self.image, self.features = image, features
        self.description = dict(description or {"builder": "fake"})

    def keys(self, split: str) -> list[Key]:
        return self.stored[split]

    def records(self, split: str, positions: range) -> Iterator[Record]:
        for position in positions:
            key = self.stored[split][position]
            yield Record(key, self.image(split, key), self.features(split, key))

    def describe(self) -> dict[str, str]:
        return self.description


def small_origin(task: Task, class_names: list[str] | None = None, source: str = "original") -> FakeOrigin:
    """A small origin of the task's builder with an image of its own for each key."""
    name = task.builder.name
    keys: dict[str, list[Key]] = {
        split: [f"{split}_{index}.png" for index in range(size)] for split, size in small_sizes(name).items()
    }

    def image(split: str, key: Key) -> bytes:
        number = int(str(key).split("_")[1].removesuffix(".png"))
        return png("L", colour=number % 2) if name == "dsprites" else png(colour=(number % 256, number // 256, 7))

    def features(split: str, key: Key) -> Mapping[str, Any]:
        return features_of(name, int(str(key).split("_")[1].removesuffix(".png")))

    return FakeOrigin(keys, image, features, class_names, source=source)
