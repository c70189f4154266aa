"""Reading TFRecord files without TensorFlow.

A record is: its length (8 bytes, little endian), the masked CRC-32C of these 8 bytes (4), the payload, the masked CRC-32C of
the payload (4).
"""

import importlib
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

from gift_vit.errors import ConfigError

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")


def read_tfrecords(path: Path, start: int, stop: int, length: int) -> Iterator[bytes]:
    """The payloads of the records from ``start`` to before ``stop`` of a file of ``length`` records.

    Checksums are compared where google-crc32c is installed: in pure Python they would take longer than all the rest.

    Raises:
        ConfigError: If the file ends within or before these records, goes on after all of them, or a checksum differs.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        for index in range(stop):
            bytes_ahead = _payload_size(file, index, size)
            if index < start:
                file.seek(bytes_ahead + _FOOTER.size, 1)
                continue
            yield _payload(file, bytes_ahead, index)
        if stop == length and file.tell() != size:
            raise ConfigError(f"{size - file.tell()} bytes follow the last of its {length} records")


def _payload_size(file: BinaryIO, index: int, size: int) -> int:
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise ConfigError(f"the file ends before record {index}")
    payload_size, checksum = _HEADER.unpack(header)
    _compare(header[:8], checksum, index)
    if payload_size > size - file.tell() - _FOOTER.size:
        raise ConfigError(f"the file ends within record {index}, or what precedes it is damaged")
    return payload_size


def _payload(file: BinaryIO, size: int, index: int) -> bytes:
    payload = file.read(size)
    (checksum,) = _FOOTER.unpack(file.read(_FOOTER.size))
    _compare(payload, checksum, index)
    return payload


def _compare(data: bytes, masked: int, index: int) -> None:
    crc32c = _crc32c()
    if crc32c is None:
        return
    checksum = crc32c(data)
    if ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF != masked:
        raise ConfigError(f"the checksum of record {index} differs")


@cache
def _crc32c() -> Callable[[bytes], int] | None:
    try:
        return importlib.import_module("google_crc32c").value
    except ImportError:
        return None
