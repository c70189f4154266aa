"""DMLab: TFRecord files of serialised examples in a tar archive, read without TensorFlow."""

import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data_prep.vtab.original.origin import OriginalOrigin, Row, Table
from data_prep.vtab.original.places import Place
from data_prep.vtab.tasks import Builder
from gift_vit.errors import ConfigError

logger = logging.getLogger(__name__)

_HEADER = struct.Struct("<QI")  # payload's length, its checksum; the payload and 4 bytes of checksum follow
_FOOTER_SIZE = 4
_VARINT, _BYTES = 0, 2  # wire types of protocol buffers
_INTEGERS = 3  # the field of a feature


class _Place(NamedTuple):
    path: Path
    start: int
    size: int


class _Example(NamedTuple):
    name: str
    image: bytes
    label: int


def dmlab(builder: Builder, place: Place) -> OriginalOrigin:
    """DMLab; the key is the example's ``filename``, the image its JPEG as stored."""
    root = place.unpacked("dmlab.tar.gz", "", "dmlab-train.tfrecord*")

    def table(split: str) -> Callable[[], Table]:
        return lambda: _table(root, split)

    return OriginalOrigin(builder, {split: table(split) for split in ("train", "validation", "test")}, None, place.used)


def _table(root: Path, split: str) -> Table:
    """Reads every record once, for its file name; only places are kept."""
    paths = sorted(root.glob(f"dmlab-{split}.tfrecord*"))
    if not paths:
        raise ConfigError(f"{root} holds no dmlab-{split}.tfrecord files; unpack the archive again, or delete the folder")
    places, keys = [], []
    for path in paths:
        logger.info("reading the file names in %s", path)
        with path.open("rb") as file:
            for place in _records(path, file):
                places.append(place)
                keys.append(_example(file, place).name)

    def read(rows: Sequence[int]) -> Iterator[Row]:
        with ExitStack() as stack:
            files = {path: stack.enter_context(path.open("rb")) for path in paths}
            for row in rows:
                example = _example(files[places[row].path], places[row])
                yield example.image, {"label": example.label}

    return Table(keys, read)


def _records(path: Path, file: BinaryIO) -> Iterator[_Place]:
    """The records of a TFRecord file.

    Raises:
        ConfigError: If it ends within a record.
    """
    size = path.stat().st_size
    start = 0
    while start < size:
        file.seek(start)
        header = file.read(_HEADER.size)
        length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else size
        start += _HEADER.size + length + _FOOTER_SIZE
        if start > size:
            raise ConfigError(f"{path} ends within a record, or is damaged before its end; unpack the archive again")
        yield _Place(path, start - _FOOTER_SIZE - length, length)


def _example(file: BinaryIO, place: _Place) -> _Example:
    file.seek(place.start)
    try:
        values = parse_example(file.read(place.size))
        name, image, label = _message(values["filename"]), _message(values["image"]), values["label"]
        if not isinstance(label, int):
            raise ValueError("a label that is no number")
        return _Example(name.decode(), image, label)
    except (ValueError, IndexError, KeyError, StopIteration) as error:
        raise ConfigError(f"{place.path} is damaged at byte {place.start} ({error!r}); unpack the archive again") from error


def parse_example(payload: bytes) -> dict[str, bytes | int]:
    """The first value of each feature of a serialised ``tf.train.Example``; floats are not supported.

    Source: ``example.proto`` and ``feature.proto`` of TensorFlow: an example's field 1 is a map (fields 1 key, 2 value) of
    features, whose field 1 is a list of bytes, field 3 a list of integers; a list's field 1 are its values.
    """
    values: dict[str, bytes | int] = {}
    for _, entry in _fields(_message(dict(_fields(payload))[1])):
        parts = dict(_fields(_message(entry)))
        kind, listed = next(_fields(_message(parts[2])))
        _, first = next(_fields(_message(listed)))
        packed = kind == _INTEGERS and isinstance(first, bytes)
        values[_message(parts[1]).decode()] = _varint(_message(first), 0)[0] if packed else first
    return values


def _message(value: bytes | int) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where a message is expected")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field of a message."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        value, position = _varint(message, position)
        if tag & 7 == _VARINT:
            yield tag >> 3, value
        elif tag & 7 == _BYTES and position + value <= len(message):
            yield tag >> 3, message[position : position + value]
            position += value
        else:
            raise ValueError(f"a field of wire type {tag & 7} or cut off")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """An integer of seven bits per byte, lowest first, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
