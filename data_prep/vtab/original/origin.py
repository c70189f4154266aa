"""An origin made of tables: each source split is a list of keys and a way to read chosen rows of it."""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.vtab.original.places import Files, Place
from data_prep.vtab.records import Key, Record, tfds_order
from gift_vit.common.errors import ConfigError

logger = logging.getLogger(__name__)

_LIBRARIES = ["numpy", "PIL", "scipy", "h5py", "cv2"]

Row = tuple[bytes, Mapping[str, Any]]


@dataclass(frozen=True)
class Table:
    """One source split in the order of its files.

    Attributes:
        keys: What TFDS hashes, row by row.
        read: Takes rows and yields their encoded image and features, in the order asked for.
    """

    keys: Sequence[Key]
    read: Callable[[Sequence[int]], Iterator[Row]]


class OriginalOrigin:
    """The source splits of one builder, read from the dataset's original files; a table is opened when it is first needed."""

    source = "original"

    def __init__(self, place: Place, tables: Mapping[str, Callable[[], Table]], class_names: list[str] | None = None):
        self.class_names = class_names
        self._builder, self._files = place.builder, place.used
        self._open = tables
        self._tables: dict[str, Table] = {}
        self._orders: dict[str, list[Key]] = {}

    def keys(self, split: str) -> list[Key]:
        """All keys of a split, in TFDS's stored order.

        Raises:
            ConfigError: If the split's files cannot be read, or hold two examples of the same key.
        """
        if split not in self._orders:
            keys = self._table(split).keys
            if len(set(keys)) != len(keys):
                raise ConfigError(
                    f"{self._builder.name}: the files of split {split} name an example twice; expected unique keys"
                )
            self._orders[split] = tfds_order(split, keys)
        return self._orders[split]

    def records(self, split: str, positions: range) -> Iterator[Record]:
        """The records at ``positions`` of the stored order; only these are read and encoded."""
        table, keys = self._table(split), self.keys(split)[positions.start : positions.stop : positions.step]
        wanted = set(keys)
        row_of = {key: row for row, key in enumerate(table.keys) if key in wanted}
        for key, (image, features) in zip(keys, table.read([row_of[key] for key in keys]), strict=True):
            yield Record(key, image, features)

    def describe(self) -> dict[str, str]:
        """Builder, the TFDS version whose examples these are, files with their SHA-256, library versions."""
        facts = {"builder": self._builder.name, "version": self._builder.version, "files": "; ".join(self._files)}
        if self._builder.config is not None:
            facts["config"] = self._builder.config
        return {**facts, **{library: module.__version__ for library in _LIBRARIES if (module := sys.modules.get(library))}}

    def _table(self, split: str) -> Table:
        if split not in self._tables:
            logger.info("%s: reading split %s", self._builder.name, split)
            self._tables[split] = self._open[split]()
        return self._tables[split]


@dataclass(frozen=True)
class Entry:
    """A row of a table of files: key, file, features."""

    key: Key
    file: str
    features: Mapping[str, Any]


def file_table(files: Files, entries: list[Entry], listed_in: str) -> Table:
    """A table of image files, whose bytes are taken as they are.

    Raises:
        ConfigError: If files are missing: the archive was unpacked half-way.
    """
    missing = [entry.file for entry in entries if not files.exists(entry.file)]
    if missing:
        raise ConfigError(
            f"{len(missing)} of the {len(entries)} images listed in {listed_in} are missing, the first is "
            f"{files.where(missing[0])}; unpack the archive again, or delete the folder to have the archive fetched"
        )

    def read(rows: Sequence[int]) -> Iterator[Row]:
        return ((files.read(entries[row].file), entries[row].features) for row in rows)

    return Table([entry.key for entry in entries], read)
