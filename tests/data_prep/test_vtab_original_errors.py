"""Missing, damaged and misplaced original files: one line that names the file and the remedy, and nothing half-written."""

import csv
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from data_prep.download import RemoteFile
from data_prep.vtab.original import open_original, places
from data_prep.vtab.original.files import FILES
from data_prep.vtab.records import Record
from data_prep.vtab.tasks import BUILDERS
from gift_vit.errors import ConfigError
from tests.data_prep.original_files import DSPRITES, NORB_TRAIN, WRITERS, accept_small_files, eye, write_zip

FETCHED = sorted(name for name in WRITERS if FILES[name])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    accept_small_files(monkeypatch)
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


def read_all(name: str, folder: Path | None, downloads: Path) -> dict[str, list[Record]]:
    origin = open_original(BUILDERS[name], folder, downloads)
    return {split: list(origin.records(split, range(len(origin.keys(split))))) for split in BUILDERS[name].counts}


def error_of(name: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_all(name, folder, folder.parent / "downloads")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"archives=.*/absent is not a folder; expected the one that holds the files of dtd"):
        open_original(BUILDERS["dtd"], tmp_path / "absent", tmp_path)


@pytest.mark.parametrize("name", FETCHED)
def test_missing_archives_are_fetched_and_no_others(
    name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](files)
    asked = []

    def fetch(file: RemoteFile, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        asked.append(file)
        return Path(shutil.copy(files / file.name, folder))

    monkeypatch.setattr(places, "fetch", fetch)
    pointed_at = tmp_path / "by hand"
    pointed_at.mkdir()
    for by_hand in ("train", "test", "trainLabels.csv") if name == "diabetic_retinopathy_detection" else ():
        (files / by_hand).rename(pointed_at / by_hand)
    read_all(name, pointed_at, tmp_path / "downloads")
    assert sorted(file.name for file in asked) == sorted(file.name for file in FILES[name])
    assert len(FETCHED) == 13


def test_another_file_under_the_archives_name(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(b"an error page")
    message = error_of("cifar100", tmp_path)
    assert "cifar-100-binary.tar.gz is damaged, incomplete or another file" in message
    assert "13 bytes, expected 168513733" in message


CUT_OFF = [
    ("cifar100", "cifar-100-binary.tar.gz"),
    ("svhn_cropped", "test_32x32.mat"),
    ("dtd", "dtd-r1.0.1.tar.gz"),
    ("oxford_flowers102", "102flowers.tgz"),
    ("oxford_flowers102", "imagelabels.mat"),
    ("oxford_flowers102", "setid.mat"),
    ("oxford_iiit_pet", "annotations.tar.gz"),
    ("oxford_iiit_pet", "images.tar.gz"),
    ("eurosat", "EuroSAT.zip"),
    ("patch_camelyon", "camelyonpatch_level_2_split_valid_x.h5.gz"),
    ("patch_camelyon", "camelyonpatch_level_2_split_test_y.h5.gz"),
    ("clevr", "CLEVR_v1.0.zip"),
    ("kitti", "data_object_image_2.zip"),
    ("kitti", "data_object_label_2.zip"),
    ("kitti", "devkit_object.zip"),
    ("dsprites", DSPRITES),
    ("smallnorb", f"{NORB_TRAIN}-dat.mat.gz"),
    ("smallnorb", f"{NORB_TRAIN}-info.mat.gz"),
    ("dmlab", "dmlab.tar.gz"),
]


@pytest.mark.parametrize(("name", "file"), CUT_OFF)
def test_an_archive_that_is_cut_off(name: str, file: str, files: Path) -> None:
    WRITERS[name](files)
    whole = (files / file).read_bytes()
    (files / file).write_bytes(whole[: len(whole) * 2 // 3])
    assert file in error_of(name, files)
    assert not list(files.glob("*.partial")) + list(files.glob(f"{file}.unpacked"))
    (files / file).write_bytes(whole)
    read_all(name, files, files)


UNPACKED_CUT_OFF = [
    ("cifar100", "cifar-100-binary.tar.gz.unpacked/cifar-100-binary/test.bin", "half-way"),
    ("smallnorb", f"{NORB_TRAIN}-dat.mat", "its header says"),
    ("smallnorb", f"{NORB_TRAIN}-cat.mat", "its header says"),
    ("patch_camelyon", "camelyonpatch_level_2_split_train_x.h5", "damaged or another file"),
    ("dmlab", "dmlab.tar.gz.unpacked/dmlab-test.tfrecord-00001-of-00002", "ends within a record"),
]


@pytest.mark.parametrize(("name", "file", "expected"), UNPACKED_CUT_OFF)
def test_an_unpacked_file_that_is_cut_off(name: str, file: str, expected: str, files: Path) -> None:
    WRITERS[name](files)
    open_original(BUILDERS[name], files, files)
    whole = (files / file).read_bytes()
    (files / file).write_bytes(whole[:-3])
    message = error_of(name, files)
    assert Path(file).name in message
    assert expected in message


MISSING_IMAGES = [
    ("dtd", "dtd-r1.0.1.tar.gz.unpacked/dtd/images/banded/banded_0102.jpg", "1 of the 12 images listed in .*val1.txt"),
    (
        "oxford_flowers102",
        "102flowers.tgz.unpacked/jpg/image_00040.jpg",
        r"1 of the \d+ images listed in .*setid.mat \(trnid\)",
    ),
    ("oxford_iiit_pet", "images.tar.gz.unpacked/images/Abyssinian_102.jpg", "1 of the 9 images listed in .*test.txt"),
    ("diabetic_retinopathy_detection", "test/2_left.jpeg", "1 of the 2 images listed in .*retinopathy_solution.csv"),
]


@pytest.mark.parametrize(("name", "image", "expected"), MISSING_IMAGES)
def test_a_listed_image_is_missing(name: str, image: str, expected: str, files: Path) -> None:
    WRITERS[name](files)
    open_original(BUILDERS[name], files, files)
    (files / image).unlink()
    with pytest.raises(
        ConfigError, match=f"{expected} are missing, the first is .*{Path(image).name}; unpack the archive again"
    ):
        read_all(name, files, files)


def rewrite_zip(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    write_zip(path, members)


SCENES = "CLEVR_v1.0/scenes/CLEVR_val_scenes.json"


def cut_scenes(members: dict[str, bytes]) -> None:
    members[SCENES] = members[SCENES][:-40]


def scene_too_few(members: dict[str, bytes]) -> None:
    members[SCENES] = json.dumps({"scenes": json.loads(members[SCENES])["scenes"][1:]}).encode()


def scene_without_objects(members: dict[str, bytes]) -> None:
    members[SCENES] = json.dumps({"scenes": [{"image_filename": "CLEVR_val_000000.png"}]}).encode()


def unknown_type(members: dict[str, bytes]) -> None:
    members["training/label_2/000007.txt"] = b"Bus" + b" 0" * 14


def short_line(members: dict[str, bytes]) -> None:
    members["training/label_2/000007.txt"] = b"Car 0 0"


def not_a_number(members: dict[str, bytes]) -> None:
    members["training/label_2/000007.txt"] = b"Car" + b" 0" * 12 + b" x 0"


def no_mapping(members: dict[str, bytes]) -> None:
    del members["mapping/train_mapping.txt"]


def line_beyond(members: dict[str, bytes]) -> None:
    members["mapping/train_rand.txt"] += b",61"


DAMAGED_ZIPS = [
    ("clevr", "CLEVR_v1.0.zip", lambda members: members.pop("CLEVR_v1.0/images/val/CLEVR_val_000003.png"), "1 of the 9 images"),
    (
        "clevr",
        "CLEVR_v1.0.zip",
        lambda members: members.pop("CLEVR_v1.0/scenes/CLEVR_train_scenes.json"),
        "is missing; this is not the",
    ),
    ("clevr", "CLEVR_v1.0.zip", cut_scenes, "CLEVR_val_scenes.json is damaged"),
    ("clevr", "CLEVR_v1.0.zip", scene_too_few, "images/val holds 9 images, but scenes/CLEVR_val_scenes.json 8 scenes"),
    ("clevr", "CLEVR_v1.0.zip", scene_without_objects, "CLEVR_val_scenes.json is damaged"),
    ("kitti", "data_object_label_2.zip", unknown_type, "000007.txt: 'Bus 0"),
    ("kitti", "data_object_label_2.zip", short_line, "000007.txt: 'Car 0 0' is not a label of KITTI"),
    ("kitti", "data_object_label_2.zip", not_a_number, "is not a label of KITTI"),
    ("kitti", "data_object_label_2.zip", lambda members: members.pop("training/label_2/000007.txt"), "000007.txt is missing"),
    ("kitti", "data_object_image_2.zip", lambda members: members.pop("training/image_2/000007.png"), "000007.png"),
    ("kitti", "devkit_object.zip", no_mapping, "mapping/train_mapping.txt is missing"),
    ("kitti", "devkit_object.zip", line_beyond, "is not KITTI's mapping of images to videos"),
    ("eurosat", "EuroSAT.zip", lambda members: members.pop("2750/Forest/Forest_1.jpg"), None),
    (
        "eurosat",
        "EuroSAT.zip",
        lambda members: [members.pop(f"2750/River/River_{i}.jpg") for i in (1, 2, 10)],
        "River holds no .jpg",
    ),
]


@pytest.mark.parametrize(("name", "archive", "change", "expected"), DAMAGED_ZIPS)
def test_a_zip_that_is_not_what_it_should_be(
    name: str, archive: str, change: Callable[[dict[str, bytes]], None], expected: str | None, files: Path
) -> None:
    WRITERS[name](files)
    rewrite_zip(files / archive, change)
    if expected is None:  # the number of images is the export's to check
        assert len(read_all(name, files, files)["train"]) == 29
        return
    message = error_of(name, files)
    assert expected in message
    assert archive in message


def test_a_member_whose_bytes_are_damaged(files: Path) -> None:
    WRITERS["eurosat"](files)
    path = files / "EuroSAT.zip"
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("2750/Forest/Forest_1.jpg").header_offset
    data = bytearray(path.read_bytes())
    data[offset + 1000 : offset + 1100] = bytes(100)
    path.write_bytes(data)
    assert f"{path} is damaged" in error_of("eurosat", files)


def test_resisc45_is_not_there(files: Path) -> None:
    message = error_of("resisc45", files)
    assert "has to be fetched by hand" in message
    assert f"{files / 'NWPU-RESISC45' / 'airplane'}/airplane_001.jpg" in message
    (files / "NWPU-RESISC45.rar").write_bytes(b"Rar!")
    assert "NWPU-RESISC45.rar, which has to be unpacked by hand" in error_of("resisc45", files)


def test_resisc45_nested_too_deeply(files: Path) -> None:
    WRITERS["resisc45"](files)
    (files / "NWPU-RESISC45").rename(files / "inner")
    (files / "NWPU-RESISC45").mkdir()
    (files / "inner").rename(files / "NWPU-RESISC45" / "NWPU-RESISC45")
    message = error_of("resisc45", files)
    assert f"nested too deeply in {files / 'NWPU-RESISC45' / 'NWPU-RESISC45'}" in message
    read_all("resisc45", files / "NWPU-RESISC45", files)  # the remedy it names


def test_resisc45_unpacked_half_way(files: Path) -> None:
    WRITERS["resisc45"](files)
    (files / "NWPU-RESISC45" / "lake" / "lake_700.jpg").unlink()
    assert "lake holds 1 images, but airplane 2; every class has 700" in error_of("resisc45", files)
    shutil.rmtree(files / "NWPU-RESISC45" / "wetland")
    assert "wetland holds no .jpg files, expected one folder for each of 45 classes" in error_of("resisc45", files)


@pytest.mark.parametrize("part", ["train", "test", "trainLabels.csv"])
def test_retinopathy_is_not_there(part: str, files: Path) -> None:
    WRITERS["diabetic_retinopathy_detection"](files)
    (files / part).rename(files / "elsewhere")
    message = error_of("diabetic_retinopathy_detection", files)
    assert f"{files / part} is missing: the images have to be fetched by hand" in message
    assert "www.kaggle.com" in message


def test_a_retinopathy_image_that_is_none(files: Path) -> None:
    WRITERS["diabetic_retinopathy_detection"](files)
    (files / "train" / "10_right.jpeg").write_bytes(eye(1)[:20])
    assert "10_right.jpeg is not a readable image" in error_of("diabetic_retinopathy_detection", files)
    with (files / "trainLabels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "grade"], ["10_left", 0]])
    assert "trainLabels.csv is not Kaggle's list" in error_of("diabetic_retinopathy_detection", files)


def test_lists_that_contradict_the_labels(files: Path) -> None:
    WRITERS["oxford_flowers102"](files)
    scipy.io.savemat(files / "imagelabels.mat", {"labels": np.ones((1, 20), np.uint8)})
    assert "has 20 labels" in error_of("oxford_flowers102", files)
    WRITERS["dtd"](files)
    open_original(BUILDERS["dtd"], files, files)
    listing = files / "dtd-r1.0.1.tar.gz.unpacked/dtd/labels/train1.txt"
    listing.write_text("hairy/hairy_0001.jpg\n")
    assert "train1.txt names the class 'hairy'; expected one of the 47" in error_of("dtd", files)
    listing.write_text("banded/banded_0002.jpg\nbanded/banded_0002.jpg\n")
    assert "split train name an example twice" in error_of("dtd", files)
    WRITERS["oxford_iiit_pet"](files)
    open_original(BUILDERS["oxford_iiit_pet"], files, files)
    (files / "annotations.tar.gz.unpacked/annotations/trainval.txt").write_text("Abyssinian_1 one 1 1\n")
    assert "trainval.txt: got the line 'Abyssinian_1 one 1 1', expected" in error_of("oxford_iiit_pet", files)


def test_arrays_that_contradict_each_other(files: Path) -> None:
    WRITERS["svhn_cropped"](files)
    arrays = {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((3, 1), np.uint8)}
    scipy.io.savemat(files / "train_32x32.mat", arrays)
    assert "holds images of shape (32, 32, 3, 4) and 3 labels" in error_of("svhn_cropped", files)
    scipy.io.savemat(files / "train_32x32.mat", {"X": arrays["X"]})
    assert "train_32x32.mat is not a complete MATLAB file with X and y" in error_of("svhn_cropped", files)
    WRITERS["smallnorb"](files)
    shutil.copy(
        files / f"{NORB_TRAIN.replace('46789', '01235').replace('training', 'testing')}-cat.mat.gz",
        files / f"{NORB_TRAIN}-cat.mat.gz",
    )
    assert "holds 25 examples, but" in error_of("smallnorb", files)
    (files / f"{NORB_TRAIN}-dat.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    assert "is not a binary matrix of small NORB" in error_of("smallnorb", files)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (np.full((3, 64, 64), 255, np.uint8), "pixels up to 255"),
        (np.zeros((3, 32, 64), np.uint8), "images of (32, 64)"),
        (np.zeros((4, 64, 64), np.uint8), "holds 4 images, but there are 3 labels"),
    ],
)
def test_sprites_of_another_kind(images: np.ndarray, expected: str, files: Path) -> None:
    with h5py.File(files / DSPRITES, "w") as file:
        file["imgs"] = images
        file["latents/classes"] = np.zeros((3, 6), int)
    assert expected in error_of("dsprites", files)


def test_another_hdf5_file(files: Path) -> None:
    with h5py.File(files / DSPRITES, "w") as file:
        file["other"] = [1]
    assert f"{files / DSPRITES} is damaged or another file" in error_of("dsprites", files)


def test_opencv_is_not_installed(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["diabetic_retinopathy_detection"](files)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert error_of("diabetic_retinopathy_detection", files).endswith("pip install opencv-python-headless")


def test_dmlab_records_that_are_no_examples(files: Path) -> None:
    WRITERS["dmlab"](files)
    open_original(BUILDERS["dmlab"], files, files)
    shard = files / "dmlab.tar.gz.unpacked/dmlab-train.tfrecord-00000-of-00002"
    data = io.BytesIO(shard.read_bytes())
    data.seek(12)
    data.write(b"\xff" * 30)
    shard.write_bytes(data.getvalue())
    assert f"{shard} is damaged at byte 12" in error_of("dmlab", files)
    for path in shard.parent.glob("dmlab-test*"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"holds no dmlab-test\.tfrecord files"):
        open_original(BUILDERS["dmlab"], files, files).keys("test")
