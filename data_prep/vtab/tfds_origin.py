"""Source splits from a folder that TFDS prepared, as ArrayRecord or TFRecord; TensorFlow is only needed to prepare one."""

import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from data_prep.vtab.records import Key, Record, tfds_order
from data_prep.vtab.tasks import Builder
from data_prep.vtab.tfds_prepare import import_tfds, one_line, prepare_builder
from data_prep.vtab.tfrecord import read_tfrecords
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded

logger = logging.getLogger(__name__)

Wanted: TypeAlias = Mapping[str, tuple[str, ...]]
KeyRule: TypeAlias = Callable[[Mapping[str, Any], Sequence[str]], Key]
ReadShard: TypeAlias = Callable[[Path, int, int, int], Iterator[bytes]]

INFO_FILE = "dataset_info.json"
_BATCH = 256  # records of a shard that array_record fetches at a time
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
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


def _class_and_file(example: Mapping[str, Any], names: Sequence[str]) -> str:
    return f"{names[example['label']]}_{example['filename'].decode()}"


def _folder_and_file(example: Mapping[str, Any], names: Sequence[str]) -> str:
    name = names[int(example["label"])]
    return f"{_CAPITAL_FOLDERS.get(name, name)}/{example['image/file_name'].decode()}"


_LABEL: Wanted = {"label": ()}


def _named(field: str, reads: Wanted = _LABEL) -> Fields:
    return Fields(lambda example, _: example[field].decode(), (field,), reads)


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

    def array(name: str, part: str) -> np.ndarray:
        feature = features[name].feature[part]
        return np.asarray(example[name][part], dtype=feature.np_dtype).reshape(-1, *feature.shape)

    return {name: {part: array(name, part) for part in parts} if parts else int(example[name]) for name, parts in reads.items()}


def open_tfds(builder: Builder, tfds_dir: Path, manual_dir: Path | None) -> "TfdsOrigin":
    """Open a builder's prepared folder, of the wanted version or, where there is none, the newest.

    It is ``<builder>/[<config>/]<version>`` in ``tfds_dir``, TFDS's ``data_dir``. Where there is none, TFDS prepares it, with
    what it cannot download from ``manual_dir``, by default ``downloads/manual`` in ``tfds_dir``.

    Raises:
        ConfigError: If there is no folder and none can be prepared, or what is there cannot be read.
        RunError: If preparing fails.
    """
    tfds_dir = expanded(tfds_dir)
    home = tfds_dir / builder.name / (builder.config or "")
    folder = _find(home, builder.version)
    if folder is None:
        prepare_builder(builder, tfds_dir, manual_dir)
        folder = _find(home, builder.version)
    if folder is None:
        raise ConfigError(
            f"no prepared {builder.name} found: {home / builder.version / INFO_FILE} does not exist; "
            "point tfds_dir= at TFDS's data_dir, or remove what is left of a broken copy there"
        )
    if folder.name != builder.version:
        logger.info("%s: reading version %s, which is there; %s is not", builder.name, folder.name, builder.version)
    return TfdsOrigin(builder.name, folder)


class TfdsOrigin:
    """A prepared folder of one version of a builder; see ``records.Origin``."""

    source = "tfds"

    def __init__(self, name: str, folder: Path):
        self._folder = folder
        self._fields = FIELDS[name]
        self._tfds = import_tfds()
        with self._reading(folder):
            self._info = self._tfds.builder_from_directory(str(folder)).info
        self._file_format = self._choose_format()
        self._read_shard = _READERS[self._file_format]
        self._rows: dict[str, list[Key]] = {}
        self._check_features()

    @property
    def class_names(self) -> list[str] | None:
        """Names of the builder's own ``label``, where it has them."""
        names = self._label_names
        return names if names and names != [str(index) for index in range(len(names))] else None

    def keys(self, split: str) -> list[Key]:
        """All keys of a split, in stored order; reads every example, but decodes no image."""
        if not self._has_key_fields:
            return self._row_keys(split)
        size = self._size(split)
        logger.info("%s: reading the keys of %d examples of %s", self._info.name, size, split)
        wanted = dict.fromkeys(self._fields.key_fields, ())
        return [self._key(example) for example in self._examples(split, range(size), wanted)]

    def records(self, split: str, positions: range) -> Iterator[Record]:
        """The records at ``positions`` (a range of step 1) of the stored order; a ConfigError names a file it cannot read."""
        key_fields = self._fields.key_fields if self._has_key_fields else ()
        wanted = {**dict.fromkeys(key_fields, ()), **self._fields.reads, "image": ()}
        for position, example in zip(positions, self._examples(split, positions, wanted), strict=True):
            key = self._key(example) if self._has_key_fields else self._row_keys(split)[position]
            yield Record(key, example["image"], label_values(example, self._info.features, self._fields.reads))

    def describe(self) -> dict[str, str]:
        """Builder, version, format, ``num_bytes_<split>`` as TFDS recorded them, and versions of the libraries in use."""
        info = self._info
        config = {"config": info.config_name} if info.config_name else {}
        facts = {"builder": info.name, **config, "version": str(info.version), "file_format": self._file_format}
        sizes = {f"num_bytes_{name}": str(int(split.num_bytes)) for name, split in info.splits.items()}
        modules = {
            "tensorflow_datasets": self._tfds,
            "tensorflow": sys.modules.get("tensorflow"),
            "opencv": sys.modules.get("cv2"),
        }
        return {**facts, **sizes, **{name: module.__version__ for name, module in modules.items() if module}}

    def _choose_format(self) -> str:
        """ArrayRecord, or else TFRecord. TFDS's Parquet has no reader here: slices of TFDS's own are silently wrong."""
        formats = {file_format.value for file_format in self._info.available_file_formats()}
        for known in _READERS:
            if known in formats:
                self._info.set_file_format(known, override=True, override_if_initialized=True)  # decides on the shards' names
                return known
        raise ConfigError(
            f"{self._folder} was prepared as {', '.join(sorted(formats))}, expected "
            f"{' or '.join(_READERS)}; remove it to prepare it anew"
        )

    @cached_property
    def _label_names(self) -> list[str]:
        features = self._info.features
        return list(features["label"].names) if "label" in features else []

    @cached_property
    def _has_key_fields(self) -> bool:
        return all(name in self._info.features for name in self._fields.key_fields)

    def _check_features(self) -> None:
        key_fields = () if self._fields.row_keys else self._fields.key_fields
        wanted = {**self._fields.reads, **dict.fromkeys(key_fields, ()), "image": ()}
        absent = missing(self._info.features, wanted)
        if absent:
            raise ConfigError(
                f"{self._folder} lacks the feature {', '.join(absent)}, which tells the examples or their labels; move the "
                "folder away and prepare the version that this release wants"
            )

    def _size(self, split: str) -> int:
        if split not in self._info.splits:
            raise ConfigError(f"{self._folder} has no split {split}, but {', '.join(self._info.splits)}; prepare it again")
        return self._info.splits[split].num_examples

    def _row_keys(self, split: str) -> list[Key]:
        """Without ids, the position tells the row: rows are stored in the order of their hashes."""
        if split not in self._rows:
            self._rows[split] = tfds_order(split, range(self._size(split)))
        return self._rows[split]

    def _key(self, example: Mapping[str, Any]) -> Key:
        return self._fields.key(example, self._label_names)

    def _examples(self, split: str, positions: range, wanted: Wanted) -> Iterator[Mapping[str, Any]]:
        """Decoded examples with the wanted features only; the image stays encoded."""
        if not 0 <= positions.start <= positions.stop <= self._size(split):
            raise ConfigError(f"{self._folder} has {self._size(split)} examples in {split}, not {positions.stop}")
        features, types = self._info.features, self._tfds.features
        parser = types.FeaturesDict(  # TFDS's own partial decoding does the same, but needs TensorFlow
            {
                name: types.Sequence({part: features[name].feature[part] for part in parts}) if parts else features[name]
                for name, parts in wanted.items()
            }
        )
        decoders = {"image": self._tfds.decode.SkipDecoding()} if "image" in wanted else None
        first = 0
        info = self._info.splits[split]
        for path, length in zip(map(Path, info.filepaths), info.shard_lengths, strict=True):
            start, stop = max(positions.start - first, 0), min(positions.stop - first, length)
            if start < stop:
                with self._reading(path):
                    for payload in self._read_shard(path, start, stop, length):
                        yield parser.deserialize_example_np(payload, decoders=decoders)
            first += length

    @contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        """One line for whatever the libraries raise for a missing, truncated or damaged file."""
        try:
            yield
        except Exception as error:
            raise ConfigError(
                f"cannot read {path}: {one_line(error)}; copy it again, or remove {self._folder} to prepare it anew"
            ) from error


def _read_array_records(path: Path, start: int, stop: int, length: int) -> Iterator[bytes]:
    source = importlib.import_module("array_record.python.array_record_data_source").ArrayRecordDataSource
    with source([str(path)]) as records:
        if len(records) != length:
            raise ConfigError(f"it holds {len(records)} records, expected {length}")
        for first in range(start, stop, _BATCH):
            yield from records.__getitems__(range(first, min(first + _BATCH, stop)))


_READERS: dict[str, ReadShard] = {"array_record": _read_array_records, "tfrecord": read_tfrecords}


def _find(home: Path, version: str) -> Path | None:
    """The folder of the wanted version, or else of the newest that is there."""
    found = {
        tuple(map(int, match.groups())): info.parent
        for info in home.glob(f"*/{INFO_FILE}")
        if (match := _VERSION.fullmatch(info.parent.name))
    }
    return found.get(tuple(map(int, version.split(".")))) or (found[max(found)] if found else None)
