"""Which features of each builder's examples hold the key and what the label rules read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from data_prep.vtab.records import Key

Wanted: TypeAlias = Mapping[str, tuple[str, ...]]
KeyRule: TypeAlias = Callable[[Mapping[str, Any], Sequence[str]], Key]

# TFDS lowers the case of Caltech-101's folders, but hashes the folders' own names.
_CAPITAL_FOLDERS = {name.lower(): name for name in ["BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes"]}


@dataclass(frozen=True)
class Fields:
    """What to read of a builder's examples.

    Attributes:
        key: Takes the features ``key_fields`` and the names of ``label``; returns what TFDS hashed.
        key_fields: The names of features that the key is made of.
        reads: The features for label rules; of a sequence of objects, those of its parts that are named.
        row_keys: Whether the keys of a split of n examples are 0 … n-1, so that no feature is needed to know them.
    """

    key: KeyRule
    key_fields: tuple[str, ...]
    reads: Wanted
    row_keys: bool = False


def _row(example: Mapping[str, Any], _: Sequence[str]) -> int:
    """``train_00017`` or ``000017``: the row is 17."""
    return int(example["id"].decode().rpartition("_")[2])


def _text(field: str) -> KeyRule:
    def key(example: Mapping[str, Any], _: Sequence[str]) -> str:
        return example[field].decode()

    return key


def _class_and_file(example: Mapping[str, Any], names: Sequence[str]) -> str:
    return f"{names[example['label']]}_{example['filename'].decode()}"


def _folder_and_file(example: Mapping[str, Any], names: Sequence[str]) -> str:
    name = names[int(example["label"])]
    return f"{_CAPITAL_FOLDERS.get(name, name)}/{example['image/file_name'].decode()}"


_LABEL: Wanted = {"label": ()}


def _named(field: str, reads: Wanted = _LABEL) -> Fields:
    return Fields(_text(field), (field,), reads)


def _rows(reads: Wanted = _LABEL) -> Fields:
    return Fields(_row, ("id",), reads, row_keys=True)


_FILE_IN_CLASS = Fields(_class_and_file, ("filename", "label"), _LABEL)

FIELDS: dict[str, Fields] = {
    "cifar100": _rows(),
    "caltech101": Fields(_folder_and_file, ("image/file_name", "label"), _LABEL),
    "dtd": _named("file_name"),
    "oxford_flowers102": _named("file_name"),
    "oxford_iiit_pet": _named("file_name"),
    "svhn_cropped": _rows(),
    "sun397": _named("file_name"),
    "patch_camelyon": _named("id"),
    "eurosat": _FILE_IN_CLASS,
    "resisc45": _FILE_IN_CLASS,
    "diabetic_retinopathy_detection": _named("name"),
    "clevr": _named("file_name", {"objects": ("pixel_coords",)}),
    "dmlab": _named("filename"),
    "kitti": _named("image/file_name", {"objects": ("type", "location")}),
    "dsprites": _rows({"label_x_position": (), "label_orientation": ()}),
    "smallnorb": _rows({"label_azimuth": (), "label_elevation": ()}),
}


def missing(features: Mapping[str, Any], wanted: Wanted) -> list[str]:
    """The wanted features that a dataset lacks; a part of a sequence of objects as ``objects/type``."""
    absent = [name for name in wanted if name not in features]
    parts = [(name, part) for name, parts in wanted.items() if name in features for part in parts]
    return absent + [f"{name}/{part}" for name, part in parts if part not in features[name].feature]


def label_values(example: Mapping[str, Any], features: Mapping[str, Any], reads: Wanted) -> dict[str, Any]:
    """What label rules read of a decoded example: integers, and of sequences of objects arrays of shape (n, …)."""
    values: dict[str, Any] = {}
    for name, parts in reads.items():
        values[name] = (
            int(example[name]) if not parts else {p: _stack(example[name][p], features[name].feature[p]) for p in parts}
        )
    return values


def _stack(values: Sequence[Any], feature: Any) -> np.ndarray:
    return np.asarray(values, dtype=feature.np_dtype).reshape(-1, *feature.shape)
