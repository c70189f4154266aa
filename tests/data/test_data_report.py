"""What is said of data before it is trained on, against counts made by hand; and the command that says it."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gift_vit.common.errors import ConfigError
from gift_vit.data.__main__ import Arguments, main, report
from gift_vit.data.base import build_dataset
from gift_vit.data.config import DigitsConfig, FolderConfig, ParquetConfig, TransformConfig
from gift_vit.data.report import check_decodable, describe, find_duplicates

Make = Callable[..., Any]


@pytest.fixture
def leaky(tmp_path: Path, make_tree: Make) -> Path:
    """Of train two pictures stand in test, of val one in test, one twice in train, and one under both labels."""
    root = make_tree(tmp_path / "leaky", {"train/a": 6, "train/b": 6, "val/a": 2, "val/b": 2, "test/a": 3, "test/b": 3})
    copies = {
        "train/a/0": "test/a/x", "train/b/0": "test/b/x", "val/a/0": "test/a/y",
        "train/a/1": "train/a/y", "train/b/1": "train/a/z",
    }  # fmt: skip
    for source, target in copies.items():
        shutil.copy(root / f"{source}.png", root / f"{target}.png")
    (root / "train/a/note.txt").write_text("x")
    (root / "train/b/note.TXT").write_text("x")
    (root / "train/b/plan").write_text("x")
    (root / "train/loose.png").write_bytes(b"")
    (root / "test/a/.hidden.png").write_bytes(b"")
    return root


def test_every_number_of_the_report(leaky: Path, make_config: Make) -> None:
    described = describe(build_dataset(make_config(FolderConfig, root=leaky)))
    assert described.duplicates is not None
    assert described.duplicates.shared == {"train, test": 2, "val, test": 1}
    assert described.duplicates.within == {"train": 2}
    assert described.duplicates.mislabelled == 1
    assert list(described.lines()) == [
        "data some: 2 classes in the order of their sorted names: a, b",
        "  train: 14 images of 2 classes, from train/",
        "  val: 4 images of 2 classes, from val/",
        "  test: 9 images of 2 classes, from test/; left out: 1 hidden or the system's",
        f"  train: 2 pictures are there more than once, such as {leaky}/train/a/1.png and {leaky}/train/a/y.png",
    ]
    two = f"{leaky}/train/a/0.png and {leaky}/test/a/x.png"
    assert described.warnings == [
        "not read in train/ (train): 2 .txt, 1 in no class folder, 1 without an ending",
        f"2 pictures are both in train and in test, such as {two}: "
        "the score on test is too good; remove them from one of the two",
        f"1 picture is both in val and in test, such as {leaky}/val/a/0.png and {leaky}/test/a/y.png: "
        "the score on test is too good; remove them from one of the two",
        f"1 picture is there under more than one label, such as {leaky}/train/a/z.png and {leaky}/train/b/1.png",
    ]
    record = described.record()
    assert record["splits"]["train"] == {
        "images": 14, "classes": 2, "files": ["train/"], "drawn": None, "remarks": {},
        "skipped": {".txt": 2, "without an ending": 1, "in no class folder": 1},
    }  # fmt: skip
    assert record["duplicates"]["shared"] == {"train, test": 2, "val, test": 1}


def test_only_files_of_equal_size_are_read(
    leaky: Path, make_config: Make, noise: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise(1, (20, 20)).save(leaky / "train/a/larger.png")
    dataset = build_dataset(make_config(FolderConfig, root=leaky))
    sizes = [size for source in dataset.splits.values() for size in source.sizes.tolist()]
    read: list[Path] = []
    content = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or content(path))
    described = describe(dataset, check_duplicates=False)
    assert (described.duplicates, read) == (None, [])
    assert described.record()["duplicates"] is None
    assert "  pictures that stand in two splits: not looked for (dataset.check_duplicates=false)" in described.lines()
    find_duplicates(dataset.splits)
    assert len(read) == sum(sizes.count(size) > 1 for size in sizes) < len(sizes)


def test_a_picture_of_test_that_is_none_is_told_before_the_training(leaky: Path, make_config: Make) -> None:
    (leaky / "test/a/2.png").write_bytes(b"<html>")
    (leaky / "test/b/0.png").write_bytes(b"")
    dataset = build_dataset(make_config(FolderConfig, root=leaky))
    for look, told in (
        (True, "a/2.png: it is empty or of no known image format; replace or remove it (and 1 more)"),
        (False, "b/0.png: it is empty"),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"cannot decode image {leaky}/test/{told}")):
            describe(dataset, look=look)


def test_a_picture_that_is_cut_short_or_too_large_is_found(leaky: Path, make_config: Make, noise: Make) -> None:
    """The header tells of numbers without a range and of too many pixels; what is cut short is found by decoding alone."""
    noise(1, (64, 64)).save(leaky / "test/a/cut.jpg")
    file = leaky / "test/a/cut.jpg"
    file.write_bytes(file.read_bytes()[:-200])
    dataset = build_dataset(make_config(FolderConfig, root=leaky))
    describe(dataset)
    for workers in (0, 1):
        with pytest.raises(ConfigError, match=r"cannot decode image .*/test/a/cut\.jpg: image file is truncated"):
            check_decodable(dataset.splits["test"], workers)
    check_decodable(dataset.splits["train"], 1)
    with pytest.raises(ConfigError, match=r"cut\.jpg: image file is truncated"):
        report(Arguments(str(leaky)))
    report(Arguments(str(leaky), decode=False))
    file.unlink()
    for number in range(2):
        Image.fromarray(np.ones((4, 4), np.float32)).save(leaky / f"test/b/{number}.tif")
    floats = build_dataset(make_config(FolderConfig, root=leaky))
    with pytest.raises(
        ConfigError, match=r"b/0\.tif: its values are floating-point numbers, which have no range.*\(and 1 more\)"
    ):
        describe(floats)
    ranged = TransformConfig(value_range=[0.0, 1.0])
    assert describe(build_dataset(make_config(FolderConfig, root=leaky, transform=ranged))).splits["test"].remarks == {
        "reduced to 8 bits": 2
    }
    with pytest.raises(
        ConfigError, match=r"cannot decode image .*train.*: it has more than 5 pixels.*raise dataset.transform.max"
    ):
        describe(build_dataset(make_config(FolderConfig, root=leaky, transform=TransformConfig(max_pixels=5))))


def test_classes_inside_classes_are_said(tmp_path: Path, make_tree: Make, make_config: Make) -> None:
    root = make_tree(tmp_path, {"train/birds/owl": 3, "train/birds/rook": 3, "train/cats": 2, "train/cats/deep": 2})
    told = "the images of birds lie in several folders inside; each is one class, unless you move them up"
    assert told in describe(build_dataset(make_config(FolderConfig, root=root))).warnings


def test_a_look_at_many_pictures_is_announced(
    leaky: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    dataset = build_dataset(make_config(FolderConfig, root=leaky))
    describe(dataset)
    assert not caplog.messages
    monkeypatch.setattr("gift_vit.data.report._MANY", 26)
    describe(dataset, check_duplicates=False, look=False)
    assert not caplog.messages
    describe(dataset)
    assert caplog.messages == ["data some: looking at 27 images first (dataset.check_duplicates=false compares none)"]


def test_what_is_suspicious_of_classes(tmp_path: Path, make_tree: Make, make_config: Make) -> None:
    make_tree(tmp_path / "one", {"train/only": 4, "val/only": 2})
    assert describe(build_dataset(make_config(FolderConfig, root=tmp_path / "one"))).warnings == [
        "there is one class only: every prediction is right, and the score says nothing"
    ]


@pytest.mark.parametrize(
    ("labels", "metadata", "warnings"),
    [
        (
            [1, 2, 3],
            {},
            ["labels count from 1 to 3, so that class 0 has no images; write them from 0, or as words, such as class_1"],
        ),
        ([0, 1, 2], {}, []),
        ([0, 3, 3], {}, ["2 of 4 classes have no image in train: 1, 2"]),
        ([1, 2, 2], {"class_names": "ant|bee|cat"}, ["1 of 3 classes have no image in train: ant"]),
    ],
)
def test_classes_without_an_image_are_said(
    tmp_path: Path, write_parquet: Make, png: Make, labels: list[int], metadata: dict[str, str], warnings: list[str]
) -> None:
    for index, split in enumerate(("train", "val")):
        write_parquet(tmp_path / f"{split}.parquet", [png(3 * index + seed) for seed in range(3)], labels, **metadata)
    assert describe(build_dataset(ParquetConfig(name="some", root=str(tmp_path)))).warnings == warnings


def test_a_rare_class_that_a_drawn_split_lacks_is_said(tmp_path: Path, make_tree: Make, make_config: Make) -> None:
    root = make_tree(tmp_path / "own", {"cat": 40, "dog": 2})
    described = describe(build_dataset(make_config(FolderConfig, root=root)))
    assert described.warnings == [f"{split}, as it is drawn, has no image of 1 classes: dog" for split in ("test", "val")]


def test_the_digits_have_no_picture_in_two_splits(make_config: Make) -> None:
    described = describe(build_dataset(make_config(DigitsConfig)))
    assert described.warnings == []
    assert "  val: 200 images of 10 classes, from scikit-learn's digits; val is drawn from 1,797, stratified, seed 0" in list(
        described.lines()
    )


def test_classes_that_look_like_one_or_like_none_are_told_of(tmp_path: Path, make_tree: Make, make_config: Make) -> None:
    root = make_tree(tmp_path, {f"train/{name}": 6 for name in ("Cat", "cat", "cat ", "dog", "1", "01", "1.0", "nan")})
    assert describe(build_dataset(make_config(FolderConfig, root=root)), False).warnings == [
        "classes '01' and '1' and '1.0' look like one, differently written; if they are, give them one name",
        "classes 'Cat' and 'cat' and 'cat ' look like one, differently written; if they are, give them one name",
        "the class 'nan' may stand for labels that are not known; if so, remove what has it",
    ]


def test_class_folders_have_no_columns(leaky: Path) -> None:
    with pytest.raises(ConfigError, match=r"\Aunknown key dataset\.columns\.label \(known: name, .*root, "):
        report(Arguments(str(leaky), ["dataset.columns.label=x"]))


@pytest.mark.parametrize("check", [True, False])
def test_the_command(leaky: Path, capsys: pytest.CaptureFixture[str], check: bool) -> None:
    report(Arguments(root=str(leaky), check_duplicates=check))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "data folder_leaky: 2 classes in the order of their sorted names: a, b"
    assert sum(line.startswith("warning: ") for line in lines) == (4 if check else 1)
    assert lines[-1] == f"to train on it: python -m gift_vit.train dataset=folder dataset.root={leaky}"


def test_the_command_takes_the_words_of_training(
    tmp_path: Path, make_tree: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tree(tmp_path / "data", {"a": 8, "b": 8})
    for number, file in enumerate(sorted(root.glob("*/*.png"))):
        Image.fromarray(np.full((8, 8), number / 16, np.float32)).save(file.with_suffix(".tif"))
        file.unlink()

    def told(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["gift_vit.data", str(root), *words])
        with pytest.raises(SystemExit):
            main()
        printed = capsys.readouterr()
        return printed.err + printed.out

    assert "which have no range; in training dataset.transform.value_range=[<lowest>,<highest>] gives one" in told()
    words = ["dataset.transform.value_range=[0,1]", "dataset.test_fraction=0.5", "dataset.check_duplicates=false"]
    lines = told(*words).splitlines()
    assert "  test: 8 images of 2 classes, from ./; test is split off all images: 8 of 16, stratified, seed 0" in lines
    assert "  pictures that stand in two splits: not looked for (dataset.check_duplicates=false)" in lines
    assert lines[-1] == (
        f"to train on it: python -m gift_vit.train dataset=folder dataset.root={root} "
        "'dataset.transform.value_range=[0,1]' dataset.test_fraction=0.5 dataset.check_duplicates=false"
    )
    assert told("dataset.rot=x").startswith("error: unknown key dataset.rot; did you mean dataset.root? (known: ")
    assert told("dataset=folder").endswith("expected root=…, dataset.<key>=…, check_duplicates=…, decode=…\n")
