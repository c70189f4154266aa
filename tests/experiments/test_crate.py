"""What ``ro-crate-metadata.json`` says of a run is in its folder, and every thing that it names is explained in it."""

import json
import shutil
from collections.abc import Iterator
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.warm import run_module

OLD = Path(__file__).parents[1] / "runs/old_run"
FILES = ("adapter.safetensors", "config.yaml", "metrics.jsonl", "result.json", "train.log")


def references(value: object) -> Iterator[str]:
    """What an entity refers to."""
    if isinstance(value, dict):
        if set(value) == {"@id"}:
            yield value["@id"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    crate = json.loads((folder / "ro-crate-metadata.json").read_text())
    assert crate["@context"][0] == "https://w3id.org/ro/crate/1.1/context"
    entities = {entity["@id"]: entity for entity in crate["@graph"]}
    assert len(entities) == len(crate["@graph"])
    return entities


def test_every_finished_run_is_described(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    shutil.copytree(OLD, root)
    done = run_module("experiments.crate", f"runs={root}", "license=https://spdx.org/licenses/CC-BY-4.0", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    written = sorted(root.rglob("ro-crate-metadata.json"))
    assert sorted(done.stdout.split()) == [str(file) for file in written]
    assert [file.parent for file in written] == sorted(file.parent for file in root.rglob("result.json"))
    for folder in (file.parent for file in written):
        entities, record = read(folder), json.loads((folder / "result.json").read_text())
        about, top, action = entities["ro-crate-metadata.json"], entities["./"], entities["#training"]
        assert (about["conformsTo"], about["about"]) == ({"@id": "https://w3id.org/ro/crate/1.1"}, {"@id": "./"})
        assert {"name", "description", "datePublished", "license"} <= top.keys()
        assert {part["@id"] for part in top["hasPart"]} == set(FILES)
        outside = {"https://w3id.org/ro/crate/1.1", "http://schema.org/CompletedActionStatus"}
        assert set(references(list(entities.values()))) - outside <= entities.keys()
        for name in FILES:
            content = (folder / name).read_bytes()
            assert entities[name]["sha256"] == sha256(content).hexdigest()
            assert (entities[name]["@type"], entities[name]["contentSize"]) == ("File", str(len(content)))
        took = datetime.fromisoformat(action["endTime"]) - datetime.fromisoformat(action["startTime"])
        assert took.total_seconds() == pytest.approx(record["cost"]["total_seconds"], abs=1)
        assert "." not in action["endTime"], "no fractions of a second"
        assert action["instrument"]["@id"].startswith("https://")
        assert entities["#data"]["identifier"] == record["data"]["fingerprint"]
        assert entities["#backbone"]["identifier"] == record["backbone"]["weights_sha256"]


def test_a_record_that_cannot_be_read_is_told_after_the_other_runs(tmp_path: Path) -> None:
    first, *others = sorted(file.parent for file in Path(shutil.copytree(OLD, tmp_path / "runs")).rglob("result.json"))
    assert others
    (first / "result.json").write_text("{")
    done = run_module("experiments.crate", "runs=runs", cwd=tmp_path)
    assert done.stdout.split() == [str(Path(folder.relative_to(tmp_path), "ro-crate-metadata.json")) for folder in others]
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "result.json is no readable result" in done.stderr
    assert f"(1 of {1 + len(others)} runs have no crate)" in done.stderr


def test_what_is_described_is_still_a_run(tmp_path: Path) -> None:
    run = shutil.copytree(next(OLD.rglob("result.json")).parent, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert run_module("experiments.crate", "run=run", cwd=tmp_path).returncode == 0
    after = {path.name: path.read_bytes() for path in run.iterdir()}
    assert after.pop("ro-crate-metadata.json")
    assert after == before
