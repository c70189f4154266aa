"""A person's own class folders."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import ImageSource, build_dataset
from gift_vit.data.config import FolderConfig
from gift_vit.data.files import image_files
from gift_vit.data.report import describe

Make = Callable[..., Any]
Tree = Callable[..., Path]


def pixels(source: ImageSource) -> list[bytes]:
    return [source[index][0].tobytes() for index in range(len(source))]


def test_three_splits(tmp_path: Path, make_tree: Tree, make_config: Make) -> None:
    make_tree(tmp_path, {"train/dog": 3, "train/cat": 2, "train/ant": 2, "val/dog": 1, "val/cat": 1, "test/dog": 2})
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    (tmp_path / "train/dog/._0.png").write_bytes(b"left by another system")
    (tmp_path / "train/dog/notes.txt").write_text("no image")
    dataset = build_dataset(make_config(FolderConfig, root=tmp_path))
    assert (dataset.num_classes, dataset.class_names) == (3, ["ant", "cat", "dog"])
    labels = {split: dataset.split(split).labels.tolist() for split in dataset.splits}
    assert labels == {"train": [0, 0, 1, 1, 2, 2, 2], "val": [1, 2], "test": [2, 2]}
    image, label = dataset.split("train")[3]
    with Image.open(tmp_path / "train/cat/1.png") as expected:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    assert label == 1
    skipped = dataset.origins["train"].skipped
    assert skipped == {"hidden or the system's": 2, ".txt": 1}
    assert [file.name for file in image_files(tmp_path / "train/dog")] == ["0.png", "1.png", "2.png"], (
        "alike where one predicts"
    )


@pytest.mark.parametrize("linked", [False, True])
def test_every_file_is_read_once_under_its_own_name(tmp_path: Path, make_tree: Tree, make_config: Make, linked: bool) -> None:
    """Links lead to the class itself, its neighbour, all classes and the root; one to elsewhere is followed."""
    make_tree(tmp_path, {"own/train/a": 3, "own/train/b/deep": 2, "own/val/a": 1, "elsewhere": 2})
    train = tmp_path / "own/train"
    for name, target in (("0self", "a"), ("up", "."), ("root", ".."), ("b", "b"), ("out", "../../elsewhere")):
        (train / "a" / name).symlink_to((train / target).resolve())
    (train / "a/0.link.png").symlink_to(train / "b/deep/0.png")
    root = tmp_path / "own"
    if linked:
        root = tmp_path / "link to own"
        root.symlink_to(tmp_path / "own")
    dataset = build_dataset(make_config(FolderConfig, root=root))
    source = dataset.splits["train"]
    where = [os.path.relpath(source.where(index), root / "train") for index in range(len(source))]
    assert where == ["a/0.png", "a/1.png", "a/2.png", "a/out/0.png", "a/out/1.png", "b/deep/0.png", "b/deep/1.png"]
    assert source.labels.tolist() == [0] * 5 + [1] * 2
    skipped = {"links to what is read already": 3, "links to what is read under another class": 2}
    assert dataset.origins["train"].skipped == skipped
    assert describe(dataset).warnings == ["not read in train/ (train): 2 links to what is read under another class"]


def test_names_that_look_the_same_are_one_class(tmp_path: Path, make_tree: Tree, make_config: Make) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    make_tree(tmp_path, {f"train/{composed}": 2, f"train/{decomposed}": 1, "train/caff": 1, f"test/{decomposed}": 1})
    make_tree(tmp_path / "val", {f"{decomposed}": 1})
    dataset = build_dataset(make_config(FolderConfig, root=tmp_path))
    assert dataset.class_names == ["caff", composed]
    assert [dataset.split(split).labels.tolist() for split in ("train", "val", "test")] == [[0, 1, 1, 1], [1], [1]]


def test_names_that_no_record_could_hold_are_refused(tmp_path: Path, make_tree: Tree, make_config: Make) -> None:
    root = make_tree(tmp_path / "own", {"train/a": 2, "train/b": 2})
    os.mkdir(os.fsencode(root) + b"/train/caf\xe9")
    told = rf"\A{root}/train/caf\\udce9 has a name that is no UTF-8; rename it"
    with pytest.raises(ConfigError, match=told):
        build_dataset(make_config(FolderConfig, root=root))
    os.rename(os.fsencode(root) + b"/train/caf\xe9", root / "train/c")
    os.rename(root / "train/a/0.png", os.fsencode(root) + b"/train/a/\xe9.png")
    with pytest.raises(ConfigError, match=r"a/\\udce9\.png has a name that is no UTF-8"):
        build_dataset(make_config(FolderConfig, root=root))
    with pytest.raises(ConfigError, match=r"a/\\udce9\.png has a name that is no UTF-8"):
        image_files(root / "train/a")
    with pytest.raises(ConfigError, match=r"a/\\udce9\.png has a name that is no UTF-8"):
        image_files(root / "train/a/\udce9.png")


def test_image_formats_and_modes(tmp_path: Path, make_tree: Tree, make_config: Make, noise: Make) -> None:
    extensions, modes = ["jpg", "JPEG", "png", "webp", "bmp", "tif", "tiff"], ["L", "P", "RGBA", "1"]
    make_tree(tmp_path, {"train/a": 0, "val/a": 1})
    for extension in extensions:
        noise(5).save(tmp_path / f"train/a/a.{extension}")
    for mode in modes:
        noise(5).convert(mode).save(tmp_path / f"train/a/z_{mode}.png")
    train = build_dataset(make_config(FolderConfig, root=tmp_path)).split("train")
    assert len(train) == len(extensions) + len(modes)
    assert {(image.mode, image.size) for image, _ in (train[index] for index in range(len(train)))} == {("RGB", (12, 9))}
    for index, mode in enumerate(sorted(modes), len(extensions)):
        np.testing.assert_array_equal(np.asarray(train[index][0]), np.asarray(noise(5).convert(mode).convert("RGB")))


def test_val_is_split_off_train(tmp_path: Path, make_tree: Tree, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path / "a", {"train/cat": 10, "train/dog": 20, "test/dog": 1})
    dataset = build_dataset(make_config(FolderConfig, root=tmp_path / "a"))
    assert list(dataset.splits) == ["train", "val", "test"]
    train, val = dataset.splits["train"], dataset.splits["val"]
    assert (np.bincount(train.labels).tolist(), np.bincount(val.labels).tolist()) == ([8, 16], [2, 4])
    assert len({*pixels(train), *pixels(val)}) == 30

    # the same tree elsewhere, listed in another order
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **more: [(d, s, files[::-1]) for d, s, files in walk(*a, **more)][::-1])
    again = build_dataset(make_config(FolderConfig, root=tmp_path / "b"))
    assert again.fingerprint == dataset.fingerprint
    assert pixels(again.splits["val"]) == pixels(val)
    other = build_dataset(make_config(FolderConfig, root=tmp_path / "b", split_seed=1))
    assert other.fingerprint != dataset.fingerprint


def test_what_is_missing_and_a_class_that_train_has_not_are_named(tmp_path: Path, make_tree: Tree, make_config: Make) -> None:
    layout = (
        r"expected train/<class>/\*\.jpg and, if there are any, val/<class>/ and test/<class>/; or <class>/\*\.jpg; ask the"
    )
    with pytest.raises(ConfigError, match=rf"dataset some: there is no folder {tmp_path / 'gone'}; {layout}"):
        build_dataset(make_config(FolderConfig, root=tmp_path / "gone"))
    (tmp_path / "train").mkdir()
    with pytest.raises(ConfigError, match=r"/train holds no class folders; expected train/<class>"):
        build_dataset(make_config(FolderConfig, root=tmp_path))
    make_tree(tmp_path, {"train/empty": 0, "train/a": 1})
    with pytest.raises(ConfigError, match=r"/train: found no image of the classes empty; images end in \.jpg, \.png"):
        build_dataset(make_config(FolderConfig, root=tmp_path))
    make_tree(tmp_path / "more", {"train/a": 3, "val/a": 1, "test/b": 1})
    with pytest.raises(ConfigError, match=r"some: test \(.*/test\) has the class 'b', which train has not \(such images"):
        build_dataset(make_config(FolderConfig, root=tmp_path / "more"))


@pytest.mark.parametrize("place", ["val", "train/fox", "train/a/more.v2", "train/a/1.png"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path, make_tree: Tree, make_config: Make, place: str) -> None:
    """What it leads to may lie on a disk that is not there now: it was left out, or split off, without a word."""
    make_tree(tmp_path, {"train/a": 1, "train/b": 1, "test/a": 1})
    (tmp_path / place).symlink_to("/mnt/gone")
    with pytest.raises(ConfigError, match=rf"{tmp_path / place} is a link to /mnt/gone, which is not there.*; restore"):
        build_dataset(make_config(FolderConfig, root=tmp_path))


def test_links_to_files_of_another_kind_may_lead_nowhere(tmp_path: Path, make_tree: Tree, make_config: Make) -> None:
    make_tree(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 1})
    (tmp_path / "README.md").symlink_to(tmp_path / "gone.md")
    assert len(build_dataset(make_config(FolderConfig, root=tmp_path)).splits["train"]) == 6
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match=r"loop is a link to .*, which is not there; restore that, or remove the link"):
        build_dataset(make_config(FolderConfig, root=tmp_path))


def test_hidden_classes_and_what_is_no_file_are_told_of(tmp_path: Path, make_tree: Tree, make_config: Make) -> None:
    make_tree(tmp_path, {"train/java": 2, "train/.net": 2, "train/rust": 2, "val/java": 1})
    os.mkfifo(tmp_path / "train/java/3.png")
    data = build_dataset(make_config(FolderConfig, root=tmp_path))
    assert data.class_names == ["java", "rust"]
    told = "not read in train/ (train): 1 hidden folders of images, 1 neither files nor folders"
    assert describe(data, False).warnings == [told]


def test_an_unreadable_image_is_named(tmp_path: Path, make_tree: Tree, make_config: Make) -> None:
    make_tree(tmp_path, {"train/a": 3, "val/a": 1}, "jpg")
    whole = (tmp_path / "train/a/0.jpg").read_bytes()
    train = build_dataset(make_config(FolderConfig, root=tmp_path)).split("train")
    (tmp_path / "train/a/0.jpg").write_bytes(whole[:-40])
    (tmp_path / "train/a/1.jpg").write_text("a page saying 404")
    (tmp_path / "train/a/2.jpg").unlink()
    for index, reason in enumerate(["truncated", "no known image format", "No such file"]):
        with pytest.raises(ConfigError, match=rf"^cannot \w+ image {tmp_path}/train/a/{index}\.jpg: .*{reason}"):
            train[index]
