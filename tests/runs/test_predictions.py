"""The predictions of a run are kept as they were made, and their scores are those of textbooks."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from gift_vit.common.errors import ConfigError, RunError
from gift_vit.config import RunConfig
from gift_vit.data.base import FileSource, SubsetSource, VisionDataset
from gift_vit.data.ids import image_ids
from gift_vit.data.kinds.parquet import read_table
from gift_vit.runs.build import eval_loader
from gift_vit.runs.finished import evaluate_split
from gift_vit.runs.predictions import Predictions, describe, keep_predictions, read_predictions, to_float16, write_predictions
from gift_vit.runs.result import read_result
from gift_vit.runs.run import Run
from gift_vit.runs.scores import (
    Confusion,
    calibration_error,
    class_accuracy,
    compute_scores,
    fit_temperature,
    task_scores,
    top_confusions,
)
from gift_vit.runs.train import Call, train_run
from tests.warm import run_module

ROWS = {
    "apart": [1.0, 3.0, 2.0],
    "closer than float16 tells, the later one higher": [20.0, 20.001, 20.0005],
    "the earlier one higher": [20.001, 20.0, 0.0],
    "equal, as bf16 makes them": [2.0, 5.0, 5.0],
    "all equal": [0.0, 0.0, 0.0],
    "below zero": [-20.001, -20.0, -20.0005],
    "beyond the range of float16": [1e5, 1e5 + 1, -1e5],
    "far below it": [-1e6, -1e5, -1e5 - 2],
}


@pytest.mark.parametrize("name", ROWS)
def test_rounding_changes_no_prediction(name: str) -> None:
    logits = np.array([ROWS[name]], np.float32)
    kept = to_float16(logits)
    assert kept.dtype == np.float16
    assert np.isfinite(kept).all()
    assert kept.argmax(1) == logits.argmax(1)
    assert (kept == kept.max()).sum() == 1, "whoever takes another of equal ones sees the same"
    expected, found = (torch.tensor(values.astype(np.float32)).softmax(1) for values in (logits, kept))
    if np.abs(logits).max() < 1e4:  # beyond, the probabilities of classes a step apart have no meaning in float16
        torch.testing.assert_close(found, expected, atol=0.01, rtol=0)
        np.testing.assert_allclose(kept, logits, rtol=2**-9, atol=1e-7)


def draw(count: int = 400, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes - 1, count)  # the last class has no image, and is predicted now and then
    logits = 2 * generator.standard_normal((count, classes))
    logits[np.arange(count), labels] += 2
    return logits.astype(np.float16), labels


def test_scores_are_those_of_their_definitions() -> None:
    (logits, labels), val = draw(), draw(200, seed=1)
    scores = compute_scores(logits, labels, val)
    exact = torch.tensor(logits.astype(np.float64))
    probabilities, choices = exact.softmax(1), exact.argsort(1, descending=True)
    predicted = choices[:, 0].tolist()
    truth = torch.tensor(labels)
    assert scores["top1"] == pytest.approx(100 * np.mean(predicted == labels))
    assert scores["top5"] == pytest.approx(100 * float((choices[:, :5] == truth[:, None]).any(1).double().mean()), abs=0.3)
    assert scores["nll"] == pytest.approx(float(F.cross_entropy(exact, truth)))
    recalls, f1 = [], []
    for c in sorted({*labels.tolist(), *predicted}):
        hits = sum(p == c == t for p, t in zip(predicted, labels, strict=True))
        said, true = predicted.count(c), int((labels == c).sum())
        recalls += [hits / true] if true else []
        f1.append(2 * hits / (said + true))
    assert len(recalls) == 6
    assert len(f1) == 7
    assert scores["mean_class_accuracy"] == pytest.approx(100 * np.mean(recalls))
    assert scores["macro_f1"] == pytest.approx(100 * np.mean(f1))
    assert scores["ece"] == pytest.approx(by_bins(probabilities, predicted, labels))
    temperatures = np.exp(np.linspace(-1, 1, 2001))
    losses = [float(F.cross_entropy(torch.tensor(val[0].astype(np.float64)) / t, torch.tensor(val[1]))) for t in temperatures]
    assert scores["temperature"] == pytest.approx(temperatures[int(np.argmin(losses))], rel=2e-3)
    assert scores["temperature"] is not None
    scaled = (exact / scores["temperature"]).softmax(1)
    assert scores["ece_scaled"] == pytest.approx(by_bins(scaled, predicted, labels))
    assert compute_scores(logits[:, :6], labels)["ece_scaled"] is None
    assert compute_scores(logits[:, :5], labels % 5)["top5"] is None


@pytest.mark.parametrize("lower", range(14))
def test_neighbouring_bins_of_calibration_are_kept_apart(lower: int) -> None:
    """One image of each bin, the first right and the second wrong: together in one bin they would make up for each other."""
    sure = np.array([lower + 0.5, lower + 1.5]) / 15
    probabilities = np.repeat((1 - sure)[:, None] / 99, 100, axis=1)
    probabilities[:, 0] = sure
    expected = 100 * (abs(1 - sure[0]) + abs(0 - sure[1])) / 2
    assert calibration_error(np.log(probabilities), np.array([0, 1])) == pytest.approx(expected)


@pytest.mark.parametrize("apart", [0.05, 1.0, 50.0])
def test_the_temperature_of_two_classes_has_a_formula(apart: float) -> None:
    """Three of four images are right, which is what the logits say when their difference is ln 3."""
    logits = np.array([[apart, 0.0]] * 4)
    assert fit_temperature(logits, np.array([0, 0, 0, 1])) == pytest.approx(apart / math.log(3), rel=1e-4)


def by_bins(probabilities: torch.Tensor, predicted: list[int], labels: np.ndarray) -> float:
    total = 0.0
    for lower in range(15):
        inside = [i for i, row in enumerate(probabilities) if lower / 15 < float(row.max()) <= (lower + 1) / 15]
        if inside:
            accuracy = np.mean([predicted[i] == labels[i] for i in inside])
            total += len(inside) / len(labels) * abs(accuracy - np.mean([float(probabilities[i].max()) for i in inside]))
    return 100 * total


def test_scores_of_tasks_by_hand() -> None:
    logits = np.array([[0, 1], [0, 1], [1, 0], [1, 0], [0, 1.0]], np.float32)
    labels = np.array([1, 0, 0, 1, 1])  # predicted 1 1 0 0 1: tp 2, fp 1, tn 1, fn 1
    expected = {"accuracy": 60.0, "f1": 100 * 4 / 6, "matthews": 100 * (2 - 1) / math.sqrt(3 * 3 * 2 * 2)}
    assert task_scores(logits, labels, list(expected)) == pytest.approx(expected)
    three = np.eye(3)[[0, 0, 1, 1, 0]]  # labels 0 0 0 1 2: F1 is 2/3, 2/3 and 0
    assert task_scores(three, np.array([0, 0, 0, 1, 2]), ["f1"]) == pytest.approx({"f1": 100 * 4 / 9})
    numbers, stated = np.array([[1.0], [2.0], [4.0]], np.float32), np.array([0.0, 3.0, 3.5], np.float32)
    a, b = np.array([-4, -1, 5]) / 3, np.array([-13, 5, 8]) / 6
    pearson = 100 * float(a @ b / math.sqrt((a @ a) * (b @ b)))
    assert task_scores(numbers, stated, ["pearson", "spearman"]) == pytest.approx({"pearson": pearson, "spearman": 100.0})


def test_predictions_that_are_all_the_same_have_no_correlation(caplog: pytest.LogCaptureFixture) -> None:
    assert task_scores(np.ones((4, 2)), np.array([0, 1, 0, 1]), ["matthews", "f1"]) == {"matthews": 0.0, "f1": 0.0}
    assert task_scores(np.ones((4, 1)), np.zeros(4, np.int64), ["accuracy"]) == {"accuracy": 100.0}, "of one class"
    assert task_scores(np.ones((4, 1)), np.arange(4.0), ["pearson", "spearman"]) == {"pearson": 0.0, "spearman": 0.0}
    assert "there is no correlation, and 0 is reported" in caplog.text


def test_confusions_and_classes_by_hand() -> None:
    logits = np.eye(3, dtype=np.float16)[[0, 1, 1, 2, 0, 2, 2]]
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    assert top_confusions(logits, labels) == [Confusion(0, 1, 2), Confusion(1, 2, 2), Confusion(0, 2, 1), Confusion(1, 0, 1)]
    assert top_confusions(logits, labels, 1) == [Confusion(0, 1, 2)]
    assert top_confusions(logits[:1], labels[:1]) == []
    assert class_accuracy(logits, labels) == [25.0, 0.0, None]


def test_a_final_run_keeps_what_it_predicted(final_run: Run) -> None:
    result, kept = final_run.result, final_run.predictions()
    assert result is not None
    assert result.predictions is not None
    data, model = final_run.data(), final_run.model()
    loader = eval_loader(final_run.config, model, data, "test", torch.device("cpu"))
    with torch.inference_mode():
        logits = torch.cat([model(images) for images, _ in loader])
    np.testing.assert_allclose(kept.logits, logits, atol=2e-3)
    assert (kept.predicted == logits.argmax(1).numpy()).all()
    assert kept.labels.tolist() == data.split("test").labels.tolist()
    assert kept.images == image_ids(data, "test")
    assert kept.class_names == [str(digit) for digit in range(10)]
    metrics, record = result.metrics, result.predictions
    assert 100 * kept.correct.mean() == pytest.approx(metrics["test_top1"])
    assert record.scores["nll"] == pytest.approx(metrics["test_loss"], abs=1e-4)
    assert 100 * final_run.predictions("val").correct.mean() == pytest.approx(metrics["val_top1"])
    assert (record.split, record.images) == ("test", {"test": 797, "val": 200})
    assert record.scores["temperature"] is not None
    schema = pq.read_schema(final_run.folder / "predictions.parquet")
    assert schema.field("logits").type == pa.list_(pa.float16(), 10)
    assert (final_run.folder / "predictions.parquet").stat().st_mtime_ns < (final_run.folder / "result.json").stat().st_mtime_ns


@pytest.mark.parametrize(
    ("words", "splits"),
    [
        (["phase=final"], ["test"]),
        (["phase=final", "trainer.keep_predictions=all"], ["test"]),  # clean trains on val
        (["phase=final", "trainer.keep_predictions=off"], []),
        (["phase=search"], []),
        (["phase=search", "trainer.keep_predictions=all"], ["val"]),
    ],
)
def test_which_splits_are_kept(words: list[str], splits: list[str], configure: Callable[..., RunConfig]) -> None:
    cfg = configure("trainer.epochs=1", *words)
    cfg.folder.mkdir(parents=True)
    (cfg.folder / "predictions.parquet").write_text("of an earlier start")
    result = train_run(cfg, Call("x", []))
    there = (cfg.folder / "predictions.parquet").is_file()
    assert [*result.predictions.images] == splits if result.predictions else not splits
    assert there == bool(splits)
    assert result.files is not None
    assert set(result.files) == {"adapter.safetensors", "metrics.jsonl", *["predictions.parquet"] * there}
    assert result == read_result(cfg.folder / "result.json")


def test_evaluate_makes_those_of_an_old_run(copied_run: Run, final_run: Run, tmp_path: Path) -> None:
    file = copied_run.folder / "result.json"
    (copied_run.folder / "predictions.parquet").unlink()
    old = json.loads(file.read_text())
    del old["predictions"], old["files"]
    file.write_text(json.dumps(old))
    with pytest.raises(ConfigError, match=r"keeps no predictions of test; make them with `python -m gift_vit.evaluate run="):
        copied_run.predictions()
    words = ("gift_vit.evaluate", f"run={copied_run.folder}")
    done = run_module(*words, "keep_predictions=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert copied_run.result == final_run.result, "the record is read anew"
    np.testing.assert_array_equal(copied_run.predictions().logits, final_run.predictions().logits)
    refused = run_module(*words, "keep_predictions=true", "split=test", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    new, adapter = file.read_bytes(), copied_run.folder / "adapter.safetensors"
    trained = adapter.read_bytes()
    adapter.write_bytes(trained[:-1] + bytes([trained[-1] ^ 1]))
    other = run_module(*words, "keep_predictions=true", cwd=tmp_path)
    assert (other.returncode, other.stderr.count("\n")) == (1, 1)
    assert "adapter.safetensors has another SHA-256 than result.json says" in other.stderr
    assert file.read_bytes() == new, "the record still tells of the change"
    adapter.write_bytes(trained)
    old["metrics"]["test_top1"] += 1
    file.write_text(json.dumps(old))
    other = run_module(*words, "keep_predictions=true", cwd=tmp_path)
    assert (other.returncode, other.stderr.count("\n")) == (1, 1)
    assert "these are not the run's own predictions" in other.stderr
    assert json.loads(file.read_text()) == old
    scored = run_module(*words, cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    told = (
        f"the record says {old['metrics']['test_top1']:.2f} %, here it is {old['metrics']['test_top1'] - 1:.2f} %: images have"
    )
    assert told in scored.stderr


def test_ids_are_those_of_the_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(b"")
    files = FileSource(tmp_path, ["b.jpg", "a.jpg"], [0, 1], tmp_path, "")
    images = pa.array([{"bytes": b"", "path": path} for path in ("x/1.jpg", None)])
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "test.parquet")
    table = read_table([tmp_path / "test.parquet"])
    splits = {"train": files, "val": SubsetSource(files, np.array([1])), "test": table}
    data = VisionDataset("mine", 2, None, splits, "")
    assert image_ids(data, "trainval") == ["b.jpg", "a.jpg", "a.jpg"]
    assert image_ids(data, "test") == ["x/1.jpg", "1"]
    repeated = SubsetSource(table, np.array([1, 0, 0]))
    assert image_ids(replace(data, splits={"test": repeated}), "test") == ["1", "x/1.jpg", "x/1.jpg"]
    images = pa.array([{"bytes": b"", "path": "image.png"}] * 2)
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "test.parquet")
    again = read_table([tmp_path / "test.parquet"])
    assert image_ids(replace(data, splits={"test": again}), "test") == ["0", "1"]


def one_split(**changes: object) -> Predictions:
    logits, labels = draw(8)
    values = {"split": "test", "images": [str(i) for i in range(8)], "labels": labels, "logits": logits, "class_names": None}
    return Predictions(**(values | changes))  # pyright: ignore[reportArgumentType]


def test_the_temperature_is_of_val_alone() -> None:
    logits, labels = draw(40, seed=1)
    test, val = one_split(), one_split(split="val", images=[str(i) for i in range(40)], labels=labels, logits=logits)
    expected, other = (fit_temperature(split.logits, split.labels) for split in (val, test))
    assert expected != pytest.approx(other)
    assert describe([test, val]).scores["temperature"] == expected
    assert [describe([alone]).scores["temperature"] for alone in (test, val)] == [None, None]


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    test, val = one_split(), one_split(split="val", images=[f"v{i}" for i in range(8)])
    write_predictions(tmp_path / "p.parquet", [test, val])
    found = read_predictions(tmp_path / "p.parquet")
    assert list(found) == ["test", "val"]
    for mine, theirs in zip((test, val), found.values(), strict=True):
        assert (mine.split, mine.images, mine.class_names) == (theirs.split, theirs.images, theirs.class_names)
        np.testing.assert_array_equal(mine.logits, theirs.logits)
        np.testing.assert_array_equal(mine.labels, theirs.labels)


@pytest.mark.parametrize("fault", ["no Parquet", "of another table", "label beyond the classes", "logits that are none"])
def test_a_damaged_file_is_one_line(fault: str, tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    nan = np.full((8, 7), np.nan, np.float16)
    bad = one_split(labels=np.arange(8)) if "label" in fault else one_split(logits=nan)
    if fault == "no Parquet":
        file.write_bytes(b"PAR1")
    elif fault == "of another table":
        pq.write_table(pa.table({"image": ["a"]}), file)
    else:
        write_unchecked(file, bad)
    with pytest.raises(ConfigError, match=r"p.parquet cannot be read as predictions: ") as caught:
        read_predictions(file)
    assert "\n" not in str(caught.value)


def write_unchecked(file: Path, predictions: Predictions) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gift_vit.runs.predictions.describe", str)
        write_predictions(file, [predictions])


def test_outputs_that_are_no_numbers_are_said(final_run: Run, tmp_path: Path) -> None:
    from gift_vit.engine.fit import Evaluation

    logits = np.full((797, 10), math.nan, np.float32)
    with pytest.raises(RunError, match=r"outputs on test are not all finite"):
        keep_predictions(tmp_path, final_run.data(), {"test": Evaluation(0.0, 0.0, 797, logits)})


def test_scoring_again_makes_no_cache(copied_run: Run, tmp_path: Path) -> None:
    """What was kept on the disk of another machine may have no place here."""
    config = copied_run.folder / "config.yaml"
    cfg = OmegaConf.load(config)
    cfg.dataset.cache, cfg.paths.cache_root = "disk", str(tmp_path / "cache")
    OmegaConf.save(cfg, config)
    run = Run.open(copied_run.folder)
    assert run.result is not None
    assert evaluate_split(run, "test", "cpu").top1 == run.result.metrics["test_top1"]
    assert not (tmp_path / "cache").exists()
