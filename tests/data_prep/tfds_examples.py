"""What TFDS's own builders make of original files: their ``_split_generators`` and ``_generate_examples``, run as they are."""

import gzip
import os
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_prep.vtab.records import Key
from data_prep.vtab.tasks import BUILDERS
from tests.data_prep.vtab_origins import encode

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


def generate(name: str, folder: Path, scratch: Path, patch: Any) -> tuple[Any, dict[str, list[tuple[Key, dict[str, Any]]]]]:
    """Run a builder on original files, without TensorFlow; returns it, and by split what it generates: keys and examples."""
    builder = builder_of(name, scratch / "none")
    module = sys.modules[type(builder).__module__]
    if hasattr(module, "tf"):
        patch.setattr(module, "tf", FILE_ACCESS)
    splits = builder._split_generators(LocalFiles(folder, scratch))
    if not isinstance(splits, dict):
        splits = {str(split.name): builder._generate_examples(**split.gen_kwargs) for split in splits}
    return builder, {split: list(examples) for split, examples in splits.items()}


def encoded(image: Any) -> bytes:
    """The image feature's value as TFDS stores it: files as they are, arrays as PNG."""
    if isinstance(image, np.ndarray):
        return encode(image[..., 0] if image.shape[-1] == 1 else image)
    return Path(image).read_bytes() if isinstance(image, str) else image.getvalue()
