"""The registry, the checks every dataset passes, and what the kinds share."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import (
    FileSource,
    SubsetSource,
    VisionDataset,
    build_dataset,
    fingerprint,
)
from gift_vit.data.config import CONFIGS, KINDS, DigitsConfig, FolderConfig, ParquetConfig
from gift_vit.data.kinds.digits import ArraySource
from gift_vit.data.own import split_off
from gift_vit.data.splitting import stratified_split


def source(labels: list[int]) -> ArraySource:
    """One-pixel images whose grey value is their position."""
    pixels = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1)
    return ArraySource(pixels, np.asarray(labels, dtype=np.int64))


def dataset(**splits: list[int]) -> VisionDataset:
    return VisionDataset("toy", 3, None, {name: source(labels) for name, labels in splits.items()}, "")


def positions(data: VisionDataset, split: str) -> list[int]:
    part = data.splits[split]
    assert isinstance(part, SubsetSource)
    return part.indices.tolist()


def test_every_kind_has_one_reader_of_its_name_and_only_configs_are_built() -> None:
    assert set(CONFIGS) >= {"digits", "folder", "parquet", "split_lists", "vtab1k"}
    for kind in CONFIGS:
        assert KINDS.get(kind).__module__ == f"gift_vit.data.kinds.{kind}"
    with pytest.raises(
        ConfigError, match=r"unknown dataset kind 'parkuet'; did you mean parquet\? \(known: .*folder, glue, parquet"
    ):
        KINDS.get("parkuet")
    with pytest.raises(ConfigError, match=r"dict is not a dataset config .*DigitsConfig"):
        build_dataset({})  # pyright: ignore[reportArgumentType]


def test_a_dataset_that_contradicts_itself() -> None:
    for label in (-1, 3):
        message = rf"dataset toy: label {label} of image 2 in its val split is outside 0\.\.2 \(3 classes\)"
        with pytest.raises(ConfigError, match=message):
            dataset(train=[0, 1, 2], val=[0, 1, label, label])
    with pytest.raises(ConfigError, match="dataset toy: its test split holds no images"):
        dataset(train=[0, 1, 2], test=[])
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


@pytest.mark.parametrize("cls", [FolderConfig, ParquetConfig])
def test_the_name_tells_the_folder(make_config: Callable[..., Any], cls: type) -> None:
    kind = cls.__name__.removesuffix("Config").lower()
    for root, last in (("/data/My Birds (2024)", "my_birds_2024"), ("/b/birds/", "birds"), ("~/x/../y", "y"), ("/", "images")):
        assert make_config(cls, name=kind, root=root).name == f"{kind}_{last}"
        assert make_config(cls, name="birds", root=root).name == "birds"


@pytest.mark.parametrize("seed", range(4))
def test_the_stratified_split_is_scikit_learns(seed: int) -> None:
    """The same images, and a refusal in the same cases; in equal remainders lots are drawn."""
    draw, split = np.random.default_rng(seed), 0
    for _ in range(150):
        classes, images = int(draw.integers(1, 30)), int(draw.integers(2, 300))
        labels = draw.choice(classes, images, p=draw.dirichlet(np.full(classes, 3.0)))
        size: Any = draw.choice([0.1, 0.2, 0.25, 1 / 3, 0.5]) if seed % 2 else int(draw.integers(1, images))
        try:
            expected = train_test_split(np.arange(images), test_size=size, stratify=labels, random_state=seed)
        except ValueError:
            with pytest.raises(ValueError, match=r"classes|one image only"):
                stratified_split(labels, size, seed)
            continue
        split += 1
        for found, indices in zip(stratified_split(labels, size, seed), expected, strict=True):
            np.testing.assert_array_equal(found, np.sort(indices))
    assert split > 20


def toy(seed: int) -> FolderConfig:
    return FolderConfig(name="toy", root="/nowhere", split_seed=seed)


def test_val_is_split_off_in_proportion_and_classes_of_one_image_cannot_be_split() -> None:
    labels = [0] * 50 + [1] * 30 + [2] * 20
    train, val, said = split_off(toy(7), "val", "train", source(labels), 0.2)
    assert said == "split off train: 20 of 100, stratified, seed 7"
    assert np.bincount(val.labels).tolist() == [10, 6, 4]
    assert sorted([*train.indices, *val.indices]) == list(range(100))
    assert val.indices.tolist() != split_off(toy(8), "val", "train", source(labels), 0.2)[1].indices.tolist()
    image, label = val[3]
    assert (image.getpixel((0, 0)), label) == ((int(val.indices[3]),) * 3, int(val.labels[3]))
    message = (
        r"dataset toy: cannot split dataset\.val_fraction=0\.2 of its 15 training images.*: "
        "class dog has one image only; add others or remove it, or give a val split"
    )
    with pytest.raises(ConfigError, match=message):
        split_off(toy(0), "val", "train", source([0] * 14 + [1]), 0.2, ["cat", "dog"])


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
    changed = [brighter, source([0, 1, 2]), SubsetSource(first, np.array([0, 2, 1]))]
    others = [*({"train": train, "val": second} for train in changed), {"train": first, "test": second}, {"train": first}]
    assert len({reference, *(fingerprint(splits) for splits in others)}) == 6


def test_the_sample_is_spread_evenly_over_a_split() -> None:
    first = source([0] * 40)
    one_brighter = first.images + np.eye(40, dtype=np.uint8)[..., None, None]
    others = [ArraySource(images, first.labels) for images in one_brighter]
    before, *after = (VisionDataset("toy", 1, None, {"train": images}, "").sample for images in (first, *others))
    sampled = [index for index, found in enumerate(after) if found != before]
    assert (len(sampled), sampled[0], sampled[-1]) == (16, 0, 39)
    assert set(np.diff(sampled)) == {2, 3}


def test_files_that_are_not_there_are_counted(tmp_path: Any) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    paths = ["a.png", "dangling.png", "no/such/folder.png", "a.png/inside.png"]
    link = r"image .*/dangling\.png is a link to .*/gone\.png, which is not there \(3 of 4 listed in .*/list are missing\); ask"
    with pytest.raises(ConfigError, match=link):
        FileSource(tmp_path, paths, [0] * 4, tmp_path / "list", "; ask")


def test_digits_are_scikit_learns_each_in_one_split(make_config: Callable[..., Any]) -> None:
    digits = build_dataset(make_config(DigitsConfig))
    sizes = {"train": 800, "val": 200, "test": 797}
    assert {name: len(part) for name, part in digits.splits.items()} == sizes
    assert sorted(index for split in sizes for index in positions(digits, split)) == list(range(1797))
    assert (digits.num_classes, digits.class_names) == (10, list("0123456789"))
    pixels, labels = load_digits(return_X_y=True)  # values 0..16, (1797, 64)
    for split, size in sizes.items():
        part = digits.split(split)
        np.testing.assert_allclose(np.bincount(part.labels), np.bincount(labels) / 1797 * size, atol=1.5)
        for position in (0, 57, size - 1):
            index = positions(digits, split)[position]
            image, label = part[position]
            assert (image.mode, image.size) == ("RGB", (8, 8))
            assert label == part.labels[position] == labels[index]
            expected = np.floor(pixels[index].reshape(8, 8) * 15.9375 + 0.5)
            np.testing.assert_array_equal(np.asarray(image), np.repeat(expected[..., None], 3, axis=2))


def test_the_seed_draws_the_split_of_digits(make_config: Callable[..., Any]) -> None:
    first, again, other = (build_dataset(make_config(DigitsConfig, split_seed=seed)) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert positions(first, "test") != positions(other, "test")
    rest, (_, labels) = np.setdiff1d(np.arange(1797), positions(other, "test")), load_digits(return_X_y=True)
    _, val = train_test_split(rest, test_size=200, stratify=labels[rest], random_state=1)
    assert positions(other, "val") == sorted(val)
