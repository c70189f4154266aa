"""Builders whose labels follow from the objects in a scene: CLEVR, KITTI. Their zip archives are read in place."""

import json
from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np

from data_prep.vtab.original.origin import Entry, OriginalOrigin, Table, file_table
from data_prep.vtab.original.places import Files, Place
from gift_vit.common.errors import ConfigError

_SCENE_FIELDS = frozenset({"scenes", "image_filename", "objects", "pixel_coords"})
_KITTI_TYPES = ["Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc"]
_KITTI_COLUMNS = 15  # type, truncated, occluded, alpha, box (4), dimensions (3), location (3), rotation
_SPLIT_SEED = 123
_HELD_OUT_PERCENT = 10


def clevr(place: Place) -> OriginalOrigin:
    """CLEVR v1.0; the key is ``CLEVR_train_000000.png``; features are the objects' pixel coordinates with their depth."""
    files = place.zipped("CLEVR_v1.0.zip", "CLEVR_v1.0", "scenes/CLEVR_train_scenes.json")
    parts = {"train": "train", "validation": "val"}
    return OriginalOrigin(place, {split: partial(_clevr_table, files, part) for split, part in parts.items()})


def _clevr_table(files: Files, part: str) -> Table:
    """Scenes and images, paired one to one by their file names, which the scenes list in ascending order."""
    listing = f"scenes/CLEVR_{part}_scenes.json"
    try:
        scenes = json.loads(files.read(listing), object_hook=_needed)["scenes"]
        entries = [_clevr_entry(scene, part) for scene in scenes]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{files.where(listing)} is damaged ({type(error).__name__}: {error}); unpack it again") from error
    images = len(files.names(f"images/{part}"))
    if images > len(entries):
        raise ConfigError(f"{files.where(f'images/{part}')} holds {images} images, but {listing} {len(entries)} scenes")
    return file_table(files, entries, files.where(listing))


def _needed(node: dict[str, Any]) -> dict[str, Any]:
    """Drop at once what no label needs: the scenes' relationships would fill gigabytes."""
    return {field: value for field, value in node.items() if field in _SCENE_FIELDS}


def _clevr_entry(scene: dict[str, Any], part: str) -> Entry:
    name = scene["image_filename"]
    coords = np.array([item["pixel_coords"] for item in scene["objects"]], dtype=np.float32).reshape(-1, 3)
    return Entry(name, f"images/{part}/{name}", {"objects": {"pixel_coords": coords}})


def kitti(place: Place) -> OriginalOrigin:
    """KITTI's labelled images of the left colour camera; the key is ``000016.png``.

    The files' bytes are kept (TFDS re-encodes the same pixels as PNG). The splits are TFDS's own, by video.
    """
    images = place.zipped("data_object_image_2.zip", "", "training/image_2")
    labels = place.zipped("data_object_label_2.zip", "", "training/label_2")
    kit = place.zipped("devkit_object.zip", "", "mapping/train_rand.txt")

    def table(numbers: list[int]) -> Table:
        return file_table(images, [_kitti_entry(labels, number) for number in numbers], kit.where("mapping"))

    return OriginalOrigin(place, {split: partial(table, numbers) for split, numbers in _kitti_split(kit).items()})


def _kitti_split(kit: Files) -> dict[str, list[int]]:
    """The image numbers of each split: a tenth of the videos each for test and validation, drawn as TFDS does.

    ``train_rand.txt`` holds, image by image, a line number (from 1) of ``train_mapping.txt``, whose second word is the video.
    """
    try:
        lines = [int(number) - 1 for number in kit.read("mapping/train_rand.txt").decode().split(",")]
        mapping = kit.read("mapping/train_mapping.txt").decode().splitlines()
        videos = [mapping[line].split()[1] for line in lines]
    except (ValueError, IndexError) as error:
        raise ConfigError(
            f"{kit.where('mapping')} is not KITTI's mapping of images to videos ({error}); fetch it again"
        ) from error
    images: dict[str, list[int]] = defaultdict(list)
    for number, video in enumerate(videos):
        images[video].append(number)
    count = max(1, _HELD_OUT_PERCENT * len(images) // 100)
    draw = np.random.RandomState(_SPLIT_SEED)  # the generator TFDS draws with
    test = set(draw.choice(sorted(images), count, replace=False).tolist())
    validation = set(draw.choice(sorted(set(images) - test), count, replace=False).tolist())
    split: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for video, numbers in images.items():
        split["test" if video in test else "validation" if video in validation else "train"] += numbers
    return split


def _kitti_entry(labels: Files, number: int) -> Entry:
    """An image's objects, but for the regions marked DontCare; a ConfigError if a line is not one of KITTI's labels."""
    name = f"training/label_2/{number:06d}.txt"
    types, locations = [], []
    for line in labels.read(name).decode().splitlines():
        words = line.split()
        try:
            if len(words) != _KITTI_COLUMNS:
                raise ValueError(f"{len(words)} words")
            if words[0] != "DontCare":
                types.append(_KITTI_TYPES.index(words[0]))
                locations.append([float(word) for word in words[11:14]])
        except ValueError as error:
            raise ConfigError(f"{labels.where(name)}: {line!r} is not a label of KITTI ({error}); fetch it again") from error
    objects = {"type": np.array(types, dtype=np.int64), "location": np.array(locations, dtype=np.float32).reshape(-1, 3)}
    return Entry(f"{number:06d}.png", f"training/image_2/{number:06d}.png", {"objects": objects})
