"""Finding a builder's original files: in the folder a person points at, as archives or unpacked, or downloaded."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.archives import gunzip, unpack
from data_prep.download import RemoteFile, fetch
from data_prep.vtab.original.access import Files, FolderFiles, ZipFiles
from data_prep.vtab.original.files import FILES
from gift_vit.errors import ConfigError


class Place:
    """Where the original files of one builder are.

    Looked for in this order: unpacked in ``folder`` (in the sub-folder the archive makes, or ``folder`` being that sub-folder);
    unpacked by an earlier call beside the archive; the archive in ``folder``; the archive in ``downloads``, fetched if need be.

    Attributes:
        used: What was found, for the record: archives with their SHA-256, unpacked folders by name.
    """

    def __init__(self, builder: str, folder: Path | None, downloads: Path):
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"archives={folder} is not a folder; expected the one that holds the files of {builder}")
        self.builder = builder
        self.folder = folder
        self.downloads = downloads
        self.used: list[str] = []

    def file(self, name: str) -> Path:
        """A file of the builder's table, verified; downloaded where it is not in the folder."""
        remote = self._remote(name)
        here = self.folder is not None and (self.folder / name).is_file()
        path = fetch(remote, self.folder if here and self.folder is not None else self.downloads)
        self.used.append(f"{name} (SHA-256 {remote.sha256})")
        return path

    def gunzipped(self, name: str) -> Path:
        """The content of a ``.gz`` file, written beside it once."""
        plain = name.removesuffix(".gz")
        for folder in self._folders():
            if (folder / plain).is_file():
                self.used.append(f"{plain} (unpacked)")
                return folder / plain
        archive = self.file(name)
        target = archive.with_name(plain)
        gunzip(archive, target)
        return target

    def unpacked(self, name: str, inside: str, marker: str) -> Path:
        """The folder ``inside`` of an archive, unpacked into ``<archive>.unpacked`` once.

        Args:
            name: The archive.
            inside: A folder in it, or "".
            marker: A glob pattern that matches something in that folder, by which it is recognised.
        """
        by_hand = self._by_hand(inside, marker)
        if by_hand is not None:
            return by_hand
        target = next(self._unpacked_before(name), None)
        if target is None:
            archive = self.file(name)
            target = archive.with_name(_unpacked_name(name))
            unpack(archive, target)
        else:
            self.used.append(f"{name} (unpacked, SHA-256 {self._remote(name).sha256})")
        if not any((target / inside).glob(marker)):
            raise ConfigError(f"{target / inside / marker} is missing; delete {target}, and the archive is unpacked again")
        return target / inside

    def zipped(self, name: str, inside: str, marker: str) -> Files:
        """The files below ``inside`` of a zip archive, read in place; or of the same folder unpacked by hand.

        Raises:
            ConfigError: If the archive does not hold ``inside/marker``.
        """
        by_hand = self._by_hand(inside, marker)
        if by_hand is not None:
            return FolderFiles(by_hand)
        files = ZipFiles(self.file(name), inside)
        if not (files.exists(marker) or files.names(marker)):
            raise ConfigError(f"{files.where(marker)} is missing; this is not the {name} of {self._remote(name).url}")
        return files

    def _remote(self, name: str) -> RemoteFile:
        return next(file for file in FILES[self.builder] if file.name == name)

    def _folders(self) -> list[Path]:
        return [self.downloads] if self.folder is None else [self.folder, self.downloads]

    def _by_hand(self, inside: str, marker: str) -> Path | None:
        """The unpacked folder in the person's folder, or that folder itself."""
        if self.folder is None:
            return None
        for candidate in dict.fromkeys([self.folder / inside, self.folder]):
            if any(candidate.glob(marker)):
                self.used.append(f"{candidate.name}/ (unpacked)")
                return candidate
        return None

    def _unpacked_before(self, name: str) -> Iterator[Path]:
        return (folder / _unpacked_name(name) for folder in self._folders() if (folder / _unpacked_name(name)).is_dir())


def _unpacked_name(archive: str) -> str:
    return f"{archive}.unpacked"
