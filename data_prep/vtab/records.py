"""What every route to a VTAB-1k task has in common: the source splits of one TFDS builder, as keyed records in stored order."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Key: TypeAlias = int | str


@dataclass(frozen=True)
class Record:
    """One example of a builder.

    Attributes:
        key: What TFDS hashes to order the examples of a split.
        image: The encoded image (PNG or JPEG), as stored.
        features: The values a task's label rule reads, by TFDS's feature names: ``{"label": 3}``,
            ``{"objects": {"pixel_coords": (n, 3)}}``.
    """

    key: Key
    image: bytes
    features: Mapping[str, Any]


class Origin(Protocol):
    """The source splits of one builder, in the order in which TFDS stores them."""

    @property
    def source(self) -> str:
        """``tfds`` or ``original``."""
        ...

    @property
    def class_names(self) -> list[str] | None:
        """Names of the builder's own ``label``, where it has them."""
        ...

    def keys(self, split: str) -> list[Key]:
        """All keys of a split, in stored order."""
        ...

    def records(self, split: str, positions: range) -> Iterator[Record]:
        """The records at ``positions`` of the stored order, in that order.

        Raises:
            ConfigError: If a record cannot be read; names the file.
        """
        ...

    def describe(self) -> dict[str, str]:
        """Where the records come from: builder, version, library versions, files."""
        ...


def tfds_order(split: str, keys: Iterable[Key]) -> list[Key]:
    """Sort the keys of a split as TFDS does: ascending MD5 of the split's name and the key. The tasks are ranges of this order.

    It depends on nothing else: not on the file format, the shards or TFDS's version. TFDS reads backslashes in keys as slashes.
    """
    salt = hashlib.md5(split.encode())

    def digest(key: Key) -> bytes:
        salted = salt.copy()
        salted.update(str(key).replace("\\", "/").encode())
        return salted.digest()  # big endian: bytes compare as the 128-bit numbers do

    return sorted(keys, key=digest)
