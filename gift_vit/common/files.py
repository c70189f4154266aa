"""Writing files so that a reader never sees half of one, one process at a time, and a full disk is said in one line."""

import errno
import fcntl
import json
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from filelock import FileLock, Timeout

from gift_vit.common.errors import ConfigError, RunError

log = logging.getLogger(__name__)

_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_PLACE = {
    *(*_FORBIDDEN, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENODEV, errno.ENXIO, errno.EOPNOTSUPP, errno.ENOLCK),
}  # of the system's errors: a path can be written to never, or not by this person
_LONGEST_NAME = 255  # bytes of one part of a path, on all usual file systems
_FULL = {errno.ENOSPC, errno.EDQUOT}
_PROBED_BYTES = 64 * 1024
_PATIENCE_S = 1.0  # for a lock that nobody waits for: whoever asks whether it is held holds it for a moment


def expanded(path: str | Path) -> Path:
    """A path as a person gives it, with the home folder in the place of ``~``.

    Raises:
        ConfigError: If there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        name = Path(path).parts[0]
        raise ConfigError(
            f"{path}: the home folder that {name} stands for is not known; write ./{name} if it is no user"
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the many ways in which libraries report a full disk or a place that cannot be written into one line."""
    try:
        yield
    except (ConfigError, RunError):
        raise
    except Exception as error:
        told = explained(error, path)
        if told is None:
            raise
        raise told from error


def explained(error: Exception, path: str | Path | None = None) -> ConfigError | RunError | None:
    """An error of the system's in a person's words, if it is about a full disk or about permissions; else None.

    Args:
        error: Of the system, or of a library that hides the system's.
        path: What was being written; None: the error may be about reading, and knows the file itself.
    """
    doing, file = ("read or write", getattr(error, "filename", None)) if path is None else ("write", path)
    if isinstance(error, OSError) and error.errno in (_FORBIDDEN if path is None else _NO_PLACE):
        remedy = "change its permissions" if path is None else "choose another folder or change its permissions"
        return ConfigError(f"cannot {doing} {file or 'a file'} ({error.strerror}); {remedy}")
    if _is_disk_full(error, path):
        where = f" while writing {file}" if file else ""
        return RunError(f"no space left on the device{where}; free some and start the same command again")
    return None


def check_writable(folder: Path, file: str = "") -> None:
    """Refuse a folder that could not be made or written to, or the name of a file in it; nothing is made.

    Raises:
        ConfigError: If nothing can be written there.
        RunError: If the disk is full.
    """
    with writing(folder / file):
        if any(len(os.fsencode(part)) > _LONGEST_NAME for part in (*folder.parts, file)):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        with TemporaryFile(dir=there):
            pass


def is_read_only(folder: Path) -> bool:
    """Whether a folder is there, and nothing can be written into it or beside it."""
    return folder.is_dir() and not all(os.access(path, os.W_OK) for path in (folder, folder.parent))


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is flushed to disk and renamed to ``path``.

    The file has the mode that the umask gives, whatever writes it. On failure the temporary file is removed and ``path`` is as
    it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
            mode = stat.S_IMODE(partial.stat().st_mode)
            yield partial
            partial.chmod(mode)  # safetensors puts a private file in its place
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        with suppress(OSError):  # where the folder cannot be looked into there is none, and that is told already
            partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``, which is not there; on success it gets that name, otherwise it is removed."""
    stage = path.with_name(f".{path.name}.partial")
    with writing(path):
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        try:
            yield stage
            stage.rename(path)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def check_readable(path: Path) -> None:
    """Refuse a file that may not be read, for libraries that then say something else.

    Raises:
        ConfigError: Says why.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}); change its permissions or give another file") from error


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes have left of writing one file, or any, in a folder; only while nobody else writes that.

    That is temporary files and folders, and the files of locks that nobody holds.
    """
    own, any_own = (".*", ".*") if name is None else (f".{escape(name)}", f".{escape(name)}.[0-9]*")
    with writing(folder):
        for partial in folder.glob(f"{any_own}.partial"):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        for lock in folder.glob(f"{own}.lock"):
            _remove_stale(lock)


def clear(path: Path, *beside: Path) -> None:
    """Remove what killed processes have left of writing a file or folder, or one ``beside`` it that its lock covers.

    Unless another one is at it just now, or the folder is read-only.
    """
    if any(path.parent.glob(f".{escape(path.name)}*")) or any(other.exists() for other in beside):
        with suppress(LockedError, ConfigError), locked(path, wait=False):
            for other in (path, *beside):
                remove_leftovers(other.parent, other.name)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json_lines(file: Path) -> list[Any]:
    """What the lines of a file are, each of them JSON that ends in a newline.

    Raises:
        ValueError: If one is none.
    """
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def sha256_of(file: Path, size: int | None = None, show: Callable[[int], object] = lambda _: None) -> str:
    """The SHA-256 of a file, or of its first ``size`` bytes, in hexadecimal; ``show`` is told how many bytes are done."""
    digest = sha256()
    left = file.stat().st_size if size is None else size
    with file.open("rb") as content:
        while piece := content.read(min(left, 1 << 20)):
            digest.update(piece)
            left -= len(piece)
            show(content.tell())
    return digest.hexdigest()


class LockedError(Exception):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of ``path``. It ends with the process however that ends, and child processes do not hold it.

    The lock is a hidden file beside ``path``, removed at the end.

    Raises:
        LockedError: If another process holds it and ``wait`` is false.
        ConfigError: If the folder cannot be written.
        RunError: If the disk is full.
    """
    file = _lock_file(path)
    lock = FileLock(file)
    try:
        with writing(path):
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
    """Whether a process holds the lock of ``path``; looks without writing, so that anybody may ask.

    On a file system without such locks its file is the lock, and there while it is held.
    """
    try:
        descriptor = os.open(_lock_file(path), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _remove_stale(lock: Path) -> None:
    """Remove a lock's file that its holder has left."""
    held = FileLock(lock)
    with suppress(Timeout), held.acquire(timeout=0):
        lock.unlink(missing_ok=True)


def _is_disk_full(error: Exception, path: str | Path | None) -> bool:
    """Whether a full disk or a quota is behind an error; torch and safetensors do not pass on the system's error number."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    if "No space left" in str(error) or path is None or not Path(path).parent.is_dir():
        return "No space left" in str(error)
    try:
        with TemporaryFile(dir=Path(path).parent) as file:  # what is free says nothing of a quota
            file.write(bytes(_PROBED_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as probe:
        return probe.errno in _FULL
    return False


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder and those around it; of what was made, what is empty at the end is removed again: nothing came of it."""
    with writing(folder):
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()


@contextmanager
def alone(file: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file that is about to be made, after removing what killed processes have left of it.

    Raises:
        LockedError: If another process holds it and ``wait`` is false.
        ConfigError: If the folder cannot be written.
        RunError: If the disk is full.
    """
    with made_folder(file.parent), locked(file, wait):
        remove_leftovers(file.parent, file.name)
        yield


def save_figure(figure: Any, paths: Sequence[Path]) -> None:
    """Write a figure of matplotlib into files, whose suffixes say the format; equal figures give equal files."""
    for path in paths:
        with atomic_path(path) as partial:
            metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
            figure.savefig(partial, format=path.suffix.removeprefix("."), dpi=150, metadata=metadata)
