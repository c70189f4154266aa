"""Writing files so that a reader never sees half of one, one process at a time, and a full disk is said in one line."""

import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from filelock import FileLock, Timeout

from gift_vit.common.errors import ConfigError, RunError

log = logging.getLogger(__name__)

_FULL_BYTES = 64 * 1024
_PATIENCE_S = 1.0  # for a lock that nobody waits for: whoever asks whether it is held holds it for a moment


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


def check_writable(file: Path) -> None:
    """Refuse a file that cannot be written, before anything is computed for it; its folder is made.

    Raises:
        ConfigError: If it is a folder, or the folder cannot be made or written.
    """
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; give the file to write")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise _forbidden(error, file) from error


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


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return sha256(file.read_bytes()).hexdigest()


class LockedError(Exception):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of ``path``. It ends with the process however that ends, and child processes do not hold it.

    The lock is a hidden file beside ``path``, removed at the end.

    Raises:
        LockedError: If another process holds it and ``wait`` is false.
    """
    file = _lock_file(path)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0 if wait else _PATIENCE_S)
    except Timeout as error:
        if not wait:
            raise LockedError(str(path)) from error
        log.info("another process holds %s; waiting for it", file)
        lock.acquire()
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held, so that nobody else's is removed
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of ``path``; looks without writing, so that anybody may ask."""
    try:
        descriptor = os.open(_lock_file(path), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _forbidden(error: OSError, path: Path) -> ConfigError:
    return ConfigError(f"cannot write {path} ({error.strerror}); choose another folder or change its permissions")


def _is_disk_full(error: Exception, path: Path) -> bool:
    """Whether a full disk is behind an error; torch and safetensors do not pass on the system's error number."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return "No space left" in str(error) or shutil.disk_usage(path.parent).free < _FULL_BYTES
