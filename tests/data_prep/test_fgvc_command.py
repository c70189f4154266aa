"""python -m data_prep.fgvc: what a person types and reads."""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from data_prep.fgvc import __main__ as fgvc
from tests.data_prep.fgvc_bench import Bench
from tests.data_prep.fgvc_trees import SMALL
from tests.warm import run_module

Main = Callable[..., int]


@pytest.fixture
def main(command: Main, monkeypatch: pytest.MonkeyPatch) -> Main:
    monkeypatch.setattr(fgvc.cli, "interrupt_on_sigterm", lambda: None)
    return partial(command, fgvc)


@pytest.fixture
def benches(bench: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch) -> dict[str, Bench]:
    """All five small datasets on a server; the command knows them instead of the real ones."""
    made = {name: bench(name) for name in SMALL}
    monkeypatch.setattr(fgvc, "FACTS", {name: bench.facts for name, bench in made.items()})
    return made


@pytest.mark.usefixtures("benches")
def test_one_dataset_and_again(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)  # the command leaves logging as pytest has set it up
    root = tmp_path / "data"
    assert main("cub", f"root={root}") == 0
    first = capsys.readouterr().out
    lines = first.splitlines()
    assert lines[0] == f"cub: ready in {root}/cub"
    assert lines[1].startswith("  images       26 (")
    assert lines[1].endswith("none missing, all of them decoded once")
    assert lines[2:] == [
        "  classes      2",
        "  splits       paper: train 16, val 4, test 6",
        "  annotations  boxes.parquet: 26 rows",
        "  annotations  parts.parquet: 52 rows",
        "  annotations  segmentations: 26 files",
        f"  train with   python -m gift_vit.train dataset=cub paths.data_root={root}",
    ]
    assert main("cub", f"root={root}") == 0
    assert capsys.readouterr().out == first
    assert "cub is ready: nothing to do" in caplog.messages
    assert main(f"root={root}", "cub", "splits=official", "val_fraction=0.2", "split_seed=7", "check_images=false") == 0
    assert "dataset.splits_dir=splits/official" in capsys.readouterr().out
    assert main("cub", f"root={root}", "splits=official") == 2
    assert "was made with val_fraction=0.2 split_seed=7; to make it anew" in capsys.readouterr().err


def test_all_prepares_what_it_can(
    benches: dict[str, Bench], main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    (root / "downloads/archive.zip").unlink()
    del benches["cub"].server.files["flowers/102flowers.tgz"]
    assert main("all", f"root={root}") == 1, "a failed download is not the person's mistake"
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1] == "error: 2 of 5 datasets are not ready, for the reasons above: flowers, cars"
    assert len([line for line in shown.err.splitlines() if line.startswith("error: ")]) == 3
    assert [line.partition(":")[0] for line in shown.out.splitlines() if ": ready in" in line] == ["cub", "nabirds", "dogs"]
    monkeypatch.setattr(fgvc, "FACTS", {name: bench.small.facts(bench.server.serve) for name, bench in benches.items()})
    assert main("all", f"root={root}") == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("1 of 5 datasets are not ready, for the reasons above: cars")


def test_what_a_read_only_folder_of_archives_lacks_is_fetched_to_the_root(
    benches: dict[str, Bench], main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed, root = tmp_path / "sealed", tmp_path / "data"
    sealed.mkdir()
    (sealed / "102flowers.tgz").write_bytes(benches["flowers"].small.files["102flowers.tgz"])
    monkeypatch.setattr("os.access", lambda path, _: path != sealed)  # root could write there
    assert main("flowers", f"root={root}", f"archives={sealed}", "splits=official") == 0
    assert main("flowers", f"root={root}", f"archives={sealed}") == 0
    assert {path.name.removesuffix(".verified") for path in sealed.iterdir()} == {"102flowers.tgz"}
    fetched = {path.relative_to(root / "downloads").as_posix() for path in root.glob("downloads/**/*") if path.is_file()}
    lists = {f"fgvc_splits/oxfordflowers/{split}.json" for split in ("train", "val", "test")}
    assert {name.removesuffix(".verified") for name in fetched if "archive" not in name and "nabirds" not in name} == {
        *lists,
        *("setid.mat", "imagelabels.mat"),
    }
    assert (root / "flowers/prepared.json").is_file()


@pytest.mark.usefixtures("benches")
def test_what_is_ready_in_a_read_only_root(
    main: Main, small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = small_disk("4m")
    assert main("cub", f"root={root}") == 0
    said = capsys.readouterr().out
    (root / "cub/croissant.json").unlink()
    assert os.system(f"mount -o remount,ro {root}") == 0
    assert main("cub", f"root={root}") == 0
    assert capsys.readouterr().out == said
    assert main("dogs", f"root={root}") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot write {root}/dogs (Read-only file system); choose another folder")


MISTAKES = [
    (["cup"], "unknown dataset 'cup'; did you mean cub? (known: cub, nabirds, flowers, cars, dogs, all)"),
    ([], "dataset=…, or its value alone, is required; --help explains"),
    (["cub", "split=official"], "unexpected argument 'split=official': expected dataset=…, root=…"),
    (["cub", "splits=mine"], "unknown splits 'mine' (known: paper, official)"),
    (["cub", "val_fraction=1.0"], "val_fraction=1.0: expected a number between 0 and 1"),
    (["cub", "val_fraction=0.4"], "val_fraction=0.4 has no effect with splits=paper; it belongs to official"),
    (["cub", "split_seed=1", "splits=paper"], "split_seed=1 has no effect with splits=paper; it belongs to official"),
    (["cub", "split_seed=-1"], "split_seed=-1: expected a whole number from 0"),
    (["cub", "check_images=perhaps"], "Value 'perhaps' is not a valid bool"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_line(main: Main, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(*words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_as_a_program_a_person_is_told_the_steps(tmp_path: Path) -> None:
    """With the real facts, from another working directory, and with the root from the environment."""
    done = run_module("data_prep.fgvc", "nabirds", cwd=tmp_path, GIFT_VIT_DATA="my data")
    target = tmp_path / "my data/downloads/nabirds.tar.gz"
    again = "python -m data_prep.fgvc nabirds 'root=my data'"
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "NABirds cannot be downloaded by a program. By hand:",
        "  1. open https://dl.allaboutbirds.org/nabirds and accept the terms of use",
        "  2. download nabirds.tar.gz",
        f"  3. put it, as it is, here: {target}",
        f"  4. type: {again}",
        f"A copy that is unpacked already can be put here instead: {tmp_path}/my data/nabirds/nabirds",
        "error: NABirds must be fetched by hand and is not there: 1. open https://dl.allaboutbirds.org/nabirds and accept the "
        f"terms of use; 2. download nabirds.tar.gz; 3. put it, as it is, here: {target}; 4. type: {again}",
    ]
