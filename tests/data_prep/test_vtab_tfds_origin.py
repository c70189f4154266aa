"""Reading folders that TFDS prepared, damaged ones too; all datasets here are written by TFDS itself."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorflow_datasets")

import tensorflow_datasets as tfds

from data_prep.vtab.tasks import BUILDERS, TASKS
from data_prep.vtab.tfds_origin import open_tfds
from gift_vit.common.errors import ConfigError
from tests.data_prep.archive_trees import cut
from tests.data_prep.tiny_tfds import TinyDataset, edit_info, everything, opened


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize("name", BUILDERS)
def test_records_are_those_put_in_in_the_order_of_their_hashes(
    name: str, file_format: str, tiny_dataset: TinyDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny = tiny_dataset(name)
    tiny.prepare(tmp_path, file_format)
    capfd.readouterr()
    origin = opened(name, tmp_path)
    assert set(BUILDERS[name].counts) <= set(tiny.examples)
    tiny.check(origin, tiny.examples)
    assert capfd.readouterr() == ("", "")
    assert (origin.source, origin.describe()["file_format"]) == ("tfds", file_format)
    for task in (task for task in TASKS.values() if task.builder.name == name):
        assert origin.class_names is None or len(origin.class_names) == task.num_classes
        assert all(0 <= task.label(record.features) < task.num_classes for record in everything(origin, "train"))


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_any_range_is_read_across_shards(file_format: str, tiny_dataset: TinyDataset, tmp_path: Path) -> None:
    tiny_dataset("eurosat").prepare(tmp_path, file_format, shards=4)
    origin = opened("eurosat", tmp_path)
    assert len(list((tmp_path / "eurosat/rgb/2.0.0").glob(f"*.{file_format}-*-of-00004"))) == 4
    whole = everything(origin, "train")
    for start, stop in [(0, 30), (0, 1), (29, 30), (7, 8), (7, 23), (5, 5), (12, 30)]:
        assert [r.key for r in origin.records("train", range(start, stop))] == [r.key for r in whole[start:stop]]
    with pytest.raises(ConfigError, match=r"has 30 examples in train, not 31"):
        list(origin.records("train", range(29, 31)))


@pytest.mark.parametrize(("name", "version"), [("svhn_cropped", "3.0.0"), ("dsprites", "2.0.0"), ("smallnorb", "2.0.0")])
def test_without_ids_the_position_tells_the_key(name: str, version: str, tiny_dataset: TinyDataset, tmp_path: Path) -> None:
    tiny = tiny_dataset(name)
    folder = tiny.prepare(tmp_path, version=version)
    features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
    assert "id" not in features  # so this is indeed the old version
    old = opened(name, tmp_path)
    tiny.check(old, ["train"])
    assert [record.key for record in old.records("train", range(10, 20))] == old.keys("train")[10:20]


@pytest.mark.parametrize(("name", "version"), [("oxford_iiit_pet", "3.2.0"), ("kitti", "3.2.0"), ("clevr", "3.0.0")])
def test_another_version_takes_its_place(
    name: str, version: str, tiny_dataset: TinyDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = tiny_dataset(name)
    tiny.prepare(tmp_path, version=version)
    with caplog.at_level(logging.INFO):
        origin = open_tfds(BUILDERS[name], tmp_path, None)
    assert f"{name}: reading version {version}, which is there; {BUILDERS[name].version} is not" in caplog.text
    assert origin.describe()["version"] == version
    tiny.check(origin, ["train"])


def test_the_wanted_version_comes_first_then_the_newest(tiny_dataset: TinyDataset, tmp_path: Path) -> None:
    for version in ("3.2.0", "3.10.0", "3.9.0"):
        tiny_dataset("kitti").prepare(tmp_path, version=version)
    (tmp_path / "kitti" / "incomplete.ABC_3.3.0").mkdir()
    assert opened("kitti", tmp_path).describe()["version"] == "3.10.0"
    assert opened("kitti", tmp_path, version="3.9.0").describe()["version"] == "3.9.0"


def test_what_cannot_be_read_is_refused(tiny_dataset: TinyDataset, tmp_path: Path) -> None:
    """A version without the needed features, an absent split, TFDS's Parquet."""
    folder = tiny_dataset("kitti").prepare(tmp_path)
    with pytest.raises(ConfigError, match=r"kitti/3\.3\.0 has no split extra, but train, validation, test; prepare it again"):
        opened("kitti", tmp_path).keys("extra")
    features = json.loads((folder / "features.json").read_text())
    del features["featuresDict"]["features"]["image/file_name"]
    del features["featuresDict"]["features"]["objects"]["sequence"]["feature"]["featuresDict"]["features"]["location"]
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(ConfigError, match=r"kitti/3\.3\.0 lacks the feature image/file_name, objects/location, .*move"):
        opened("kitti", tmp_path)
    tiny_dataset("dtd").prepare(tmp_path, "parquet")
    with pytest.raises(ConfigError, match=r"dtd/3\.0\.1 was prepared as parquet, expected array_record or tfrecord"):
        opened("dtd", tmp_path)


def test_formats_that_older_releases_do_not_name_or_that_are_several(tiny_dataset: TinyDataset, tmp_path: Path) -> None:
    tiny = tiny_dataset("dtd")
    folder = tiny.prepare(tmp_path / "old", "tfrecord")
    edit_info(folder, lambda info: (info.pop("fileFormat"), [split.pop("filepathTemplate") for split in info["splits"]]))
    folder = tiny.prepare(tmp_path / "several")
    edit_info(folder, lambda info: info.update(fileFormat="parquet", alternativeFileFormats=["array_record"]))
    for where, file_format in (("old", "tfrecord"), ("several", "array_record")):
        origin = opened("dtd", tmp_path / where)
        assert origin.describe()["file_format"] == file_format
        tiny.check(origin, ["train"])


def test_description_names_versions_and_bytes_but_no_folder(tiny_dataset: TinyDataset) -> None:
    tiny = tiny_dataset("eurosat")
    description = opened("eurosat", tiny.data_dir).describe()
    recorded = json.loads((tiny.data_dir / "eurosat/rgb/2.0.0/dataset_info.json").read_text())["splits"][0]["numBytes"]
    expected = {"builder": "eurosat", "config": "rgb", "version": "2.0.0", "file_format": "array_record"}
    assert description.items() >= {**expected, "num_bytes_train": recorded}.items()
    assert description["tensorflow_datasets"].startswith("4.")
    assert str(tiny.data_dir) not in json.dumps(description)


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


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["eurosat", "kitti"])
def test_tensorflow_writes_and_reads_the_same_tfrecords(name: str, tiny_dataset: TinyDataset, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    folder = tiny_dataset(name).prepare(tmp_path, "tfrecord")
    for path in folder.glob("*.tfrecord-*"):
        with tf.io.TFRecordWriter(str(tmp_path / "again")) as writer:
            for payload in tf.data.TFRecordDataset(str(path)):
                writer.write(payload.numpy())
        assert (tmp_path / "again").read_bytes() == path.read_bytes()
    builder: Any = tfds.builder_from_directory(str(folder))
    read = builder.as_dataset(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    assert [record.image for record in everything(opened(name, tmp_path), "train")] == [row["image"].numpy() for row in read]
