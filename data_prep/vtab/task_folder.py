"""The folder of a prepared task: three Parquet files and ``meta.json``, there completely or not at all."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.complete import read_complete
from data_prep.croissant import CROISSANT, describe_tables
from data_prep.vtab.verify import ids_sha256
from gift_vit.common.files import writing

FORMAT = 1
META = "meta.json"
SPLITS = ("train800", "val200", "test")
OWN = (META, CROISSANT, *(f"{split}.parquet" for split in SPLITS))  # all that a task's folder holds
ROWS_PER_GROUP = 500

read_meta = partial(read_complete, META, FORMAT, SPLITS)

_COLUMNS = pa.schema([("image", pa.binary()), ("label", pa.int16()), ("id", pa.string()), ("index", pa.int64())])
_COLUMN_TYPES = {"image": "sc:ImageObject", "label": "sc:Integer", "id": "sc:Text", "index": "sc:Integer"}


@dataclass(frozen=True)
class Row:
    """One image of a task; ``index`` is its position in what it was taken from."""

    image: bytes
    label: int
    id: str
    index: int


class SplitWriter:
    """Writes one Parquet file row by row, a row group at a time, and keeps the labels and the hashes of what it wrote."""

    def __init__(self, path: Path, class_names: list[str] | None) -> None:
        self.labels: list[int] = []
        self._path = path
        self._schema = _COLUMNS.with_metadata({"class_names": "|".join(class_names)}) if class_names else _COLUMNS
        self._ids: list[str] = []
        self._images = hashlib.sha256()
        self._rows: list[Row] = []

    def __enter__(self) -> "SplitWriter":
        with writing(self._path):
            self._writer = pq.ParquetWriter(
                self._path,
                self._schema,
                compression="none",
                use_dictionary=False,
                write_statistics=["label", "index"],  # pyright: ignore[reportArgumentType]  # of images they would be images
                write_page_checksum=True,
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with writing(self._path):
            try:
                if kind is None:
                    self._flush()
            finally:
                self._writer.close()
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def add(self, row: Row) -> None:
        """Take one row."""
        self._rows.append(row)
        self.labels.append(row.label)
        self._ids.append(row.id)
        self._images.update(len(row.image).to_bytes(8, "little") + row.image)
        if len(self._rows) == ROWS_PER_GROUP:
            with writing(self._path):
                self._flush()

    def summary(self) -> dict[str, Any]:
        """Number of images, bytes of the file and the hashes, once it is closed."""
        return {
            "images": len(self.labels),
            "bytes": self._path.stat().st_size,
            "ids_sha256": ids_sha256(self._ids),
            "labels_sha256": hashlib.sha256(np.asarray(self.labels, dtype="<i8").tobytes()).hexdigest(),
            "images_sha256": self._images.hexdigest(),
        }

    def _flush(self) -> None:
        if self._rows:
            columns = {name: [getattr(row, name) for row in self._rows] for name in self._schema.names}
            self._writer.write_table(pa.Table.from_pydict(columns, schema=self._schema), row_group_size=ROWS_PER_GROUP)
            self._rows = []


def describe_task(folder: Path, title: str, meta: Mapping[str, Any]) -> None:
    """Write ``croissant.json`` beside the files of a task; ``meta`` is what ``meta.json`` holds."""
    description = f"{title}, a task of VTAB-1k: {meta['num_classes']} classes."
    counts = {split: meta["splits"][split]["images"] for split in SPLITS}
    describe_tables(folder, f"vtab1k_{meta['task']}", description, counts, _COLUMN_TYPES, META)
