"""What goes wrong while a dataset is prepared: one line that names the file and the remedy, and nothing taken for ready."""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.fgvc import annotations
from gift_vit.common.errors import ConfigError, RunError
from tests.data_prep.archive_trees import tar_of, zip_of
from tests.data_prep.download_case import sha
from tests.data_prep.fgvc_bench import Bench
from tests.data_prep.fgvc_trees import mat_of

Make = Callable[..., Bench]


def test_lists_from_a_folder(bench: Make, tmp_path: Path) -> None:
    """Missing, of another checksum, and right: then no server is asked."""
    made, given = bench("nabirds"), tmp_path / "gift"
    with pytest.raises(ConfigError, match=rf"splits_from={given}: there is no file {given}/nabirds/train\.json; give a"):
        made.prepare(splits_from=given)
    made.put_lists(given)
    val = made.small.list_bytes("val")
    (given / "nabirds/val.json").write_bytes(made.small.list_bytes("train"))
    with pytest.raises(ConfigError, match=rf"{given}/nabirds/val\.json .*{sha(val)}"):
        made.prepare(splits_from=given)
    assert not (made.folder / "splits").exists()
    assert made.record() is None
    (given / "nabirds/val.json").write_bytes(val)
    made.server.files.clear()
    record = made.prepare(splits_from=given)
    assert made.server.log == []
    assert record["splits"]["paper"]["source"] == str(given)
    assert made.lists("paper") == made.small.lists


@pytest.mark.parametrize("name", ["cub", "cars"])
def test_a_missing_image_is_named_with_the_remedy(bench: Make, caplog: pytest.LogCaptureFixture, name: str) -> None:
    made = bench(name)
    made.prepare()
    path = made.folder / made.facts.image_root / list(made.small.lists["train"])[3]
    path.unlink()
    with pytest.raises(ConfigError) as caught:
        made.prepare()
    folders = " ".join(str(made.folder / folder) for folder in made.facts.images.folders)
    assert str(caught.value) == (
        f"image {path} is not there (1 of 16 listed in {made.folder}/splits/paper/train.json are missing); the unpacked images "
        f"are incomplete; type: rm -r {folders}; python -m data_prep.fgvc {name} root={made.root}"
    )
    assert made.record() is None, "no longer ready"
    for folder in made.facts.images.folders:
        shutil.rmtree(made.folder / folder)
    assert made.prepare()["images"] == 26, "the remedy works"
    shutil.rmtree(made.folder / made.facts.images.folders[0])
    with caplog.at_level(logging.INFO):
        assert made.prepare()["images_checked"] is True
    assert f"{name} was ready, but its images are gone: preparing it again" in caplog.messages


def test_images_that_a_person_put_there_are_not_to_be_removed(bench: Make) -> None:
    made = bench("cars")
    made.prepare()
    (made.folder / "prepared.json").unlink()  # nothing tells any more that they were unpacked here
    path = made.folder / made.facts.image_root / list(made.small.lists["train"])[3]
    content = path.read_bytes()
    folders = " ".join(str(made.folder / folder) for folder in made.facts.images.folders)
    for _ in range(2):  # before and after it is recorded that they were found
        path.unlink()
        with pytest.raises(ConfigError) as caught:
            made.prepare()
        remedy = f"complete {folders}, or move all of it away, and type: python -m data_prep.fgvc cars root={made.root}"
        assert str(caught.value).endswith(f"; the unpacked images are incomplete; {remedy}")
        path.write_bytes(content)
        assert made.prepare()["images"] == 26, "the remedy works"


def test_one_folder_that_a_person_put_there_beside_one_of_the_archives(bench: Make) -> None:
    made = bench("cars")
    made.prepare()
    (made.folder / "prepared.json").unlink()
    shutil.rmtree(made.folder / "cars_test")
    record = made.prepare()
    assert record["sources"]["cars_train"] == "a folder found unpacked"
    assert record["sources"]["archive.zip"]["source"] == "put there by hand"
    path = made.folder / made.facts.image_root / list(made.small.lists["train"])[3]
    path.unlink()
    for _ in range(2):  # with the record, and with what is kept of it
        with pytest.raises(ConfigError, match=r"; complete .*cars_train .*cars_test, or move all of it away"):
            made.prepare()


def test_what_a_read_only_disk_lacks_is_said(bench: Make, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("4m")
    made = bench("cub", root=str(disk))
    made.prepare()
    path = made.folder / made.facts.image_root / list(made.small.lists["train"])[3]
    path.unlink()
    assert os.system(f"mount -o remount,ro {disk}") == 0
    with pytest.raises(ConfigError, match=rf"^image {path} is not there .*; type: rm -r"):
        made.prepare()
    assert os.system(f"mount -o remount,rw {disk}") == 0
    shutil.rmtree(made.folder / made.facts.images.folders[0])
    assert os.system(f"mount -o remount,ro {disk}") == 0
    with pytest.raises(ConfigError, match=rf"^cannot write {made.folder}.* \(Read-only file system\)"):
        made.prepare()


def test_a_read_only_disk_keeps_what_more_files_would_make_better(bench: Make, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("4m")
    made = bench("cars", root=str(disk))
    cars = [{"fname": "1.jpg", "bbox_x1": 1, "bbox_y1": 1, "bbox_x2": 3, "bbox_y2": 3, "class": 1}]
    (made.root / "downloads/cars_train_annos.mat").write_bytes(mat_of(annotations=cars))
    record = made.prepare()
    assert record["notes"]
    assert os.system(f"mount -o remount,ro {disk}") == 0
    assert made.prepare() == record


def test_a_link_that_leads_to_itself_is_one_line(bench: Make) -> None:
    made = bench("cub")
    made.root.mkdir()
    made.folder.symlink_to(made.folder)
    with pytest.raises(ConfigError, match=rf"^cannot write {made.folder} \(File exists\); choose another"):
        made.prepare()


# what is wrong with one image of val
BROKEN_IMAGES: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda body: body[:-12], r"cannot decode image {path}: image file is truncated"),
    (lambda body: body[: len(body) // 2], r"cannot decode image {path}: (?i:truncated)"),
    (lambda _: b"<html>", r"cannot decode image {path}: it is empty or of no known image format"),
    (lambda _: b"", r"image {path} is empty \(1 of 26 listed images are empty\); type: rm -r"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN_IMAGES)
def test_a_broken_image_is_named(bench: Make, content: Callable[[bytes], bytes], message: str) -> None:
    made = bench("cub")
    made.prepare(check_images=False)
    path = made.folder / made.facts.image_root / list(made.small.lists["val"])[1]
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(ConfigError, match=message.format(path=path)) as caught:
        made.prepare()
    assert "\n" not in str(caught.value)
    assert f"python -m data_prep.fgvc cub root={made.root}" in str(caught.value)


def test_several_broken_images_are_counted(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    made = bench("flowers")
    made.prepare()
    broken = [made.folder / path for path in list(made.small.lists["test"])[:3]]
    for path in broken:
        path.write_bytes(b"not a jpeg")
    with caplog.at_level(logging.INFO), pytest.raises(ConfigError, match=rf"{broken[0]}.*\(and 2 more of 26 images\)"):
        made.prepare()
    named = [message.split(":")[0] for message in caplog.messages if message.startswith("cannot decode")]
    assert named == [f"cannot decode image {path}" for path in broken]
    assert made.record() is None, "no longer ready"


def test_an_archive_of_something_else_is_named_and_leaves_nothing(bench: Make) -> None:
    made = bench("cars")
    archive = made.root / "downloads/archive.zip"
    right = archive.read_bytes()
    wrong = {"holds none of the files": zip_of({"cats/1.jpg": b"cat"}), "is damaged": right[: len(right) // 2]}
    wrong["holds no folder cars_test/: it is another archive"] = zip_of({"cars_train/cars_train/1.jpg": b"car"})
    for told, content in wrong.items():
        archive.write_bytes(content)
        with pytest.raises(ConfigError, match=f"{archive} {told}"):
            made.prepare()
        assert [path.name for path in made.folder.glob("*")] in ([], ["cars_train"])


def test_leftovers_are_cleared_and_edited_lists_made_again(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    made = bench("cub")
    (made.folder / ".unpacked/CUB_200_2011/images").mkdir(parents=True)
    (made.folder / "splits/paper").mkdir(parents=True)
    (made.folder / "splits/paper/train.json").write_text("{}")
    first = made.prepare()
    assert first["images"] == 26
    assert not (made.folder / ".unpacked").exists()
    assert made.lists("paper") == made.small.lists
    (made.folder / "splits/paper/val.json").write_text("{}")
    with caplog.at_level(logging.INFO):
        assert made.prepare() == first
    assert f"{made.folder}/splits/paper is no longer as it was prepared: making it again" in caplog.messages
    assert made.lists("paper") == made.small.lists
    (made.folder / "prepared.json").write_text('{"format": 1}')
    assert made.prepare()["splits"] == first["splits"], "a record without what it should say is none"


PAPER, OFFICIAL = {"train": 17, "val": 4, "test": 6}, {"train": 21, "test": 6}
WRONG_NUMBERS = [
    ({"classes": 3}, r"splits/paper name 2 classes; expected 3; type: rm -r"),
    ({"paper": PAPER}, r"name train 16, val 4, test 6 images; expected train 17, val 4, test 6;"),
    ({"official": OFFICIAL}, r"splits/official name train 20, test 6 images; expected train 21, test 6"),
]


def test_wrong_numbers_are_named(bench: Make) -> None:
    made = bench("dogs")
    for change, message in WRONG_NUMBERS:
        with pytest.raises(ConfigError, match=message):
            made.prepare(replace(made.facts, **change), splits="official" if "official" in change else "paper")
        assert made.record() is None
        shutil.rmtree(made.root)
    made.small.lists["test"] |= dict(list(made.small.lists["train"].items())[:2])
    with pytest.raises(ConfigError, match=r"splits/paper share 2 images among their splits"):
        made.prepare(made.small.facts(made.server.serve))


def test_official_failure_leaves_the_papers_splits_ready(bench: Make) -> None:
    made = bench("cub")
    record = made.prepare()
    labels = made.folder / "CUB_200_2011/image_class_labels.txt"
    labels.write_text(labels.read_text().partition("\n")[2])
    with pytest.raises(ConfigError, match=rf"{labels} has no class for 001\.Black_footed_Albatross/1\.jpg; type: rm -r"):
        made.prepare(splits="official")
    assert made.record() == record


BROKEN_TEXTS = [
    ("bounding_boxes.txt", "1 2.0 3.0 4.0", r"line 1 is '1 2\.0 3\.0 4\.0'; expected 5 columns"),
    ("bounding_boxes.txt", "1 2.0 3.0 4.0 x", r"line 1 is '1 2\.0 3\.0 4\.0 x'; expected 5 columns \(could not convert"),
    ("bounding_boxes.txt", "999 2.0 3.0 4.0 5.0", r"names the image 999, which .*images\.txt does not list"),
    ("bounding_boxes.txt", "1 2.0 3.0 4.0 5.0", r"25 of 26 images have no bounding box, the first is 001\.Black"),
    ("bounding_boxes.txt", "", r"bounding_boxes\.txt is empty"),
    ("parts/part_locs.txt", "1 7 2.0 3.0 1", r"line 1 is '1 7 2\.0 3\.0 1'; expected 4 columns|expected 5 columns \('7'\)"),
    ("parts/parts.txt", None, r"cannot read .*parts\.txt: .*No such file"),
]


@pytest.mark.parametrize(("file", "content", "message"), BROKEN_TEXTS)
def test_a_broken_text_file_is_named(bench: Make, file: str, content: str | None, message: str) -> None:
    made = bench("cub")
    made.prepare(annotations=False, check_images=False)
    path = made.folder / "CUB_200_2011" / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        made.prepare()
    assert f"; type: rm -r {made.folder}/CUB_200_2011; python -m data_prep.fgvc cub root={made.root}" in str(caught.value)
    assert not list(made.folder.glob(".*")), "no temporary file"


BROKEN_FILES = [
    ("dogs", "annotation.tar", tar_of({"Annotation/n1/n1_1": b"<annotation>"}, "w"), r"annotation\.tar.*n1_1"),
    ("dogs", "annotation.tar", b"not a tar", r"annotation\.tar"),
    ("dogs", "lists.tar", tar_of({"train_list.mat": b"junk"}, "w"), r"cannot read the array 'file_list' of .*lists\.tar"),
    ("dogs", "lists.tar", tar_of({"other.mat": b"junk"}, "w"), r"lists\.tar.*train_list\.mat"),
    ("flowers", "setid.mat", mat_of(trnid=[1, 99], valid=[2], tstid=[3]), r"setid\.mat numbers images up to 99, but .*26"),
    ("flowers", "imagelabels.mat", b"junk", r"cannot read the array 'labels' of .*imagelabels\.mat"),
]


@pytest.mark.parametrize(("name", "file", "content", "message"), BROKEN_FILES)
def test_a_broken_further_file_is_named(bench: Make, name: str, file: str, content: bytes, message: str) -> None:
    made = bench(name)
    made.small.files[file] = content
    with pytest.raises(ConfigError, match=message) as caught:
        made.prepare(made.small.facts(made.server.serve), splits="official")
    assert "\n" not in str(caught.value)
    assert made.record() is None


CAR = np.array([("00001.jpg", 1)], dtype=[("fname", "O"), ("bbox_x1", "O")])  # as of the devkit without labels
NO_FIELDS = np.ones((1, 2))
LACKING = [(CAR, "official", "class"), (CAR, "paper", "bbox_y1, bbox_x2, bbox_y2"), (NO_FIELDS, "official", "fname, class")]


@pytest.mark.parametrize(("cars", "splits", "fields"), LACKING)
def test_a_devkit_without_a_field_is_named(bench: Make, cars: np.ndarray, splits: str, fields: str) -> None:
    made = bench("cars")
    file = made.root / "downloads/cars_train_annos.mat"
    file.write_bytes(mat_of(annotations=cars))
    with pytest.raises(ConfigError) as caught:
        made.prepare(splits=splits)
    told = f"the annotations of {file} have no {fields}; replace or remove it, then type: python -m data_prep.fgvc cars"
    assert str(caught.value).startswith(told)
    assert made.record() is None


def test_another_file_under_a_further_files_name_is_no_source(bench: Make) -> None:
    made = bench("flowers")
    downloads = made.root / "downloads"
    downloads.mkdir(parents=True)
    (downloads / "imagelabels.mat").write_bytes(made.small.files["imagelabels.mat"])
    (downloads / "setid.mat").write_bytes(made.small.files["setid.mat"][::-1])
    assert made.prepare()["sources"].keys() == {"102flowers.tgz", "imagelabels.mat"}


def test_a_full_disk_is_one_line_and_leaves_no_record(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(table: object, where: Path) -> None:
        where.write_bytes(b"PAR1")
        raise OSError(errno.ENOSPC, "No space left on device")

    made = bench("cub")
    monkeypatch.setattr(annotations.pq, "write_table", full)
    with pytest.raises(RunError, match=rf"no space left on the device while writing {made.folder}/boxes\.parquet; free some"):
        made.prepare()
    assert made.record() is None
    assert not list(made.folder.glob("*boxes*"))


def test_a_root_that_cannot_be_written_and_a_class_too_small_for_val(tmp_path: Path, bench: Make) -> None:
    made = bench("cub")
    with pytest.raises(ConfigError, match=r"cannot split val_fraction=0\.01 of CUB-200-2011's 20 official training images"):
        made.prepare(splits="official", val_fraction=0.01)
    made.root = tmp_path / "file"
    made.root.write_text("")
    with pytest.raises(ConfigError, match=rf"cannot write {tmp_path}/file/cub \(Not a directory\); choose another folder"):
        made.prepare()
