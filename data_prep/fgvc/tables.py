"""Reading the datasets' own small files: text tables as CUB and NABirds have them, and MATLAB files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from gift_vit.common.errors import ConfigError

Types = Sequence[Callable[[str], Any]]


def read_rows(file: Path, types: Types, remedy: str) -> list[tuple[Any, ...]]:
    """The rows of a text file whose columns are separated by spaces; the last column may contain some.

    Raises:
        ConfigError: If the file is missing or a row is not of these types; names file and line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {error}; {remedy}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        values = line.split(maxsplit=len(types) - 1)
        try:
            rows.append(tuple(read(value) for read, value in zip(types, values, strict=True)))
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{file} line {number} is {line!r}; expected {len(types)} columns ({error}); {remedy}") from error
    if not rows:
        raise ConfigError(f"{file} is empty; {remedy}")
    return rows


def read_image_rows(folder: Path, name: str, types: Types, remedy: str) -> list[tuple[Any, ...]]:
    """The rows of ``folder/name``, whose first column is an image id, with the image's path in place of the id."""
    paths = dict(read_rows(folder / "images.txt", (str, str), remedy))
    rows = read_rows(folder / name, (str, *types), remedy)
    unknown = next((row[0] for row in rows if row[0] not in paths), None)
    if unknown is not None:
        raise ConfigError(f"{folder / name} names the image {unknown}, which {folder / 'images.txt'} does not list; {remedy}")
    return [(paths[row[0]], *row[1:]) for row in rows]


def read_mat(file: Path | IO[bytes], name: str, where: Path, remedy: str) -> np.ndarray:
    """The array ``name`` of a MATLAB file, flat; a struct array has its field names as dtype names. Errors name ``where``."""
    from scipy.io import loadmat  # costs a moment at import

    try:
        return np.atleast_1d(loadmat(file, squeeze_me=True)[name]).ravel()
    except Exception as error:  # scipy raises ValueError, TypeError, NotImplementedError, zlib.error and more for broken files
        raise ConfigError(f"cannot read the array {name!r} of {where}: {error}; {remedy}") from error
