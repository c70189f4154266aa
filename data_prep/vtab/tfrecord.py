"""Reading TFRecord files without TensorFlow.

A record is: its length (8 bytes, little endian), the masked CRC-32C of these 8 bytes (4), the payload, the masked CRC-32C of
the payload (4).
"""

import importlib
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from gift_vit.common.errors import ConfigError

HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")  # around the payload


def read_tfrecords(path: Path, start: int, stop: int, length: int) -> Iterator[bytes]:
    """The payloads of the records from ``start`` to before ``stop`` of a file of ``length`` records.

    Checksums are compared where google-crc32c is installed: in pure Python they would take longer than all the rest.

    Raises:
        ConfigError: If the file ends within or before these records, goes on after all of them, or a checksum differs.
    """
    total = path.stat().st_size
    with path.open("rb") as file:
        for index in range(stop):
            header = file.read(HEADER.size)
            if len(header) < HEADER.size:
                raise ConfigError(f"the file ends before record {index}")
            size, checksum = HEADER.unpack(header)
            _compare(header[:8], checksum, index)
            if size > total - file.tell() - FOOTER.size:
                raise ConfigError(f"the file ends within record {index}, or what precedes it is damaged")
            if index < start:
                file.seek(size + FOOTER.size, 1)
                continue
            payload = file.read(size)
            _compare(payload, FOOTER.unpack(file.read(FOOTER.size))[0], index)
            yield payload
        if stop == length and file.tell() != total:
            raise ConfigError(f"{total - file.tell()} bytes follow the last of its {length} records")


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
