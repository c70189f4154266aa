"""Runs on tasks of GLUE with a tiny random model: what is trained on, scored and kept by each protocol.

A run takes half a second beside the import of transformers, which takes five.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from scipy.special import softmax
from sklearn.metrics import matthews_corrcoef
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from experiments.crate import crate
from experiments.ensemble import Arguments, print_ensemble
from gift_vit.common.errors import ConfigError
from gift_vit.config import RunConfig, compose_config, load_config
from gift_vit.runs.build import finished_model
from gift_vit.runs.finished import evaluate_split, score_model, write_merged
from gift_vit.runs.predictions import read_predictions
from gift_vit.runs.result import Result, read_result
from gift_vit.runs.run import Run
from gift_vit.runs.submission import submission_text
from gift_vit.runs.train import Call, train_run
from gift_vit.runs.verify import verify_run
from tests.conf.files import composed
from tests.runs.conftest import InterruptAfter
from tests.text_models import glue_task, text_model

Configured = Callable[..., RunConfig]
stats: Any = scipy.stats
CALL = Call("python -m gift_vit.train", [])
pytestmark = pytest.mark.usefixtures("offline")
SIZES = {"train": 400, "dev": 60, "test": 20}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("glue")
    for task in ("cola", "rte", "mrpc", "stsb"):
        glue_task(root / "data" / "glue" / task, task, SIZES)
    text_model(root / "bert")
    return root


@pytest.fixture
def configured(root: Path, tmp_path: Path) -> Configured:
    def configure(task: str, *words: str) -> RunConfig:
        given = [f"dataset=glue_{task}", f"paths.data_root={root}/data", "backbone=hf", f"backbone.model={root}/bert"]
        short = ["trainer.epochs=4", "optim.lr=2e-2", "trainer.batch_size=50", "trainer.device=cpu"]
        return load_config(composed("method=lora_text", *given, *short, f"paths.output_root={tmp_path}", *words))

    return configure


def trained(cfg: RunConfig) -> Result:
    train_run(cfg, CALL)
    return read_result(cfg.folder / "result.json")


def lines(cfg: RunConfig) -> list[str]:
    return (cfg.folder / "predictions.tsv").read_text().splitlines()


def test_clean_splits_val_off_train_and_scores_dev_once(configured: Configured) -> None:
    search, final = (trained(configured("cola", f"phase={phase}")) for phase in ("search", "final"))
    assert (search.data.train_images, search.data.val_images, search.data.test_images) == (300, 100, 60)
    assert search.metrics["test_top1"] is None
    assert final.data.train_images == 400
    assert final.metrics["val_top1"] is None
    cfg = configured("cola", "phase=final")
    kept = read_predictions(cfg.folder / "predictions.parquet")["test"]
    expected = 100 * matthews_corrcoef(kept.labels, kept.predicted)
    assert final.metric == "matthews"
    assert final.metrics["test_top1"] == pytest.approx(expected)
    assert final.extra_metrics == {"accuracy": pytest.approx(100 * np.mean(kept.labels == kept.predicted))}
    assert len(list(verify_run(Run.open(cfg.folder)))) == 7
    assert evaluate_split(Run.open(cfg.folder), "test").top1 == pytest.approx(expected)


def test_glue_gift_keeps_the_best_epoch_on_dev_and_has_no_test_number(configured: Configured) -> None:
    cfg = configured("rte", "protocol=glue_gift", "phase=final", "trainer.keep_predictions=all")
    result = trained(cfg)
    assert (result.data.train_images, result.data.val_images, result.data.test_images) == (400, 60, None)
    curve = [record["val_top1"] for record in Run.open(cfg.folder).curve()]
    assert result.metrics["val_top1"] == result.score == max(curve)
    assert (result.run.chosen, result.run.chosen_on) == ({"epoch": curve.index(max(curve))}, "val")
    assert (result.metrics["test_top1"], result.metrics["test_loss"]) == (None, None)
    assert evaluate_split(Run.open(cfg.folder), "val").top1 == max(curve)  # the weights are that epoch's
    assert next(iter(read_predictions(cfg.folder / "predictions.parquet"))) == "val"
    assert len(list(verify_run(Run.open(cfg.folder)))) == 7
    told = lines(cfg)
    assert told[0] == "index\tprediction"
    assert [line.split("\t")[0] for line in told[1:]] == [str(index) for index in range(SIZES["test"])]
    assert {line.split("\t")[1] for line in told[1:]} <= {"entailment", "not_entailment"}


def test_an_interrupted_run_keeps_the_best_epoch_that_it_had(configured: Configured) -> None:
    whole = configured("rte", "protocol=glue_gift", "phase=final", "run_name=whole", "optim.lr=1e-1")
    expected = trained(whole)
    best = expected.run.chosen
    assert best is not None
    halted = configured("rte", "protocol=glue_gift", "phase=final", "run_name=halted", "optim.lr=1e-1")

    with pytest.raises(KeyboardInterrupt):
        train_run(halted, CALL, [InterruptAfter(int(min(best["epoch"] + 1, 2)))])
    result = trained(halted)
    assert result.run.chosen == best
    assert (halted.folder / "adapter.safetensors").read_bytes() == (whole.folder / "adapter.safetensors").read_bytes()


def test_numbers_are_learnt_with_one_output_and_scored_by_correlation(configured: Configured) -> None:
    cfg = configured("stsb", "phase=final", "method=full", "trainer.epochs=10", "optim.lr=1e-2", "trainer.batch_size=20")
    result = trained(cfg)
    run = Run.open(cfg.folder)
    kept = score_model(run, finished_model(run, "auto")[0], run.data(), "test", keep_logits=True)
    assert kept.logits is not None
    assert kept.logits.shape == (60, 1)
    labels, outputs = run.data().splits["test"].labels, kept.logits[:, 0]
    assert labels.dtype == np.float32
    assert result.metric == "pearson"
    assert result.metrics["test_top1"] == pytest.approx(100 * stats.pearsonr(outputs, labels)[0], abs=1e-3)
    assert result.extra_metrics == {"spearman": pytest.approx(100 * stats.spearmanr(outputs, labels)[0], abs=1e-3)}
    assert result.metrics["test_loss"] == pytest.approx(np.mean((outputs - labels) ** 2), rel=1e-4)
    assert (result.metrics["test_top1"] or 0) > 95  # it is learnt
    assert result.predictions is None
    assert all(line.split("\t")[1].partition(".")[2].isdigit() for line in lines(cfg)[1:])
    assert len(list(verify_run(run))) == 6


def test_a_run_says_what_its_score_is(configured: Configured, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        cfg = configured("mrpc", "phase=final")
        result = trained(cfg)
    assert "(test accuracy" in caplog.messages[-1]
    assert any("texts_per_s" in message and "train_loss" in message for message in caplog.messages)
    assert not any("images" in message for message in caplog.messages)
    assert result.metric is None
    assert result.extra_metrics is not None
    assert list(result.extra_metrics) == ["f1"]
    assert "metric" not in json.loads((cfg.folder / "result.json").read_text())


def test_an_ensemble_is_scored_as_its_task_is(configured: Configured, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [Run.open(configured("cola", "phase=final", f"seed={seed}").folder) for seed in (0, 1)]
    for seed in (0, 1):
        trained(configured("cola", "phase=final", f"seed={seed}"))
    told = [line for run in runs for line in verify_run(run)]
    assert sum("60 texts of test give every recorded score" in line for line in told) == 2
    assert any(line.endswith("which end with the recorded loss and val Matthews correlation") for line in told)
    print_ensemble(Arguments([str(run.folder) for run in runs]))
    *_, last = capsys.readouterr().out.splitlines()
    kept = [run.predictions() for run in runs]
    probabilities = np.mean([softmax(each.logits.astype(np.float64), 1) for each in kept], axis=0)
    expected = 100 * matthews_corrcoef(kept[0].labels, probabilities.argmax(1))
    assert last.startswith(f"ensemble of 2 over 60 texts of test: Matthews correlation (%) {expected:.4f}, Accuracy (%) ")
    assert next(entity for entity in crate(runs[0])["@graph"] if entity["@id"] == "#data")["description"].endswith("400 texts")
    assert not re.search("top-1|image", " ".join((*told, last)), re.IGNORECASE)


@pytest.mark.parametrize("method", ["linear_exact", "knn"])
def test_a_head_is_fitted_on_features_that_are_kept(
    configured: Configured, method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("phase=final", f"method={method}", "backbone.pooling=mean", f"paths.cache_root={tmp_path}/cache")
    cfg = configured("cola", *words)
    result = trained(cfg)
    assert result.run.chosen_on == "val"
    assert (result.metrics["test_top1"] or 0) > 50  # chance is 0
    assert len(list(verify_run(Run.open(cfg.folder)))) == 8
    with caplog.at_level("INFO"):
        again = trained(configured("cola", *words, "run_name=again"))
    assert again.metrics == result.metrics
    assert sum("features of glue_cola" in message and ": from " in message for message in caplog.messages) == 2


def test_features_of_another_tokenizer_are_not_those_that_are_kept(
    configured: Configured, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = shutil.copytree(root / "bert", tmp_path / "bert")
    words = ("phase=final", "method=linear_exact", "backbone.pooling=mean", f"paths.cache_root={tmp_path}/cache")
    words = (*words, f"backbone.model={model}")
    trained(configured("cola", *words))
    told = json.loads((model / "tokenizer.json").read_text())
    told["normalizer"] = {"type": "Replace", "pattern": {"String": "good"}, "content": "bad"}
    (model / "tokenizer.json").write_text(json.dumps(told))
    caplog.clear()
    with caplog.at_level("INFO"):
        trained(configured("cola", *words, "run_name=again"))
    assert not [message for message in caplog.messages if "features of glue_cola" in message and ": from " in message]


def test_a_merged_model_of_numbers_answers_with_the_number(configured: Configured, tmp_path: Path) -> None:
    cfg = configured("stsb", "phase=final", "trainer.epochs=1")
    trained(cfg)
    run = Run.open(cfg.folder)
    write_merged(run, tmp_path / "merged")
    pair = {"text": "a good film", "text_pair": "a bad film"}
    answer: Any = pipeline("text-classification", str(tmp_path / "merged"), device="cpu")(pair)
    model, tokenizer = (
        auto.from_pretrained(tmp_path / "merged") for auto in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    logits = model(**tokenizer(pair["text"], pair["text_pair"], return_tensors="pt")).logits
    assert answer["score"] == pytest.approx(logits.item(), rel=1e-5)


def test_a_length_that_leaves_nothing_of_a_text_is_refused(configured: Configured) -> None:
    with pytest.raises(ConfigError, match=r"dataset.max_length=3 leaves nothing of a text: the tokenizer adds 3 tokens"):
        train_run(configured("rte", "dataset.max_length=3"), CALL)


def test_a_head_of_the_weights_is_said(configured: Configured, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        trained(configured("cola", "trainer.epochs=1"))
    assert any("has a head for 2 outputs (classifier.weight): it is trained further" in message for message in caplog.messages)


def test_a_head_that_is_not_linear_is_not_fitted(configured: Configured) -> None:
    with pytest.raises(ConfigError, match=r"needs a model with one linear head with a bias, not Linear; give backbone.pooling"):
        train_run(configured("cola", "method=linear_exact"), CALL)
    with pytest.raises(ConfigError, match="method linear_exact fits classes, and glue_stsb has numbers; give method=linear"):
        train_run(configured("stsb", "method=linear_exact", "backbone.pooling=mean"), CALL)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("dataset=digits", "backbone=vit_mini", "protocol=glue_gift"),
            "protocol.final_train has no entry for benchmark 'mini'",
        ),
        (
            ("dataset=glue_rte", "backbone=hf", "backbone.model=m", "+protocol.kept_epoch=best", "phase=final"),
            "protocol.kept_epoch=best is chosen on val, which this run trains on",
        ),
        (
            ("dataset=glue_rte", "backbone=hf", "backbone.model=m", "optim.warmup_epochs=1"),
            "optim.warmup_ratio=0.06 is a part of all updates; give optim.warmup_epochs=0",
        ),
        (("dataset=glue_rte", "backbone=hf", "backbone.model=m", "dataset.metric=mathews"), "did you mean matthews?"),
        (
            ("dataset=glue_rte", "backbone=hf", "backbone.model=m", "dataset.further_metrics=[pearson]"),
            "dataset.further_metrics=[pearson] does not go with dataset.metric=accuracy",
        ),
        (("dataset=glue_rte", "backbone=vit_mini"), "dataset glue_rte holds texts, and backbone vit_mini takes images"),
    ],
)
def test_what_does_not_go_together_is_told(words: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(compose_config(list(words)))
    assert told in str(caught.value)


def test_the_server_is_told_numbers_names_or_three_decimals() -> None:
    logits = np.array([[0.1, 2.0], [3.0, 1.0]], np.float32)
    assert submission_text(logits, None) == "index\tprediction\n0\t1\n1\t0\n"
    assert submission_text(logits, ["yes", "no"]) == "index\tprediction\n0\tno\n1\tyes\n"
    assert submission_text(np.array([[4.98765], [-0.1]], np.float32), None) == "index\tprediction\n0\t4.988\n1\t-0.100\n"
