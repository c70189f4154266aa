"""The table of the 24 datasets, on folders in every state."""

import hashlib
import json
from pathlib import Path

import pytest

from data_prep.fgvc.facts import FACTS
from data_prep.status import MISSING, PARTIAL, READY, Status, all_statuses, fgvc_status, vtab_status
from data_prep.vtab.tasks import TASKS
from tests.warm import run_module


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("GIFT_VIT_DATA", raising=False)
    return tmp_path / "all data"


def cub(root: Path) -> Status:
    return fgvc_status(FACTS["cub"], root, root / "downloads")


def eurosat(root: Path) -> Status:
    return vtab_status(TASKS["eurosat"], root, root / "downloads")


def prepare_cub(root: Path) -> Path:
    """A folder as preparation leaves it, as far as the status looks."""
    folder = root / "cub"
    (folder / "CUB_200_2011/images").mkdir(parents=True)
    (folder / "splits/paper").mkdir(parents=True)
    digests = {}
    for split in ("train", "val", "test"):
        content = json.dumps({f"{split}.jpg": "001"}).encode()
        (folder / "splits/paper" / f"{split}.json").write_bytes(content)
        digests[split] = hashlib.sha256(content).hexdigest()
    counts = {"train": 5394, "val": 600, "test": 5794}
    record = {"format": 1, "dataset": "cub", "classes": 200, "bytes": 1_200_000_000}
    splits = {"paper": {"counts": counts, "bytes": 1_200_000_000, "sha256": digests}}
    (folder / "prepared.json").write_text(json.dumps({**record, "splits": splits}))
    return folder


def prepare_eurosat(root: Path) -> Path:
    folder = root / "vtab1k/eurosat"
    folder.mkdir(parents=True)
    splits = {}
    for name, images in (("train800", 800), ("val200", 200), ("test", 5400)):
        (folder / f"{name}.parquet").write_bytes(b"x" * images)
        splits[name] = {"images": images, "bytes": images}
    (folder / "meta.json").write_text(json.dumps({"format": 1, "task": "eurosat", "source": "original", "splits": splits}))
    return folder


def test_nothing_is_there(root: Path) -> None:
    statuses = all_statuses(root, root / "downloads")
    assert len(statuses) == len({status.name for status in statuses}) == 24
    assert {status.state for status in statuses} == {MISSING}
    assert cub(root).command == f"python -m data_prep.fgvc cub 'root={root}'"
    assert eurosat(root).command == f"python -m data_prep.vtab eurosat 'root={root}'"
    assert eurosat(root).classes == 10
    assert not root.exists()


def test_commands_are_short_for_the_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIFT_VIT_DATA", str(tmp_path / "pool"))
    pool = tmp_path / "pool"
    assert cub(pool).command == "python -m data_prep.fgvc cub"
    prepare_cub(pool)
    assert cub(pool).command == "python -m gift_vit.train dataset=cub"
    prepare_eurosat(pool)
    assert eurosat(pool).command == "python -m gift_vit.train dataset=vtab_eurosat"


def test_ready(root: Path) -> None:
    folder = prepare_cub(root)
    status = cub(root)
    assert (status.state, status.images, status.classes) == (READY, [5394, 600, 5794], 200)
    assert (status.source, status.bytes, status.folder) == ("paper splits", 1_200_000_000, folder)
    assert status.command == f"python -m gift_vit.train dataset=cub 'paths.data_root={root}'"
    folder = prepare_eurosat(root)
    status = eurosat(root)
    assert (status.state, status.images, status.source, status.bytes) == (READY, [800, 200, 5400], "original", 6400)
    assert status.folder == folder


@pytest.mark.parametrize("gone", ["CUB_200_2011", "prepared.json", "splits/paper/val.json"])
def test_a_dataset_that_lost_something_is_partial(root: Path, gone: str) -> None:
    folder = prepare_cub(root)
    (folder / gone).rename(root / "elsewhere")
    status = cub(root)
    assert status.state == (MISSING if gone == "CUB_200_2011" else PARTIAL)
    assert status.command.startswith("python -m data_prep.fgvc cub")


@pytest.mark.parametrize("name", ["test.parquet", "meta.json"])
def test_a_task_with_another_file_is_partial(root: Path, name: str) -> None:
    folder = prepare_eurosat(root)
    (folder / name).write_bytes(b"cut")
    status = eurosat(root)
    assert (status.state, status.images, status.source) == (PARTIAL, [], "eurosat")
    assert status.command.startswith("python -m data_prep.vtab eurosat")


def test_downloads_are_counted(root: Path) -> None:
    downloads = root / "downloads"
    downloads.mkdir(parents=True)
    (downloads / "CUB_200_2011.tgz.part").write_bytes(b"x" * 1234)
    assert (cub(root).state, cub(root).source, cub(root).bytes) == (PARTIAL, "CUB_200_2011.tgz.part", 1234)
    (downloads / "102flowers.tgz").write_bytes(b"x" * 50)  # of the FGVC dataset and of the VTAB-1k task
    partial = {status.name for status in all_statuses(root, downloads) if status.state == PARTIAL}
    assert partial == {"cub", "flowers", "vtab_flowers102"}
    other = root / "archives of mine"
    other.mkdir()
    (other / "EuroSAT.zip").write_bytes(b"x")
    status = vtab_status(TASKS["eurosat"], root, other)
    assert (status.state, status.command.endswith(f"'archives={other}'")) == (PARTIAL, True)


def test_the_command_prints_whole_lines(root: Path, tmp_path: Path) -> None:
    prepare_cub(root)
    lines = [line.rstrip() for line in run_module("data_prep.status", f"root={root}", cwd=tmp_path).stdout.splitlines()]
    assert "1 of 24 datasets are ready" in lines[0]
    rows = [line for line in lines if "python -m" in line]
    assert len(rows) == 24
    assert rows[0].split()[:6] == ["cub", "ready", "5,394", "600", "5,794", "200"]
    assert rows[0].endswith(f"python -m gift_vit.train dataset=cub 'paths.data_root={root}'")
    assert rows[23].endswith(f"python -m data_prep.vtab smallnorb_elevation 'root={root}'")


def test_on_a_narrow_terminal_the_commands_stand_below_the_table(root: Path, tmp_path: Path) -> None:
    prepare_cub(root)
    told = run_module("data_prep.status", f"root={root}", cwd=tmp_path, COLUMNS="80").stdout
    table, _, commands = told.partition("\nNext:\n")
    lines = [line.rstrip() for line in table.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[3].split() == ["cub", "ready", "5,394", "600", "5,794", "200", "paper"]
    assert commands.splitlines()[0] == f"  python -m gift_vit.train dataset=cub 'paths.data_root={root}'"
    assert commands.splitlines()[23] == f"  python -m data_prep.vtab smallnorb_elevation 'root={root}'"
