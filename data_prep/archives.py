"""Unpacking archives: every member stays inside the target, and the target appears complete or not at all."""

import gzip
import json
import os
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from data_prep.download import identity
from data_prep.progress import transfer
from gift_vit.common.errors import ConfigError, a_few
from gift_vit.common.files import alone, atomic_path, write_json, writing

Wanted = Callable[[str], bool]

_CHUNK = 1 << 20
_TAR_BLOCK = 512
_LONGEST_NAME = 255  # bytes of one part of a path
_DAMAGES = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError)


def unpack(archive: Path, target: Path, *, members: Wanted = lambda _: True) -> None:
    """Unpack a ``.tar`` (plain or compressed) or ``.zip`` into the folder ``target``; one that is there is left as it is.

    The kind is told by the content, not by the name. A single top-level folder is kept. Files are left out unless ``members``
    says of their path in the archive that they are wanted. Where another process unpacks to the same place, this one waits.

    Raises:
        ConfigError: If the archive is missing, damaged or cut short, a member would leave the target or is a device, no
            file is wanted, or the target cannot be written.
        RunError: If the disk is full.
    """
    with _making(target) as absent:
        if absent:
            _unpack(archive, target, members)


def gunzip(archive: Path, target: Path, digest: str | None = None) -> None:
    """Decompress a single ``.gz`` file to ``target``, unless it is there; raises what :func:`unpack` does.

    The archive's SHA-256, if given, is noted for :func:`gunzipped_from`.
    """
    with _making(target) as absent:
        if absent:
            with (
                _opened(archive) as (file, show),
                atomic_path(target) as partial,
                reading(archive),
                gzip.open(file) as source,
                partial.open("wb") as out,
            ):
                while chunk := source.read(_CHUNK):
                    out.write(chunk)
                    show(file.tell())
                if not out.tell():
                    raise EOFError("it is empty")
                out.flush()
                if digest is not None:  # noted before the file itself is there
                    write_json(_note(target), identity(partial, archive_sha256=digest))


def gunzipped_from(path: Path) -> str | None:
    """The SHA-256 of the archive that a file was decompressed from here; None if it was not, or has changed since."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        note = json.loads(_note(path).read_bytes())
        return note["archive_sha256"] if note == identity(path, archive_sha256=note["archive_sha256"]) else None
    return None


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.source.json")


def open_zip(archive: Path) -> zipfile.ZipFile:
    """Open a zip, or raise a ConfigError; read its members within :func:`reading`, which tells of damage inside."""
    with _readable(archive), reading(archive):
        return zipfile.ZipFile(archive)


@contextmanager
def reading(archive: Path) -> Iterator[None]:
    """Turn the many ways in which libraries report a damaged archive into one ConfigError."""
    try:
        yield
    except (*_DAMAGES, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, not the decompressor's
        what = next(iter(str(error).splitlines()), type(error).__name__).rstrip(":")
        remedy = "delete it and fetch it again"
        raise ConfigError(f"{archive} is damaged, incomplete or no archive of its kind ({what}); {remedy}") from error


@contextmanager
def _making(target: Path) -> Iterator[bool]:
    """While nobody else makes the target: whether it is still to be made."""
    with writing(target), alone(target):
        yield not os.path.lexists(target)


@contextmanager
def _readable(archive: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(
            f"cannot read {archive} ({error.strerror}); put the archive there or change its permissions"
        ) from error


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[IO[bytes], Callable[[int], None]]]:
    """The archive's bytes, and what to tell how many of them are read."""
    with _readable(archive):
        file = archive.open("rb")
    with file, transfer(f"unpacking {archive.name}", archive.stat().st_size) as show:
        yield file, show


def _unpack(archive: Path, target: Path, wanted: Wanted) -> None:
    """Unpack beside the target and rename."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    at_top: set[str] = set()

    def noted(member: str) -> bool:
        at_top.add(member.partition("/")[0])
        return wanted(member)

    try:
        with _opened(archive) as (file, show), reading(archive):
            partial.mkdir()
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            empty = True
            for _ in (_unpack_zip if is_zip else _unpack_tar)(file, partial, noted):
                empty = False
                show(file.tell())
        if empty:
            top = f" (at its top: {a_few(sorted(at_top))})" if at_top else ""
            raise ConfigError(f"{archive} holds none of the files that are needed{top}; is it the right archive?")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack_tar(file: IO[bytes], folder: Path, wanted: Wanted) -> Iterator[None]:
    """Unpack, yielding once each file is written."""
    if not hasattr(tarfile, "data_filter"):
        raise ConfigError(f"Python {sys.version.split()[0]} cannot unpack safely; use 3.10.12, 3.11.4, 3.12 or newer")
    with tarfile.open(fileobj=file, mode="r:*") as tar:
        for member in tar:
            if not member.isdir() and wanted(member.name.removeprefix("./")):
                _refuse(file.name, member.name, _misplaced(folder, member.name) or _misleading(folder, member))
                try:
                    tar.extract(member, folder, filter="data")
                except tarfile.FilterError as error:
                    _refuse(file.name, member.name, str(error))
                yield
        _check_end(tar)


def _check_end(tar: tarfile.TarFile) -> None:
    """Tell a tar's end from damage, which :mod:`tarfile` takes for the end; reading all of it checks its compression.

    Raises:
        tarfile.ReadError: If the tar ends otherwise than by a block of zeros.
    """
    source = tar.fileobj
    assert source is not None
    source.seek(tar.offset)
    if source.read(_TAR_BLOCK) != bytes(_TAR_BLOCK):
        raise tarfile.ReadError(f"no header and no end at byte {tar.offset}")
    try:
        while source.read(_CHUNK):
            pass
    except gzip.BadGzipFile as error:
        if "Not a gzipped file" not in str(error):  # bytes after the end, which gunzip too overlooks
            raise


def _unpack_zip(file: IO[bytes], folder: Path, wanted: Wanted) -> Iterator[None]:
    """Unpack, yielding once each file is written."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.is_dir() and wanted(member.filename):
                is_file = stat.S_IFMT(member.external_attr >> 16) in {0, stat.S_IFREG}
                why = _misplaced(folder, member.filename) if is_file else "it is a link or a device"
                _refuse(file.name, member.filename, why)
                if member.flag_bits & 1:
                    raise ConfigError(f"{file.name} is encrypted ({member.filename}); get it without a password")
                archive.extract(member, folder)
                yield


def _misplaced(folder: Path, name: str) -> str | None:
    """Why nothing may be written there: it is elsewhere, or beyond a link that an earlier member has made."""
    path = PurePosixPath(name)
    if not path.parts:
        return "it has no name"
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts) or "\0" in name:
        return f"no file can have its name (parts of at most {_LONGEST_NAME} bytes)"
    if path.is_absolute() or ".." in path.parts:
        return "its path would leave the folder it is unpacked to"
    if any((folder / place).is_symlink() for place in (path, *path.parents[:-1])):
        return "its path leads through a symbolic link"
    if (folder / path).is_dir() or any((folder / place).is_file() for place in path.parents):
        return "another member makes a folder of this file, or a file of its folder"
    return None


def _misleading(folder: Path, member: tarfile.TarInfo) -> str | None:
    """Why a hard link is wrong: it must be to a file that is unpacked. Where symbolic links lead, tarfile checks."""
    if member.islnk() and (_misplaced(folder, member.linkname) or not (folder / member.linkname).is_file()):
        return f"it is a hard link to {member.linkname!r}, which is not a file unpacked before it"
    return None


def _refuse(archive: str, name: str, why: str | None) -> None:
    """Raise a ConfigError about a member if there is a reason."""
    if why is not None:
        what = f"its member {name!r}: {why}; get the archive from its official source"
        raise ConfigError(f"{archive} is refused because of {what}")
