"""GLUE's tasks from the hub and from folders of every form in which they are passed on; the files are small, and made here."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.glue.__main__ import Arguments, prepare_named
from data_prep.glue.prepare import prepare, read_meta
from data_prep.glue.tasks import TASKS, Task
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.data.base import build_dataset
from gift_vit.data.config import GlueConfig, TextColumnsConfig
from tests.data_prep.http_server import FileServer

QUOTED = 'He said "no'  # a quotation mark is a character
COUNTS = {"train": 4, "dev": 2, "test": 1}


def small(name: str) -> Task:
    return replace(TASKS[name], counts=(4, 2, 1))


def tsv(folder: Path, **files: list[list[str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (folder / f"{name}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    return folder


def raw(labels: list[str]) -> list[list[str]]:
    return [["gj04", label, "", QUOTED] for label in labels]


PAIRS = ["index", "sentence1", "sentence2", "label"]


def pairs(labels: list[str]) -> list[list[str]]:
    return [PAIRS, *([str(index), QUOTED, f"b{index}", label] for index, label in enumerate(labels))]


def read(folder: Path, split: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def test_a_folder_of_glues_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tsv(
        tmp_path / "in" / "RTE",
        train=pairs(["entailment", "not_entailment", "entailment", "entailment"]),
        dev=pairs(["not_entailment", "entailment"]),
        test=[PAIRS[:3], ["0", "a", "b"]],
    )
    said = prepare(small("rte"), tmp_path, tmp_path / "in")
    out = tmp_path / "glue" / "rte"
    assert said == f"ready: 4 + 2 + 1 examples from source=folder in {out}"
    assert [row["label"] for row in read(out, "train")] == [0, 1, 0, 0]
    assert read(out, "dev")[1] == {"sentence1": QUOTED, "sentence2": "b1", "label": 0, "idx": 1}
    assert read(out, "test") == [{"sentence1": "a", "sentence2": "b", "label": -1, "idx": 0}]
    meta = read_meta(out, "rte")
    assert meta is not None
    assert meta["splits"]["train"]["labels"] == {"0": 3, "1": 1}
    assert json.loads((out / "croissant.json").read_text())["name"] == "glue_rte"
    prepare(small("rte"), tmp_path / "again", out)  # what it has written is files of the task too
    assert all(read(tmp_path / "again/glue/rte", split) == read(out, split) for split in ("train", "dev", "test"))
    table = pq.read_table(out / "train.parquet")
    for number in range(2):
        pq.write_table(table.slice(3 * number, 3), tmp_path / f"train-0000{number}-of-00002.parquet")
    (tmp_path / "dev.parquet").write_bytes((out / "dev.parquet").read_bytes())
    prepare(small("rte"), tmp_path / "of shards", tmp_path)
    assert read(tmp_path / "of shards/glue/rte", "train") == table.to_pylist()
    before = (out / "train.parquet").stat().st_mtime_ns
    assert prepare(small("rte"), tmp_path, tmp_path / "gone").startswith("ready already, nothing to do: 4 + 2 + 1 examples")
    assert (out / "train.parquet").stat().st_mtime_ns == before
    monkeypatch.setattr("os.access", lambda *_: False)  # root could write there
    monkeypatch.setattr("data_prep.complete.alone", lambda *_: pytest.fail("locked where nothing can be written"))
    assert prepare(small("rte"), tmp_path, tmp_path / "gone").startswith("ready already")


def test_cola_and_sst2_as_their_publishers_have_them(tmp_path: Path) -> None:
    cola = {"in_domain_train": raw(["1", "0", "1", "1"]), "in_domain_dev": raw(["1"]), "out_of_domain_dev": raw(["0"])}
    tsv(tmp_path / "in" / "cola", **cola)
    head = ["sentence", "label"]
    parts = {"train_60614": [head, *[["a ", "1"]] * 3], "train_6735": [head, ["b", "0"]], "dev_872": [head, *[["c", "1"]] * 2]}
    tsv(tmp_path / "in" / "sst2", **parts)
    for name, labels in (("cola", [1, 0, 1, 1]), ("sst2", [1, 1, 1, 0])):
        assert prepare(small(name), tmp_path, tmp_path / "in").endswith("without the test split for GLUE's server")
        assert [row["label"] for row in read(tmp_path / "glue" / name, "train")] == labels
    assert [row["label"] for row in read(tmp_path / "glue" / "cola", "dev")] == [1, 0]


def test_broken_rows_of_qqp_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    head = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
    rows = [[str(index), "1", "2", f"a{index}", "b", str(index % 2)] for index in range(4)]
    broken = [["7", "1", "2", "cut by"], ["a line's end", "b", "1"], ["8", "1", "2", "a", "b", ""]]
    tables = {"dev": [head, *rows[:2]], "test": [["id", "question1", "question2"], ["0", "a"], ["1", "a", "b"]]}
    tsv(tmp_path / "in" / "QQP", train=[head, *rows[:2], *broken, *rows[2:]], **tables)
    prepare(small("qqp"), tmp_path, tmp_path / "in")
    out = tmp_path / "glue" / "qqp"
    assert [(row["question1"], row["label"]) for row in read(out, "train")] == [("a0", 0), ("a1", 1), ("a2", 0), ("a3", 1)]
    assert [row["question2"] for row in read(out, "test")] == ["b"]
    told = [message.partition("QQP/")[2] for message in caplog.messages]
    assert told == ["train.tsv: broken rows left out: 3", "test.tsv: broken rows left out: 1"]


def test_scores_from_0_to_5_are_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "stsb"
    folder.mkdir(parents=True)
    row = "main\tMSRvid\t2012\t0001\t{}\tA man.\tA person.{}\n"
    (folder / "sts-train.csv").write_text("".join(row.format(score, "\tx\ty") for score in ("5.000", "0", "2.615", "1")))
    (folder / "sts-dev.csv").write_text("".join(row.format(score, "") for score in ("3.25", "4")))
    prepare(small("stsb"), tmp_path, tmp_path / "in")
    assert [row["label"] for row in read(tmp_path / "glue" / "stsb", "train")] == pytest.approx([5, 0, 2.615, 1])
    assert read(tmp_path / "glue" / "stsb", "dev")[0]["sentence2"] == "A person."


def test_files_of_a_persons_own_are_never_replaced(tmp_path: Path) -> None:
    tables = {"train": pairs(["entailment"] * 4), "dev": pairs(["entailment"] * 2)}
    folder = tsv(tmp_path / "glue" / "rte", **tables)
    refused = r"glue/rte holds files that are not this command's, such as dev\.tsv; move it away, or give another root="
    for given in (tmp_path / "glue", None):  # None: refused before anything is fetched
        with pytest.raises(ConfigError, match=refused):
            prepare(small("rte"), tmp_path, given)
    assert [path.name for path in sorted(folder.iterdir())] == ["dev.tsv", "train.tsv"]
    folder.rename(tmp_path / "rte")
    prepare(small("rte"), tmp_path, tmp_path)
    (folder / "dev.parquet").unlink()
    assert prepare(small("rte"), tmp_path, tmp_path).startswith("ready: "), "a broken folder of the command's is"


def test_a_second_process_finds_ready_what_it_waited_for(
    tmp_path: Path, second: Callable[[Callable[[], str], Path], str]
) -> None:
    tsv(tmp_path / "rte", train=pairs(["entailment"] * 4), dev=pairs(["entailment"] * 2))
    assert prepare(small("rte"), tmp_path, tmp_path).startswith("ready: ")
    again = second(lambda: prepare(small("rte"), tmp_path, tmp_path), tmp_path / "glue" / "rte")
    assert again.startswith("ready already, nothing to do: 4 + 2 examples")


def test_what_is_ready_in_a_read_only_root(
    tmp_path: Path,
    small_disk: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(TASKS, "rte", small("rte"))
    tsv(tmp_path / "rte", train=pairs(["entailment"] * 4), dev=pairs(["entailment"] * 2))
    root = small_disk("1m")
    words = Arguments("rte", str(root), str(tmp_path))
    prepare_named(words)
    assert os.system(f"mount -o remount,ro {root}") == 0
    prepare_named(words)
    assert "ready already, nothing to do: 4 + 2 examples" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=rf"^cannot write {root}/glue/cola \(Read-only file system\); choose another folder"):
        prepare_named(Arguments("cola", str(root), str(tmp_path)))


@pytest.fixture
def hub(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """The hub, on this machine."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.serve("", b"").rstrip("/"))
    return server


def offer(hub: FileServer, task: Task, folder: Path, **changed: Any) -> None:
    """Put a task's files on the hub, with some labels changed."""
    folder.mkdir(exist_ok=True)
    for split, name in task.hub.items():
        labels = (
            [-1]
            if split == "test"
            else changed.get(split, [index % max(len(task.classes), 1) for index in range(COUNTS[split])])
        )
        columns = {column: [f"{column} {index}" for index in range(len(labels))] for column in task.texts}
        kind = pa.int64() if task.classes else pa.float32()
        pq.write_table(pa.table({**columns, "label": pa.array(labels, kind), "idx": list(range(len(labels)))}), folder / name)
        hub.serve(task.url(split, "").lstrip("/"), (folder / name).read_bytes())


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_fetched_from_the_hub_and_read_by_its_configuration(tmp_path: Path, hub: FileServer, name: str) -> None:
    task = small(name)
    offer(hub, task, tmp_path / "made")
    assert prepare(task, tmp_path, None) == f"ready: 4 + 2 + 1 examples from source=hub in {tmp_path}/glue/{name}"
    columns = TextColumnsConfig(text=task.texts[0], pair=(*task.texts, None)[1], label="label")
    metric: Any = {} if task.classes else {"metric": "pearson"}
    root = str(tmp_path / "glue" / name)
    cfg = GlueConfig(name=name, root=root, columns=columns, classes=list(task.classes), dev="val", **metric)
    data = build_dataset(cfg)
    assert {split: len(source) for split, source in data.splits.items()} == {"train": 4, "val": 2}
    assert data.splits["val"][1][0] == tuple(f"{column} 1" for column in task.texts)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"train": [0, 1, 1]}, r"rte train \(.*rte_train.parquet\) has 3 examples, expected 4"),
        ({"dev": [0, 2]}, r"example 1 has the label 2, expected 0 \(entailment\), 1 \(not_entailment\)"),
        ({"dev": [0, -1]}, r"example 1 has the label -1, expected 0"),
    ],
)
def test_what_is_not_the_task_is_refused_and_nothing_is_left(tmp_path: Path, hub: FileServer, changed: Any, told: str) -> None:
    offer(hub, small("rte"), tmp_path / "made", **changed)
    with pytest.raises(ConfigError, match=told):
        prepare(small("rte"), tmp_path, None)
    assert not (tmp_path / "glue" / "rte").exists()


def test_a_hub_that_has_no_such_file_is_told(tmp_path: Path, hub: FileServer) -> None:
    with pytest.raises(RunError, match=r"cannot download .*: the server answered 404 .*; get rte_train.parquet in another way"):
        prepare(small("rte"), tmp_path, None)


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ([["sentence1", "label"], ["a", "entailment"]], r"train.tsv has no column sentence2 \(it has sentence1, label\)"),
        ([PAIRS, ["0", "a"]], r"train.tsv line 2 has not the 4 columns that are read"),
        (pairs(["entailment"] * 3 + ["entails"]), r"example 3 has the label 'entails', expected 0 \(entailment\)"),
        ([], r"train.tsv has no column sentence1 \(it has none\)"),
    ],
)
def test_a_wrong_table_is_told(tmp_path: Path, train: list[list[str]], told: str) -> None:
    tsv(tmp_path / "rte", train=train, dev=pairs(["entailment"] * 2))
    with pytest.raises(ConfigError, match=told):
        prepare(small("rte"), tmp_path / "out", tmp_path)


def test_all_prepares_what_it_can_and_names_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mrpc").mkdir()
    with pytest.raises(ConfigError, match="8 of 8 tasks are not ready, for the reasons above: cola, mrpc, qnli, rte"):
        prepare_named(Arguments("all", str(tmp_path), str(tmp_path)))
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 8
    assert "GLUE's cut of the original 4,076 pairs is not in the original files" in told[1]
