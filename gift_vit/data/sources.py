"""What the kinds of dataset share: decoding, images in files, subsets, a stratified split, the fingerprint."""

import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from gift_vit.data.base import ImageSource
from gift_vit.errors import ConfigError

Decoder: TypeAlias = Callable[[bytes], Image.Image]


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

    def content(self, index: int) -> bytes:
        """What identifies the image in the source."""
        return self.source.content(int(self.indices[index]))

    def version(self, index: int) -> bytes:
        """What a cache of the source is keyed by."""
        return self.source.version(int(self.indices[index]))


class FileSource:
    """Image files at ``paths`` relative to ``root``; ``listed_in`` says in an error who names them, ``hint`` what to do.

    Raises:
        ConfigError: If a file is not there; names the first and counts them.
    """

    def __init__(self, root: Path, paths: Sequence[str], labels: Sequence[int], listed_in: Path, hint: str) -> None:
        stats = _stat_files(root, set(paths))
        absent = [path for path in paths if path not in stats]
        if absent:
            count = f"{len(absent)} of {len(paths)} listed in {listed_in} are missing"
            raise ConfigError(f"image {root / absent[0]} is not there ({count}){hint}")
        self.root = root
        self.paths = paths
        self.sizes, self.written = zip(*(stats[path] for path in paths), strict=True) if paths else ((), ())
        self.labels: NDArray[np.int64] = np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.root / self.paths[index]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read image {path}: {error.strerror}") from error
        return decode_named(data, str(path)), int(self.labels[index])

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
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(root / folder) as entries:
            for entry in entries:
                path = os.path.join(folder, entry.name)
                if path in paths and entry.is_file():
                    stats[path] = (entry.stat().st_size, entry.stat().st_mtime_ns)
    return stats


def decode_image(data: bytes) -> Image.Image:
    """Decode an encoded image to RGB."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def jpeg_decoder(choice: str) -> tuple[str, Decoder]:
    """Name with version, and the function, of what decodes JPEG: ``pillow``, ``simplejpeg``, or ``auto``: the best installed.

    simplejpeg is asked for libjpeg-turbo's fast integer DCT, which is TensorFlow's default: bit-equal to it, about one grey
    level off Pillow's slow one. What is no JPEG is decoded by Pillow either way.

    Raises:
        ConfigError: If ``simplejpeg`` is asked for and not installed.
    """
    pillow = f"Pillow {PIL.__version__}"
    if choice == "pillow":
        return pillow, decode_image
    try:
        import simplejpeg
    except ImportError as error:
        if choice == "auto":
            return pillow, decode_image
        raise ConfigError("dataset.jpeg_decoder=simplejpeg: it is not installed; pip install simplejpeg") from error

    def decode(data: bytes) -> Image.Image:
        if not simplejpeg.is_jpeg(data):
            return decode_image(data)
        read = partial(simplejpeg.decode_jpeg, data, "RGB", fastdct=True, fastupsample=False)
        try:
            pixels = read(strict=True)
        except ValueError:
            image = decode_image(data)  # refuses what is cut short; libjpeg can make something of the rest, as TensorFlow does
            with suppress(ValueError):
                image = Image.fromarray(read(strict=False))
            return image
        return Image.fromarray(pixels)

    return f"simplejpeg {version('simplejpeg')}, {pillow}", decode


def decode_named(data: bytes, name: str, decode: Decoder = decode_image) -> Image.Image:
    """Decode an image; one that cannot be decoded is an error in one line with its name."""
    try:
        return decode(data)
    except UnidentifiedImageError as error:
        raise ConfigError(f"cannot decode image {name}: it is empty or of no known image format") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more for broken files
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot decode image {name}: {reason}; replace or remove it") from error


def check_split_off(val_fraction: float, split_seed: int) -> None:
    """Check the two values that say how val is split off train."""
    if not 0 < val_fraction < 1:
        raise ConfigError(
            f"dataset.val_fraction={val_fraction}: give a number between 0 and 1, the part of train that becomes val"
        )
    check_split_seed(split_seed)


def check_split_seed(split_seed: int) -> None:
    """Check that scikit-learn can take the seed."""
    if not 0 <= split_seed < 2**32:
        raise ConfigError(f"dataset.split_seed={split_seed}: give an integer from 0 to {2**32 - 1}")


def stratified_split(labels: NDArray[np.int64], size: int | float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the rest and of a part of ``size`` (a count or a fraction), both ascending, each class in proportion.

    Raises:
        ValueError: If a class is too small to stand in both (scikit-learn's message).
    """
    from sklearn.model_selection import train_test_split  # costs a second at import

    rest, part = train_test_split(np.arange(len(labels)), test_size=size, stratify=labels, random_state=seed)
    return np.sort(rest), np.sort(part)


def split_off_val(name: str, train: ImageSource, val_fraction: float, split_seed: int) -> tuple[SubsetSource, SubsetSource]:
    """Train and val out of ``train``: stratified, and the same each time for the same order of images.

    Raises:
        ConfigError: If a class is too small to stand in both.
    """
    try:
        rest, part = stratified_split(train.labels, val_fraction, split_seed)
    except ValueError as error:
        raise ConfigError(
            f"dataset {name}: cannot split dataset.val_fraction={val_fraction} of its {len(train)} training images off as val: "
            f"{error}; give a val split or another fraction"
        ) from error
    return SubsetSource(train, rest), SubsetSource(train, part)


def fingerprint(splits: Mapping[str, ImageSource]) -> str:
    """SHA-256 over name, length, every image's content and all labels of each split, in order."""
    digest = hashlib.sha256()
    for name, source in splits.items():
        digest.update(f"{name} {len(source)}\n".encode())
        for index in range(len(source)):
            content = source.content(index)
            digest.update(len(content).to_bytes(8, "little") + content)
        digest.update(source.labels.astype("<i8").tobytes())
    return digest.hexdigest()
