"""Parquet files of encoded images and labels, as Hugging Face ``datasets`` writes them.

Columns ``image`` (a struct of ``bytes`` and ``path``, or plain binary) and ``label`` (integer); others are not read.
Class names stand in the schema's metadata: joined by ``|`` under ``class_names``, or where ``datasets`` puts them.
"""

import glob
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import ImageSource, VisionDataset, fingerprint, register_dataset, split_off_val
from gift_vit.data.config import SPLITS, ParquetConfig
from gift_vit.data.decode import OWN_DATA, Decoder


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

    @property
    def images(self) -> list[bytes]:
        """All encoded images."""
        return self.encoded.to_pylist()

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

    def where(self, index: int) -> str:
        """File, row in it, and original path if known."""
        which = bisect_right(self.starts, index) - 1
        path = self.paths[index].as_py()
        return f"in {self.files[which]}, row {index - self.starts[which]}" + (f" ({path})" if path else "")


def read_table(files: Sequence[Path], decode: Decoder = OWN_DATA) -> ImageTable:
    """Read files one after the other.

    Raises:
        ConfigError: If a file is missing, no Parquet or has other columns, or if two disagree on the class names.
    """
    if not files:
        raise ConfigError("no Parquet files to read: the list of files is empty")
    columns = [_read_columns(file) for file in files]
    lengths = [len(labels) for _, _, labels, _ in columns]
    return ImageTable(
        encoded=pa.chunked_array([chunk for encoded, *_ in columns for chunk in encoded.chunks], pa.large_binary()),
        paths=pa.chunked_array([chunk for _, paths, *_ in columns for chunk in paths.chunks], pa.large_string()),
        labels=np.concatenate([labels for _, _, labels, _ in columns]),
        class_names=_agreed_names([(file, names) for file, (*_, names) in zip(files, columns, strict=True)]),
        files=list(files),
        starts=[0, *np.cumsum(lengths)[:-1].tolist()],
        decode=decode,
    )


def _read_columns(file: Path) -> tuple[pa.ChunkedArray, pa.ChunkedArray, NDArray[np.int64], list[str] | None]:
    """Encoded images, original paths, labels and class names of one file."""
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            _check_schema(file, schema)
            table = parquet.read(columns=["image", "label"])
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read {file} as Parquet: {reason}") from error
    labels, flat = table["label"], table.flatten()  # an image struct becomes image.bytes and image.path
    images = flat["image.bytes" if "image.bytes" in flat.column_names else "image"]
    paths = pa.chunked_array([pa.nulls(len(images), pa.large_string())])
    if "image.path" in flat.column_names:
        paths = flat["image.path"].cast(pa.large_string())
    for name, column in (("image bytes", images), ("label", labels)):
        if column.null_count:
            raise ConfigError(f"{file} row {pc.index(column.is_null(), True).as_py()} has no {name}; write them into the file")
    return images.cast(pa.large_binary()), paths, labels.cast(pa.int64()).to_numpy(), _names_in(schema)


def _check_schema(file: Path, schema: pa.Schema) -> None:
    if not {"image", "label"} <= set(schema.names):
        raise ConfigError(f"{file} has the columns {', '.join(schema.names)}; expected image and label")
    image, label = schema.field("image").type, schema.field("label").type
    if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
        image = image.field("bytes").type
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        raise ConfigError(f"{file}: column image is {image}; expected encoded images, a struct with bytes or plain binary")
    if not pa.types.is_integer(label):
        raise ConfigError(f"{file}: column label is {label}; expected integers")


def _names_in(schema: pa.Schema) -> list[str] | None:
    metadata = schema.metadata or {}
    if b"class_names" in metadata:
        return metadata[b"class_names"].decode().split("|")
    if b"huggingface" in metadata:
        features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
        return features.get("label", {}).get("names")
    return None


def _agreed_names(named: Sequence[tuple[Path | str, list[str] | None]]) -> list[str] | None:
    """The class names that all agree on; None where nobody knows any."""
    known = [(place, names) for place, names in named if names is not None]
    for place, names in known[1:]:
        if names != known[0][1]:
            raise ConfigError(f"the class names of {known[0][0]} and {place} differ; a dataset has one list of classes")
    return known[0][1] if known else None


def _find_files(cfg: ParquetConfig) -> dict[str, list[Path]]:
    """The files of each split that is there, sorted."""
    root = Path(cfg.root).expanduser()
    found: dict[str, list[Path]] = {}
    for split in (split for split in SPLITS if split in cfg.files):
        names: set[str] = set()
        for pattern in cfg.files[split]:
            matches = [pattern] if (root / pattern).is_file() else glob.glob(pattern, root_dir=root, recursive=True)
            if not matches and (split == "train" or not glob.has_magic(pattern)):
                raise ConfigError(f"dataset {cfg.name}: there is no file {root / pattern} for {split}{cfg.how_to_prepare()}")
            names.update(matches)
        if names:
            found[split] = [root / name for name in sorted(names)]
    return found


@register_dataset("parquet", ParquetConfig)
def build_parquet(cfg: ParquetConfig) -> VisionDataset:
    """Read the Parquet files of each split."""
    decode = Decoder.of(cfg.transform, cfg.as_published)
    tables = {split: read_table(files, decode) for split, files in _find_files(cfg).items()}
    names = _agreed_names([(f"{cfg.name}'s {split} files", table.class_names) for split, table in tables.items()])
    num_classes = cfg.num_classes or (len(names) if names else int(tables["train"].labels.max(initial=0)) + 1)
    splits: dict[str, ImageSource] = {**tables}
    if "val" not in splits:
        train, val = split_off_val(cfg.name, tables["train"], cfg.val_fraction, cfg.split_seed)
        splits = {**splits, "train": train, "val": val}
    splits = {split: splits[split] for split in SPLITS if split in splits}
    return VisionDataset(cfg.name, num_classes, names, {**splits}, fingerprint(splits), decode.name)
