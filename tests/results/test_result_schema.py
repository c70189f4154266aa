"""result.json: what is written is read back equal; what is anything else is refused with the file's name."""

import dataclasses
import json
import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from gift_vit.common.errors import ConfigError, RunError
from gift_vit.runs.result import METRICS, read_result, to_json, write_result
from tests.results.conftest import make_result


def edited(where: str, value: Any) -> bytes:
    """A result's JSON with the value at a dotted place replaced, added, or (value ...) removed."""
    record = json.loads(to_json(make_result()))
    *sections, key = where.split(".")
    target = reduce(dict.__getitem__, sections, record)
    target[key] = value
    if value is ...:
        del target[key]
    return json.dumps(record).encode()


def test_round_trip(tmp_path: Path) -> None:
    result = make_result(run={"protocol_changes": {"trainer.epochs": [100, 5]}, "git_sha": None, "git_dirty": None})
    path = tmp_path / "deep" / "result.json"
    write_result(path, result)
    again = read_result(str(path))
    assert (again, again.path, to_json(again)) == (result, path, path.read_text())
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]
    record = json.loads(path.read_text())
    assert list(record) == ["schema", "status", "run", "data", "backbone", "params", "metrics", "cost", "env"]
    assert (record["schema"], record["status"], set(record["metrics"])) == (1, "finished", set(METRICS))


@pytest.mark.parametrize(
    ("phase", "rule", "split"), [("search", "test", "val"), ("final", "test", "test"), ("final", "val", "val")]
)
def test_a_search_counts_by_val_whatever_the_protocol_scores(phase: str, rule: str, split: str) -> None:
    result = make_result(val=80.0, run={"phase": phase}, config={"protocol.scored_on": rule})
    assert (result.scored_on, result.score) == (split, result.metrics[f"{split}_top1"])


def test_results_older_than_a_field_are_read(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    record = json.loads(to_json(make_result()))
    del record["data"]["decoder"], record["data"]["source"], record["data"]["class_names"]
    record["metrics"] |= {"best_val_top1": 75.0, "best_val_epoch": 3}
    path.write_text(json.dumps(record))
    old = read_result(path)
    assert (old.data.decoder, old.data.source, old.data.class_names, set(old.metrics)) == (None, None, None, set(METRICS))


DAMAGED = "delete it and start the run again"
OTHER_VERSION = "made by another version of gift_vit; read it with that one, or move it away"
BAD = [
    ("run.method", ..., "run misses method"),
    ("run.metod", "gift", "run has unknown metod"),
    ("note", "x", "it has unknown note"),
    ("cost", ..., "it misses cost"),
    ("data.fingerprint", ..., "data misses fingerprint"),
    ("status", "failed", "status is 'failed', expected Literal"),
    ("schema", 2, "it has schema 2, this version of gift_vit reads schema 1"),
    ("schema", True, "schema is True, expected int"),
    ("run.phase", "test", "run.phase is 'test'"),
    ("run.seed", "0", "run.seed is '0', expected int"),
    ("run.seed", True, "run.seed is True, expected int"),
    ("run.overrides", [1], "run.overrides is"),
    ("run.protocol_changes", {"optim.lr": [1]}, "run.protocol_changes.optim.lr has 1 values"),
    ("data", [], r"data is \[\], expected an object"),
    ("params.percent", None, "params.percent is None, expected float"),
    ("cost.adapter_bytes", 1.5, "cost.adapter_bytes is 1.5, expected int"),
    ("metrics.test_top1", 100.5, "metrics.test_top1 is 100.5, expected percent between 0 and 100"),
    ("metrics.test_top1", -1, "metrics.test_top1 is -1"),
    ("metrics.top5", 99.0, "metrics has unknown top5"),
    ("metrics.epochs", ..., "metrics misses epochs"),
    ("metrics.train_loss", float("nan"), "metrics.train_loss is nan, expected a finite number"),
    ("run.config.optim.betas", [0.9, float("inf")], r"run.config.optim.betas\[1\] is inf"),
]


TEXT = to_json(make_result())
UNREADABLE = [
    *((TEXT[: int(keep * len(TEXT))].encode(), "it is not valid JSON, perhaps cut short") for keep in (0.0, 0.5, 0.99)),
    *((text, "expected an object") for text in (b"[]", b"null", b"3")),
    (TEXT.replace('"train_loss": 0.1', '"train_loss": 1e999').encode(), "metrics.train_loss is inf"),
    (b"\xff\xfe\x00", "it is no text file"),
]


@pytest.mark.parametrize(("content", "message"), [*((edited(*bad[:2]), bad[2]) for bad in BAD), *UNREADABLE])
def test_a_bad_file_is_refused_in_one_line_that_names_it(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(ConfigError, match=r"result\.json cannot be read: No such file"):
        read_result(path)
    path.write_bytes(content)
    of_another = "misses" not in message and ("has unknown" in message or message.startswith("it has schema"))
    remedy = OTHER_VERSION if of_another else DAMAGED
    expected = rf"^{re.escape(str(path))} is no readable result: .*{message}[^;]*; {remedy}$"
    with pytest.raises(ConfigError, match=expected):  # a dot stands for no line break
        read_result(path)


UNWRITABLE: list[tuple[dict[str, Any], str]] = [
    ({"metrics": {**dict.fromkeys(METRICS), "train_loss": float("nan")}}, "metrics.train_loss is nan"),
    ({"metrics": {"test_top1": 90.0}}, "metrics misses train_loss"),
    ({"env": {"python": Path("x")}}, "not JSON serializable"),
    ({"env": "cpu"}, "env is 'cpu'"),
    ({"run": make_result(run={"phase": "search"}).run}, "it has test numbers in phase search"),
]


@pytest.mark.parametrize(("changes", "message"), UNWRITABLE)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    result = dataclasses.replace(make_result(), **changes)
    with pytest.raises(RunError, match=rf"run digits/gift/seed0 cannot be written: .*{message}"):
        write_result(tmp_path / "result.json", result)
    with pytest.raises(RunError, match=message):
        to_json(result)
    assert list(tmp_path.iterdir()) == []
