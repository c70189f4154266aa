"""How a builder's features become a task's label, and its stored image the task's image."""

import io
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

LabelRule: TypeAlias = Callable[[Mapping[str, Any]], int]

_OBJECT_DISTANCES = (8.0, 8.5, 9.0, 9.5, 10.0)
_VEHICLE_DISTANCES = (8.0, 20.0, 999.0)
_NO_VEHICLE = 1000.0
_VEHICLE_TYPES = 3  # 0 car, 1 van, 2 truck; pedestrians, cyclists, trams … follow
_FEWEST_OBJECTS = 3


def feature(name: str) -> LabelRule:
    """The rule that takes an integer feature as it is."""

    def rule(features: Mapping[str, Any]) -> int:
        return int(features[name])

    return rule


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
    buffer = io.BytesIO()
    Image.fromarray(pixels * np.uint8(255)).save(buffer, "PNG")
    return buffer.getvalue()


def _bounds_below(distance: float, bounds: tuple[float, ...]) -> int:
    return sum(bound < distance for bound in bounds)
