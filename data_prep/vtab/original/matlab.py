"""Reading MATLAB files, and the binary matrices that the small NORB dataset calls ``.mat``."""

import math
from pathlib import Path

import numpy as np

from gift_vit.errors import ConfigError

_DTYPES = {0x1E3D4C55: np.dtype("uint8"), 0x1E3D4C54: np.dtype("<i4")}


def read_mat(path: Path, *variables: str) -> dict[str, np.ndarray]:
    """Arrays of a MATLAB file by name.

    Raises:
        ConfigError: If the file is truncated, no MATLAB file, or lacks a variable.
    """
    from scipy.io import loadmat  # costs a moment at import, which data_prep.status need not wait for

    try:
        content = loadmat(path, variable_names=variables)
        return {variable: content[variable] for variable in variables}
    except Exception as error:  # scipy raises errors of many kinds for a file that is cut off
        raise ConfigError(
            f"{path} is not a complete MATLAB file with {' and '.join(variables)} ({type(error).__name__}: {error}); "
            "delete it and fetch it again"
        ) from error


def open_binary_matrix(path: Path) -> np.ndarray:
    """Memory-map a binary matrix: a magic number for the type, the number of axes, at least three sizes, the values.

    Source: https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/ (all numbers little-endian int32).

    Raises:
        ConfigError: If the file is of another kind, or not as long as its header says.
    """
    remedy = "delete it and fetch it again"
    with path.open("rb") as file:
        head = np.frombuffer(file.read(8), dtype="<i4")
        if len(head) < 2 or int(head[0]) not in _DTYPES or not 1 <= head[1] <= 8:
            raise ConfigError(f"{path} is not a binary matrix of small NORB; {remedy}")
        axes = int(head[1])
        offset = 8 + 4 * max(3, axes)
        sizes = np.frombuffer(file.read(offset - 8), dtype="<i4")[:axes]
    shape, dtype = tuple(int(size) for size in sizes), _DTYPES[int(head[0])]
    expected = offset + dtype.itemsize * math.prod(shape)
    if path.stat().st_size != expected or len(shape) != axes:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes, but its header says {expected}; {remedy}")
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
