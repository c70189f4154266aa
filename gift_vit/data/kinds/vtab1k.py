"""A VTAB-1k task as ``python -m data_prep.vtab`` writes it: ``train800``, ``val200``, ``test`` in Parquet, and ``meta.json``.

The images are those TensorFlow Datasets stores, encoded as there; TensorFlow is not needed to read them. ``train`` is train800
and ``val`` val200, so that ``trainval`` are the benchmark's 1,000 examples.
"""

import hashlib
import json
import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded
from gift_vit.data.base import ImageSource, Origin, VisionDataset, fingerprint, register_dataset
from gift_vit.data.config import Vtab1kConfig
from gift_vit.data.decode import Decoder

log = logging.getLogger(__name__)

FORMAT = 1
FILES = {"train": "train800", "val": "val200", "test": "test"}
REMEDY = "delete its folder and prepare the task again"
_GROUPS_IN_MEMORY = 2  # row groups: train800 has two, and test is read in order


class TaskSplit:
    """The images of one Parquet file, read by row groups: a test split of gigabytes stays on disk.

    ``images_sha256`` stands for the images' content, which was hashed when they were exported; that the bytes read are those
    written is checked by the file's page checksums.
    """

    def __init__(self, file: Path, facts: dict[str, Any], decode: Decoder) -> None:
        self.file = file
        self.images_sha256: str = facts["images_sha256"]
        self._decode = decode
        with _reading(file) as parquet:
            table = parquet.read(columns=["label", "id"])
            rows = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        self.labels: NDArray[np.int64] = table["label"].to_numpy().astype(np.int64)
        self.ids: list[str] = table["id"].to_pylist()
        self._starts = [0, *np.cumsum(rows)[:-1].tolist()]
        self._groups: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        found = {
            "images": len(self.labels),
            "bytes": file.stat().st_size,
            "labels_sha256": hashlib.sha256(self.labels.astype("<i8").tobytes()).hexdigest(),
            "ids_sha256": hashlib.sha256("\n".join(self.ids).encode()).hexdigest(),
        }
        for key, value in found.items():
            if facts[key] != value:
                raise ConfigError(f"{file}: {key} is {value}, where meta.json beside it says {facts[key]}; {REMEDY}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self._decode.decode(self.stored(index), self.where(index)), int(self.labels[index])

    def remarks(self, index: int) -> list[str]:
        """What decoding changes of the image."""
        return self._decode.remarks(self.stored(index))

    def content(self, index: int) -> bytes:
        """The id in the source dataset, and the hash of all images of the split."""
        return f"{self.images_sha256} {self.ids[index]}".encode()

    version = content

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each image as it is stored, (len,); one pass through the file."""
        with _reading(self.file) as parquet:
            sizes = [
                pc.call_function("binary_length", [batch["image"]]).to_numpy()
                for batch in parquet.iter_batches(columns=["image"])
            ]
        return np.concatenate(sizes).astype(np.int64)

    def stored(self, index: int) -> bytes:
        """The image as TensorFlow Datasets stores it."""
        group = bisect_right(self._starts, index) - 1
        return self._group(group)[index - self._starts[group]].as_py()

    def where(self, index: int) -> str:
        """File, row in it, and id in the source dataset."""
        return f"in {self.file}, row {index} ({self.ids[index]})"

    def _group(self, group: int) -> pa.ChunkedArray:
        if group not in self._groups:
            with _reading(self.file) as parquet:
                self._groups[group] = parquet.read_row_group(group, columns=["image"])["image"]
            if len(self._groups) > _GROUPS_IN_MEMORY:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        return self._groups[group]


@register_dataset("vtab1k", Vtab1kConfig)
def build_vtab1k(cfg: Vtab1kConfig) -> VisionDataset:
    """Read a prepared task; the images are decoded on access."""
    root = expanded(cfg.root)
    meta = _read_meta(root, cfg)
    decode = Decoder.of_dataset(cfg)
    for warning in meta["warnings"]:
        log.warning("%s: %s", cfg.name, warning)
    splits: dict[str, ImageSource] = {}
    for split, name in FILES.items():
        splits[split] = TaskSplit(root / f"{name}.parquet", meta["splits"][name], decode)
    return VisionDataset(
        cfg.name,
        cfg.num_classes or meta["num_classes"],
        meta["class_names"],
        splits,
        fingerprint(splits),
        decode.name,
        meta["source"],
        origins={split: Origin((f"{name}.parquet",)) for split, name in FILES.items()},
    )


def _read_meta(root: Path, cfg: Vtab1kConfig) -> dict[str, Any]:
    file = root / "meta.json"
    try:
        meta = json.loads(file.read_bytes())
        known, absent = meta["format"], {"task", "num_classes", "class_names", "source", "splits", "warnings"} - set(meta)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"dataset {cfg.name}: {file} is damaged ({error}); {REMEDY}") from error
    if known != FORMAT or absent:
        raise ConfigError(f"dataset {cfg.name}: {file} is of another form than this version reads{cfg.how_to_prepare()}")
    if cfg.name.startswith("vtab_") and not cfg.name.startswith(f"vtab_{meta['task']}"):
        right = f"type dataset=vtab_{meta['task']}, or give the folder of this task"
        raise ConfigError(f"dataset {cfg.name}: {root} holds another task, {meta['task']}; {right}")
    return meta


@contextmanager
def _reading(file: Path) -> Iterator[pq.ParquetFile]:
    """An open Parquet file; opened anew at each use, so that forked workers share no file position."""
    try:
        with pq.ParquetFile(file, memory_map=True, page_checksum_verification=True) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read {file}: {reason}; {REMEDY}") from error
