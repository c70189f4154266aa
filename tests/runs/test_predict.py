"""A finished run classifies a person's pictures as it classified its test images."""

import csv
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax

import gift_vit.runs.train as train_module
from gift_vit.common.errors import ConfigError
from gift_vit.config import RunConfig
from gift_vit.data.files import image_files
from gift_vit.runs.predict import check_question
from gift_vit.runs.run import Run
from gift_vit.runs.train import Call, train_run
from tests.warm import Ended, Process, act_as, clean_environment, run_module

COUNT = 80  # more than a batch, read by a worker


@pytest.fixture(scope="module")
def photos(final_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of digits' test images as files."""
    folder = tmp_path_factory.mktemp("photos")
    source = final_run.data().split("test")
    for index in range(COUNT):
        source[index][0].save(folder / f"{index:03}.png")
    return folder


def predict(run: Run, cwd: Path, *words: str) -> Ended:
    return run_module("gift_vit.predict", f"run={run.folder}", *words, cwd=cwd)


def test_files_are_predicted_as_the_test_split_was(final_run: Run, photos: Path) -> None:
    found = final_run.predict(photos, topk=10)
    kept = final_run.predictions()
    assert [prediction.file.name for prediction in found] == [f"{index:03}.png" for index in range(COUNT)]
    assert [prediction.classes[0] for prediction in found] == [str(label) for label in kept.predicted[:COUNT]]
    expected = softmax(kept.logits[:COUNT].astype(np.float64), axis=1)
    for row, prediction in zip(expected, found, strict=True):
        assert prediction.probabilities == sorted(prediction.probabilities, reverse=True)
        own = dict(zip(prediction.classes, prediction.probabilities, strict=True))
        np.testing.assert_allclose([own[str(label)] for label in range(10)], row, atol=2e-3)
    some = final_run.predict([photos / "004.png", str(photos / "00[01].png")], topk=3)
    assert [p.file.name for p in some] == ["004.png", "000.png", "001.png"]
    assert [p.classes for p in some] == [found[index].classes[:3] for index in (4, 0, 1)]
    np.testing.assert_allclose([p.probabilities for p in some], [found[i].probabilities[:3] for i in (4, 0, 1)], rtol=1e-4)


def test_a_picture_that_cannot_be_read_is_named_and_the_rest_done(final_run: Run, photos: Path, tmp_path: Path) -> None:
    """Every ending of ``out=`` once; over 3 s for three commands."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("a.png", "c.png"):
        (mine / name).write_bytes((photos / "000.png").read_bytes())
    (mine / "b.jpg").write_bytes(b"no image")
    (mine / "notes.txt").write_text("no picture")
    rows: dict[str, Any] = {}
    for ending in ("csv", "json", "parquet"):
        done = predict(final_run, tmp_path, "images=mine", "topk=2", f"out=new/out.{ending}")
        assert done.returncode == 1
        assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["mine/a.png", "mine/c.png"]
        left, said, last = done.stderr.splitlines()
        assert left.endswith("not read in mine: 1 .txt")
        assert said.startswith("cannot decode image mine/b.jpg: ")
        assert last == "error: 1 of 3 pictures could not be read"
        file = tmp_path / "new" / f"out.{ending}"
        if ending == "csv":
            rows[ending] = list(csv.DictReader(file.read_text().splitlines()))
        elif ending == "json":
            rows[ending] = json.loads(file.read_text())
        else:
            rows[ending] = pq.read_table(file).to_pylist()
    assert [(r["file"], r["rank"]) for r in rows["parquet"]] == [(f"mine/{n}.png", rank) for n in "ac" for rank in (1, 2)]
    assert rows["csv"] == [{key: str(value) for key, value in row.items()} for row in rows["parquet"]]
    a, b, c = rows["json"]
    assert b["error"].startswith("cannot decode image mine/b.jpg")
    for found, members in ((a, rows["parquet"][:2]), (c, rows["parquet"][2:])):
        assert found["predictions"] == [{key: row[key] for key in ("class", "probability")} for row in members]


def unread(cwd: Path, module: str, *words: str) -> Ended:
    """The end of a command whose output nobody reads, as in a pipe to ``head`` that has ended."""

    def action() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        act_as(module, words)

    with Process(action, cwd, clean_environment()) as process:
        return process.wait()


def test_what_nobody_reads_ends_a_command_quietly_but_for_what_is_written(final_run: Run, photos: Path, tmp_path: Path) -> None:
    predicting = ("gift_vit.predict", f"run={final_run.folder}", f"images={photos}", "topk=1")
    assert unread(tmp_path, *predicting, "out=out.csv") == Ended(0, "", "")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + COUNT
    assert unread(tmp_path, *predicting) == Ended(1, "", "")
    assert unread(tmp_path, "gift_vit.verify", "--help") == Ended(1, "", "")
    assert unread(tmp_path, "gift_vit.train", "--cfg", "job") == Ended(1, "", ""), "what Hydra prints, too"


def test_nothing_that_can_be_read(final_run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    done = predict(final_run, tmp_path, "images=a.png", "out=a.parquet")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 2)
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no such file": (["images=nowhere.png"], "images=nowhere.png: there is no such file or folder"),
    "empty folder": (
        ["images=empty"],
        "images=empty: the folder holds no image; a pattern such as empty/**/*.jpg looks deeper",
    ),
    "empty pattern": (["images=empty/*.png"], "images=empty/*.png: the pattern matches no image"),
    "address": (["images=https://some.where/a.jpg?x=1"], "is an address; download the images, and give their files"),
    "too long": ([f"images={'x' * 300}"], ": there is no such file or folder"),
    "a run's own": (["images=file.png", "out={run}/predictions.parquet"], ".parquet is one of the files of the run in"),
    "nothing": (["images="], "images= is empty: give a file, a folder or a pattern"),
    "too many": (["images=empty", "topk=11"], "topk=11: expected 1 to 10, the classes of "),
    "too few": (["images=empty", "topk=0"], "topk=0: expected 1 to 10"),
    "ending": (["images=empty", "out=a.xlsx"], "out=a.xlsx: expected a name that ends in .csv, .json, .parquet"),
    "no ending": (["images=empty", "out=csv"], "out=csv: expected a name that ends in .csv"),
    "not a folder": (["images=empty", "out=file/a.csv"], "cannot write file/a.csv ("),
    "never a folder": (["images=empty", "out=/proc/none/a.csv"], "cannot write /proc/none/a.csv ("),
    "a folder": (["images=empty", "out=dir.csv"], "out=dir.csv: expected a file to write, no folder"),
    "device": (["images=file.png", "device=gpu"], "device=gpu: expected auto, cpu, cuda or cuda:<index>"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, final_run: Run, tmp_path: Path) -> None:
    words, message = MISTAKES[name]
    (tmp_path / "empty").mkdir()
    (tmp_path / "dir.csv").mkdir()
    for file in ("file", "file.png"):
        (tmp_path / file).write_text("")
    done = predict(final_run, tmp_path, *(word.replace("{run}", str(final_run.folder)) for word in words))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert message in done.stderr


def test_a_run_that_is_not_finished(copied_run: Run, tmp_path: Path) -> None:
    (copied_run.folder / "result.json").unlink()
    with pytest.raises(ConfigError, match=r"is not finished: it holds no result.json"):
        Run.open(copied_run.folder).predict(tmp_path)


@pytest.mark.parametrize(("classes", "named"), [(2, 2), (5, 5), (200, 5)])
def test_five_classes_are_named_or_all(classes: int, named: int, copied_run: Run) -> None:
    record = json.loads((copied_run.folder / "result.json").read_text())
    record["data"]["num_classes"] = classes
    (copied_run.folder / "result.json").write_text(json.dumps(record))
    assert check_question(Run.open(copied_run.folder), None) == named


def test_patterns_and_endings(tmp_path: Path) -> None:
    names = ("b.JPG", "a.png", "c.txt", "d.jfif", "deep/e.webp", "f[1].png")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")

    def found(where: str) -> list[str]:
        return [str(file.relative_to(tmp_path)) for file in image_files(tmp_path / where)]

    assert found("") == ["a.png", "b.JPG", "d.jfif", "f[1].png"]
    assert found("*") == ["a.png", "b.JPG", "d.jfif", "f[1].png"]
    assert found("**/*") == ["a.png", "b.JPG", "d.jfif", "deep/e.webp", "f[1].png"]
    assert found("*.jfif") == ["d.jfif"]
    assert found("f[1].png") == ["f[1].png"]
    assert found("c.txt") == ["c.txt"]


def test_what_of_a_folder_is_not_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "IMG_1.HEICX", "IMG_2.heicx", "c", ".DS_Store", "deep/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "gone.png").symlink_to(tmp_path / "away.png")
    assert [file.name for file in image_files(tmp_path)] == ["a.png", "gone.png"], "a link to nothing is named where it is read"
    assert caplog.messages == [
        f"not read in {tmp_path}: 2 .heicx, 1 without an ending",
        f"not read in {tmp_path}: what lies in 1 folders; a pattern such as {tmp_path}/**/* looks deeper",
    ]


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "we [x] ?").mkdir()
    (tmp_path / "we [x] ?" / "a.png").write_text("")
    assert [file.name for file in image_files(tmp_path / "we [x] ?/*.png")] == ["a.png"]
    assert [file.name for file in image_files(tmp_path / "we*/*.png")] == ["a.png"]


def test_classes_without_names_are_numbers(configure: Callable[..., RunConfig], photos: Path, monkeypatch: Any) -> None:
    data = replace(train_module.open_data(configure()), class_names=None)
    monkeypatch.setattr(train_module, "open_data", lambda _: data)
    cfg = configure("trainer.epochs=1")
    train_run(cfg, Call("x", []))
    [found] = Run.open(cfg.folder).predict(photos / "000.png", topk=10)
    assert set(found.classes) == {str(label) for label in range(10)}
