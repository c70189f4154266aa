"""The registry, the checks every dataset passes, and what the kinds share."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gift_vit.data import DATASETS, DigitsConfig, TransformConfig, VisionDataset, build_dataset, get_dataset, register_dataset
from gift_vit.data.digits import ArraySource
from gift_vit.data.sources import FileSource, SubsetSource, fingerprint, split_off_val
from gift_vit.errors import ConfigError


def source(labels: list[int]) -> ArraySource:
    """One-pixel images whose grey value is their position."""
    pixels = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1)
    return ArraySource(pixels, np.asarray(labels, dtype=np.int64))


def dataset(**splits: list[int]) -> VisionDataset:
    return VisionDataset("toy", 3, None, {name: source(labels) for name, labels in splits.items()}, "")


def test_registry_knows_its_kinds() -> None:
    assert {"digits", "folder", "parquet", "split_lists"} <= set(DATASETS)
    for kind, spec in DATASETS.items():
        assert spec.kind == kind
        assert get_dataset(kind) is spec


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown dataset kind 'parkuet'; did you mean parquet\? \(known: .*folder, parquet"):
        get_dataset("parkuet")


def test_a_kind_is_registered_once() -> None:
    before = dict(DATASETS)
    with pytest.raises(ValueError, match="'digits' or its DigitsConfig is registered already"):
        register_dataset("digits", DigitsConfig)(lambda cfg: cfg)
    with pytest.raises(ValueError, match="'more' or its DigitsConfig is registered already"):
        register_dataset("more", DigitsConfig)(lambda cfg: cfg)
    assert before == DATASETS


def test_only_dataset_configs_are_built() -> None:
    with pytest.raises(ConfigError, match=r"dict is not a dataset config .*DigitsConfig"):
        build_dataset({})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_named(label: int) -> None:
    message = rf"dataset toy: label {label} of image 2 in its val split is outside 0\.\.2 \(3 classes\)"
    with pytest.raises(ConfigError, match=message):
        dataset(train=[0, 1, 2], val=[0, 1, label, label])


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(ConfigError, match="dataset toy: its test split holds no images"):
        dataset(train=[0, 1, 2], test=[])


def test_class_names_agree_with_the_number_of_classes() -> None:
    with pytest.raises(ConfigError, match="dataset toy: num_classes=3, but the data names 2 classes"):
        VisionDataset("toy", 3, ["a", "b"], {"train": source([0])}, "")


def test_trainval_is_train_then_val() -> None:
    toy = dataset(train=[0, 1, 2], val=[2, 1])
    both = toy.split("trainval")
    assert both.labels.tolist() == [0, 1, 2, 2, 1]
    assert len(both) == 5
    read = [(image.getpixel((0, 0)), label) for image, label in (both[index] for index in range(5))]
    assert read == [((0, 0, 0), 0), ((1, 1, 1), 1), ((2, 2, 2), 2), ((0, 0, 0), 2), ((1, 1, 1), 1)]
    assert toy.split("val") is toy.splits["val"]


@pytest.mark.parametrize(("asked", "named"), [("test", "test"), ("trainval", "val"), ("tset", "tset")])
def test_an_absent_split_is_named(asked: str, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"dataset toy has no {named} split \(it has train\)"):
        dataset(train=[0]).split(asked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_ratio": 0.0}, r"dataset\.transform\.crop_ratio=0\.0"),
        ({"crop_ratio": 1.5}, r"dataset\.transform\.crop_ratio=1\.5"),
        ({"random_crop": True}, "has nothing to crop"),
        ({"hflip": 1.1}, r"dataset\.transform\.hflip=1\.1.*0 to 1"),
        ({"hflip": -0.1}, r"dataset\.transform\.hflip=-0\.1"),
        ({"resize": "cubic"}, "resize=cubic.*bilinear, bicubic, tf1_bilinear"),
    ],
)
def test_transform_values_are_checked(transform_config: TransformConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(transform_config, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "My birds"}, "dataset.name='My birds'"),
        ({"benchmark": "imagenet"}, "dataset.benchmark=imagenet.*fgvc, vtab1k, mini, own"),
        ({"num_classes": 0}, "dataset.num_classes=0"),
        ({"split_seed": -1}, "dataset.split_seed=-1"),
    ],
)
def test_dataset_values_are_checked(make_config: Callable[..., Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(DigitsConfig, **change)


def test_val_is_split_off_in_proportion() -> None:
    labels = [0] * 50 + [1] * 30 + [2] * 20
    train, val = split_off_val("toy", source(labels), 0.2, 7)
    assert np.bincount(val.labels).tolist() == [10, 6, 4]
    assert sorted([*train.indices, *val.indices]) == list(range(100))
    assert (np.diff(train.indices) > 0).all()
    assert (np.diff(val.indices) > 0).all()
    again, other = split_off_val("toy", source(labels), 0.2, 7)[1], split_off_val("toy", source(labels), 0.2, 8)[1]
    assert val.indices.tolist() == again.indices.tolist()
    assert val.indices.tolist() != other.indices.tolist()
    image, label = val[3]
    assert (image.getpixel((0, 0)), label) == ((int(val.indices[3]),) * 3, int(val.labels[3]))


def test_a_class_too_small_to_split_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"dataset toy: cannot split dataset\.val_fraction=0\.2 of its 5 training images.*give a val"
    ):
        split_off_val("toy", source([0, 0, 0, 0, 1]), 0.2, 0)


def test_fingerprint_is_this_hash_and_sees_every_change() -> None:
    first, second = source([0, 1, 1]), source([2])
    expected = hashlib.sha256()
    for header, contents, labels in ((b"train 3\n", [b"\0", b"\1", b"\2"], [0, 1, 1]), (b"val 1\n", [b"\0"], [2])):
        expected.update(header)
        for content in contents:
            expected.update(b"\1" + b"\0" * 7 + content)
        expected.update(b"".join(label.to_bytes(8, "little") for label in labels))
    reference = fingerprint({"train": first, "val": second})
    assert reference == expected.hexdigest()
    brighter = ArraySource(first.images + 1, first.labels)
    changed = [
        {"train": brighter, "val": second},
        {"train": source([0, 1, 2]), "val": second},
        {"train": SubsetSource(first, np.array([0, 2, 1])), "val": second},
        {"train": first, "test": second},
        {"train": first},
    ]
    assert len({reference, *(fingerprint(splits) for splits in changed)}) == 6


def test_files_that_are_not_there_are_counted(tmp_path: Any) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    paths = ["a.png", "dangling.png", "no/such/folder.png", "a.png/inside.png"]
    with pytest.raises(ConfigError, match=r"image .*/dangling\.png is not there \(3 of 4 listed in .*/list are missing\); ask"):
        FileSource(tmp_path, paths, [0] * 4, tmp_path / "list", "; ask")
