"""Truncated, damaged, incomplete folders of TFDS: one line each that names the file."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("tensorflow_datasets")

from gift_vit.common.errors import ConfigError
from tests.data_prep.archive_trees import cut
from tests.data_prep.tiny_tfds import TinyDataset, edit_info, everything, opened

Change = Callable[[Path], object]


def shard(change: Callable[[bytes], bytes]) -> Change:
    """Changes the bytes of the one file of train."""

    def apply(folder: Path) -> None:
        (path,) = folder.glob("dtd-train.*-of-00001")
        path.write_bytes(change(path.read_bytes()))

    return apply


def bit_of(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([data[place] ^ 1]) + data[place:][1:]


def recorded(number: int) -> Change:
    """Says of train that it has that many."""
    return lambda folder: edit_info(
        folder, lambda info: next(s for s in info["splits"] if s["name"] == "train").update(shardLengths=[str(number)])
    )


AGAIN, SHARD = r"cannot read .*dtd/3\.0\.1.*: .*copy it again", r"cannot read .*dtd-train\.tfrecord-00000-of-00001: "
# the format, what happens to the folder of 12 records, and what is said
DAMAGE: list[tuple[str, Change, str]] = [
    ("array_record", shard(cut(0)), r"cannot read .*dtd-train\.array_record-00000-of-00001: .*copy it again"),
    ("array_record", shard(cut(0.5)), AGAIN),
    ("array_record", shard(cut(0.999)), AGAIN),
    ("array_record", shard(bit_of(7000)), r"cannot read .*dtd-train.*(hash mismatch|Corrupted)"),
    ("array_record", lambda folder: next(folder.glob("dtd-train.*")).unlink(), r"cannot read .*dtd-train.*No such file"),
    ("array_record", recorded(11), "holds 12 records, expected 11"),
    ("array_record", recorded(13), "holds 12 records, expected 13"),
    ("array_record", lambda folder: (folder / "dataset_info.json").write_text('{"name": "dtd", '), AGAIN),
    ("array_record", lambda folder: (folder / "features.json").unlink(), AGAIN),
    ("tfrecord", recorded(11), SHARD + ".*bytes follow the last of its 11 records"),
    ("tfrecord", recorded(13), SHARD + ".*ends before record 12"),
    ("tfrecord", shard(lambda data: data[:-1]), SHARD + ".*within record 11"),
    ("tfrecord", shard(lambda data: data + b"x"), SHARD + ".*1 bytes follow"),
    ("tfrecord", shard(cut(0)), SHARD + ".*ends before record 0"),
    ("tfrecord", shard(lambda data: b"\xff" * 8 + data[8:]), SHARD + ".*(within|checksum of) record 0"),
    ("tfrecord", shard(lambda data: data[:12] + b"\xff" * 48 + data[60:]), SHARD),
    *[("tfrecord", shard(bit_of(place)), SHARD + ".*checksum of record 0 differs") for place in (3, 9, 200)],
    ("tfrecord", shard(bit_of(-2)), SHARD + ".*checksum of record 11 differs"),
]


@pytest.mark.parametrize(("file_format", "change", "message"), DAMAGE)
def test_a_damaged_folder(file_format: str, change: Change, message: str, tiny_dataset: TinyDataset, tmp_path: Path) -> None:
    folder = tiny_dataset("dtd").prepare(tmp_path, file_format)
    assert len(everything(opened("dtd", tmp_path), "train")) == 12
    change(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        everything(opened("dtd", tmp_path), "train")
    assert "\n" not in str(caught.value)
