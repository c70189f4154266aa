"""Preparing small datasets in the archives' own formats, from a server on this machine or from what a person put there."""

import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_prep.fgvc import verify
from data_prep.fgvc.workspace import describe
from gift_vit.common.cli import log_to_stderr
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import locked
from gift_vit.data.base import VisionDataset
from tests.data_prep.download_case import sha
from tests.data_prep.fgvc_bench import BY_HAND, Bench
from tests.data_prep.fgvc_trees import SMALL, Small
from tests.warm import Process

Make = Callable[..., Bench]


def check_pixels_and_labels(dataset: VisionDataset, small: Small, lists: dict[str, dict[str, Any]]) -> None:
    ids = sorted({label for listed in lists.values() for label in listed.values()})
    for split, listed in lists.items():
        source = dataset.split(split)
        assert [ids[label] for label in source.labels] == list(listed.values())
        for index, path in enumerate(listed):
            image, _ = source[index]
            red, *rest = image.getpixel((5, 5))  # pyright: ignore[reportGeneralTypeIssues]
            assert abs(red - small.colours[path]) <= 2, path
            assert max(rest) <= 2


ANNOTATIONS = {
    "cub": {"boxes.parquet": 26, "parts.parquet": 52, "segmentations": 26},
    "nabirds": {"boxes.parquet": 39, "parts.parquet": 78},
    "dogs": {"boxes.parquet": 32},
}


def check_annotations(made: Bench, found: dict[str, int]) -> None:
    assert found == ANNOTATIONS.get(made.small.name, {})
    for file, rows in {"boxes.parquet": made.small.boxes, "parts.parquet": made.small.parts}.items():
        assert (made.folder / file).exists() == (file in found)
        if file in found:
            table = pq.read_table(made.folder / file)
            assert table.to_pylist() == rows
            assert len(table) == found[file]
            assert file != "boxes.parquet" or [str(kind) for kind in table.schema.types] == ["string"] + ["double"] * 4
    masks = {str(file.relative_to(made.folder / "segmentations")) for file in made.folder.glob("segmentations/*/*")}
    assert masks == ({path.replace(".jpg", ".png") for path in made.small.colours} if "segmentations" in found else set())


@pytest.mark.parametrize("name", SMALL)
def test_from_the_archives_to_a_dataset_and_again_nothing(
    bench: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    made = bench(name)
    record = made.prepare()
    assert record == made.record()
    small = made.small
    counts = {split: len(listed) for split, listed in small.lists.items()}
    assert record["splits"]["paper"]["counts"] == counts
    assert record["splits"]["paper"]["sha256"] == {split: sha(small.list_bytes(split)) for split in counts}
    assert (record["images"], record["classes"]) == (len(small.colours), made.facts.classes)
    assert record["bytes"] == sum((made.folder / made.facts.image_root / path).stat().st_size for path in small.colours)
    assert record["images_checked"] is True
    for archive in (file for file in small.files if file.endswith((".tgz", ".tar.gz", ".zip"))):
        assert record["sources"][archive]["sha256"] == sha(small.files[archive])
    assert made.lists("paper") == small.lists
    check_pixels_and_labels(made.read(), small, small.lists)
    check_annotations(made, record["annotations"])
    assert "was found unpacked" not in describe(record, made.folder)
    left = {"prepared.json", "croissant.json", "splits", *made.facts.images.folders, *record["annotations"]}
    assert {file.name for file in made.folder.iterdir()} == left, "nothing else is left behind"

    (made.folder / "croissant.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*") if path.is_file()}
    shutil.rmtree(made.root / "downloads")
    made.server.files.clear()
    monkeypatch.setattr(verify, "problem_of", lambda *_: pytest.fail("decoded again"))
    monkeypatch.setattr("os.access", lambda *_: False)  # root could write there
    monkeypatch.setattr("data_prep.fgvc.prepare.locked", lambda *_: pytest.fail("locked where nothing can be written"))
    with caplog.at_level(logging.INFO):
        assert made.prepare() == record
    assert f"{name} is ready: nothing to do" in caplog.messages
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", SMALL)
def test_where_images_come_from_survives_a_kill_after_unpacking(
    bench: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made = bench(name)
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.fgvc.prepare._make_lists", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        with Process(made.prepare) as process:
            assert process.wait().returncode == -signal.SIGKILL
    fetched, downloads = next(iter(made.small.files)), made.root / "downloads"
    downloads.mkdir(exist_ok=True)
    left = [".unpacked/x", ".prepared.json.77.partial", "splits/paper/.train.json.77.partial"]
    left = [made.folder / name for name in left]
    left += [downloads / name for name in (".x.lock", f".{fetched}.lock", f".{fetched}.verified.77.partial")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    record = made.prepare()
    archive = next(
        file for file in made.small.files if file.endswith((".tgz", ".tar.gz", ".zip", ".tar")) and "seg" not in file
    )
    facts = record["sources"][archive]
    assert (facts["sha256"], facts["bytes"]) == (sha(made.small.files[archive]), len(made.small.files[archive]))
    assert (facts["source"] == "put there by hand") == (name in BY_HAND)
    assert "a folder found unpacked" not in record["sources"].values()
    check_annotations(made, record["annotations"])
    assert {path.name for path in made.root.rglob(".*")} == {".x.lock"}, "nobody's of this dataset"


def test_a_folder_that_a_link_leads_to_is_made_and_prepared_by_one_at_a_time(bench: Make, tmp_path: Path) -> None:
    made, home = bench("flowers"), tmp_path / "disk/flowers"
    made.root.mkdir()
    made.folder.symlink_to(home)

    def again() -> None:
        log_to_stderr()
        made.prepare()

    first = made.prepare()
    assert (home / "prepared.json").is_file()
    staged = home / ".unpacked"  # as of one that runs below another root
    staged.mkdir()
    with Process(again) as process:
        with locked(home):
            process.until(lambda: "another process holds" in process.stderr)
            assert staged.is_dir()
        assert process.wait().returncode == 0
    assert made.record() == first
    assert not staged.exists()
    assert [path.name for path in (*made.root.glob(".*"), *home.parent.glob(".*"))] == []


def test_where_images_come_from_survives_lists_that_are_wrong(bench: Make) -> None:
    made = bench("flowers")
    sources = made.prepare()["sources"]
    lists = made.folder / "splits" / "paper" / "train.json"
    whole = lists.read_bytes()
    lost = made.folder / made.facts.image_root / next(iter(made.small.lists["train"]))
    image = lost.read_bytes()
    lost.unlink()
    with pytest.raises(ConfigError):
        made.prepare()
    assert made.record() is None
    lost.write_bytes(image)
    lists.write_bytes(whole)
    assert made.prepare()["sources"] == sources


def test_boxes_and_official_splits_of_cars_come_when_the_devkit_does(bench: Make) -> None:
    made = bench("cars")
    record = made.prepare(splits="official")
    assert record["splits"]["official"]["source"] == "the paper's lists (no devkit found)"
    assert record["annotations"] == {}
    [note] = record["notes"]
    assert note.startswith(
        "26 of 26 images have no bounding box, the first is cars_test/cars_test/00011.jpg; to have them, put"
    )
    assert note.endswith(f"into {made.folder} and start again")
    (made.folder / "devkit").mkdir()
    train, test = "cars_train_annos.mat", "cars_test_annos_withlabels.mat"
    (made.folder / "devkit" / train).write_bytes(made.small.files[train])
    record = made.prepare()
    assert record["annotations"] == {"boxes.parquet": 20}
    assert set(record["sources"]) == {"archive.zip"}
    assert record["notes"][0].startswith("6 of 26 images have no bounding box")
    (made.root / "downloads" / test).write_bytes(made.small.files[test])
    shutil.rmtree(made.folder / "splits/official")
    record = made.prepare(splits="official")
    assert (record["annotations"], record["notes"]) == ({"boxes.parquet": 26}, [])
    assert pq.read_table(made.folder / "boxes.parquet").to_pylist() == made.small.boxes
    assert record["splits"]["official"]["source"] == f"{train} and {test}"
    lists = made.lists("official")
    assert (lists["train"] | lists["val"], lists["test"]) == (made.small.official["train"], made.small.official["test"])


@pytest.mark.parametrize("name", SMALL)
def test_official_splits_are_added(bench: Make, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    made = bench(name)
    paper = made.prepare()
    monkeypatch.setattr(verify, "problem_of", lambda *_: pytest.fail("decoded again"))
    archives = {file for file in made.small.files if file.endswith((".tgz", ".tar.gz", ".zip")) or file == "images.tar"}
    for file in archives:
        (made.root / "downloads" / file).unlink()
    made.server.log.clear()
    record = made.prepare(splits="official")
    assert archives.isdisjoint(exchange.path.rpartition("/")[2] for exchange in made.server.log)
    assert record["splits"].keys() == {"paper", "official"}
    assert record["splits"]["paper"] == paper["splits"]["paper"]
    lists, official = made.lists("official"), made.small.official
    assert lists["test"] == official["test"]
    assert lists["train"] | lists["val"] == official["train"] | official.get("val", {})
    assert not set(lists["train"]) & set(lists["val"])
    if name == "flowers":
        assert lists == official
        assert "val_fraction" not in record["splits"]["official"]
    else:
        per_class = [list(lists["val"].values()).count(label) for label in set(lists["val"].values())]
        assert per_class == [1] * made.facts.classes, "a tenth of each class"
    check_pixels_and_labels(made.read("official"), made.small, lists)


def test_official_val_is_drawn_from_the_seed(bench: Make) -> None:
    made = bench("dogs")
    folder = made.folder / "splits/official"

    def val(**request: Any) -> list[str]:
        shutil.rmtree(folder, ignore_errors=True)
        record = made.prepare(splits="official", check_images=False, **request)
        assert record["splits"]["official"].items() >= {"val_fraction": 0.1, "split_seed": 0, **request}.items()
        return list(made.lists("official")["val"])

    first = val()
    assert val() == first
    assert len(first) == 2
    assert any(val(split_seed=seed) != first for seed in (1, 2, 3))
    assert len(val(val_fraction=0.3)) == 6
    with pytest.raises(ConfigError) as caught:
        made.prepare(splits="official", split_seed=3)
    assert str(caught.value) == (
        f"{folder} was made with val_fraction=0.3 split_seed=0; to make it anew type: rm -r {folder}; "
        f"python -m data_prep.fgvc dogs root={made.root} splits=official split_seed=3"
    )


@pytest.mark.parametrize("name", BY_HAND)
def test_what_must_be_fetched_by_hand(bench: Make, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """The command's test has the steps."""
    made = bench(name)
    target = made.root / "downloads" / BY_HAND[name]
    shutil.rmtree(target.parent)
    with caplog.at_level(logging.INFO), pytest.raises(ConfigError, match=f"put it, as it is, here: {target}; 4. type: python"):
        made.prepare()
    url = {"nabirds": "https://dl.allaboutbirds.org/nabirds", "cars": "kaggle.com/datasets/jessicali9530/stanford-cars-dataset"}
    assert url[name] in caplog.text
    assert str(made.folder / made.facts.images.folders[0]) in caplog.messages[-1]
    assert made.record() is None
    target.write_bytes(made.small.files[target.name])  # its folder was made
    assert made.prepare()["images"] == len(made.small.colours)


def test_archives_elsewhere_and_under_kaggles_other_name(bench: Make, tmp_path: Path) -> None:
    made = bench("cars")
    (tmp_path / "usb").mkdir()
    (made.root / "downloads/archive.zip").rename(tmp_path / "usb/stanford-cars-dataset.zip")
    record = made.prepare(archives=tmp_path / "usb")
    assert set(record["sources"]) == {"stanford-cars-dataset.zip"}
    assert (tmp_path / "usb/fgvc_splits/stanfordcars/train.json").is_file()


@pytest.mark.parametrize("name", SMALL)
def test_a_folder_unpacked_by_hand_is_taken(bench: Make, tmp_path: Path, name: str) -> None:
    made = bench(name)
    made.prepare()
    shutil.move(made.folder, tmp_path / "unpacked")
    shutil.rmtree(made.root)
    for folder in made.facts.images.folders:
        shutil.copytree(tmp_path / "unpacked" / folder, made.folder / folder)
    made.server.log.clear()
    record = made.prepare()
    for folder in made.facts.images.folders:
        assert record["sources"][folder] == "a folder found unpacked"
        told = f"  note         {folder} was found unpacked: its images were not compared with the archive's"
        assert told in describe(record, made.folder).splitlines()
    asked = {exchange.path.rpartition("/")[2] for exchange in made.server.log}
    assert asked.isdisjoint({"CUB_200_2011.tgz", "102flowers.tgz", "images.tar"})
    check_pixels_and_labels(made.read(), made.small, made.small.lists)


@pytest.mark.parametrize("name", SMALL)
def test_archives_put_there_by_hand_need_no_server(bench: Make, name: str) -> None:
    made = bench(name)
    downloads = made.root / "downloads"
    made.put_lists(downloads / "fgvc_splits")
    for file, content in made.small.files.items():
        (downloads / file).write_bytes(content)
    made.server.files.clear()
    made.prepare()
    record = made.prepare(splits="official")
    assert made.server.log == []
    assert record["notes"] == []
    check_pixels_and_labels(made.read(), made.small, made.small.lists)


def test_annotations_can_be_left_out_and_added(bench: Make) -> None:
    made = bench("cub")
    record = made.prepare(annotations=False, check_images=False)
    assert (record["annotations"], record["images_checked"]) == ({}, False)
    assert not (made.folder / "boxes.parquet").exists()
    record = made.prepare(check_images=False)
    assert (record["annotations"]["boxes.parquet"], record["images_checked"]) == (26, False)
    sources = record["sources"]
    (made.folder / "parts.parquet").unlink()
    record = made.prepare(annotations=False)
    assert record["images_checked"] is True
    assert not (made.folder / "parts.parquet").exists()
    assert made.prepare()["sources"] == sources
    assert (made.folder / "parts.parquet").is_file()
