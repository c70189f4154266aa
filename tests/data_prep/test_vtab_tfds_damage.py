"""Truncated, damaged, incomplete folders of TFDS: one line each that names the file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("tensorflow_datasets")

from gift_vit.common.errors import ConfigError
from tests.data_prep.tiny_tfds import TinyDataset, edit_info, everything, opened, prepare, prepare_random, random_examples

Change = Callable[[Path], object]


def shard(change: Callable[[bytes], bytes]) -> Change:
    """Changes the bytes of the one file of train."""

    def apply(folder: Path) -> None:
        (path,) = folder.glob("dtd-train.*-of-00001")
        path.write_bytes(change(path.read_bytes()))

    return apply


def cut(share: float) -> Change:
    return shard(lambda data: data[: int(share * len(data))])


def flip(offset: int, bits: int = 0xFF) -> Change:
    return shard(lambda data: data[:offset] + bytes([data[offset] ^ bits]) + data[offset:][1:])


def recorded(number: int) -> Change:
    return lambda folder: edit_info(folder, lambda info: info["splits"][0].update(shardLengths=[str(number)]))


AGAIN, SHARD = r"cannot read .*dtd/3\.0\.1.*: .*copy it again", r"cannot read .*dtd-train\.tfrecord-00000-of-00001: "
ARRAY_RECORD: dict[str, tuple[Change, str]] = {
    "empty": (cut(0), r"cannot read .*dtd-train\.array_record-00000-of-00001: .*copy it again"),
    "half": (cut(0.5), AGAIN),
    "all but the end": (cut(0.999), AGAIN),
    "damaged": (flip(7000), r"cannot read .*dtd-train.*(hash mismatch|Corrupted)"),
    "missing": (lambda folder: next(folder.glob("dtd-train.*")).unlink(), r"cannot read .*dtd-train.*No such file"),
    "one more than recorded": (recorded(819), "holds 820 records, expected 819"),
    "one less than recorded": (recorded(821), "holds 820 records, expected 821"),
    "no description": (lambda folder: (folder / "dataset_info.json").write_text('{"name": "dtd", '), AGAIN),
    "no features": (lambda folder: (folder / "features.json").unlink(), AGAIN),
}
TFRECORD: dict[str, tuple[Change, str]] = {
    "one more than recorded": (recorded(19), SHARD + ".*bytes follow the last of its 19 records"),
    "one less than recorded": (recorded(21), SHARD + ".*ends before record 20"),
    "a byte less": (shard(lambda data: data[:-1]), SHARD + ".*within record 19"),
    "a byte more": (shard(lambda data: data + b"x"), SHARD + ".*1 bytes follow"),
    "empty": (cut(0), SHARD + ".*ends before record 0"),
    "a length that is nonsense": (shard(lambda data: b"\xff" * 8 + data[8:]), SHARD + ".*(within|checksum of) record 0"),
    "no example": (shard(lambda data: data[:12] + b"\xff" * 48 + data[60:]), SHARD),
    **{f"a bit of record 0, {offset}": (flip(offset, 1), SHARD + ".*checksum of record 0 differs") for offset in (3, 9, 200)},
    "a bit of the last record": (flip(-2, 1), SHARD + ".*checksum of record 19 differs"),
}


def check_refused(data_dir: Path, damage: tuple[Change, str]) -> None:
    change, message = damage
    change(data_dir / "dtd/3.0.1")
    with pytest.raises(ConfigError, match=message) as caught:
        everything(opened("dtd", data_dir), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ARRAY_RECORD)
def test_a_damaged_folder_of_array_records(name: str, tiny_dataset: TinyDataset, tmp_path: Path) -> None:
    shutil.copytree(tiny_dataset("dtd").data_dir / "dtd", tmp_path / "dtd")
    check_refused(tmp_path, ARRAY_RECORD[name])


@pytest.mark.parametrize("name", TFRECORD)
def test_a_damaged_folder_of_tfrecords(name: str, tmp_path: Path) -> None:
    prepare("dtd", random_examples("dtd", {"train": 20}), tmp_path, "tfrecord")
    assert len(everything(opened("dtd", tmp_path), "train")) == 20
    check_refused(tmp_path, TFRECORD[name])


def test_a_missing_split(tmp_path: Path) -> None:
    prepare_random("dtd", {"train": 5}, tmp_path)
    with pytest.raises(ConfigError, match=r"dtd/3\.0\.1 has no split test, but train; prepare it again"):
        opened("dtd", tmp_path).keys("test")
