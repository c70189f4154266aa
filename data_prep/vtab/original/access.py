"""Reading single files out of an unpacked folder or, by random access, out of a zip archive."""

from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Protocol

from data_prep.archives import open_zip, reading
from gift_vit.errors import ConfigError


class Files(Protocol):
    """Files below one root, named by their relative path with slashes."""

    def where(self, name: str) -> str:
        """The place of a file, for messages."""
        ...

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files directly in ``folder``, without the folder; empty where there is no such folder."""
        ...

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        ...

    def read(self, name: str) -> bytes:
        """The file's bytes.

        Raises:
            ConfigError: If it is missing or cannot be read.
        """
        ...


class FolderFiles:
    """Files in an unpacked folder."""

    def __init__(self, root: Path):
        self._root = root

    def where(self, name: str) -> str:
        """The path of a file."""
        return str(self._root / name)

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files in a folder; hidden ones are left out."""
        path = self._root / folder
        if not path.is_dir():
            return []
        return sorted(entry.name for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return (self._root / name).is_file()

    def read(self, name: str) -> bytes:
        """The file's bytes."""
        path = self._root / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"cannot read {path} ({error.strerror}); unpack the archive there again, or delete the folder to fetch it anew"
            ) from error


class ZipFiles:
    """Files below the folder ``inside`` of a zip archive, which stays open."""

    def __init__(self, archive: Path, inside: str = ""):
        self._path = archive
        self._inside = f"{inside}/" if inside else ""
        self._zip = open_zip(archive)
        self._members = {name for name in self._zip.namelist() if name.startswith(self._inside) and not name.endswith("/")}
        self._folders: dict[str, list[str]] = defaultdict(list)
        for member in sorted(self._members):
            path = PurePosixPath(member)
            if not path.name.startswith("."):
                self._folders[str(path.parent)].append(path.name)

    def where(self, name: str) -> str:
        """Archive and member."""
        return f"{self._path}:{self._inside}{name}"

    def names(self, folder: str) -> list[str]:
        """Sorted names of the members directly in a folder; hidden ones are left out."""
        return self._folders.get(str(PurePosixPath(self._inside + folder)), [])

    def exists(self, name: str) -> bool:
        """Whether there is such a member."""
        return self._inside + name in self._members

    def read(self, name: str) -> bytes:
        """The member's bytes; zipfile checks their CRC."""
        if not self.exists(name):
            raise ConfigError(f"{self.where(name)} is missing; delete the archive and fetch it again")
        with reading(self._path):
            return self._zip.read(self._inside + name)
