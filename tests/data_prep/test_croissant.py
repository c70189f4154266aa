"""What ``croissant.json`` says of prepared datasets is so; where mlcroissant is installed, it reads them by it."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_prep.vtab.export import export
from data_prep.vtab.tasks import TASKS
from tests.data_prep.fgvc_bench import Bench
from tests.data_prep.vtab_origins import small_origin

Make = Callable[..., Bench]


def described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "croissant.json").read_text())


def check_files(folder: Path, elsewhere: set[str]) -> set[str]:
    """Each file that is named is there with its hash and size, but for those that were unpacked; returns their names."""
    files = {file["@id"]: file for file in described(folder)["distribution"] if file["@type"] == "cr:FileObject"}
    for name in files.keys() - elsewhere:
        content = (folder / name).read_bytes()
        assert files[name]["sha256"] == sha256(content).hexdigest()
        assert files[name]["contentSize"] == f"{len(content)} B"
    assert str(folder) not in json.dumps(described(folder))
    return set(files)


def splits(folder: Path) -> dict[str, tuple[str, int]]:
    found = next(records for records in described(folder)["recordSet"] if records["@id"] == "splits")
    assert found["dataType"] == "cr:Split"
    return {row["splits/name"]: (row["splits/url"], row["splits/images"]) for row in found["data"]}


@pytest.fixture
def task(tmp_path: Path) -> Path:
    export(TASKS["dtd"], small_origin(TASKS["dtd"]), tmp_path / "dtd", official=False)
    return tmp_path / "dtd"


def test_a_task_is_described(task: Path) -> None:
    assert check_files(task, set()) == {"train800.parquet", "val200.parquet", "test.parquet", "meta.json"}
    rows = {name: pq.read_metadata(task / f"{name}.parquet").num_rows for name in ("train800", "val200", "test")}
    kinds = {"train800": "cr:training", "val200": "cr:validation", "test": "cr:test"}
    assert splits(task) == {name: (kinds[name], count) for name, count in rows.items()}


@pytest.mark.parametrize(
    ("name", "archive", "formats"),
    [
        ("cub", "CUB_200_2011.tgz", {"segmentations.tgz": "application/x-tar"}),
        ("flowers", "102flowers.tgz", dict.fromkeys(("setid.mat", "imagelabels.mat"), "application/x-matlab-data")),
        ("cars", "archive.zip", {}),
        ("dogs", "images.tar", dict.fromkeys(("annotation.tar", "lists.tar"), "application/x-tar")),
    ],
)
def test_images_with_lists_are_described(bench: Make, name: str, archive: str, formats: dict[str, str]) -> None:
    """Images are in the archive of images alone; a file's address is its URL, or the name of what a person put there."""
    made = bench(name)
    record = made.prepare(splits="official")
    archives = {archive, *formats}
    found = check_files(made.folder, archives)
    assert found - archives == {f"splits/official/{split}.json" for split in ("train", "val", "test")} | {
        table for table in record["annotations"] if table.endswith(".parquet")
    }
    objects = {part["@id"]: part for part in described(made.folder)["distribution"]}
    assert objects["images"]["containedIn"] == [{"@id": archive}]
    assert {file: objects[file]["encodingFormat"] for file in formats} == formats
    assert objects[archive]["contentUrl"] == (archive if name == "cars" else record["sources"][archive]["source"])
    assert splits(made.folder)["official/val"] == ("cr:validation", record["splits"]["official"]["counts"]["val"])
    (made.folder / "croissant.json").unlink()
    made.prepare(splits="official")
    assert check_files(made.folder, archives) == found, "of data that was prepared before, it is made"


@pytest.mark.filterwarnings("ignore")  # of what mlcroissant calls in its own libraries
def test_mlcroissant_finds_no_fault(task: Path, bench: Make) -> None:
    """Its import brings pandas and rdflib."""
    mlcroissant = pytest.importorskip("mlcroissant")
    made = bench("cub")
    made.prepare()
    for folder in (task, made.folder):
        dataset = mlcroissant.Dataset(jsonld=str(folder / "croissant.json"))
        assert not dataset.metadata.ctx.issues.errors
    rows = list(mlcroissant.Dataset(jsonld=str(task / "croissant.json")).records("val200"))
    expected = pq.read_table(task / "val200.parquet").to_pylist()
    assert [row["val200/label"] for row in rows] == [row["label"] for row in expected]
