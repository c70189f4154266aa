"""The order in which TFDS stores the examples of a split; VTAB-1k's 1000 images are ranges of it."""

import hashlib
from collections.abc import Iterable

from data_prep.vtab.records import Key


def tfds_order(split: str, keys: Iterable[Key]) -> list[Key]:
    """Sort the keys of a split as TFDS does: ascending MD5 of the split's name and the key.

    It depends on nothing else: not on the file format, the shards or TFDS's version. TFDS reads backslashes in keys as slashes.
    """
    salt = hashlib.md5(split.encode())

    def digest(key: Key) -> bytes:
        salted = salt.copy()
        salted.update(str(key).replace("\\", "/").encode())
        return salted.digest()  # big endian: bytes compare as the 128-bit numbers do

    return sorted(keys, key=digest)
