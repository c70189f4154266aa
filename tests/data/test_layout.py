"""Which split a name stands for, for folders, Parquet and CSV files alike; and what is refused by its name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import VisionDataset, build_dataset
from gift_vit.data.config import CONFIGS
from gift_vit.data.layout import kind_of, split_named

Make = Callable[..., Any]
Read = Callable[..., VisionDataset]
KINDS = ("folder", "parquet", "csv")


@pytest.fixture
def read(make_config: Make) -> Read:
    """``read(kind, root, **values)``: the dataset."""

    def of_kind(kind: str, root: Path, **values: Any) -> VisionDataset:
        files = {} if kind == "folder" else {"files": dict.fromkeys(("train", "val", "test"))}
        return build_dataset(make_config(CONFIGS[kind], root=root, **(files | values)))

    return of_kind


@pytest.fixture
def put(tmp_path: Path, png: Callable[[int], bytes], write_parquet: Callable[..., Path]) -> Callable[..., None]:
    """``put(kind, name, count=2)``: that many images, of the classes ``a`` and ``b`` in turns, under that name."""
    seeds = iter(range(10_000))

    def one(kind: str, name: str, count: int = 2) -> None:
        images = [png(next(seeds)) for _ in range(count)]
        if kind == "parquet":
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            write_parquet(tmp_path / f"{name}.parquet", images, [index % 2 for index in range(count)])
            return
        folder = tmp_path / (name if kind == "folder" else f".images of {name}")
        for index, image in enumerate(images):
            file = folder / "ab"[index % 2] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image)
        if kind == "csv":
            lines = [f"{folder.name}/{'ab'[index % 2]}/{index}.png,{'ab'[index % 2]}" for index in range(count)]
            (tmp_path / f"{name}.csv").write_text("\n".join(["image,label", *lines]))

    return one


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((name, "train") for name in ("train", "Training", "TRAIN", "train_set", "Training Set", " train ")),
        *((name, "val") for name in ("val", "valid", "VALIDATION", "dev", "development", "val-set")),
        *((name, "test") for name in ("test", "Testing", "TestSet")),
        *((name, None) for name in ("trainval", "train_small", "train2", "holdout", "eval", "set", "", "cat", "tests")),
    ],
)
def test_usual_names(name: str, split: str | None) -> None:
    assert split_named(name) == split


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_names_for_every_kind(tmp_path: Path, put: Make, read: Read, kind: str) -> None:
    for name, count in (("Training", 6), ("VALID", 4), ("testing", 2)):
        put(kind, name, count)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / ".DS_Store").write_bytes(b"")
    assert kind_of(tmp_path) == kind
    dataset = read(kind, tmp_path)
    assert {split: len(source) for split, source in dataset.splits.items()} == {"train": 6, "val": 4, "test": 2}
    assert all(source.labels.tolist() == [0, 1] * (len(source) // 2) or kind == "folder" for source in dataset.splits.values())


@pytest.mark.parametrize(
    ("folders", "lists", "kind"),
    [
        (["images"], ["train.csv", "val.csv"], "csv"),
        (["images", "masks"], ["Training.tsv"], "csv"),
        (["images"], ["labels.csv"], "csv"),
        (["train", "test"], ["train.csv"], "csv"),  # pictures lie in them, and no class folders
        (["cat", "dog"], ["labels.csv"], "folder"),
        (["train/cat", "train/dog"], ["train.csv"], "folder"),
        (["images"], [], "folder"),
        (["cat", "dog", "tables"], ["tables/some.parquet"], "folder"),
        (["train"], ["train/some.parquet"], "parquet"),
    ],
)
def test_lists_beside_folders(tmp_path: Path, folders: list[str], lists: list[str], kind: str) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    for name in lists:
        (tmp_path / name).write_text("image,label\n")
    assert kind_of(tmp_path) == kind


@pytest.mark.parametrize("name", ["lines.jsonl", "lines.JSON"])
def test_a_file_of_texts_is_no_images(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "a", "label": 0}\n')
    with pytest.raises(ConfigError, match="expected a folder of images, a CSV or a Parquet file; train with dataset=text"):
        kind_of(tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "val", "validation"), r"/val\S* and \S*/validation\S* are both val by their names; keep one of them"),
        (("train", "Train"), r"/Train\S* and \S*/train\S* are both train by their names"),
        (
            ("train", "holdout"),
            r"the (folder|file) \S*/holdout\S* is of no known split, and stands beside train \(known names: ",
        ),
        (("train", "train_small"), r"/train_small\S* is of no known split"),
        (("train", "trainval"), r"/trainval\S* is of no known split"),
        (("val", "test"), r"has test, val, but no (folder|file) named train"),
    ],
)
def test_names_that_are_refused(tmp_path: Path, put: Make, read: Read, kind: str, names: Any, message: str) -> None:
    for name in names:
        put(kind, name)
    with pytest.raises(ConfigError, match=message):
        read(kind, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test.zip", r"/test\.zip is an archive, and test by its name; unpack it, or move it elsewhere"),
        ("Testing.tar.gz", r"/Testing\.tar\.gz is an archive, and test by its name"),
        ("test.xlsx", r"/test\.xlsx is a spreadsheet, and test by its name; save it as CSV, or move it elsewhere"),
    ],
)
def test_a_split_that_lies_there_packed_is_refused(
    tmp_path: Path, put: Make, read: Read, kind: str, name: str, message: str
) -> None:
    for split in ("train", "val"):
        put(kind, split)
    (tmp_path / "train.zip").touch()  # what was unpacked may stay
    read(kind, tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=message):
        read(kind, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_without_splits_test_and_val_are_split_off(tmp_path: Path, put: Make, read: Read, kind: str) -> None:
    root = tmp_path
    put(kind, "everything", 50)
    if kind == "folder":
        root = tmp_path / "everything"
    dataset = read(kind, root, split_seed=3)
    counts = {split: np.bincount(source.labels).tolist() for split, source in dataset.splits.items()}
    assert counts == {"train": [16, 16], "val": [4, 4], "test": [5, 5]}
    assert dataset.origins["test"].drawn == "split off all images: 10 of 50, stratified, seed 3"
    assert dataset.origins["val"].drawn == "split off train: 8 of 40, stratified, seed 3"
    everything = [source.stored(index) for source in dataset.splits.values() for index in range(len(source))]
    assert len(set(everything)) == 50
    assert read(kind, root, split_seed=3).fingerprint == dataset.fingerprint != read(kind, root).fingerprint
    more = read(kind, root, test_fraction=0.4)
    assert {split: len(source) for split, source in more.splits.items()} == {"train": 24, "val": 6, "test": 20}


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (["data/train-00000-of-00002", "data/train-00001-of-00002", "data/validation-00000-of-00001"], [20, 10]),
        (["train-00000-of-00002-0123456789abcdef", "train-00001-of-00002-fedcba9876543210", "test"], [16, 4, 10]),
        (["TRAIN-0-OF-2", "TRAIN-1-OF-2", "val"], [20, 10]),
        (["train/0000", "train/0001", "test/0000"], [16, 4, 10]),
        (["train/2019", "train/2021", "val/1", "val/2", "test/a0", "test/b2"], [20, 20, 20]),  # years; from 1; two forms
        (["train-1-of-2", "train-0-of-2", "dev"], [20, 10]),
    ],
)
def test_shards_as_hubs_write_them(tmp_path: Path, put: Make, read: Read, names: list[str], sizes: list[int]) -> None:
    for name in names:
        put("parquet", name, 10)
    dataset = read("parquet", tmp_path)
    assert [len(source) for source in dataset.splits.values()] == sizes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00002"], r"lacks train-00001-of-00002\.parquet \(1 of 2 shards\)"),
        (["train-00004-of-00005"], r"lacks train-00000-of-00005\.parquet, .*-00002-of-00005\.parquet and 1 more \(4 of 5"),
        (["train-00000-of-00001", "train-00001-of-00001"], r"train-00001-of-00001\.parquet is one too many"),
        (["train-00000-of-00002", "train-00001-of-00003"], "disagree on how many shards there are"),
        (["train-00000-of-00001-0123456789abcdef", "train-00000-of-00001"], "are the same shard"),
        (["train", "data/train"], r"/train\.parquet and \S*data/train\.parquet are both train by their names"),
        (["train", "train-00000-of-00001"], "disagree on how many shards"),
        (["one", "two"], r"holds one\.parquet, two\.parquet, which are of no split"),
        (["train/00000-of-00002"], r"train lacks 00001-of-00002\.parquet"),
        (["train/0000", "train/0002"], r"train lacks 0001\.parquet, by the numbers of its 2 files; .* dataset\.files=…"),
        (
            ["train/part-1-a7-c0.snappy", "train/part-7-a7-c0.snappy"],
            r"lacks part-2-a7-c0\.snappy\.parquet, part-3-a7.* and 2 more",
        ),
        (["config/train"], r"there are no files that end in \.parquet in"),
    ],
)
def test_shards_that_are_refused(tmp_path: Path, put: Make, read: Read, names: list[str], message: str) -> None:
    for name in names:
        put("parquet", name)
    with pytest.raises(ConfigError, match=message):
        read("parquet", tmp_path)


def test_a_missing_shard_is_named_with_its_ending(tmp_path: Path, put: Make, read: Read) -> None:
    put("csv", "train-00000-of-00002")
    with pytest.raises(ConfigError, match=r"lacks train-00001-of-00002\.csv \(1 of 2 shards\)"):
        read("csv", tmp_path)


def test_a_pattern_of_a_persons_own_lacks_no_shard_either(tmp_path: Path, put: Make, read: Read) -> None:
    put("parquet", "part-00000-of-00002", 4)
    with pytest.raises(ConfigError, match=r"lacks part-00001-of-00002\.parquet"):
        read("parquet", tmp_path, files={"train": ["part-*.parquet"]})
    assert (
        len(read("parquet", tmp_path, files={"train": ["part-00000-of-00002.parquet"]}, val_fraction=0.5).splits["train"]) == 2
    )


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ["seg_train/a", "seg_test/a"],
            r"/seg_test looks like a split, but has none of the known names \(train, training, val",
        ),
        (["images_train", "images_test"], "looks like a split"),
        (["mine/train/a", "mine/test/a"], "/mine holds folders named as splits; give this folder in place of "),
        (["a", "holdout/a"], r"/holdout looks like a split"),
    ],
)
def test_splits_are_not_taken_for_classes(
    tmp_path: Path, make_tree: Make, read: Read, folders: list[str], message: str
) -> None:
    make_tree(tmp_path, dict.fromkeys(folders, 4))
    with pytest.raises(ConfigError, match=message):
        read("folder", tmp_path)


def test_a_class_may_be_called_as_a_split_is(tmp_path: Path, make_tree: Make, read: Read) -> None:
    make_tree(tmp_path, {"train station": 6, "test tube": 6, "harbour": 6})
    assert read("folder", tmp_path).class_names == ["harbour", "test tube", "train station"]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("a.zip", "folder", r"a\.zip is an archive; unpack it, and give the folder"),
        ("a.tar.gz", "csv", "is an archive"),
        ("a.csv", "folder", r"a\.csv is a file; expected a folder of class folders; train with dataset=csv"),
        ("a.parquet", "csv", r"a\.parquet is a file; expected .* \.csv or \.tsv; train with dataset=parquet"),
        ("data-00000-of-00001.arrow", "parquet", "is a dataset that save_to_disk wrote; write each split with to_parquet, and"),
        ("a.txt", "parquet", r"a\.txt is a file; expected a folder or a file that ends in \.parquet"),
    ],
)
def test_a_file_in_place_of_a_folder(tmp_path: Path, read: Read, name: str, kind: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=message):
        read(kind, tmp_path / name)


@pytest.mark.parametrize("mark", ["state.json", "dataset_dict.json"])
def test_what_the_library_datasets_saved_is_named(tmp_path: Path, read: Read, mark: str) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / mark).write_text("{}")
    for kind in ("folder", "csv", "parquet"):
        with pytest.raises(
            ConfigError, match="is a dataset that save_to_disk wrote; write each split with to_parquet, and give"
        ):
            read(kind, tmp_path)
    with pytest.raises(ConfigError, match="is a dataset that save_to_disk wrote"):
        kind_of(tmp_path)


def test_spaces_and_letters_of_any_kind_in_names(tmp_path: Path, read: Read, make_tree: Make) -> None:
    root = make_tree(tmp_path / "Bücher (2), neu's", {"Train/größe 1/ä": 3, "Train/日本": 3, "val/日本": 1})
    dataset = read("folder", root)
    assert dataset.class_names == ["größe 1", "日本"]
    assert isinstance(dataset.splits["val"][0][0], Image.Image)
