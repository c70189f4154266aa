"""Builders whose images are rows of arrays: CIFAR-100, SVHN, small NORB. Images become PNG, which is lossless."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.vtab.original.matlab import open_binary_matrix, read_mat
from data_prep.vtab.original.origin import OriginalOrigin, Row, Table, encode_png
from data_prep.vtab.original.places import Place
from data_prep.vtab.records import Key
from data_prep.vtab.tasks import Builder
from gift_vit.errors import ConfigError

_CIFAR_SIDE = 32
_CIFAR_ROW = 2 + 3 * _CIFAR_SIDE**2  # coarse label, fine label, the three colour planes


def array_table(keys: Sequence[Key], image: Callable[[int], np.ndarray], features: Callable[[int], Mapping[str, Any]]) -> Table:
    """A table whose rows are taken one by one from arrays that are in memory or mapped into it."""

    def read(rows: Sequence[int]) -> Iterator[Row]:
        return ((encode_png(image(row)), features(row)) for row in rows)

    return Table(keys, read)


def cifar100(builder: Builder, place: Place) -> OriginalOrigin:
    """CIFAR-100, binary version; the key is the row, the label the fine one."""
    root = place.unpacked("cifar-100-binary.tar.gz", "cifar-100-binary", "train.bin")
    class_names = [name for name in _read(root / "fine_label_names.txt").decode().split("\n") if name]

    def table(name: str) -> Callable[[], Table]:
        return lambda: _cifar_table(root / name)

    tables = {"train": table("train.bin"), "test": table("test.bin")}
    return OriginalOrigin(builder, tables, class_names, place.used)


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


def svhn(builder: Builder, place: Place) -> OriginalOrigin:
    """SVHN, cropped digits; the key is the row, the label the digit (stored as 10 for 0)."""

    def table(name: str) -> Callable[[], Table]:
        path = place.file(name)
        return lambda: _svhn_table(path)

    tables = {"train": table("train_32x32.mat"), "test": table("test_32x32.mat")}
    return OriginalOrigin(builder, tables, None, place.used)


def _svhn_table(path: Path) -> Table:
    content = read_mat(path, "X", "y")
    images, digits = content["X"], content["y"].reshape(-1)
    if images.ndim != 4 or images.shape[-1] != len(digits):
        raise ConfigError(f"{path} holds images of shape {images.shape} and {len(digits)} labels; delete it and fetch it again")
    return array_table(range(len(digits)), lambda row: images[..., row], lambda row: {"label": int(digits[row]) % 10})


def smallnorb(builder: Builder, place: Place) -> OriginalOrigin:
    """Small NORB, first camera; the key is the row; azimuths 0, 2, …, 34 are the labels 0 to 17."""

    def table(prefix: str) -> Callable[[], Table]:
        paths = [place.gunzipped(f"smallnorb-{prefix}-{part}.mat.gz") for part in ("dat", "cat", "info")]
        return lambda: _norb_table(paths)

    tables = {
        "train": table("5x46789x9x18x6x2x96x96-training"),
        "test": table("5x01235x9x18x6x2x96x96-testing"),
    }
    return OriginalOrigin(builder, tables, None, place.used)


def _norb_table(paths: list[Path]) -> Table:
    pairs, categories, info = (open_binary_matrix(path) for path in paths)
    if not len(pairs) == len(categories) == len(info):
        raise ConfigError(
            f"{paths[0]} holds {len(pairs)} examples, but {paths[1].name} {len(categories)} and {paths[2].name} {len(info)}; "
            "delete the three and fetch them again"
        )

    def features(row: int) -> dict[str, int]:
        _, elevation, azimuth, lighting = (int(value) for value in info[row])
        return {
            "label_category": int(categories[row]),
            "label_elevation": elevation,
            "label_azimuth": azimuth // 2,
            "label_lighting": lighting,
        }

    return array_table(range(len(pairs)), lambda row: pairs[row, 0], features)
