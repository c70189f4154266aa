"""python -m data_prep.commonsense: downloads, folders, and what a person reads."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from data_prep.commonsense import __main__ as commonsense
from data_prep.commonsense import facts as known
from data_prep.commonsense import prepare as preparing
from gift_vit.data.base import build_dataset
from gift_vit.data.config import COMMONSENSE_SETS, CommonsenseConfig
from tests.data.conftest import SHARED
from tests.data_prep.http_server import Fault, FileServer
from tests.text_models import questions

REAL = SHARED / "text" / "commonsense"
Main = Callable[..., int]


@pytest.fixture
def main(command: Main, monkeypatch: pytest.MonkeyPatch) -> Main:
    monkeypatch.setattr(commonsense.cli, "interrupt_on_sigterm", lambda: None)
    return partial(command, commonsense)


def content(facts: known.FileFacts) -> bytes:
    return json.dumps(questions("boolq" if "170k" in facts.name or "boolq" in facts.name else "piqa", facts.rows)).encode()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, known.FileFacts]:
    """Files of a few questions in the place of the real ones, by where they lie at the source."""
    train = replace(known.TRAIN, rows=20)
    tests = {name: replace(facts, rows=4, sha256=None) for name, facts in known.TESTS.items()}
    for name in tests:  # a set's answers must be its own: each test set here holds questions of its kind
        monkeypatch.setitem(preparing.TESTS, name, tests[name])
    monkeypatch.setattr(preparing, "TRAIN", train)
    monkeypatch.setattr(preparing, "PARTS", {name: replace(facts, rows=3) for name, facts in known.PARTS.items()})
    return {facts.source: facts for facts in (train, *tests.values())}


def served(server: FileServer, small: dict[str, known.FileFacts], faults: Sequence[Fault] = ()) -> str:
    """The address below which the files lie; the faults are of the training questions."""
    for place, facts in small.items():
        server.serve(place, content(facts), etag='"1"')
    place = known.TRAIN.source
    return server.serve(place, content(small[place]), etag='"1"', faults=list(faults)).removesuffix(place)


def test_what_is_downloaded_is_kept_and_trained_on(
    small: dict[str, known.FileFacts], server: FileServer, main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = served(server, small, faults=[Fault(after=100, then="reset")])
    assert main(f"root={tmp_path}", f"source={address}") == 0
    first = capsys.readouterr().out
    assert first.splitlines() == [
        f"commonsense: ready in {tmp_path}/commonsense",
        "  train       20 questions: commonsense_170k.json",
        f"  test        32 questions of 8 sets: {', '.join(COMMONSENSE_SETS)}",
        f"  train with  python -m gift_vit.train dataset=commonsense paths.data_root={tmp_path} backbone=llama3_8b "
        "method=gift_qkvud protocol=commonsense_gift",
    ]
    asked = len(server.log)
    assert main(f"root={tmp_path}", f"source={address}") == 0
    assert capsys.readouterr().out == f"ready already, nothing to do\n{first}"
    assert len(server.log) == asked
    data = build_dataset(CommonsenseConfig(name="commonsense", root=f"{tmp_path}/commonsense", val_fraction=0.2))
    assert {split: len(source) for split, source in data.splits.items()} == {"train": 16, "val": 4, "test": 32}
    described = json.loads((tmp_path / "commonsense" / "croissant.json").read_text())
    assert [file["name"] for file in described["distribution"]] == [facts.name for facts in small.values()]
    (tmp_path / "commonsense" / "boolq" / "test.json").write_text("[]")
    assert main(f"root={tmp_path}", f"source={address}") == 0, "what is damaged is put back, from the download"
    assert capsys.readouterr().out == first


@pytest.mark.parametrize("layout", ["kept", "checkout"])
def test_a_folder_that_holds_a_part_is_taken_for_what_it_has(
    small: dict[str, known.FileFacts], main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    del small
    there = [preparing.PARTS["boolq"], preparing.PARTS["piqa"], preparing.TESTS["piqa"], preparing.TESTS["boolq"]]
    for facts in there:
        file = tmp_path / "given" / (facts.name if layout == "kept" else facts.source)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(facts))
    assert main(f"root={tmp_path}", f"folder={tmp_path}/given") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [
        "  train       6 questions: boolq/train.json, piqa/train.json",
        "  test        8 questions of 2 sets: boolq, piqa",
    ]
    assert lines[3].startswith("  not there   commonsense_170k.json, social_i_qa/test.json, hellaswag/test.json")
    assert "'dataset.train=[boolq/train.json,piqa/train.json]' 'dataset.sets=[boolq,piqa]'" in lines[4]


def test_what_is_wrong_is_one_line_and_leaves_nothing(
    small: dict[str, known.FileFacts], main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given"
    (given / "boolq").mkdir(parents=True)
    words = (f"root={tmp_path}/data", f"folder={given}")

    def refused() -> str:
        assert main(*words) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "data" / "commonsense").exists()
        return line

    assert "holds no test set: expected <set>/test.json" in refused()
    (given / "boolq" / "test.json").write_bytes(content(small["dataset/boolq/test.json"]))
    assert "holds no training questions: expected commonsense_170k.json or <set>/train.json" in refused()
    (given / "commonsense_170k.json").write_text(json.dumps(questions("boolq", 19)))
    assert "commonsense_170k.json is another file than ft-training_set/commonsense_170k.json: it has 19 questions" in refused()
    rows = questions("boolq", 20)
    rows[6]["answer"] = "perhaps"
    (given / "commonsense_170k.json").write_text(json.dumps(rows))
    assert "row 7: the answer 'perhaps' is not among the question's options (true, false)" in refused()


def test_a_second_process_finds_ready_what_it_waited_for(
    small: dict[str, known.FileFacts], tmp_path: Path, second: Callable[[Callable[[], str], Path], str]
) -> None:
    for place, facts in small.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(content(facts))
    first = preparing.prepare(tmp_path, "", tmp_path)
    again = second(lambda: preparing.prepare(tmp_path, "", tmp_path), tmp_path / "commonsense")
    assert again == f"ready already, nothing to do\n{first}\n"


def test_what_is_ready_in_a_read_only_root(
    small: dict[str, known.FileFacts],
    main: Main,
    tmp_path: Path,
    small_disk: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for place, facts in small.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(content(facts))
    root = small_disk("1m")
    for mode, code in (("ro", 2), ("rw", 0), ("ro", 0)):
        assert os.system(f"mount -o remount,{mode} {root}") == 0
        assert main(f"root={root}", f"folder={tmp_path}") == code
    shown = capsys.readouterr()
    assert shown.out.count(f"commonsense: ready in {root}/commonsense") == 2
    [line] = shown.err.splitlines()
    assert line.startswith(f"error: cannot write {root}/commonsense (Read-only file system); choose another folder")


def test_files_of_a_persons_own_are_never_replaced(
    small: dict[str, known.FileFacts], main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "commonsense"
    for name, place in (("commonsense_170k.json", known.TRAIN.source), ("boolq/test.json", "dataset/boolq/test.json")):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content(small[place]))
    for words in ([f"folder={out}"], []):
        assert main(f"root={tmp_path}", *words) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f"{out} holds files that are not this command's, such as boolq/test.json; move it away, or give" in line
    assert [path.name for path in tmp_path.iterdir()] == ["commonsense"]
    assert sorted(path.name for path in out.iterdir()) == ["boolq", "commonsense_170k.json"]


def test_a_file_that_the_server_lacks_is_named(
    small: dict[str, known.FileFacts], server: FileServer, main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = served(server, small)
    del server.files["dataset/hellaswag/test.json"]
    assert main(f"root={tmp_path}", f"source={address}") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "dataset/hellaswag/test.json: the server answered 404" in line
    assert not (tmp_path / "commonsense").exists()


def test_the_facts_agree_with_each_other() -> None:
    assert tuple(known.TESTS) == COMMONSENSE_SETS == tuple(known.PARTS)
    assert sum(facts.rows for facts in known.PARTS.values()) == known.TRAIN.rows == 170_420
    assert sum(facts.rows for facts in known.TESTS.values()) == 22_419
    assert known.SOURCE.startswith("https://")


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/text/commonsense")
def test_the_real_files_that_are_here(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"root={tmp_path}", f"folder={REAL}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "  train       8,327 questions: ARC-Easy/train.json, ARC-Challenge/train.json, openbookqa/train.json"
    assert lines[2].startswith("  test        12,377 questions of 7 sets: boolq, piqa, social_i_qa, winogrande, ARC-Easy")
    assert lines[3] == "  not there   commonsense_170k.json, hellaswag/test.json"
