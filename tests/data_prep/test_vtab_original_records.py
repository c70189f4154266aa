"""Every builder's original files, written by the test, give the keys, images and features that were put in."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.vtab.original import AVAILABLE, UNAVAILABLE, open_original
from data_prep.vtab.records import Origin, Record
from data_prep.vtab.tasks import BUILDERS
from gift_vit.common.errors import ConfigError
from tests.data_prep.original_files import WRITERS, Content
from tests.data_prep.tiny_tfds import unpack
from tests.data_prep.vtab_origins import decode

pytestmark = pytest.mark.usefixtures("files")

LAST_CLASS = {"cifar100": "fine 99", "dtd": "zigzagged", "eurosat": "SeaLake", "resisc45": "wetland"}
LAST_CLASS |= {"oxford_flowers102": "blackberry lily", "oxford_iiit_pet": "yorkshire_terrier"}
AS_STORED = [name for name in WRITERS if name != "diabetic_retinopathy_detection"]  # whose images are prepared


def assert_same(record: Record, image: bytes | np.ndarray, features: Mapping[str, Any]) -> None:
    if isinstance(image, bytes):
        assert record.image == image
    else:
        pixels = decode(record.image)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, image)
    np.testing.assert_equal(dict(record.features), features)
    for part, values in features.get("objects", {}).items():
        assert record.features["objects"][part].dtype == values.dtype


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
    assert set(UNAVAILABLE) == {"caltech101", "sun397"} == set(BUILDERS) - AVAILABLE


@pytest.mark.parametrize("name", ["caltech101", "sun397"])
def test_an_unavailable_builder_says_why(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{name} cannot be had from its original files: .*; use source=tfds"):
        open_original(BUILDERS[name], None, tmp_path)


def unpack_by_hand(folder: Path) -> None:
    for path in list(folder.iterdir()):
        single = path.suffix == ".gz" and not tarfile.is_tarfile(path)
        if path.is_file() and unpack(path, path.with_suffix("") if single else folder) != path:
            path.unlink()


INNER = {"cifar100": "cifar-100-binary", "dtd": "dtd", "eurosat": "2750", "resisc45": "NWPU-RESISC45", "clevr": "CLEVR_v1.0"}


@pytest.mark.parametrize("name", AS_STORED)
def test_wherever_the_files_are(name: str, files: Path, tmp_path: Path) -> None:
    """As archives in a folder or among the downloads, or unpacked by hand; then any range of positions can be read."""
    content, downloads = WRITERS[name](files), tmp_path / "downloads"
    shutil.copytree(files, by_hand := tmp_path / "by hand")
    shutil.copytree(files, pool := tmp_path / "pool")
    origin = open_original(BUILDERS[name], files, downloads)
    assert (origin.source, (origin.class_names or [""])[-1]) == ("original", LAST_CLASS.get(name, ""))
    assert content.keys() == BUILDERS[name].counts.keys()
    assert_holds(origin, content)
    for split, rows in content.items():
        chosen = list(origin.records(split, range(2, 5)))
        assert [record.key for record in chosen] == by_hash(split, rows)[2:5][: len(rows) - 2]
        for record in chosen:
            assert_same(record, *rows[record.key])
    assert_holds(open_original(BUILDERS[name], None, pool), content)

    unpack_by_hand(by_hand)
    before = sorted(by_hand.rglob("*"))
    for pointed_at in (by_hand, *([by_hand / INNER[name]] if name in INNER else [])):
        assert_holds(open_original(BUILDERS[name], pointed_at, downloads), content)
    assert sorted(path for path in by_hand.rglob("*") if path.suffix != ".verified") == before
    assert not downloads.exists()


@pytest.mark.parametrize("name", ["cifar100", "dtd", "oxford_iiit_pet", "patch_camelyon", "smallnorb", "dmlab"])
def test_what_was_unpacked_serves_without_the_archives(name: str, tmp_path: Path) -> None:
    content = WRITERS[name](tmp_path)
    open_original(BUILDERS[name], None, tmp_path)
    for path in tmp_path.glob("*.gz"):
        path.unlink()
    assert_holds(open_original(BUILDERS[name], None, tmp_path), content)


def test_resisc45_as_a_zip_is_read_in_place(files: Path, tmp_path: Path) -> None:
    content = WRITERS["resisc45"](files)
    with zipfile.ZipFile(tmp_path / "NWPU-RESISC45.zip", "w") as archive:
        for path in files.rglob("*.jpg"):
            archive.write(path, path.relative_to(files))
    assert_holds(open_original(BUILDERS["resisc45"], tmp_path, tmp_path / "downloads"), content)


def test_neither_tensorflow_nor_tfds_is_imported_before_it_is_used() -> None:
    heavy = {"tensorflow", "tensorflow_datasets", "cv2", "array_record"}
    code = f"import sys, data_prep.vtab.original, data_prep.vtab.tfds_origin; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


@pytest.mark.parametrize("name", WRITERS)
def test_the_origin_describes_itself(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    facts = open_original(BUILDERS[name], tmp_path, tmp_path).describe()
    assert (facts["builder"], facts["version"]) == (name, BUILDERS[name].version)
    assert {"files", "PIL"} <= facts.keys()
    assert all(value and isinstance(value, str) for value in facts.values())
    assert str(tmp_path) not in str(facts)
