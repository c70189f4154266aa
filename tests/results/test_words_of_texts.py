"""What is said of runs on texts: their own score and their own examples, and nothing of pictures and top-1."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import select, status
from experiments.report import __main__ as report
from gift_vit.results.collect import build_grid, collect_results
from gift_vit.results.comparison import comparison_notes
from gift_vit.results.request import Request
from gift_vit.results.scores import with_scores
from gift_vit.results.tables import TABLES
from gift_vit.runs.predictions import Predictions, write_predictions
from gift_vit.runs.result import Result, scored_as, things_of, write_result
from gift_vit.sweeps.select import choose
from tests.results.conftest import exit_code, make_result

COUNT = 60
DATA = {"num_classes": 2, "val_images": 100, "test_images": COUNT}
METRICS = {None: "accuracy", "f1": "F1", "matthews": "Matthews correlation", "exact": "exact answers"}
OF_PICTURES = re.compile(r"top-?1|images?\b|pictures?\b", re.IGNORECASE)


def text_run(metric: str | None, method: str = "lora", dataset: str = "text_own", **told: Any) -> Result:
    """A fabricated run on texts; without ``val`` a final one."""
    phase = "final" if told.get("val") is None else "search"
    config = {"backbone.kind": "transformers", "dataset.kind": "text", **told.pop("config", {})}
    run = {"benchmark": "own", "backbone": "hf_bert", "phase": phase}
    made = make_result(method, dataset, config=config, run=run, data=DATA, **told)
    return replace(made, metric=metric)


def kept(folder: Path, result: Result, wrong: int) -> None:
    """Store a run with predictions of which so many are wrong."""
    labels = np.arange(COUNT) % 2
    said = np.where(np.arange(COUNT) < wrong, 1 - labels, labels)
    predictions = Predictions("test", [str(i) for i in range(COUNT)], labels, 4 * np.eye(2, dtype=np.float16)[said], ["a", "b"])
    folder.mkdir(parents=True)
    write_result(
        folder / "result.json", replace(result, predictions=write_predictions(folder / "predictions.parquet", [predictions]))
    )


def said(text: str) -> str:
    """A text without the labels of the machine, if nothing in it is of pictures."""
    assert not (found := OF_PICTURES.search(text)), text[max(0, found.start() - 80) : found.end() + 40]
    return " ".join(text.split())


@pytest.fixture
def outputs(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Final runs of two methods and two seeds with predictions, and a search, scored by a metric."""
    for method, wrong in (("lora", 3), ("bitfit", 12)):
        for seed in (0, 1):
            result = text_run(request.param, method, seed=seed, top1=70.0 + seed)
            kept(tmp_path / f"outputs/final/{method}{seed}", result, wrong + seed)
    for index, lr in enumerate((1e-4, 1e-3)):
        folder = tmp_path / f"outputs/search/{index}"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text('{"epoch": 0, "train_loss": 1.0, "val_top1": 50.0, "lr": 0.1}\n')
        write_result(folder / "result.json", text_run(request.param, val=50.0 + index, config={"optim.lr": lr}))
    return tmp_path / "outputs"


@pytest.mark.parametrize(("outputs", "name"), METRICS.items(), indirect=["outputs"])
def test_commands_about_many_runs(outputs: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The report's page is drawn by matplotlib, which takes a second."""
    out = outputs / "report.html"
    assert exit_code(report.main, f"root={outputs}", f"out={out}") == 0
    page = re.sub(r"<(script|style)>.*?</\1>", "", out.read_text(), flags=re.DOTALL)
    text = said(re.sub(r"<[^>]*>", " ", page)) + said(" ".join(re.findall(r'aria-label="([^"]*)"', page)))
    for expected in (f"Val {name} in percent", f"Test {name} (%)", f"Val {name} (%)", f"test {name} against", "Texts/s"):
        assert expected in text
    for expected in ("accuracy by class on the test texts", "texts per run"):
        assert expected in text
    assert exit_code(status.main, f"root={outputs}") == 0
    assert f" {name} % " in said(capsys.readouterr().out.replace(str(outputs), ""))
    assert exit_code(select.main, f"root={outputs}", f"out={outputs}/recipe") == 0
    assert f"(val {name} 51.00 %, best of 2 settings)" in said(capsys.readouterr().out)
    assert f"val {name} %" in said((outputs / "recipe/text_own_lora.yaml").read_text())


@pytest.mark.parametrize(("outputs", "name"), METRICS.items(), indirect=["outputs"])
def test_tables_of_many_runs(outputs: Path, name: str) -> None:
    grid = build_grid(collect_results(outputs), "own")
    assert (scored_as(grid.results), things_of(grid.results)) == (f"test {name}", "texts")
    notes = said(" ".join(comparison_notes(grid, ["lora", "bitfit"])))
    assert ("text by text, exact McNemar" in notes) == (name == "accuracy")
    own = TABLES["own"](Request(collect_results(outputs)))
    assert [column.group for column in own.columns][-1] == f"Test {name} (%)"
    first = collect_results(outputs)[0]
    searched = replace(first, run=replace(first.run, dataset="birds", phase="search"))
    wider = TABLES["own"](Request([*collect_results(outputs), searched], ["text_own", "birds"]))
    assert [(row[-1].text, wider.columns[-1].group) for row in wider.rows] == [("–", own.columns[-1].group)] * len(own.rows)
    table = with_scores(own, ["top1", "macro_f1"])
    assert [column.group for column in table.columns[-2:]] == ["Accuracy (%)", "Macro F1 (%)"]
    said(" ".join((table.caption, *table.notes, *(column.group for column in table.columns))))


@pytest.mark.parametrize(
    ("metric", "scores", "near"),
    [("pearson", (-3.0, -5.0), 1), ("matthews", (0.0, 0.0), 2), (None, (80.0, 79.0), 2), ("exact", (80.0, 70.0), 1)],
)
def test_a_choice_by_a_score_that_may_be_negative(metric: str | None, scores: Sequence[float], near: int) -> None:
    """A standard error is known of shares alone: at 80 % of 100 texts it is 4 points."""
    rates = (1e-3, 1e-4)
    runs = [text_run(metric, val=val, config={"optim.lr": lr}) for lr, val in zip(rates, scores, strict=True)]
    choice = choose(runs)
    assert choice.settings[0].score == max(scores)
    assert choice.near == near


def test_runs_of_several_scores_share_no_name(tmp_path: Path) -> None:
    for metric, dataset in ((None, "text_a"), ("pearson", "text_b")):
        folder = tmp_path / f"outputs/{dataset}"
        folder.mkdir(parents=True)
        write_result(folder / "result.json", text_run(metric, dataset=dataset, top1=-2.0 if metric else 70.0))
    out = tmp_path / "report.html"
    assert exit_code(report.main, f"root={tmp_path / 'outputs'}", f"out={out}") == 0
    text = said(re.sub(r"<[^>]*>", " ", re.sub(r"<(script|style)>.*?</\1>", "", out.read_text(), flags=re.DOTALL)))
    for expected in ("Test accuracy (%)", "Test Pearson correlation (%)", "Test score", "Score against adapter parameters"):
        assert expected in text
