"""What a prepared dataset is, whatever it is read from: named splits of labelled RGB images under one class map.

A kind is one file in ``data/kinds``, imported when the kind is read. Its ``build(cfg)`` reads what its config names and
returns a :class:`VisionDataset`; it changes no random state.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gift_vit.common.errors import ConfigError
from gift_vit.data.config import KINDS, DatasetConfig
from gift_vit.data.decode import OWN_DATA, Decoder, encoded
from gift_vit.data.layout import listed

_SAMPLED = 16  # examples of a split: some may be large
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class LabelledSource(Protocol[T_co]):
    """Images in some form, with their labels known without decoding."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """All labels, (len,)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[T_co, int]:
        """An image and its label.

        Raises:
            ConfigError: If the image cannot be read; names it.
        """
        ...


class ImageSource(LabelledSource[Image.Image], Protocol):
    """RGB images, decoded on access, that can be identified without decoding them."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each image as it is stored, (len,)."""
        ...

    def stored(self, index: int, /) -> bytes:
        """An image as it is stored: the bytes of its file, or its pixels."""
        ...

    def where(self, index: int, /) -> str:
        """Where an image is stored, for a person."""
        ...

    def content(self, index: int, /) -> bytes:
        """What an image is: its encoded bytes or pixels, or its relative path and size."""
        ...

    def remarks(self, index: int, /) -> list[str]:
        """What decoding changes of an image that a person may not expect, as :meth:`Decoder.remarks` words it."""
        ...

    def version(self, index: int, /) -> bytes:
        """What a cache is keyed by: as :meth:`content`, and for a file also when it was last written."""
        ...


class ConcatSource(Generic[T]):
    """Several sources one after the other."""

    def __init__(self, sources: Sequence[LabelledSource[T]]) -> None:
        self.sources = sources
        self.ends = np.cumsum([len(source) for source in sources])
        self.labels: NDArray[np.int64] = np.concatenate([source.labels for source in sources])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[T, int]:
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[which][index - int(self.ends[which]) + len(self.sources[which])]


def concatenate(sources: Sequence[LabelledSource[T]]) -> LabelledSource[T]:
    """One source out of one or several."""
    return sources[0] if len(sources) == 1 else ConcatSource(sources)


@dataclass(frozen=True)
class Origin:
    """Where the images of a split come from.

    Attributes:
        files: Names of the files or folders that were read.
        skipped: What lies there and was not read: how many, by what they are.
        drawn: How the split was drawn, where it was not there: ``split off train: 200 of 1,000, stratified, seed 0``.
        nested: Classes whose images lie in several folders inside theirs.
    """

    files: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    drawn: str | None = None
    nested: tuple[str, ...] = ()


@dataclass(frozen=True)
class VisionDataset:
    """A dataset ready for use.

    ``fingerprint`` is the SHA-256 (hex) of what the splits hold, as :func:`gift_vit.data.base.fingerprint` defines it;
    ``decoder`` is the name of the :class:`Decoder` of the images, or ``none`` for pixels and texts; ``source`` says where they
    come from, if that is known; ``class_order`` what the order of the classes is; ``thing`` what an example is called;
    ``origins`` where the examples of each split come from; ``unlabelled`` are examples that somebody else has the labels of.

    Labels that are no integers are numbers, of which a model predicts one: there are no classes then, and ``num_classes`` is 1.
    """

    name: str
    num_classes: int
    class_names: list[str] | None
    splits: dict[str, ImageSource]
    fingerprint: str
    decoder: str = OWN_DATA.name
    source: str | None = None
    class_order: str = "the benchmark's own numbers"
    thing: str = "image"
    origins: Mapping[str, Origin] = field(default_factory=dict)
    unlabelled: ImageSource | None = None

    @cached_property
    def sample(self) -> str:
        """SHA-256 (hex) of some examples as they are stored, evenly spread: a picture may change and keep its name and size."""
        digest = hashlib.sha256()
        for source in self.splits.values():
            for index in np.linspace(0, len(source) - 1, min(_SAMPLED, len(source))).astype(int).tolist():
                digest.update(hashlib.sha256(source.stored(index)).digest())
        return digest.hexdigest()

    @property
    def is_regression(self) -> bool:
        """Whether the labels are numbers and no classes."""
        return any(source.labels.dtype.kind == "f" for source in self.splits.values())

    def __post_init__(self) -> None:
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            found = len(self.class_names)
            raise ConfigError(f"dataset {self.name}: num_classes={self.num_classes}, but the data names {found} classes")
        for split, source in self.splits.items():
            if len(source) == 0:
                raise ConfigError(f"dataset {self.name}: its {split} split holds no {self.thing}s")
            if self.is_regression:
                continue
            wrong = np.flatnonzero((source.labels < 0) | (source.labels >= self.num_classes))
            if len(wrong):
                index = int(wrong[0])
                raise ConfigError(
                    f"dataset {self.name}: label {source.labels[index]} of {self.thing} {index} in its {split} split is "
                    f"outside 0..{self.num_classes - 1} ({self.num_classes} classes)"
                )

    def parts(self, name: str) -> list[ImageSource]:
        """The sources of ``train``, ``val`` or ``test``, or of ``trainval``: train, then val.

        Raises:
            ConfigError: If the split is absent; names those there are.
        """
        parts = ("train", "val") if name == "trainval" else (name,)
        absent = [part for part in parts if part not in self.splits]
        if absent:
            raise ConfigError(f"dataset {self.name} has no {absent[0]} split (it has {', '.join(self.splits)})")
        return [self.splits[part] for part in parts]

    def split(self, name: str) -> LabelledSource[Image.Image]:
        """All images of a split, one after the other; raises as :meth:`parts` does."""
        return concatenate(self.parts(name))


class SubsetSource:
    """The images of a source at ``indices``, in that order."""

    def __init__(self, source: ImageSource, indices: NDArray[np.intp]) -> None:
        self.source = source
        self.indices = indices
        self.labels: NDArray[np.int64] = source.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.source[int(self.indices[index])]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each image as it is stored, (len,)."""
        return self.source.sizes[self.indices]

    def stored(self, index: int) -> bytes:
        """The image as the source stores it."""
        return self.source.stored(int(self.indices[index]))

    def where(self, index: int) -> str:
        """Where the source stores the image."""
        return self.source.where(int(self.indices[index]))

    def remarks(self, index: int) -> list[str]:
        """What the source's decoding changes of the image."""
        return self.source.remarks(int(self.indices[index]))

    def content(self, index: int) -> bytes:
        """What identifies the image in the source."""
        return self.source.content(int(self.indices[index]))

    def version(self, index: int) -> bytes:
        """What a cache of the source is keyed by."""
        return self.source.version(int(self.indices[index]))


class FileSource:
    """Image files at ``paths`` relative to ``root``; ``listed_in`` says in an error who names them, ``hint`` what to do.

    ``decode`` makes pixels of them.

    Raises:
        ConfigError: If a file is not there; names the first and counts them.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: Sequence[int] | NDArray[np.int64],
        listed_in: Path,
        hint: str,
        decode: Decoder = OWN_DATA,
    ) -> None:
        stats = _stat_files(root, set(paths))
        forms = {form: path for path in paths if path not in stats for form in _other_forms(path)}
        renamed = {forms[form]: form for form in _stat_files(root, set(forms))} if forms else {}
        paths = [renamed.get(path, path) for path in paths]
        stats |= _stat_files(root, set(renamed.values()))
        absent = [path for path in paths if path not in stats]
        if absent:
            count = f"{len(absent)} of {len(paths)} listed in {listed_in} are missing"
            path = root / absent[0]
            link = f"a link to {os.readlink(path)}, which is " if path.is_symlink() else ""
            raise ConfigError(f"image {path} is {link}not there ({count}){hint}")
        self.root = root
        self.paths = paths
        self.decode = decode
        self.sizes: NDArray[np.int64] = np.asarray([stats[path][0] for path in paths], dtype=np.int64)
        self.written = [stats[path][1] for path in paths]
        self.labels: NDArray[np.int64] = np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.decode.decode(self.stored(index), self.where(index)), int(self.labels[index])

    def stored(self, index: int) -> bytes:
        """The bytes of the file.

        Raises:
            ConfigError: If it cannot be read.
        """
        return encoded(self.root / self.paths[index])

    def where(self, index: int) -> str:
        """The path of the file."""
        return str(self.root / self.paths[index])

    def remarks(self, index: int) -> list[str]:
        """What decoding changes of the image; nothing but the file's header is read."""
        return self.decode.remarks(self.root / self.paths[index])

    def content(self, index: int) -> bytes:
        """The path relative to the root, and the size: hashing gigabytes before each run would take minutes."""
        return os.fsencode(self.paths[index]) + b"\0%d" % self.sizes[index]

    def version(self, index: int) -> bytes:
        """The same, and when the file was last written."""
        return self.content(index) + b"\0%d" % self.written[index]


def _stat_files(root: Path, paths: set[str]) -> dict[str, tuple[int, int]]:
    """Bytes and time of change (ns) of each file that is there, with one scan per folder: surplus files are not looked at."""
    stats: dict[str, tuple[int, int]] = {}
    for folder in {os.path.dirname(path) for path in paths}:
        for entry in listed(root / folder) if os.path.isdir(root / folder) else ():
            path = os.path.join(folder, entry.name)
            if path in paths and entry.is_file():
                stats[path] = (entry.stat().st_size, entry.stat().st_mtime_ns)
    return stats


def _other_forms(path: str) -> list[str]:
    """A path whose folder and file have their names in other Unicode forms: they look the same."""
    if path.isascii():
        return []
    folders, names = ({normalize(form, part) for form in ("NFC", "NFD")} for part in os.path.split(path))
    return [os.path.join(folder, name) for folder in folders for name in names]


def fingerprint(splits: Mapping[str, ImageSource]) -> str:
    """SHA-256 over name, length, every image's content and all labels of each split, in order."""
    digest = hashlib.sha256()
    for name, source in splits.items():
        digest.update(f"{name} {len(source)}\n".encode())
        for index in range(len(source)):
            content = source.content(index)
            digest.update(len(content).to_bytes(8, "little") + content)
        digest.update(source.labels.astype("<f4" if source.labels.dtype.kind == "f" else "<i8").tobytes())
    return digest.hexdigest()


Build: TypeAlias = Callable[[Any], VisionDataset]


def register_dataset(kind: str, config_cls: type[DatasetConfig]) -> Callable[[Build], Build]:
    """Register the decorated build function under ``kind``; a kind or a config class is registered once."""

    def register(build: Build) -> Build:
        KINDS.register(kind, config_cls, build)
        return build

    return register


def build_dataset(cfg: DatasetConfig) -> VisionDataset:
    """Read the dataset a config describes.

    Raises:
        ConfigError: If it is not there or not what the config says.
    """
    kind = KINDS.kind_of(cfg)
    cfg.check_present()
    return KINDS.get(kind)(cfg)
