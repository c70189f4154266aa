"""Builders whose images are rows of arrays: CIFAR-100, SVHN, small NORB, dSprites, PatchCamelyon.

The arrays come in binary, MATLAB and HDF5 files. Images become PNG, which is lossless.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.vtab.original.origin import OriginalOrigin, Row, Table
from data_prep.vtab.original.places import Place
from data_prep.vtab.records import Key
from data_prep.vtab.tasks import encode_png
from gift_vit.common.errors import ConfigError

_CIFAR_SIDE = 32
_CIFAR_ROW = 2 + 3 * _CIFAR_SIDE**2  # coarse label, fine label, the three colour planes
_NORB_DTYPES = {0x1E3D4C55: np.dtype("uint8"), 0x1E3D4C54: np.dtype("<i4")}
_MOST_BYTES = 2**30  # of images held in memory at once
_FEWEST_ROWS = 64  # read at once
_SPRITE_SIDE = 64
_SPRITES_AT_ONCE = 16384
_LATENTS = {1: "shape", 2: "scale", 3: "orientation", 4: "x_position", 5: "y_position"}  # by column; 0 is the colour
_AGAIN = "delete it and fetch it again"


def array_table(keys: Sequence[Key], image: Callable[[int], np.ndarray], features: Callable[[int], Mapping[str, Any]]) -> Table:
    """A table whose rows are taken one by one from arrays that are in memory or mapped into it."""

    def read(rows: Sequence[int]) -> Iterator[Row]:
        return ((encode_png(image(row)), features(row)) for row in rows)

    return Table(keys, read)


def cifar100(place: Place) -> OriginalOrigin:
    """CIFAR-100, binary version; the key is the row, the label the fine one."""
    root = place.unpacked("cifar-100-binary.tar.gz", "cifar-100-binary", "train.bin")
    class_names = [name for name in _read(root / "fine_label_names.txt").decode().split("\n") if name]
    return OriginalOrigin(place, {name: partial(_cifar_table, root / f"{name}.bin") for name in ("train", "test")}, class_names)


def _cifar_table(path: Path) -> Table:
    data = np.frombuffer(_read(path), dtype=np.uint8)
    if len(data) == 0 or len(data) % _CIFAR_ROW:
        raise ConfigError(
            f"{path} has {len(data)} bytes, expected a multiple of {_CIFAR_ROW}; it was unpacked half-way: unpack it again"
        )
    rows = data.reshape(-1, _CIFAR_ROW)
    planes = rows[:, 2:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
    return array_table(range(len(rows)), lambda row: planes[row].transpose(1, 2, 0), lambda row: {"label": int(rows[row, 1])})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}); unpack the archive again") from error


def svhn(place: Place) -> OriginalOrigin:
    """SVHN, cropped digits; the key is the row, the label the digit (stored as 10 for 0)."""
    files = {split: place.file(f"{split}_32x32.mat") for split in ("train", "test")}
    return OriginalOrigin(place, {split: partial(_svhn_table, path) for split, path in files.items()})


def _svhn_table(path: Path) -> Table:
    content = read_mat(path, "X", "y")
    images, digits = content["X"], content["y"].reshape(-1)
    if images.ndim != 4 or images.shape[-1] != len(digits):
        raise ConfigError(f"{path} holds images of shape {images.shape} and {len(digits)} labels; {_AGAIN}")
    return array_table(range(len(digits)), lambda row: images[..., row], lambda row: {"label": int(digits[row]) % 10})


def smallnorb(place: Place) -> OriginalOrigin:
    """Small NORB, first camera; the key is the row; azimuths 0, 2, …, 34 are the labels 0 to 17."""
    tables = {}
    for split, name in {"train": "5x46789x9x18x6x2x96x96-training", "test": "5x01235x9x18x6x2x96x96-testing"}.items():
        paths = [place.gunzipped(f"smallnorb-{name}-{part}.mat.gz") for part in ("dat", "cat", "info")]
        tables[split] = partial(_norb_table, paths)
    return OriginalOrigin(place, tables)


def _norb_table(paths: list[Path]) -> Table:
    pairs, categories, info = (open_binary_matrix(path) for path in paths)
    if not len(pairs) == len(categories) == len(info):
        raise ConfigError(
            f"{paths[0]} holds {len(pairs)} examples, but {paths[1].name} {len(categories)} and {paths[2].name} {len(info)}; "
            "delete the three and fetch them again"
        )

    def features(row: int) -> dict[str, int]:
        _, elevation, azimuth, lighting = (int(value) for value in info[row])
        labels = {"category": int(categories[row]), "elevation": elevation, "azimuth": azimuth // 2, "lighting": lighting}
        return {f"label_{name}": label for name, label in labels.items()}

    return array_table(range(len(pairs)), lambda row: pairs[row, 0], features)


def dsprites(place: Place) -> OriginalOrigin:
    """DSprites; the key is the row, the labels are the latents' classes; pixels are 0 and 1 as stored."""
    path = place.file("dsprites_ndarray_co1sh3sc6or40x32y32_64x64.hdf5")
    return OriginalOrigin(place, {"train": partial(_sprites_table, path)})


def _sprites_table(path: Path) -> Table:
    with _opened(path) as file:
        classes = file["latents"]["classes"][:]
        _check_lengths(path, len(file["imgs"]), len(classes))
    packed = cache(lambda: _packed_sprites(path))

    def read(rows: Sequence[int]) -> Iterator[Row]:
        for row in rows:
            pixels = np.unpackbits(packed()[row]).reshape(_SPRITE_SIDE, _SPRITE_SIDE)
            yield encode_png(pixels), {f"label_{name}": int(classes[row, column]) for column, name in _LATENTS.items()}

    return Table(range(len(classes)), read)


def _packed_sprites(path: Path) -> np.ndarray:
    """All images, (images, 512), eight pixels to a byte: 3 GB as they are, and every chunk holds pieces of thousands.

    Raises:
        ConfigError: If they are not 64 × 64 pixels of 0 and 1.
    """
    with _opened(path) as file:
        images = file["imgs"]
        block = images.chunks[0] if images.chunks else _SPRITES_AT_ONCE
        packed = np.empty((len(images), _SPRITE_SIDE**2 // 8), dtype=np.uint8)
        for begin in range(0, len(images), block):
            pixels = images[begin : begin + block]
            if pixels.shape[1:] != (_SPRITE_SIDE, _SPRITE_SIDE) or pixels.max() > 1:
                raise ConfigError(
                    f"{path} holds images of {pixels.shape[1:]} with pixels up to {pixels.max()}, "
                    f"expected {(_SPRITE_SIDE, _SPRITE_SIDE)} and 1; {_AGAIN}"
                )
            packed[begin : begin + block] = np.packbits(pixels.reshape(len(pixels), -1), axis=1)
    return packed


def patch_camelyon(place: Place) -> OriginalOrigin:
    """PatchCamelyon; the key is ``train_0``, and ``valid_0`` in the split that TFDS calls validation."""
    tables = {}
    for split, part in {"train": "train", "validation": "valid", "test": "test"}.items():
        images, labels = (place.gunzipped(f"camelyonpatch_level_2_split_{part}_{axis}.h5.gz") for axis in "xy")
        tables[split] = partial(_patch_table, part, images, labels)
    return OriginalOrigin(place, tables)


def _patch_table(part: str, images: Path, labels: Path) -> Table:
    with _opened(labels) as file:
        tumour = file["y"][:].reshape(-1)
    with _opened(images) as file:
        _check_lengths(images, len(file["x"]), len(tumour))

    def read(rows: Sequence[int]) -> Iterator[Row]:
        with _opened(images) as file:
            patches = file["x"]
            batch = max(1, _MOST_BYTES // int(np.prod(patches.shape[1:])))
            for begin in range(0, len(rows), batch):
                chosen = rows[begin : begin + batch]
                for row, pixels in zip(chosen, gather(patches, chosen), strict=True):
                    yield encode_png(pixels), {"label": int(tumour[row])}

    return Table([f"{part}_{row}" for row in range(len(tumour))], read)


def gather(dataset: Any, rows: Sequence[int]) -> np.ndarray:
    """Chosen rows of an HDF5 dataset, (rows, …), in the order asked for.

    Rows are read in ascending order, all of a chunk's together: h5py's own selection of single rows would unpack a
    compressed chunk of thousands of images for each of them.
    """
    wanted = np.asarray(rows, dtype=np.int64)
    ascending = np.argsort(wanted)
    found = np.empty((len(wanted), *dataset.shape[1:]), dtype=dataset.dtype)
    chunk = dataset.chunks[0] if dataset.chunks else 1
    block = chunk * -(-_FEWEST_ROWS // chunk)
    begin = 0
    while begin < len(wanted):
        first = wanted[ascending[begin]]
        end = begin + int(np.searchsorted(wanted[ascending[begin:]], first // block * block + block))
        places = ascending[begin:end]
        found[places] = dataset[first : wanted[places[-1]] + 1][wanted[places] - first]
        begin = end
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open HDF5 file; whatever h5py finds wrong with it becomes one line."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError) as error:
        raise ConfigError(f"{path} is damaged or another file ({error}); {_AGAIN}") from error


def _check_lengths(path: Path, images: int, labels: int) -> None:
    if images != labels:
        raise ConfigError(f"{path} holds {images} images, but there are {labels} labels; {_AGAIN}")


def read_mat(path: Path, *variables: str) -> dict[str, np.ndarray]:
    """Arrays of a MATLAB file by name; a ConfigError if the file is truncated, no MATLAB file, or lacks a variable."""
    from scipy.io import loadmat  # costs a moment at import, which data_prep.status need not wait for

    try:
        content = loadmat(path, variable_names=variables)
        return {variable: content[variable] for variable in variables}
    except Exception as error:  # scipy raises errors of many kinds for a file that is cut off
        raise ConfigError(
            f"{path} is not a complete MATLAB file with {' and '.join(variables)} ({type(error).__name__}: {error}); {_AGAIN}"
        ) from error


def open_binary_matrix(path: Path) -> np.ndarray:
    """Memory-map a ``.mat`` of small NORB: a magic number for the type, the number of axes, at least three sizes, the values.

    Source: https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/ (all numbers little-endian int32).

    Raises:
        ConfigError: If the file is of another kind, or not as long as its header says.
    """
    with path.open("rb") as file:
        head = np.frombuffer(file.read(8), dtype="<i4")
        if len(head) < 2 or int(head[0]) not in _NORB_DTYPES or not 1 <= head[1] <= 8:
            raise ConfigError(f"{path} is not a binary matrix of small NORB; {_AGAIN}")
        axes = int(head[1])
        offset = 8 + 4 * max(3, axes)
        shape = tuple(np.frombuffer(file.read(offset - 8), dtype="<i4")[:axes].tolist())
    dtype = _NORB_DTYPES[int(head[0])]
    expected = offset + dtype.itemsize * math.prod(shape)
    if path.stat().st_size != expected or len(shape) != axes:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes, but its header says {expected}; {_AGAIN}")
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
