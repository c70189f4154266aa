"""result.json: what is written is read back equal; what is anything else is refused with the file's name."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gift_vit.errors import ConfigError, RunError
from gift_vit.results.schema import METRICS, Result, read_result, to_json, write_result


def edited(result: Result, where: str, value: Any) -> str:
    """The result's JSON with the value at a dotted place replaced, added, or (value ...) removed."""
    record = json.loads(to_json(result))
    *sections, key = where.split(".")
    target = record
    for section in sections:
        target = target[section]
    if value is ...:
        del target[key]
    else:
        target[key] = value
    return json.dumps(record)


def test_round_trip(make: Callable[..., Result], tmp_path: Path) -> None:
    result = make(run={"protocol_changes": {"trainer.epochs": [100, 5]}, "git_sha": None, "git_dirty": None})
    path = tmp_path / "deep" / "result.json"
    write_result(path, result)
    again = read_result(str(path))
    assert again == result
    assert again.path == path
    assert to_json(again) == path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_results_older_than_a_field_are_read(make: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    record = json.loads(to_json(make()))
    for key in ("decoder", "source"):
        del record["data"][key]
    path.write_text(json.dumps(record))
    data = read_result(path).data
    assert (data.decoder, data.source) == (None, None)
    del record["data"]["fingerprint"]
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="data misses fingerprint;"):
        read_result(path)


def test_shape_of_the_file(make: Callable[..., Result]) -> None:
    record = json.loads(to_json(make()))
    assert list(record) == ["schema", "status", "run", "data", "backbone", "params", "metrics", "cost", "env"]
    assert (record["schema"], record["status"]) == (1, "finished")
    assert set(record["metrics"]) == set(METRICS)
    assert len(record["run"]) == 17
    assert record["cost"]["peak_memory_mib"] is None


BAD = [
    ("run.method", ..., "run misses method"),
    ("run.metod", "gift", "run has unknown metod"),
    ("note", "x", "it has unknown note"),
    ("cost", ..., "it misses cost"),
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


def test_number_of_bad_records() -> None:
    assert len(BAD) == 21


@pytest.mark.parametrize(("where", "value", "message"), BAD)
def test_bad_record_is_refused_with_its_file(
    make: Callable[..., Result], tmp_path: Path, where: str, value: Any, message: str
) -> None:
    path = tmp_path / "result.json"
    path.write_text(edited(make(), where, value))
    with pytest.raises(ConfigError, match=message) as error:
        read_result(path)
    text = str(error.value)
    assert text.startswith(str(path))
    assert text.endswith("delete it and start the run again")
    assert "\n" not in text


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_truncated_file(make: Callable[..., Result], tmp_path: Path, keep: float) -> None:
    path = tmp_path / "result.json"
    text = to_json(make()).rstrip()
    path.write_text(text[: int(keep * len(text))])
    with pytest.raises(
        ConfigError, match=r"result\.json is no readable result: it is not valid JSON, perhaps cut short.*delete"
    ):
        read_result(path)


@pytest.mark.parametrize("text", ["[]", "null", "3"])
def test_json_that_is_no_object(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="expected an object; delete it"):
        read_result(path)


def test_overflowing_number_and_binary_file(make: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(to_json(make()).replace('"train_loss": 0.1', '"train_loss": 1e999'))
    with pytest.raises(ConfigError, match=r"metrics\.train_loss is inf"):
        read_result(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"result\.json is no readable result: it is no text file"):
        read_result(path)


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"result\.json cannot be read: No such file"):
        read_result(tmp_path / "result.json")


def test_search_run_has_no_test_numbers(make: Callable[..., Result], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="test numbers in phase search"):
        write_result(tmp_path / "result.json", make(run={"phase": "search"}))
    write_result(tmp_path / "result.json", make(run={"phase": "search"}, top1=None))
    assert read_result(tmp_path / "result.json").run.phase == "search"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {**dict.fromkeys(METRICS), "train_loss": float("nan")}}, "metrics.train_loss is nan"),
        ({"metrics": {"test_top1": 90.0}}, "metrics misses train_loss"),
        ({"env": {"python": Path("x")}}, "not JSON serializable"),
        ({"env": "cpu"}, "env is 'cpu'"),
    ],
)
def test_what_could_not_be_read_is_not_written(
    make: Callable[..., Result], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    result = dataclasses.replace(make(), **changes)
    with pytest.raises(RunError, match=rf"run digits/gift/seed0 cannot be written: .*{message}"):
        write_result(tmp_path / "result.json", result)
    with pytest.raises(RunError, match=message):
        to_json(result)
    assert list(tmp_path.iterdir()) == []
