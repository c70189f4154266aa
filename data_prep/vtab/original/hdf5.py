"""Builders whose images are rows of HDF5 datasets: dSprites, PatchCamelyon. Images become PNG, which is lossless."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.vtab.original.origin import OriginalOrigin, Row, Table, encode_png
from data_prep.vtab.original.places import Place
from data_prep.vtab.tasks import Builder
from gift_vit.errors import ConfigError

_MOST_BYTES = 2**30  # of images held in memory at once
_FEWEST_ROWS = 64  # read at once
_SPRITE_SIDE = 64
_SPRITES_AT_ONCE = 16384
_LATENTS = {1: "shape", 2: "scale", 3: "orientation", 4: "x_position", 5: "y_position"}  # by column; 0 is the colour


def dsprites(builder: Builder, place: Place) -> OriginalOrigin:
    """DSprites; the key is the row, the labels are the latents' classes; pixels are 0 and 1 as stored."""
    path = place.file("dsprites_ndarray_co1sh3sc6or40x32y32_64x64.hdf5")

    def table() -> Table:
        with _opened(path) as file:
            classes = file["latents"]["classes"][:]
            _check_lengths(path, len(file["imgs"]), len(classes))
        packed = cache(lambda: _packed_sprites(path))

        def read(rows: Sequence[int]) -> Iterator[Row]:
            for row in rows:
                pixels = np.unpackbits(packed()[row]).reshape(_SPRITE_SIDE, _SPRITE_SIDE)
                yield encode_png(pixels), {f"label_{name}": int(classes[row, column]) for column, name in _LATENTS.items()}

        return Table(range(len(classes)), read)

    return OriginalOrigin(builder, {"train": table}, None, place.used)


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
                    f"expected {(_SPRITE_SIDE, _SPRITE_SIDE)} and 1; delete it and fetch it again"
                )
            packed[begin : begin + block] = np.packbits(pixels.reshape(len(pixels), -1), axis=1)
    return packed


def patch_camelyon(builder: Builder, place: Place) -> OriginalOrigin:
    """PatchCamelyon; the key is ``train_0``, and ``valid_0`` in the split that TFDS calls validation."""

    def table(part: str) -> Callable[[], Table]:
        images, labels = (place.gunzipped(f"camelyonpatch_level_2_split_{part}_{axis}.h5.gz") for axis in "xy")
        return lambda: _patch_table(part, images, labels)

    tables = {"train": table("train"), "validation": table("valid"), "test": table("test")}
    return OriginalOrigin(builder, tables, None, place.used)


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
        raise ConfigError(f"{path} is damaged or another file ({error}); delete it and fetch it again") from error


def _check_lengths(path: Path, images: int, labels: int) -> None:
    if images != labels:
        raise ConfigError(f"{path} holds {images} images, but there are {labels} labels; delete it and fetch it again")
