"""Parquet files of encoded images and labels, as Hugging Face ``datasets`` writes them.

A column of images (a struct of ``bytes`` and ``path``, or plain binary) and one of labels (integers, text, booleans,
categories); others are not read. Names of integer classes stand in the schema's metadata: joined by ``|`` under
``class_names``, or where ``datasets`` puts them.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import ImageSource, Origin, SubsetSource, VisionDataset, register_dataset
from gift_vit.data.columns import find_column, find_split_column
from gift_vit.data.config import ColumnsConfig, ParquetConfig
from gift_vit.data.decode import OWN_DATA, Decoder
from gift_vit.data.layout import LEARNT
from gift_vit.data.own import Labels, Part, joined, own_dataset, rows_of_splits, taken


@dataclass(frozen=True)
class ImageTable:
    """The encoded images and labels of one split, in memory.

    ``encoded`` stays an Arrow array: loader workers then share its memory, which they would copy for a list of Python objects.
    ``paths`` are where the images once came from, null where unknown; ``starts`` is each file's first row.
    """

    encoded: pa.ChunkedArray
    paths: pa.ChunkedArray
    labels: NDArray[np.int64]
    class_names: list[str] | None
    files: list[Path]
    starts: list[int]
    decode: Decoder

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.decode.decode(self.content(index), self.where(index)), int(self.labels[index])

    def content(self, index: int) -> bytes:
        """The encoded bytes."""
        return self.encoded[index].as_py()

    version = stored = content

    def remarks(self, index: int) -> list[str]:
        """What decoding changes of the image."""
        return self.decode.remarks(self.stored(index))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each encoded image, (len,)."""
        return pc.call_function("binary_length", [self.encoded]).to_numpy().astype(np.int64)

    def where(self, index: int) -> str:
        """File, row in it, and original path if known."""
        which = bisect_right(self.starts, index) - 1
        path = self.paths[index].as_py()
        return f"in {self.files[which]}, row {index - self.starts[which]}" + (f" ({path})" if path else "")


@dataclass(frozen=True)
class _File:
    """One file's columns as they were read: ``labels`` are int64 or text, ``splits`` empty where no column says the split."""

    file: Path
    encoded: pa.ChunkedArray
    paths: pa.ChunkedArray
    labels: Labels
    splits: list[object]
    class_names: list[str] | None


@register_dataset("parquet", ParquetConfig)
def build_parquet(cfg: ParquetConfig) -> VisionDataset:
    """Read the Parquet files of each split."""
    read = {split: [_read_file(file, cfg.columns, split in LEARNT) for file in files] for split, files in cfg.found().items()}
    names = agreed_names([(f"{cfg.name}'s {split} files", _names_of(several)) for split, several in read.items()])
    root = cfg.root_path.parent if cfg.root_path.is_file() else cfg.root_path
    parts: dict[str, Part] = {}
    for split, several in read.items():
        table = _table(several)
        labels = joined([file.labels for file in several], f"the {split} files of {root}")
        origin, place = Origin(tuple(os.path.relpath(file, root) for file in table.files)), str(table.files[0])
        rows = rows_of_splits(split, [file.splits for file in several], len(labels), place, read)
        for name, indices in rows.items():
            parts[name] = Part(taken(labels, indices), partial(_some_of, table, indices), place, origin)
    return own_dataset(cfg, parts, names)


def read_table(files: Sequence[Path], decode: Decoder = OWN_DATA) -> ImageTable:
    """Read files with integers as labels one after the other.

    Raises:
        ConfigError: If a file is missing, no Parquet or has other columns, or if two disagree on the class names.
    """
    if not files:
        raise ConfigError("no Parquet files to read: the list of files is empty")
    read = [_read_file(file, ColumnsConfig()) for file in files]
    labels = joined([file.labels for file in read], f"the files {files[0]} …")
    if isinstance(labels, list):
        raise ConfigError(f"{files[0]}: its labels are text; expected integers")
    return replace(_table(read), labels=labels, class_names=_names_of(read), decode=decode)


def _table(read: Sequence[_File]) -> ImageTable:
    """The images of several files, without numbers as labels."""
    return ImageTable(
        encoded=pa.chunked_array([chunk for file in read for chunk in file.encoded.chunks], pa.large_binary()),
        paths=pa.chunked_array([chunk for file in read for chunk in file.paths.chunks], pa.large_string()),
        labels=np.zeros(0, np.int64),
        class_names=None,
        files=[file.file for file in read],
        starts=[0, *np.cumsum([len(file.labels) for file in read])[:-1].tolist()],
        decode=OWN_DATA,
    )


def _some_of(table: ImageTable, rows: NDArray[np.intp], labels: NDArray[np.int64], decode: Decoder) -> ImageSource:
    """The rows of a table under their labels."""
    numbers = np.zeros(len(table.encoded), np.int64)
    numbers[rows] = labels
    whole = replace(table, labels=numbers, decode=decode)
    return whole if len(rows) == len(whole) else SubsetSource(whole, rows)


def _read_file(file: Path, columns: ColumnsConfig, with_splits: bool = False) -> _File:
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            types = {name: schema.field(index).type for index, name in enumerate(schema.names)}
            image = find_column("image", schema.names, columns.image, str(file), lambda name: _holds_images(types[name]))
            label = find_column("label", schema.names, columns.label, str(file), lambda name: _holds_labels(types[name]))
            if not _holds_images(types[image]):
                expected = "encoded images, a struct with bytes or plain binary"
                raise ConfigError(f"{file}: column {image} is {types[image]}; expected {expected}")
            if not _holds_labels(types[label]):
                raise ConfigError(f"{file}: column {label} is {types[label]}; expected integers, text, booleans or categories")
            images, labels = (parquet.read(columns=[name])[name] for name in (image, label))
            split = None
            if with_splits:
                others = [name for name in schema.names if name not in (image, label) and _holds_labels(types[name])]
                split = find_split_column(
                    schema.names, columns.split, str(file), lambda name: parquet.read(columns=[name])[name].to_pylist(), others
                )
            splits = [] if split is None else parquet.read(columns=[split])[split].to_pylist()
            labels = _plain(labels)
            names = names_in(file, schema, label)
        paths = pa.chunked_array([pa.nulls(len(images), pa.large_string())])
        if pa.types.is_struct(images.type):
            inside = dict(zip((field.name for field in images.type), images.flatten(), strict=True))
            images = inside["bytes"]
            if "path" in inside:
                paths = inside["path"].cast(pa.large_string())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read {file} as Parquet: {reason}") from error
    for name, column in (("image bytes", images), ("label", labels)):
        if column.null_count:
            raise ConfigError(f"{file} row {pc.index(column.is_null(), True).as_py()} has no {name}; write them into the file")
    plain = labels.to_numpy() if pa.types.is_integer(labels.type) else _stripped(labels.to_pylist(), file)
    return _File(file, images.cast(pa.large_binary()), paths, plain, splits, names)


def _stripped(labels: list[str], file: Path) -> list[str]:
    """Labels that are text, as those of a CSV file are read: without space around them, and none empty."""
    stripped = [label.strip() for label in labels]
    if "" in stripped:
        raise ConfigError(f"{file} row {stripped.index('')} has an empty label; write it into the file, or leave the row out")
    return stripped


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_labels(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    known = (
        *(pa.types.is_integer, pa.types.is_boolean),
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    )
    return any(is_one(value) for is_one in known)


def _plain(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels as int64 or text; a boolean is ``false`` or ``true``."""
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    plain = labels.cast(pa.int64() if pa.types.is_integer(labels.type) else pa.string())
    plain.validate(full=True)  # text may be no UTF-8
    return plain


def names_in(file: Path, schema: pa.Schema, label: str) -> list[str] | None:
    """The names of the classes in the schema's metadata; None where there are none.

    Raises:
        ConfigError: If they are no list of names.
    """
    metadata = schema.metadata or {}
    try:
        if b"class_names" in metadata:
            names: Any = metadata[b"class_names"].decode().split("|")
        else:
            names = json.loads(metadata.get(b"huggingface", b"null"))
            for key in ("info", "features", label, "names"):
                if names is not None and not isinstance(names, dict):
                    raise ValueError(f"{key!r} is looked for in an object, and there is {type(names).__name__}")
                names = None if names is None else names.get(key)
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError("the names of the classes are no list of text")
        if names is not None and len(set(names)) < len(names):
            raise ValueError(f"two classes have the name {max(names, key=names.count)!r}")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: its metadata has no class names that can be read ({error}); write the file anew") from error
    return names


def _names_of(read: Sequence[_File]) -> list[str] | None:
    return agreed_names([(file.file, file.class_names) for file in read])


def agreed_names(named: Sequence[tuple[Path | str, list[str] | None]]) -> list[str] | None:
    """The class names that all agree on, each with its place; None where nobody knows any.

    Raises:
        ConfigError: If two differ.
    """
    known = [(place, names) for place, names in named if names is not None]
    for place, names in known[1:]:
        if names != known[0][1]:
            raise ConfigError(f"the class names of {known[0][0]} and {place} differ; a dataset has one list of classes")
    return known[0][1] if known else None
