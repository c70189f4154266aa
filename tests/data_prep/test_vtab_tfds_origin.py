"""Reading folders that TFDS prepared; all datasets here are written by TFDS itself."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

import tensorflow_datasets as tfds

from data_prep.vtab.records import Record, tfds_order
from data_prep.vtab.tasks import BUILDERS, TASKS
from data_prep.vtab.tfds_origin import open_tfds
from gift_vit.common.errors import ConfigError
from tests.data_prep.tiny_tfds import TinyDataset, edit_info, everything, opened, prepare, prepare_random, random_examples

READ = {"dsprites": ["label_x_position", "label_orientation"], "smallnorb": ["label_azimuth", "label_elevation"]}
PARTS = {"clevr": {"pixel_coords": np.float32}, "kitti": {"type": np.int64, "location": np.float32}}


def assert_same(found: list[Record], expected: list[Record]) -> None:
    assert len(found) == len(expected) > 0
    for left, right in zip(found, expected, strict=True):
        assert (left.key, left.image) == (right.key, right.image)
        np.testing.assert_equal(left.features, right.features)


@pytest.mark.parametrize("name", BUILDERS)
def test_keys_and_records_are_those_put_in_in_the_order_of_their_hashes(name: str, tiny_dataset: TinyDataset) -> None:
    tiny = tiny_dataset(name)
    origin = opened(name, tiny.data_dir)
    for split, examples in tiny.examples.items():
        assert origin.keys(split) == tfds_order(split, [key for key, _ in examples])
    for split in BUILDERS[name].counts:
        put_in = dict(tiny.examples[split])
        records = everything(origin, split)
        assert [record.key for record in records] == origin.keys(split)
        for record in records:
            example = put_in[record.key]
            assert record.image == example["image"]  # byte for byte, never decoded
            features = ["objects"] if name in PARTS else READ.get(name, ["label"])
            assert sorted(record.features) == sorted(features)
            for feature in features if name not in PARTS else []:
                assert record.features[feature] == example[feature]
                assert isinstance(record.features[feature], int)
            for part, dtype in PARTS.get(name, {}).items():  # arrays even where there are no objects
                found, objects = record.features["objects"][part], [each[part] for each in example["objects"]]
                assert (found.shape, found.dtype) == ((len(objects), 3) if dtype is np.float32 else (len(objects),), dtype)
                np.testing.assert_array_equal(found, np.array(objects, dtype).reshape(found.shape))


@pytest.mark.parametrize("name", BUILDERS)
def test_tfrecord_and_array_record_give_the_same(name: str, tiny_dataset: TinyDataset, tmp_path: Path) -> None:
    tiny = tiny_dataset(name)
    some = {split: examples[:12] for split, examples in tiny.examples.items()}
    names = opened(name, tiny.data_dir).class_names
    for file_format in ("tfrecord", "array_record"):
        known = {"label": names} if name == "cifar100" and names else None
        prepare(name, some, tmp_path / file_format, file_format, shards=3, names=known)
    tfrecord, array_record = (opened(name, tmp_path / kind) for kind in ("tfrecord", "array_record"))
    assert tfrecord.class_names == array_record.class_names == names
    for split, examples in some.items():
        assert tfrecord.keys(split) == array_record.keys(split) == tfds_order(split, [key for key, _ in examples])
        assert_same(everything(tfrecord, split), everything(array_record, split))


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_any_range_is_read_across_shards(file_format: str, tmp_path: Path) -> None:
    prepare_random("eurosat", {"train": 50}, tmp_path, file_format=file_format, shards=4)
    origin = opened("eurosat", tmp_path)
    assert len(list((tmp_path / "eurosat/rgb/2.0.0").glob(f"*.{file_format}-*-of-00004"))) == 4
    whole = everything(origin, "train")
    for start, stop in [(0, 50), (0, 1), (49, 50), (12, 13), (13, 37), (5, 5), (20, 50)]:
        assert [r.key for r in origin.records("train", range(start, stop))] == [r.key for r in whole[start:stop]]
    with pytest.raises(ConfigError, match=r"has 50 examples in train, not 51"):
        list(origin.records("train", range(49, 51)))


@pytest.mark.parametrize(("name", "version"), [("svhn_cropped", "3.0.0"), ("dsprites", "2.0.0"), ("smallnorb", "2.0.0")])
def test_without_ids_the_position_tells_the_key(name: str, version: str, tmp_path: Path) -> None:
    prepare_random(name, {"train": 60}, tmp_path / "old", version=version)
    prepare_random(name, {"train": 60}, tmp_path / "new")
    info = json.loads((tmp_path / "old" / name / version / "features.json").read_text())
    assert "id" not in info["featuresDict"]["features"]  # so this is indeed the old version
    old, new = opened(name, tmp_path / "old"), opened(name, tmp_path / "new")
    assert old.keys("train") == new.keys("train")
    assert_same(everything(old, "train"), everything(new, "train"))
    assert_same(list(old.records("train", range(20, 30))), everything(new, "train")[20:30])


@pytest.mark.parametrize(("name", "version"), [("oxford_iiit_pet", "3.2.0"), ("kitti", "3.2.0"), ("clevr", "3.0.0")])
def test_another_version_takes_its_place(name: str, version: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_in = prepare_random(name, {"train": 30}, tmp_path, version=version)["train"]
    with caplog.at_level(logging.INFO):
        origin = open_tfds(BUILDERS[name], tmp_path, None)
    assert f"{name}: reading version {version}, which is there; {BUILDERS[name].version} is not" in caplog.text
    assert origin.describe()["version"] == version
    assert origin.keys("train") == tfds_order("train", [key for key, _ in put_in])


def test_the_wanted_version_comes_first_then_the_newest(tmp_path: Path) -> None:
    for version in ("3.2.0", "3.10.0", "3.9.0"):
        prepare_random("kitti", {"train": 3}, tmp_path, version=version)
    (tmp_path / "kitti" / "incomplete.ABC_3.3.0").mkdir()
    assert opened("kitti", tmp_path).describe()["version"] == "3.10.0"
    assert opened("kitti", tmp_path, version="3.9.0").describe()["version"] == "3.9.0"


def test_a_version_without_the_needed_features_is_refused(tmp_path: Path) -> None:
    folder = prepare("kitti", random_examples("kitti", {"train": 3}), tmp_path)
    features = json.loads((folder / "features.json").read_text())
    del features["featuresDict"]["features"]["image/file_name"]
    del features["featuresDict"]["features"]["objects"]["sequence"]["feature"]["featuresDict"]["features"]["location"]
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(ConfigError, match=r"kitti/3\.3\.0 lacks the feature image/file_name, objects/location, .*move"):
        opened("kitti", tmp_path)


def test_folders_of_older_releases_name_no_format(tmp_path: Path) -> None:
    folder = prepare("dtd", random_examples("dtd", {"train": 20}), tmp_path, "tfrecord")
    edit_info(folder, lambda info: (info.pop("fileFormat"), [split.pop("filepathTemplate") for split in info["splits"]]))
    assert opened("dtd", tmp_path).describe()["file_format"] == "tfrecord"
    assert len(everything(opened("dtd", tmp_path), "train")) == 20


def test_parquet_is_refused(tmp_path: Path) -> None:
    prepare("dtd", random_examples("dtd", {"train": 5}), tmp_path, "parquet")
    with pytest.raises(ConfigError, match=r"dtd/3\.0\.1 was prepared as parquet, expected array_record or tfrecord"):
        opened("dtd", tmp_path)


def test_of_several_formats_one_that_can_be_read_is_chosen(tmp_path: Path) -> None:
    folder = prepare("dtd", examples := random_examples("dtd", {"train": 12}), tmp_path)
    edit_info(folder, lambda info: info.update(fileFormat="parquet", alternativeFileFormats=["array_record"]))
    assert opened("dtd", tmp_path).describe()["file_format"] == "array_record"
    assert opened("dtd", tmp_path).keys("train") == tfds_order("train", [key for key, _ in examples["train"]])


def test_class_names_where_the_label_has_them(tiny_dataset: TinyDataset) -> None:
    named = {name: opened(name, tiny_dataset(name).data_dir).class_names for name in BUILDERS}
    known = {"cifar100", "caltech101", "dtd", "oxford_flowers102", "oxford_iiit_pet", "sun397", "eurosat", "resisc45"}
    assert {name for name, names in named.items() if names} == known
    assert (named["eurosat"] or [""])[0] == "AnnualCrop"
    for task in TASKS.values():
        names = named[task.builder.name]
        assert names is None or len(names) == task.num_classes


def test_caltech_folders_keep_their_case_in_keys_only(tmp_path: Path) -> None:
    capitals = ["BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes", "accordion"]
    template = random_examples("caltech101", {"train": 1})["train"][0][1]
    template["image/file_name"] = "image_0001.jpg"
    keys = [f"{folder}/image_0001.jpg" for folder in capitals]
    labels = [{**template, "label": folder.lower()} for folder in capitals]
    prepare("caltech101", {"train": zip(keys, labels, strict=True)}, tmp_path)
    origin = opened("caltech101", tmp_path)
    assert origin.keys("train") == tfds_order("train", keys)
    assert "background_google" in (origin.class_names or [])


def test_description_names_versions_and_bytes_but_no_folder(tmp_path: Path) -> None:
    prepare_random("eurosat", {"train": 20}, tmp_path)
    origin = opened("eurosat", tmp_path)
    description = origin.describe()
    recorded = json.loads((tmp_path / "eurosat/rgb/2.0.0/dataset_info.json").read_text())["splits"][0]["numBytes"]
    expected = {"builder": "eurosat", "config": "rgb", "version": "2.0.0", "file_format": "array_record"}
    assert description.items() >= {**expected, "num_bytes_train": recorded}.items()
    assert description["tensorflow_datasets"].startswith("4.")
    assert str(tmp_path) not in json.dumps(description)
    assert origin.source == "tfds"


def test_nothing_is_printed(tiny_dataset: TinyDataset, capfd: pytest.CaptureFixture[str]) -> None:
    tiny = tiny_dataset("dtd")
    capfd.readouterr()
    everything(opened("dtd", tiny.data_dir), "test")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["eurosat", "kitti"])
def test_tensorflow_writes_and_reads_the_same_tfrecords(name: str, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    folder = prepare(name, random_examples(name, {"train": 60}), tmp_path, "tfrecord", shards=4)
    for path in folder.glob("*.tfrecord-*"):
        with tf.io.TFRecordWriter(str(tmp_path / "again")) as writer:
            for payload in tf.data.TFRecordDataset(str(path)):
                writer.write(payload.numpy())
        assert (tmp_path / "again").read_bytes() == path.read_bytes()
    builder: Any = tfds.builder_from_directory(str(folder))
    how = {"decoders": {"image": tfds.decode.SkipDecoding()}, "read_config": tfds.ReadConfig(interleave_cycle_length=1)}
    read = [example["image"].numpy() for example in builder.as_dataset(split="train", **how)]
    assert [record.image for record in everything(opened(name, tmp_path), "train")] == read
