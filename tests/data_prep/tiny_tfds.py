"""Tiny genuine TFDS datasets of the 16 builders: TFDS writes them itself, only where the examples come from is replaced."""

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import google_crc32c
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters

from data_prep.vtab.records import Key, Record
from data_prep.vtab.tasks import BUILDERS
from data_prep.vtab.tfds_origin import TfdsOrigin, open_tfds
from tests.data_prep import vtab_origins

Example: TypeAlias = dict[str, Any]
Examples: TypeAlias = list[tuple[Key, Example]]


@dataclass(frozen=True)
class Tiny:
    """TFDS's data_dir and, by split, the examples that TFDS was given."""

    data_dir: Path
    examples: dict[str, Examples]


TinyDataset: TypeAlias = Callable[[str], Tiny]


def opened(name: str, data_dir: Path, **changes: Any) -> TfdsOrigin:
    return open_tfds(replace(BUILDERS[name], **changes), data_dir, None, prepare=False)


def everything(origin: TfdsOrigin, split: str) -> list[Record]:
    return list(origin.records(split, range(len(origin.keys(split)))))


def edit_info(folder: Path, change: Any) -> None:
    info = json.loads((folder / "dataset_info.json").read_text())
    change(info)
    (folder / "dataset_info.json").write_text(json.dumps(info))


# Splits that no task reads; the others are just large enough for train800, val200 and a test split.
UNREAD = {"svhn_cropped": {"extra": 5}, "diabetic_retinopathy_detection": {"sample": 5}, "clevr": {"test": 5}}
SIZES = {name: vtab_origins.SIZES[name] | UNREAD.get(name, {}) for name in BUILDERS}

_CAPITALS = {name.lower(): name for name in ("BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes")}


def prepare(
    name: str,
    examples: Mapping[str, Iterable[tuple[Key, Example]]],
    data_dir: Path,
    file_format: str = "array_record",
    *,
    version: str | None = None,
    shards: int | None = None,
    names: Mapping[str, list[str]] | None = None,
) -> Path:
    """Let TFDS write a builder's dataset of the benchmark's config from examples; features that one lacks are filled in.

    ``examples`` are, by split, the keys that TFDS hashes and the values of features (images as encoded bytes); ``file_format``
    is array_record, tfrecord or parquet; ``version`` may be any for a builder without config; ``shards`` are those of each
    split; ``names`` are class names by feature, for cifar100, which reads them from its archive. Returns the version's folder.
    """
    cls = tfds.builder_cls(name)
    version = version or BUILDERS[name].version

    def split_generators(self: Any, dl_manager: Any) -> dict[str, Any]:
        for feature, known in (names or {}).items():
            self.info.features[feature].names = known
        return {split: ((key, _complete(self, example)) for key, example in rows) for split, rows in examples.items()}

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(cls, "_split_generators", split_generators))
        if BUILDERS[name].config is None:  # a config has its own version
            stack.enter_context(mock.patch.object(cls, "VERSION", tfds.core.Version(version)))
        stack.enter_context(mock.patch.object(file_adapters.TfRecordFileAdapter, "write_examples", _write_tfrecords))
        tfds.disable_progress_bar()
        builder = tfds.builder("/".join(filter(None, [name, BUILDERS[name].config])), data_dir=str(data_dir))
        builder.download_and_prepare(file_format=file_format, download_config=tfds.download.DownloadConfig(num_shards=shards))
    assert builder.data_path.name == version
    return Path(builder.data_path)


def prepare_random(name: str, sizes: Mapping[str, int], data_dir: Path, **options: Any) -> dict[str, Examples]:
    """Let TFDS write a builder's dataset of random examples, each with its own image; returns what was put in, by split."""
    examples = random_examples(name, sizes)
    names = {"label": [f"class {index}" for index in range(100)]} if name == "cifar100" else None
    prepare(name, examples, data_dir, **{"names": names, **options})
    return examples


def random_examples(name: str, sizes: Mapping[str, int]) -> dict[str, Examples]:
    """Random examples whose keys and file names are formed as the builder forms them; the same at every call."""
    config = "/".join(filter(None, [name, BUILDERS[name].config]))
    features: Any = tfds.builder(f"{config}:{BUILDERS[name].version}", data_dir="/nonexistent").info.features
    rng = np.random.default_rng(0)
    examples: dict[str, Examples] = {}
    for offset, (split, size) in enumerate(sizes.items()):
        examples[split] = []
        for index in range(size):
            example = {key: _random(feature, rng) for key, feature in features.items() if key not in _UNUSED}
            unique = 100_000 * offset + index
            example["image"] = encoded_image(name, features["image"].shape, unique)
            example |= _SPECIAL.get(name, lambda _: {})(rng)
            label = example.get("label")
            folder = features["label"].names[label] if label is not None else ""
            key, text = _KEYS[name](split, index, unique, folder)
            examples[split].append((key, example | text))
    images = [example["image"] for rows in examples.values() for _, example in rows]
    assert len(set(images)) == len(images)
    return examples


_UNUSED = {"image2", "segmentation_mask", "question_answer", "head_bbox", "species"}


def _camera_objects(rng: np.random.Generator) -> Example:
    """CLEVR: 3 to 10 objects, the nearest often exactly on a bound of the distance classes."""
    depth = rng.choice([7.0, 8.0, 8.25, 8.5, 8.75, 9.0, 9.25, 9.5, 9.75, 10.0, 10.5])
    count = int(rng.integers(3, 11))
    depths = rng.permutation(np.concatenate([[depth], depth + rng.uniform(0, 5, count - 1)]))
    plain = {"color": 0, "material": 0, "shape": 0, "size": 0, "rotation": 0.0, "3d_coords": np.zeros(3, np.float32)}
    return {"objects": [{**plain, "pixel_coords": np.array([1, 2, z], np.float32)} for z in depths]}


def _road_objects(rng: np.random.Generator) -> Example:
    """KITTI: up to 4 objects of any type, often exactly on a bound of the distance classes."""
    plain = {"truncated": 0.0, "occluded": 0, "alpha": 0.0, "rotation_y": 0.0, "dimensions": np.zeros(3, np.float32)}
    plain["bbox"] = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    depths = rng.choice([3.0, 8.0, 8.5, 20.0, 20.5, 70.0], int(rng.integers(0, 5)))
    places = [np.array([1, 2, depth], np.float32) for depth in depths]
    return {"objects": [{**plain, "type": int(rng.integers(8)), "location": place} for place in places]}


_SPECIAL: dict[str, Callable[[np.random.Generator], Example]] = {"clevr": _camera_objects, "kitti": _road_objects}


KeyRule: TypeAlias = Callable[[str, int, int, str], tuple[Key, Example]]


def _row(pattern: str) -> KeyRule:
    return lambda split, index, *_: (index, {"id": pattern.format(split=split, index=index)})


def _text(field: str, pattern: str, key: str = "{text}") -> KeyRule:
    def make(split: str, index: int, unique: int, folder: str) -> tuple[Key, Example]:
        values = {"index": index, "unique": unique, "folder": folder, "stored": _CAPITALS.get(folder, folder)}
        values["prefix"] = {"validation": "valid"}.get(split, split)
        text = pattern.format(**values)
        return key.format(text=text, **values), {field: text}

    return make


_KEYS: dict[str, KeyRule] = {
    "cifar100": _row("{split}_{index:05d}"),
    "caltech101": _text("image/file_name", "image_{unique:04d}.jpg", "{stored}/{text}"),
    "dtd": _text("file_name", "{folder}/{folder}_{unique:04d}.jpg"),
    "oxford_flowers102": _text("file_name", "image_{unique:05d}.jpg"),
    "oxford_iiit_pet": _text("file_name", "great_pyrenees_{unique}.jpg"),
    "svhn_cropped": _row("{split}_{index:06d}"),
    "sun397": _text("file_name", "{folder}/sun_{unique}.jpg"),
    "patch_camelyon": _text("id", "{prefix}_{index}"),
    "eurosat": _text("filename", "{folder}_{unique}.jpg", "{folder}_{text}"),
    "resisc45": _text("filename", "{folder}_{unique:03d}.jpg", "{folder}_{text}"),
    "diabetic_retinopathy_detection": _text("name", "{unique}_left"),
    "clevr": _text("file_name", "CLEVR_{prefix}_{unique:06d}.png"),
    "dmlab": _text("filename", "{unique:032x}.png"),
    "kitti": _text("image/file_name", "{unique:06d}.png"),
    "dsprites": _row("{index:06d}"),
    "smallnorb": _row("{split}_{index:05d}"),
}


def encoded_image(name: str, shape: tuple[int | None, ...], number: int) -> bytes:
    """A small image in the builder's encoding, whose bytes no other number gives; sides beyond 32 are shortened."""
    height, width, channels = shape
    side = (min(height or 20 + number % 5, 32), min(width or 24 + number % 3, 32))
    jpeg = name not in {"cifar100", "svhn_cropped", "patch_camelyon", "clevr", "kitti", "dsprites", "smallnorb"}
    return _mark(_plain_image(name, side, channels or 3, "JPEG" if jpeg else "PNG", number % 7), number)


@cache
def _plain_image(name: str, side: tuple[int, int], channels: int, encoding: str, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 2 if name == "dsprites" else 256, (*side, channels)).astype(np.uint8)
    return vtab_origins.encode(pixels.squeeze(-1) if channels == 1 else pixels, encoding)


def _mark(image: bytes, number: int) -> bytes:
    """Put a number into a JPEG's comment or a PNG's text, which decoders skip."""
    text = f"number\0{number}".encode()
    if image[:2] == b"\xff\xd8":
        return image[:2] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + image[2:]
    chunk = b"tEXt" + text
    head = 8 + 25  # signature and IHDR
    return image[:head] + struct.pack(">I", len(text)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + image[head:]


def _complete(builder: Any, example: Example) -> Example:
    """The example with all features of the builder's version and no others."""
    rng = np.random.default_rng(0)
    return {key: example[key] if key in example else _random(feature, rng) for key, feature in builder.info.features.items()}


def _random(feature: Any, rng: np.random.Generator) -> Any:
    types: Any = tfds.features
    if isinstance(feature, types.Image):
        return _plain_image("", (4, 5), feature.shape[-1], "PNG", 0)
    if isinstance(feature, types.ClassLabel):
        return int(rng.integers(feature.num_classes))
    if isinstance(feature, types.Text):
        return "text"
    if isinstance(feature, types.BBoxFeature):
        return types.BBox(0.0, 0.0, 1.0, 1.0)
    if isinstance(feature, types.Sequence):
        return []
    return np.zeros(feature.shape, feature.np_dtype)


def _write_tfrecords(path: Any, iterator: Iterable[tuple[Any, bytes]]) -> None:
    """What TensorFlow's writer does, for TFDS to call."""
    Path(path).write_bytes(b"".join(framed(payload) for _, payload in iterator))


def framed(payload: bytes) -> bytes:
    """A record of a TFRecord file."""
    length = struct.pack("<Q", len(payload))
    return length + _masked(length) + payload + _masked(payload)


def _masked(data: bytes) -> bytes:
    checksum = google_crc32c.value(data)
    return struct.pack("<I", ((checksum >> 15) + (checksum << 17) + 0xA282EAD8) % 2**32)
