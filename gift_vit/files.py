"""Writing files so that a reader never sees half of one, and a full disk is said in one line."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gift_vit.errors import ConfigError, RunError

_FULL_BYTES = 64 * 1024


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the many ways in which libraries report a full disk or a forbidden folder into one line."""
    try:
        yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise _forbidden(error, path) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            raise _forbidden(error, path) from error
        if _is_disk_full(error, path):
            raise RunError(
                f"no space left on the device while writing {path}; free some and start the same command again"
            ) from error
        raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is flushed to disk and renamed to ``path``.

    On failure the temporary file is removed and ``path`` is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that a killed process left behind; only while nobody else writes there."""
    for partial in folder.glob(".*.partial"):
        partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _forbidden(error: OSError, path: Path) -> ConfigError:
    return ConfigError(f"cannot write {path} ({error.strerror}); choose another folder or change its permissions")


def _is_disk_full(error: Exception, path: Path) -> bool:
    """Whether a full disk is behind an error; torch and safetensors do not pass on the system's error number."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return "No space left" in str(error) or shutil.disk_usage(path.parent).free < _FULL_BYTES
