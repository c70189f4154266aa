"""Tiny genuine TFDS datasets of the 16 builders: TFDS's code makes examples of small original files, and writes them."""

import gzip
import json
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters, hashing

from data_prep.vtab.records import Key, Origin, Record
from data_prep.vtab.tasks import BUILDERS
from data_prep.vtab.tfds_origin import TfdsOrigin, open_tfds
from tests.data.conftest import encode
from tests.data_prep.original_files import WRITERS, dmlab, framed, picture
from tests.data_prep.vtab_origins import decode

Examples: TypeAlias = dict[str, list[tuple[Key, dict[str, Any]]]]  # by split: the keys that TFDS hashes, and the features

NAMED = {"cifar100", "caltech101", "dtd", "oxford_flowers102", "oxford_iiit_pet", "sun397", "eurosat", "resisc45"}

# What the builders use of TensorFlow is its file access, which does for local files what Python does.
GFILE = SimpleNamespace(GFile=open, glob=glob, listdir=os.listdir, exists=os.path.exists, isdir=os.path.isdir)
FILE_ACCESS = SimpleNamespace(io=SimpleNamespace(gfile=GFILE))


def unpack(path: Path, target: Path) -> Path:
    """Unpack an archive by Python's own means, to ``target``; another file stays where it is. Returns the place."""
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            archive.extractall(target, filter="data")
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(target)
    elif path.suffix == ".gz":
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(gzip.decompress(path.read_bytes()))
    else:
        return path
    return target


class LocalFiles:
    """Stands in for TFDS's download manager: a URL is the file of that name in a folder."""

    def __init__(self, folder: Path, scratch: Path):
        self._folder, self._scratch, self.manual_dir = folder, scratch, folder

    def download(self, urls: Any) -> Any:
        if isinstance(urls, dict):
            return {key: self.download(url) for key, url in urls.items()}
        return str(self._folder / urls.rsplit("/", 1)[1].removesuffix("?raw=true"))

    def download_and_extract(self, urls: Any) -> Any:
        if isinstance(urls, dict):
            return {key: self.download_and_extract(url) for key, url in urls.items()}
        path = Path(self.download(urls))
        return str(unpack(path, self._scratch / path.name))

    def iter_archive(self, path: str) -> Iterator[tuple[str, Any]]:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    yield name, file


def builder_of(name: str, data_dir: Path) -> Any:
    """TFDS's builder of the benchmark's version."""
    config = "/".join(filter(None, [name, BUILDERS[name].config]))
    return tfds.builder(f"{config}:{BUILDERS[name].version}", data_dir=str(data_dir))


@dataclass(frozen=True)
class Tiny:
    """Original files, TFDS's builder, what it generates (images encoded), and the data_dir of the ArrayRecords it wrote."""

    files: Path
    builder: Any
    examples: Examples
    data_dir: Path

    def prepare(
        self, data_dir: Path, file_format: str = "array_record", version: str | None = None, shards: int | None = None
    ) -> Path:
        """Let TFDS write a dataset of the benchmark's config from the examples; features that it lacks are left out.

        ``file_format`` is array_record, tfrecord or parquet; ``version`` may be any for a builder without config; ``shards``
        are those of each split. Returns the version's folder.
        """
        cls, known = type(self.builder), BUILDERS[self.builder.name]
        version = version or known.version

        def split_generators(builder: Any, dl_manager: Any) -> dict[str, Any]:
            features = builder.info.features
            if builder.name == "cifar100":  # which reads them from its archive
                features["label"].names = self.names
            return {split: ((key, {f: row[f] for f in features}) for key, row in rows) for split, rows in self.examples.items()}

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(cls, "_split_generators", split_generators))
            if known.config is None:  # a config has its own version
                stack.enter_context(mock.patch.object(cls, "VERSION", tfds.core.Version(version)))
            stack.enter_context(mock.patch.object(file_adapters.TfRecordFileAdapter, "write_examples", _write_tfrecords))
            tfds.disable_progress_bar()
            builder = tfds.builder("/".join(filter(None, [known.name, known.config])), data_dir=str(data_dir))
            how = tfds.download.DownloadConfig(num_shards=shards)
            builder.download_and_prepare(file_format=file_format, download_config=how)
        assert builder.data_path.name == version
        return Path(builder.data_path)

    @property
    def names(self) -> list[str] | None:
        """The class names, where the builder has them."""
        return list(self.builder.info.features["label"].names) if self.builder.name in NAMED else None

    def check(self, origin: Origin, splits: Iterable[str]) -> None:
        """Everything that an origin gives is what TFDS generates, in the order of TFDS's own hashes."""
        features = self.builder.info.features
        assert origin.class_names == self.names
        for split in splits:
            hasher = hashing.Hasher(split)
            rows = sorted(self.examples[split], key=lambda row: hasher.hash_key(row[0]))
            assert origin.keys(split) == [key for key, _ in rows]
            for record, (key, example) in zip(everything(origin, split), rows, strict=True):
                assert record.key == key
                if origin.source == "tfds" or example["image"][:2] == b"\xff\xd8":
                    assert record.image == example["image"]  # byte for byte, never decoded
                np.testing.assert_array_equal(decode(record.image), decode(example["image"]))
                for feature in set(record.features) - {"objects"}:
                    assert record.features[feature] == features[feature].encode_example(example[feature])
                    assert isinstance(record.features[feature], int)
                for part, found in record.features.get("objects", {}).items():  # arrays even where there are no objects
                    kind = features["objects"].feature[part]
                    expected = [kind.encode_example(thing[part]) for thing in example["objects"]]
                    assert (found.shape, found.dtype) == ((len(expected), *kind.shape), kind.np_dtype)
                    np.testing.assert_array_equal(found, np.array(expected, kind.np_dtype).reshape(found.shape))


TinyDataset: TypeAlias = Callable[[str], Tiny]


def make_tiny(name: str, folder: Path) -> Tiny:
    """Write a builder's original files, run it on them without TensorFlow, and let it write what comes out."""
    (folder / "files").mkdir(parents=True)
    builder = builder_of(name, folder / "none")
    module = sys.modules[type(builder).__module__]
    with pytest.MonkeyPatch.context() as patch:
        if name in _BY_HAND:
            examples = _BY_HAND[name](folder / "files")
        else:
            WRITERS[name](folder / "files")
            if hasattr(module, "tf"):
                patch.setattr(module, "tf", FILE_ACCESS)
            splits = builder._split_generators(LocalFiles(folder / "files", folder / "scratch"))
            if not isinstance(splits, dict):
                splits = {str(split.name): builder._generate_examples(**split.gen_kwargs) for split in splits}
            examples = {split: [(key, _encoded(example)) for key, example in rows] for split, rows in splits.items()}
    tiny = Tiny(folder / "files", builder, examples, folder / "tfds")
    tiny.prepare(tiny.data_dir)
    return tiny


def _encoded(example: dict[str, Any]) -> dict[str, Any]:
    """With images as TFDS stores them: files as they are, arrays as PNG."""
    return {
        name: _file(value) if name in {"image", "image2", "segmentation_mask"} else value for name, value in example.items()
    }


def _file(image: Any) -> bytes:
    if isinstance(image, np.ndarray):
        return encode(image[..., 0] if image.shape[-1] == 1 else image)
    return Path(image).read_bytes() if isinstance(image, str | Path) else image.getvalue()


def _caltech101(_: Path) -> Examples:
    """TFDS lowers the case of folders in labels, not in keys."""
    folders = ["BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes", "accordion"]
    files = {"train": "image_0001.jpg", "test": "image_0002.jpg"}
    return {
        split: [
            (f"{folder}/{file}", {"image": picture(number), "image/file_name": file, "label": folder.lower()})
            for number, folder in enumerate(folders)
        ]
        for split, file in files.items()
    }


def _sun397(_: Path) -> Examples:
    keys = [(f"{label}/sun_{number}.jpg", label) for number, label in enumerate(["/a/abbey", "/y/youth_hostel"] * 3)]
    rows: Any = [(key, {"image": picture(len(key)), "file_name": key, "label": label}) for key, label in keys]
    return {"train": rows, "validation": rows[:2], "test": rows[2:]}


_BY_HAND: dict[str, Callable[[Path], Examples]] = {"caltech101": _caltech101, "sun397": _sun397, "dmlab": dmlab}


def opened(name: str, data_dir: Path, **changes: Any) -> TfdsOrigin:
    return open_tfds(replace(BUILDERS[name], **changes), data_dir, None)


def everything(origin: Origin, split: str) -> list[Record]:
    return list(origin.records(split, range(len(origin.keys(split)))))


def edit_info(folder: Path, change: Any) -> None:
    info = json.loads((folder / "dataset_info.json").read_text())
    change(info)
    (folder / "dataset_info.json").write_text(json.dumps(info))


def _write_tfrecords(path: Any, iterator: Iterable[tuple[Any, bytes]]) -> None:
    """What TensorFlow's writer does, for TFDS to call."""
    Path(path).write_bytes(b"".join(framed(payload) for _, payload in iterator))
