"""DMLab: TFRecord files of serialised examples in a tar archive, read without TensorFlow."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO

from data_prep.vtab.original.origin import OriginalOrigin, Row, Table
from data_prep.vtab.original.places import Place
from data_prep.vtab.tfrecord import FOOTER, HEADER
from gift_vit.common.errors import ConfigError

logger = logging.getLogger(__name__)

_VARINT, _BYTES = 0, 2  # wire types of protocol buffers
_INTEGERS = 3  # the field of a feature


def dmlab(place: Place) -> OriginalOrigin:
    """DMLab; the key is the example's ``filename``, the image its JPEG as stored."""
    root = place.unpacked("dmlab.tar.gz", "", "dmlab-train.tfrecord*")
    return OriginalOrigin(place, {split: partial(_table, root, split) for split in ("train", "validation", "test")})


def _table(root: Path, split: str) -> Table:
    """Reads every record once, for its file name; only path, start and size of each are kept."""
    paths = sorted(root.glob(f"dmlab-{split}.tfrecord*"))
    if not paths:
        raise ConfigError(f"{root} holds no dmlab-{split}.tfrecord files; unpack the archive again, or delete the folder")
    places, keys = [], []
    for path in paths:
        logger.info("reading the file names in %s", path)
        with path.open("rb") as file:
            for start, size in _records(path, file):
                places.append((path, start, size))
                keys.append(_example(path, file, start, size)[0])

    def read(rows: Sequence[int]) -> Iterator[Row]:
        with ExitStack() as stack:
            files = {path: stack.enter_context(path.open("rb")) for path in paths}
            for row in rows:
                path, start, size = places[row]
                _, image, label = _example(path, files[path], start, size)
                yield image, {"label": label}

    return Table(keys, read)


def _records(path: Path, file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Where the payload of each record of a TFRecord file starts, and its size; a ConfigError if the file ends within one."""
    total, end = path.stat().st_size, 0
    while end < total:
        file.seek(end)
        header = file.read(HEADER.size)
        size = HEADER.unpack(header)[0] if len(header) == HEADER.size else total
        start = end + HEADER.size
        end = start + size + FOOTER.size
        if end > total:
            raise ConfigError(f"{path} ends within a record, or is damaged before its end; unpack the archive again")
        yield start, size


def _example(path: Path, file: BinaryIO, start: int, size: int) -> tuple[str, bytes, int]:
    """File name, image and label."""
    file.seek(start)
    try:
        values = parse_example(file.read(size))
        name, image, label = _message(values["filename"]), _message(values["image"]), values["label"]
        if not isinstance(label, int):
            raise ValueError("a label that is no number")
        return name.decode(), image, label
    except (ValueError, IndexError, KeyError, StopIteration) as error:
        raise ConfigError(f"{path} is damaged at byte {start} ({error!r}); unpack the archive again") from error


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
