"""Finding a builder's original files, in the folder a person points at or downloaded, and reading them, unpacked or zipped."""

from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from data_prep.archives import gunzip, gunzipped_from, open_zip, reading, unpack
from data_prep.download import RemoteFile, fetch, writable
from data_prep.vtab.original.files import FILES
from data_prep.vtab.tasks import Builder
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import clear


class FolderFiles:
    """Files in an unpacked folder, named by their relative path with slashes."""

    def __init__(self, root: Path):
        self._root = root

    def where(self, name: str) -> str:
        """The place of a file, for messages."""
        return str(self._root / name)

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files directly in a folder, without the hidden ones; empty where there is no such folder."""
        path = self._root / folder
        if not path.is_dir():
            return []
        return sorted(entry.name for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return (self._root / name).is_file()

    def read(self, name: str) -> bytes:
        """The file's bytes; a ConfigError if it is missing or cannot be read."""
        path = self._root / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"cannot read {path} ({error.strerror}); unpack the archive there again, or delete the folder to fetch it anew"
            ) from error


class ZipFiles:
    """The same for the files below the folder ``inside`` of a zip archive, which stays open."""

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
        """Sorted names of the members directly in a folder, without the hidden ones."""
        return self._folders.get(str(PurePosixPath(self._inside + folder)), [])

    def exists(self, name: str) -> bool:
        """Whether there is such a member."""
        return self._inside + name in self._members

    def read(self, name: str) -> bytes:
        """The member's bytes, whose CRC zipfile checks; a ConfigError if it is missing or damaged."""
        if not self.exists(name):
            raise ConfigError(f"{self.where(name)} is missing; delete the archive and fetch it again")
        with reading(self._path):
            return self._zip.read(self._inside + name)


Files: TypeAlias = FolderFiles | ZipFiles


class Place:
    """Where the original files of one builder are.

    Looked for in this order: what an earlier call unpacked, beside the archive or in ``downloads``; the archive in ``folder``
    or in ``downloads``, if it has the right size; unpacked by hand in ``folder`` (in the sub-folder the archive makes, or
    ``folder`` being that sub-folder), where another dataset may have files of the same names; the archive, fetched.

    Attributes:
        folders: Where to look: a person's folder, then the downloads.
        used: What was found, for the record: archives with their SHA-256, unpacked folders by name.
    """

    def __init__(self, builder: Builder, folder: Path | None, downloads: Path):
        self.builder = builder
        self.folder = folder
        self.downloads = downloads
        self.used: list[str] = []
        self.folders = [downloads] if folder is None else [folder, downloads]

    def file(self, name: str) -> Path:
        """A file of the builder's table, verified; downloaded where it is not in the folder."""
        remote, there = self._remote(name), self._there(name)
        path = fetch(remote, there.parent if there else self.downloads)
        self.used.append(f"{name} (SHA-256 {remote.sha256})")
        return path

    def gunzipped(self, name: str) -> Path:
        """The content of a ``.gz`` file, written beside it once, or to ``downloads`` where its folder is read-only."""
        plain = name.removesuffix(".gz")
        there = self._there(plain)
        if there is not None:
            clear(there)
            digest = gunzipped_from(there)
            self.used.append(f"{plain} (unpacked)" if digest is None else f"{name} (unpacked, SHA-256 {digest})")
            return there
        archive = self.file(name)
        target = writable(archive.parent, self.downloads) / plain
        gunzip(archive, target, str(self._remote(name).sha256))
        return target

    def unpacked(self, name: str, inside: str, marker: str) -> Path:
        """The folder ``inside`` ("" for all) of an archive, unpacked once into ``<archive>.unpacked`` where a ``.gz`` would be.

        ``marker`` is a glob pattern that matches something in that folder, by which it is recognised.
        """
        before = [folder / f"{name}.unpacked" for folder in self.folders]
        target = next((folder for folder in before if folder.is_dir()), None)
        if target is None:
            if by_hand := self._by_hand(name, inside, marker):
                return by_hand
            archive = self.file(name)
            target = writable(archive.parent, self.downloads) / f"{name}.unpacked"
            unpack(archive, target)
        else:
            clear(target)
            self.used.append(f"{name} (unpacked, SHA-256 {self._remote(name).sha256})")
        if not any((target / inside).glob(marker)):
            raise ConfigError(f"{target / inside / marker} is missing; delete {target}, and the archive is unpacked again")
        return target / inside

    def zipped(self, name: str, inside: str, marker: str) -> Files:
        """The files below ``inside`` of a zip archive, read in place; or of the same folder unpacked by hand.

        Raises:
            ConfigError: If the archive does not hold ``inside/marker``.
        """
        if by_hand := self._by_hand(name, inside, marker):
            return FolderFiles(by_hand)
        files = ZipFiles(self.file(name), inside)
        if not (files.exists(marker) or files.names(marker)):
            raise ConfigError(f"{files.where(marker)} is missing; this is not the {name} of {self._remote(name).url}")
        return files

    def _remote(self, name: str) -> RemoteFile:
        return next(file for file in FILES[self.builder.name] if file.name == name)

    def _there(self, name: str) -> Path | None:
        return next((folder / name for folder in self.folders if (folder / name).is_file()), None)

    def _by_hand(self, name: str, inside: str, marker: str) -> Path | None:
        """The unpacked folder in the person's folder, or that folder itself; None where the archive is there."""
        archive, size = self._there(name), self._remote(name).size
        if archive is not None and size in {None, archive.stat().st_size}:
            return None
        for candidate in dict.fromkeys([self.folder / inside, self.folder]) if self.folder else ():
            if any(candidate.glob(marker)):
                self.used.append(f"{candidate.name}/ (unpacked)")
                return candidate
        return None
