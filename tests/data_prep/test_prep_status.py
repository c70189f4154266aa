"""The table of the 33 datasets, on folders in every state."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.commonsense import prepare as commonsense
from data_prep.fgvc.facts import FACTS
from data_prep.glue import tasks as glue
from data_prep.glue.prepare import prepare as prepare_glue
from data_prep.status import (
    MISSING,
    PARTIAL,
    READY,
    Status,
    all_statuses,
    commonsense_status,
    fgvc_status,
    glue_status,
    vtab_status,
)
from data_prep.vtab.export import export
from data_prep.vtab.tasks import TASKS
from tests.data_prep.fgvc_bench import Bench
from tests.data_prep.vtab_origins import small_origin
from tests.text_models import questions, write
from tests.warm import run_module

TRAIN_FILE = "commonsense_170k.json"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("GIFT_VIT_DATA", raising=False)
    return tmp_path / "all [red] data"  # which are no markup of rich


def cub(root: Path) -> Status:
    return fgvc_status(FACTS["cub"], root, root / "downloads")


def eurosat(root: Path) -> Status:
    return vtab_status(TASKS["eurosat"], root, root / "downloads")


@pytest.fixture
def cub_folder(root: Path, bench: Callable[..., Bench]) -> Path:
    """A prepared CUB of 26 images."""
    made = bench("cub", root.name)
    made.prepare()
    shutil.rmtree(root / "downloads")
    return made.folder


@pytest.fixture
def eurosat_folder(root: Path) -> Path:
    task = TASKS["eurosat"]
    export(task, small_origin(task), root / "vtab1k/eurosat", official=False)
    return root / "vtab1k/eurosat"


def test_nothing_is_there(root: Path) -> None:
    statuses = all_statuses(root, root / "downloads")
    assert len(statuses) == len({status.name for status in statuses}) == 33
    assert {status.state for status in statuses} == {MISSING}
    assert cub(root).command == f"python -m data_prep.fgvc cub 'root={root}'"
    assert eurosat(root).command == f"python -m data_prep.vtab eurosat 'root={root}'"
    assert eurosat(root).classes == 10
    assert not root.exists()


@pytest.mark.usefixtures("cub_folder", "eurosat_folder")
def test_commands_are_short_for_the_default_root(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("GIFT_VIT_DATA", str(root))
    assert cub(root).command == "python -m gift_vit.train dataset=cub"
    assert eurosat(root).command == "python -m gift_vit.train dataset=vtab_eurosat"
    (root / "cub/prepared.json").unlink()
    assert cub(root).command == "python -m data_prep.fgvc cub"


def test_ready(root: Path, cub_folder: Path, eurosat_folder: Path) -> None:
    status = cub(root)
    assert (status.state, status.images, status.classes, status.source) == (READY, [16, 4, 6], 2, "paper splits")
    assert (status.bytes, status.folder) == (sum(file.stat().st_size for file in cub_folder.rglob("*.jpg")), cub_folder)
    assert status.command == f"python -m gift_vit.train dataset=cub 'paths.data_root={root}'"
    status = eurosat(root)
    assert (status.state, status.images, status.source) == (READY, [800, 200, 300], "original")
    assert (status.bytes, status.folder) == (sum(f.stat().st_size for f in eurosat_folder.glob("*.parquet")), eurosat_folder)


@pytest.mark.parametrize("gone", ["CUB_200_2011", "prepared.json", "splits/paper/val.json"])
def test_a_dataset_that_lost_something_is_partial(root: Path, cub_folder: Path, gone: str) -> None:
    (cub_folder / gone).rename(root / "elsewhere")
    status = cub(root)
    assert status.state == (MISSING if gone == "CUB_200_2011" else PARTIAL)
    assert status.command.startswith("python -m data_prep.fgvc cub")


@pytest.mark.parametrize("name", ["test.parquet", "meta.json"])
def test_a_task_with_another_file_is_partial(root: Path, eurosat_folder: Path, name: str) -> None:
    (eurosat_folder / name).write_bytes(b"cut")
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


@pytest.mark.usefixtures("cub_folder")
def test_the_command_prints_whole_lines(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = [line.rstrip() for line in run_module("data_prep.status", f"root={root}", cwd=tmp_path).stdout.splitlines()]
    assert "1 of 33 datasets are ready" in lines[0]
    rows = [line for line in lines if "python -m" in line]
    assert len(rows) == 33
    assert rows[0].split()[:6] == ["cub", "ready", "16", "4", "6", "2"]
    assert rows[0].endswith(f"python -m gift_vit.train dataset=cub 'paths.data_root={root}'")
    assert rows[23].endswith(f"python -m data_prep.vtab smallnorb_elevation 'root={root}'")


@pytest.mark.usefixtures("cub_folder")
def test_on_a_narrow_terminal_the_commands_stand_below_the_table(root: Path, tmp_path: Path) -> None:
    told = run_module("data_prep.status", f"root={root}", cwd=tmp_path, COLUMNS="80").stdout
    table, _, commands = told.partition("\nNext:\n")
    lines = [line.rstrip() for line in table.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[3].split()[:2] == ["cub", "ready"]
    assert commands.splitlines()[0] == f"  python -m gift_vit.train dataset=cub 'paths.data_root={root}'"
    assert commands.splitlines()[23] == f"  python -m data_prep.vtab smallnorb_elevation 'root={root}'"


@pytest.mark.parametrize(
    ("task", "form", "classes", "counts"), [("rte", "RTE", 2, [4, 2, 1]), ("stsb", "STS-B", 0, [4, 2, None])]
)
def test_a_task_of_glue(root: Path, task: str, form: str, classes: int, counts: list[int | None]) -> None:
    """From nothing over a download that was begun to what ``data_prep.glue`` prepares of a folder."""
    facts = replace(glue.TASKS[task], counts=(4, 2, 1))
    prepare = f"python -m data_prep.glue {task} 'root={root}'"
    assert glue_status(facts, root) == Status(f"glue_{task}", MISSING, classes, root / "glue" / task, prepare)
    (root / "downloads/glue").mkdir(parents=True)
    (root / f"downloads/glue/{task}_train.parquet.part").write_bytes(b"x" * 12)
    begun = glue_status(facts, root)
    assert (begun.state, begun.source, begun.bytes) == (PARTIAL, f"{task}_train.parquet.part", 12)
    for split, count in (("train", 4), ("dev", 2), *([("test", 1)] if counts[2] else [])):
        label = ["entailment" if task == "rte" else "2.5"] if split != "test" else []
        lines = [["index", "sentence1", "sentence2", *(["label" if task == "rte" else "score"] if label else [])]]
        lines += [[str(index), "a", "b", *label] for index in range(count)]
        file = root.parent / "in" / form / f"{split}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join("\t".join(line) + "\n" for line in lines))
    prepare_glue(facts, root, root.parent / "in")
    ready = glue_status(facts, root)
    assert (ready.state, ready.images, ready.classes, ready.source) == (READY, counts, classes, "folder")
    assert ready.bytes == sum(file.stat().st_size for file in (root / "glue" / task).glob("*.parquet"))
    assert ready.command == (
        f"python -m gift_vit.train dataset=glue_{task} 'paths.data_root={root}' "
        "backbone=roberta_base method=gift_qv method.rank=32"
    )
    (root / "glue" / task / "dev.parquet").write_bytes(b"cut")
    assert glue_status(facts, root).state == PARTIAL


def test_commonsense(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is ready names the files that are there in the command, as ``data_prep.commonsense`` does."""
    missing = commonsense_status(root)
    assert (missing.state, missing.command) == (MISSING, f"python -m data_prep.commonsense 'root={root}'")
    monkeypatch.setitem(commonsense.TESTS, "boolq", replace(commonsense.TESTS["boolq"], rows=4, sha256=None))
    monkeypatch.setattr(commonsense, "TRAIN", replace(commonsense.TRAIN, rows=6))
    write(root.parent / "in/boolq/test.json", questions("boolq", 4))
    write(root.parent / "in/commonsense_170k.json", questions("boolq", 6))
    described = commonsense.prepare(root, "", root.parent / "in")
    ready = commonsense_status(root)
    assert (ready.state, ready.images, ready.classes) == (READY, [6, None, 4], 0)
    assert ready.bytes == sum((root / "commonsense" / name).stat().st_size for name in ("boolq/test.json", TRAIN_FILE))
    assert "dataset.sets=[boolq]" in ready.command
    assert described.endswith(ready.command)
    (root / "commonsense" / TRAIN_FILE).write_text("[]")
    assert commonsense_status(root).state == PARTIAL
