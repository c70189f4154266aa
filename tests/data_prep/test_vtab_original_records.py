"""Every builder's original files, written by the test, give the keys, images and features that were put in."""

import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from data_prep.vtab.export import export
from data_prep.vtab.original import AVAILABLE, UNAVAILABLE, open_original
from data_prep.vtab.records import Origin, Record
from data_prep.vtab.tasks import BUILDERS, TASKS
from gift_vit.errors import ConfigError
from tests.data_prep.original_files import WRITERS, Content, accept_small_files, cifar100

ALL = sorted(WRITERS)
AS_STORED = [name for name in ALL if name != "diabetic_retinopathy_detection"]  # whose images are prepared


@pytest.fixture(autouse=True)
def _any_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    accept_small_files(monkeypatch)


def assert_same(record: Record, image: bytes | np.ndarray, features: Mapping[str, Any]) -> None:
    if isinstance(image, bytes):
        assert record.image == image
    else:
        pixels = np.asarray(Image.open(io.BytesIO(record.image)))
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, image)
    assert_equal(record.features, features)


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_equal(found[name], value)
    else:
        np.testing.assert_array_equal(found, expected)
        assert isinstance(expected, int) or found.dtype == expected.dtype


def by_hash(split: str, keys: Any) -> list[Any]:
    return sorted(keys, key=lambda key: int(hashlib.md5(f"{split}{key}".encode()).hexdigest(), 16))


def assert_holds(origin: Origin, content: Content) -> None:
    for split, rows in content.items():
        assert origin.keys(split) == by_hash(split, rows)
        records = list(origin.records(split, range(len(rows))))
        assert [record.key for record in records] == origin.keys(split)
        for record in records:
            assert_same(record, *rows[record.key])


def test_the_benchmarks_builders_are_either_available_or_explained() -> None:
    assert set(WRITERS) == AVAILABLE
    assert len(AVAILABLE) == 14
    assert set(UNAVAILABLE) == {"caltech101", "sun397"} == set(BUILDERS) - AVAILABLE
    assert sum(task.builder.name in AVAILABLE for task in TASKS.values()) == 17


@pytest.mark.parametrize("name", ["caltech101", "sun397"])
def test_an_unavailable_builder_says_why(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{name} cannot be had from its original files: .*; use source=tfds"):
        open_original(BUILDERS[name], None, tmp_path)


@pytest.mark.parametrize("name", AS_STORED)
def test_archives_in_a_folder(name: str, tmp_path: Path) -> None:
    content = WRITERS[name](tmp_path / "files")
    origin = open_original(BUILDERS[name], tmp_path / "files", tmp_path / "downloads")
    assert origin.source == "original"
    assert_holds(origin, content)
    assert not (tmp_path / "downloads").exists()
    assert {split: len(rows) for split, rows in content.items()}.keys() == BUILDERS[name].counts.keys()


@pytest.mark.parametrize("name", AS_STORED)
def test_archives_in_downloads(name: str, tmp_path: Path) -> None:
    content = WRITERS[name](tmp_path)
    assert_holds(open_original(BUILDERS[name], None, tmp_path), content)


@pytest.mark.parametrize("name", AS_STORED)
def test_a_range_of_positions(name: str, tmp_path: Path) -> None:
    content = WRITERS[name](tmp_path)
    origin = open_original(BUILDERS[name], tmp_path, tmp_path / "downloads")
    for split, rows in content.items():
        chosen = list(origin.records(split, range(2, 5)))
        assert [record.key for record in chosen] == by_hash(split, rows)[2:5][: len(rows) - 2]
        for record in chosen:
            assert_same(record, *rows[record.key])


def unpack_by_hand(folder: Path) -> None:
    for path in list(folder.iterdir()):
        if path.is_dir() or path.suffix in {".mat", ".hdf5", ".csv"}:
            continue
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
        else:
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()


@pytest.mark.parametrize("name", AS_STORED)
def test_unpacked_by_hand(name: str, tmp_path: Path) -> None:
    content = WRITERS[name](tmp_path / "files")
    unpack_by_hand(tmp_path / "files")
    before = sorted(tmp_path.rglob("*"))
    origin = open_original(BUILDERS[name], tmp_path / "files", tmp_path / "downloads")
    assert_holds(origin, content)
    noted = {path for path in tmp_path.rglob("*") if path.suffix == ".verified"}
    assert sorted(set(tmp_path.rglob("*")) - noted) == before


INNER = {
    "cifar100": "cifar-100-binary",
    "dtd": "dtd",
    "eurosat": "2750",
    "resisc45": "NWPU-RESISC45",
    "clevr": "CLEVR_v1.0",
}


@pytest.mark.parametrize("name", sorted(INNER))
def test_pointing_at_the_unpacked_folder_itself(name: str, tmp_path: Path) -> None:
    content = WRITERS[name](tmp_path / "files")
    unpack_by_hand(tmp_path / "files")
    assert_holds(open_original(BUILDERS[name], tmp_path / "files" / INNER[name], tmp_path / "downloads"), content)


@pytest.mark.parametrize("name", ["cifar100", "dtd", "oxford_iiit_pet", "patch_camelyon", "smallnorb", "dmlab"])
def test_what_was_unpacked_serves_without_the_archives(name: str, tmp_path: Path) -> None:
    content = WRITERS[name](tmp_path)
    open_original(BUILDERS[name], None, tmp_path)
    for path in tmp_path.glob("*.gz"):
        path.unlink()
    assert_holds(open_original(BUILDERS[name], None, tmp_path), content)


def test_resisc45_as_a_zip_is_read_in_place(tmp_path: Path) -> None:
    content = WRITERS["resisc45"](tmp_path / "files")
    with zipfile.ZipFile(tmp_path / "NWPU-RESISC45.zip", "w") as archive:
        for path in (tmp_path / "files").rglob("*.jpg"):
            archive.write(path, path.relative_to(tmp_path / "files"))
    assert_holds(open_original(BUILDERS["resisc45"], tmp_path, tmp_path / "downloads"), content)


@pytest.mark.parametrize("name", ["cifar100", "clevr", "dsprites"])
def test_an_origin_can_be_read_twice_and_in_parts(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    origin = open_original(BUILDERS[name], tmp_path, tmp_path)
    whole = [record.image for record in origin.records("train", range(10))]
    parts = [record.image for part in (range(5), range(5, 10)) for record in origin.records("train", part)]
    assert whole == parts


def test_a_task_is_exported_from_original_files(tmp_path: Path) -> None:
    rows = cifar100(tmp_path / "files", train=2000)["train"]
    origin = open_original(BUILDERS["cifar100"], tmp_path / "files", tmp_path / "downloads")
    meta = export(TASKS["cifar100"], origin, tmp_path / "out", official=False)
    assert (meta["source"], meta["class_names"][7]) == ("original", "fine 7")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "val200.parquet").to_pylist()
    expected = by_hash("train", rows)[1800:2000]
    assert [(row["id"], row["label"]) for row in table] == [(str(key), rows[key][1]["label"]) for key in expected]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(table[7]["image"]))), rows[expected[7]][0])


def test_neither_tensorflow_nor_tfds_is_imported() -> None:
    heavy = {"tensorflow", "tensorflow_datasets", "cv2", "array_record"}
    code = f"import sys, data_prep.vtab.original; raise SystemExit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


@pytest.mark.parametrize("name", ALL)
def test_the_origin_describes_itself(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    facts = open_original(BUILDERS[name], tmp_path, tmp_path).describe()
    assert facts["builder"] == name
    assert facts["version"] == BUILDERS[name].version
    assert facts["files"]
    assert facts["PIL"]
    assert all(isinstance(value, str) for value in facts.values())
    assert str(tmp_path) not in str(facts)
