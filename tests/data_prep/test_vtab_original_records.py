"""Every builder's original files are read wherever they are; what is read is compared with TFDS in the tests of routes."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.vtab.original import AVAILABLE, UNAVAILABLE, open_original
from data_prep.vtab.original.files import FILES
from data_prep.vtab.tasks import BUILDERS
from gift_vit.common.errors import ConfigError
from tests.data_prep.original_files import WRITERS, read_all
from tests.data_prep.tiny_tfds import unpack

pytestmark = pytest.mark.usefixtures("files")


def test_a_builder_is_either_available_or_says_why(tmp_path: Path) -> None:
    assert set(WRITERS) == AVAILABLE
    assert set(UNAVAILABLE) == {"caltech101", "sun397"} == set(BUILDERS) - AVAILABLE
    for name in UNAVAILABLE:
        with pytest.raises(ConfigError, match=f"{name} cannot be had from its original files: .*; use source=tfds"):
            open_original(BUILDERS[name], None, tmp_path)


def unpack_by_hand(folder: Path) -> None:
    for path in list(folder.iterdir()):
        single = path.suffix == ".gz" and not tarfile.is_tarfile(path)
        if path.is_file() and unpack(path, path.with_suffix("") if single else folder) != path:
            path.unlink()


AGAIN = {"cifar100", "dtd", "oxford_iiit_pet", "patch_camelyon", "smallnorb", "dmlab"}  # everything in .gz is unpacked
INNER = {"cifar100": "cifar-100-binary", "dtd": "dtd", "eurosat": "2750", "resisc45": "NWPU-RESISC45", "clevr": "CLEVR_v1.0"}


@pytest.mark.parametrize("name", WRITERS)
def test_wherever_the_files_are(name: str, files: Path, tmp_path: Path) -> None:
    """As archives in a folder or among the downloads, or unpacked by hand; then any range of positions can be read."""
    WRITERS[name](files)
    downloads = tmp_path / "downloads"
    shutil.copytree(files, by_hand := tmp_path / "by hand")
    shutil.copytree(files, pool := tmp_path / "pool")
    origin = open_original(BUILDERS[name], files, downloads)
    assert origin.source == "original"
    facts = origin.describe()
    assert (facts["builder"], facts["version"]) == (name, BUILDERS[name].version)
    assert {"files", "PIL"} <= facts.keys()
    assert all(value and isinstance(value, str) for value in facts.values())
    assert str(files) not in str(facts)
    expected = read_all(name, files, downloads)
    for split, records in expected.items():
        np.testing.assert_equal([vars(record) for record in origin.records(split, range(2, 5))], records[2:5])

    unpack_by_hand(by_hand)
    before = sorted(by_hand.rglob("*"))
    for pointed_at in (by_hand, *([by_hand / INNER[name]] if name in INNER else [])):
        np.testing.assert_equal(read_all(name, pointed_at, downloads), expected)
    assert sorted(path for path in by_hand.rglob("*") if path.suffix != ".verified") == before
    assert not downloads.exists()
    if name != "diabetic_retinopathy_detection":  # which has no archives
        np.testing.assert_equal(read_all(name, None, pool), expected)
        for archive in (path for path in pool.glob("*.gz") if name in AGAIN):
            archive.unlink()
        np.testing.assert_equal(read_all(name, None, pool), expected)  # what was unpacked serves without the archives


@pytest.mark.parametrize("top", ["", "NWPU-RESISC45"])
def test_resisc45_as_a_zip_is_read_in_place(top: str, files: Path, tmp_path: Path) -> None:
    WRITERS["resisc45"](files)
    with zipfile.ZipFile(tmp_path / "NWPU-RESISC45.zip", "w") as archive:
        for path in files.rglob("*.jpg"):
            archive.write(path, top / path.relative_to(files / "NWPU-RESISC45"))
    np.testing.assert_equal(read_all("resisc45", tmp_path, tmp_path), read_all("resisc45", files, tmp_path))


OTHERS = {"oxford_iiit_pet": "images/holiday.jpg", "kitti": "training/image_2/000000_10.png"}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_another_dataset_do_not_stand_in_for_the_archive_beside_them(name: str, files: Path, tmp_path: Path) -> None:
    WRITERS[name](files)
    expected = read_all(name, shutil.copytree(files, tmp_path / "archives alone"), tmp_path)
    (files / OTHERS[name]).parent.mkdir(parents=True)
    (files / OTHERS[name]).touch()
    np.testing.assert_equal(read_all(name, files, tmp_path), expected)


def test_what_is_unpacked_stands_in_for_an_archive_that_is_cut_off(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS["eurosat"](files)
    archive = files / "EuroSAT.zip"
    monkeypatch.setitem(FILES, "eurosat", [replace(file, size=archive.stat().st_size) for file in FILES["eurosat"]])
    expected = read_all("eurosat", files, tmp_path)
    unpack(archive, files)
    archive.write_bytes(archive.read_bytes()[:1000])
    np.testing.assert_equal(read_all("eurosat", files, tmp_path), expected)
    assert open_original(BUILDERS["eurosat"], files, tmp_path).describe()["files"] == "2750/ (unpacked)"


@pytest.mark.parametrize("name", ["resisc45", "diabetic_retinopathy_detection"])
def test_what_a_person_put_among_the_downloads_is_found_where_the_folder_lacks_it(
    name: str, files: Path, tmp_path: Path
) -> None:
    put = tmp_path / "downloads" / ("" if name == "resisc45" else name)
    put.mkdir(parents=True)
    WRITERS[name](put)
    for listing in put.glob("retinopathy_solution.csv"):
        listing.rename(files / listing.name)  # which is downloaded
    assert open_original(BUILDERS[name], files, tmp_path / "downloads").keys("train")


def test_neither_tensorflow_nor_tfds_is_imported_before_it_is_used() -> None:
    heavy = {"tensorflow", "tensorflow_datasets", "cv2", "array_record"}
    code = f"import sys, data_prep.vtab.original, data_prep.vtab.tfds_origin; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
