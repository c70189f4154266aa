"""Missing, damaged and misplaced original files: one line that names the file and the remedy, and nothing half-written."""

import json
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from data_prep.download import RemoteFile
from data_prep.vtab.original import open_original, places
from data_prep.vtab.original.files import FILES
from data_prep.vtab.tasks import BUILDERS
from gift_vit.common.errors import ConfigError
from tests.data_prep.archive_trees import zip_of
from tests.data_prep.original_files import DSPRITES, NORB_TEST, NORB_TRAIN, WRITERS, eye, read_all

Change = Callable[[Path], object]
EYES = "diabetic_retinopathy_detection"
FETCHED = sorted(name for name in WRITERS if FILES[name])
ARCHIVES = [(name, file.name) for name in FETCHED for file in FILES[name] if not file.name.endswith(".csv")]


def error_of(name: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_all(name, folder, folder.parent / "downloads")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", FETCHED)
def test_only_missing_archives_are_fetched(name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS[name](files)
    asked = []

    def fetch(file: RemoteFile, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        asked.append(file)
        return Path(shutil.copy(files / file.name, folder))

    monkeypatch.setattr(places, "fetch", fetch)
    pointed_at = tmp_path / "by hand"
    pointed_at.mkdir()
    for by_hand in ("train", "test", "trainLabels.csv") if name == EYES else ():
        (files / by_hand).rename(pointed_at / by_hand)
    read_all(name, pointed_at, tmp_path / "downloads")
    assert sorted(file.name for file in asked) == sorted(file.name for file in FILES[name])


@pytest.mark.parametrize(("name", "made"), [("cifar100", "cifar-100-binary.tar.gz.unpacked"), ("smallnorb", "*.mat")])
def test_what_a_read_only_folder_holds_is_unpacked_to_the_downloads(
    name: str, made: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](files)
    before = set(files.iterdir())
    monkeypatch.setattr("os.access", lambda path, _: path != files)  # root could write there
    examples = [read_all(name, files, tmp_path / "downloads") for _ in range(2)]
    assert examples[0] == examples[1]
    assert set(files.iterdir()) == before
    assert any((tmp_path / "downloads").glob(made))


def test_another_file_under_the_archives_name(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(b"an error page")
    message = error_of("cifar100", tmp_path)
    assert "cifar-100-binary.tar.gz is damaged, incomplete or another file" in message
    assert "13 bytes, expected 168513733" in message


@pytest.mark.parametrize(("name", "file"), ARCHIVES)
def test_an_archive_that_is_cut_off(name: str, file: str, files: Path) -> None:
    WRITERS[name](files)
    whole = (files / file).read_bytes()
    (files / file).write_bytes(whole[: len(whole) * 2 // 3])
    assert file in error_of(name, files)
    assert not list(files.glob("*.partial")) + list(files.glob(f"{file}.unpacked"))
    (files / file).write_bytes(whole)
    read_all(name, files, files)


# ---- Changes of a file below the folder


def shorten(file: str) -> Change:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-3])


def overwrite(file: str, content: str | bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)


def remove(pattern: str) -> Change:
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def move(file: str) -> Change:
    return lambda folder: (folder / file).rename(folder / "elsewhere")


def in_zip(archive: str, change: Callable[[dict[str, bytes]], object]) -> Change:
    def apply(folder: Path) -> None:
        with zipfile.ZipFile(folder / archive) as opened:
            members = {name: opened.read(name) for name in opened.namelist()}
        change(members)
        (folder / archive).write_bytes(zip_of(members))

    return apply


def without(archive: str, *names: str) -> Change:
    return in_zip(archive, lambda members: [members.pop(name) for name in names])


def put(archive: str, name: str, content: Callable[[bytes], bytes]) -> Change:
    return in_zip(archive, lambda members: members.update({name: content(members[name])}))


def mat(file: str, **arrays: Any) -> Change:
    return lambda folder: scipy.io.savemat(folder / file, arrays)


def sprites(**arrays: Any) -> Change:
    def apply(folder: Path) -> None:
        with h5py.File(folder / DSPRITES, "w") as file:
            for name, array in arrays.items():
                file[name.replace("__", "/")] = array

    return apply


def spoil_member(folder: Path) -> None:
    with zipfile.ZipFile(folder / "EuroSAT.zip") as archive:
        offset = archive.getinfo("2750/Forest/Forest_1.jpg").header_offset
    data = bytearray((folder / "EuroSAT.zip").read_bytes())
    data[offset + 1000 : offset + 1100] = bytes(100)
    (folder / "EuroSAT.zip").write_bytes(data)


def spoil_record(folder: Path) -> None:
    shard = folder / "dmlab.tar.gz.unpacked/dmlab-train.tfrecord-00000-of-00002"
    data = shard.read_bytes()
    shard.write_bytes(data[:12] + b"\xff" * 30 + data[42:])


def fewer_scenes(scenes: bytes) -> bytes:
    return json.dumps({"scenes": json.loads(scenes)["scenes"][1:]}).encode()


CLEVR, SCENES, LABEL = "CLEVR_v1.0.zip", "CLEVR_v1.0/scenes/CLEVR_val_scenes.json", "training/label_2/000007.txt"
IMAGES, LABELS, KIT = "data_object_image_2.zip", "data_object_label_2.zip", "devkit_object.zip"
NO_OBJECTS = json.dumps({"scenes": [{"image_filename": "CLEVR_val_000000.png"}]}).encode()
SVHN = np.zeros((32, 32, 3, 4), np.uint8)
CLASSES = np.zeros((3, 6), int)
OTHER_NORB = f"{NORB_TEST}-cat.mat.gz"
# of files as they were downloaded: the builder, what happens to them, and what is said
AT_FIRST: list[tuple[str, Change, str]] = [
    ("clevr", without(CLEVR, "CLEVR_v1.0/images/val/CLEVR_val_000003.png"), f"1 of the 9 images listed in .*{CLEVR}"),
    ("clevr", without(CLEVR, SCENES.replace("val", "train")), f"{CLEVR}.*is missing; this is not the"),
    ("clevr", put(CLEVR, SCENES, lambda scenes: scenes[:-40]), f"{CLEVR}.*CLEVR_val_scenes.json is damaged"),
    ("clevr", put(CLEVR, SCENES, lambda _: NO_OBJECTS), f"{CLEVR}.*CLEVR_val_scenes.json is damaged"),
    ("clevr", put(CLEVR, SCENES, fewer_scenes), "images/val holds 9 images, but scenes/CLEVR_val_scenes.json 8 scenes"),
    ("kitti", put(LABELS, LABEL, lambda _: b"Bus" + b" 0" * 14), f"{LABELS}.*000007.txt: 'Bus 0"),
    ("kitti", put(LABELS, LABEL, lambda _: b"Car 0 0"), f"{LABELS}.*000007.txt: 'Car 0 0' is not a label of KITTI"),
    ("kitti", put(LABELS, LABEL, lambda _: b"Car" + b" 0" * 12 + b" x 0"), f"{LABELS}.*is not a label of KITTI"),
    ("kitti", without(LABELS, LABEL), f"{LABELS}.*000007.txt is missing"),
    ("kitti", without(IMAGES, "training/image_2/000007.png"), f"{IMAGES}.*000007.png"),
    ("kitti", without(KIT, "mapping/train_mapping.txt"), f"{KIT}.*mapping/train_mapping.txt is missing"),
    ("kitti", put(KIT, "mapping/train_rand.txt", lambda text: text + b",61"), f"{KIT}.*is not KITTI's mapping of images"),
    ("eurosat", without("EuroSAT.zip", *(f"2750/River/River_{i}.jpg" for i in (1, 2, 10))), "EuroSAT.zip.*River holds no .jpg"),
    ("eurosat", spoil_member, "EuroSAT.zip is damaged"),
    ("resisc45", move("NWPU-RESISC45"), "has to be fetched by hand.*files/NWPU-RESISC45/airplane/airplane_001.jpg"),
    ("resisc45", remove("NWPU-RESISC45/lake/lake_700.jpg"), "lake holds 1 images, but airplane 2; every class has 700"),
    ("resisc45", remove("NWPU-RESISC45/wetland/*"), "wetland holds no .jpg files, expected one folder for each of 45 classes"),
    *((EYES, move(part), f"files/{part} is missing: the images have to be.*www.kaggle.com") for part in ("train", "test")),
    (EYES, move("trainLabels.csv"), "files/trainLabels.csv is missing: the images have to be fetched by hand.*www.kaggle.com"),
    (EYES, overwrite("train/10_right.jpeg", eye(1)[:20]), r"10_right.jpeg is not a readable image \(it cannot be dec"),
    (EYES, overwrite("trainLabels.csv", "image,grade\n10_left,0\n"), "trainLabels.csv is not Kaggle's list"),
    ("oxford_flowers102", mat("imagelabels.mat", labels=np.ones((1, 20), np.uint8)), "has 20 labels"),
    ("svhn_cropped", mat("train_32x32.mat", X=SVHN, y=np.ones((3, 1))), r"images of shape \(32, 32, 3, 4\) and 3 labels"),
    ("svhn_cropped", mat("train_32x32.mat", X=SVHN), "train_32x32.mat is not a complete MATLAB file with X and y"),
    ("smallnorb", lambda f: shutil.copy(f / OTHER_NORB, f / f"{NORB_TRAIN}-cat.mat.gz"), "holds 25 examples, but"),
    ("smallnorb", overwrite(f"{NORB_TRAIN}-dat.mat", "MATLAB 5.0 MAT-file"), "is not a binary matrix of small NORB"),
    ("dsprites", sprites(imgs=np.full((3, 64, 64), 255, np.uint8), latents__classes=CLASSES), "pixels up to 255"),
    ("dsprites", sprites(imgs=np.zeros((3, 32, 64), np.uint8), latents__classes=CLASSES), r"images of \(32, 64\)"),
    ("dsprites", sprites(imgs=np.zeros((4, 64, 64)), latents__classes=CLASSES), "holds 4 images, but there are 3 labels"),
    ("dsprites", sprites(other=[1]), f"files/{DSPRITES} is damaged or another file"),
]
CIFAR, DTD = "cifar-100-binary.tar.gz.unpacked/cifar-100-binary/test.bin", "dtd-r1.0.1.tar.gz.unpacked/dtd"
FOLD = f"{DTD}/labels/train1.txt"
FLOWERS, JPG = "oxford_flowers102", "102flowers.tgz.unpacked/jpg"
PETS, BREEDS = "oxford_iiit_pet", "annotations.tar.gz.unpacked/annotations/trainval.txt"
GONE = "are missing, the first is .*{}; unpack the archive again"
# of files that were unpacked before
ONCE_UNPACKED: list[tuple[str, Change, str]] = [
    ("cifar100", shorten(CIFAR), "test.bin.*half-way"),
    ("smallnorb", shorten(f"{NORB_TRAIN}-dat.mat"), f"{NORB_TRAIN}-dat.mat.*its header says"),
    ("smallnorb", shorten(f"{NORB_TRAIN}-cat.mat"), f"{NORB_TRAIN}-cat.mat.*its header says"),
    ("patch_camelyon", shorten("camelyonpatch_level_2_split_train_x.h5"), "split_train_x.h5.*damaged or another file"),
    ("dmlab", shorten("dmlab.tar.gz.unpacked/dmlab-test.tfrecord-00001-of-00002"), "00001-of-00002.*ends within a record"),
    ("dmlab", spoil_record, "dmlab-train.tfrecord-00000-of-00002 is damaged at byte 12"),
    ("dmlab", remove("dmlab.tar.gz.unpacked/dmlab-test*"), r"holds no dmlab-test\.tfrecord files"),
    ("dtd", remove(f"{DTD}/images/banded/banded_0102.jpg"), "1 of the 12 images .*val1.txt " + GONE.format("banded_0102.jpg")),
    ("dtd", overwrite(FOLD, "hairy/hairy_0001.jpg\n"), "train1.txt names the class 'hairy'; expected one of"),
    ("dtd", overwrite(FOLD, "banded/banded_0002.jpg\n" * 2), "split train name an example twice"),
    (FLOWERS, remove(f"{JPG}/image_00040.jpg"), r"1 of the \d+ images .*setid.mat \(trnid\) " + GONE.format("image_00040.jpg")),
    (PETS, remove("images.tar.gz.unpacked/images/Abyssinian_102.jpg"), "1 of the 9 images listed in .*test.txt are"),
    (PETS, overwrite(BREEDS, "Abyssinian_1 one 1 1\n"), "trainval.txt: got the line 'Abyssinian_1 one 1 1', expected"),
    (EYES, remove("test/2_left.jpeg"), "1 of the 2 images .*retinopathy_solution.csv " + GONE.format("2_left.jpeg")),
]


@pytest.mark.parametrize(
    ("name", "change", "message", "unpacked"), [(*row, False) for row in AT_FIRST] + [(*row, True) for row in ONCE_UNPACKED]
)
def test_what_is_not_what_it_should_be(name: str, change: Change, message: str, unpacked: bool, files: Path) -> None:
    WRITERS[name](files)
    if unpacked:
        open_original(BUILDERS[name], files, files)
    change(files)
    assert re.search(message, error_of(name, files))


def test_the_number_of_images_is_the_exports_to_check(files: Path) -> None:
    WRITERS["eurosat"](files)
    without("EuroSAT.zip", "2750/Forest/Forest_1.jpg")(files)
    assert len(read_all("eurosat", files, files)["train"]) == 29


def test_resisc45_packed_or_nested_too_deeply(files: Path) -> None:
    (files / "NWPU-RESISC45.rar").write_bytes(b"Rar!")
    assert "NWPU-RESISC45.rar, which has to be unpacked by hand" in error_of("resisc45", files)
    inner = files / "NWPU-RESISC45" / "NWPU-RESISC45"
    WRITERS["resisc45"](inner.parent)
    assert f"nested too deeply in {inner}" in error_of("resisc45", files)
    read_all("resisc45", inner.parent, files)  # the remedy it names


def test_opencv_is_not_installed(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS[EYES](files)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert error_of(EYES, files).endswith("pip install opencv-python-headless")
