"""Runs compared and averaged image by image, and the columns that their predictions give: fabricated runs, counted by hand."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import ensemble, tables
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import sha256_of
from gift_vit.results.collect import build_grid, collect_results
from gift_vit.results.comparison import comparison_notes
from gift_vit.results.mini import mini_table
from gift_vit.results.paired import SeedPair, bootstrap_images, pair_seed
from gift_vit.results.render import render_csv
from gift_vit.results.request import Request
from gift_vit.results.scores import with_scores
from gift_vit.runs.predictions import Predictions, read_predictions, write_predictions
from gift_vit.runs.result import Result, read_result, write_result
from tests.results.conftest import exit_code, refused

Keep = Callable[..., Path]
run_tables, run_ensemble = partial(exit_code, tables.main), partial(exit_code, ensemble.main)
COUNT = 200


@pytest.fixture
def keep(stored: Callable[..., Result], tmp_path: Path) -> Keep:
    """Stores a final run of two classes that gets the images of ``wrong`` wrong, the others right; its folder."""

    def write(method: str, wrong: Sequence[int], dataset: str = "digits", seed: int = 0, **changes: Any) -> Path:
        labels = np.arange(COUNT) % 2
        predicted = np.where(np.isin(np.arange(COUNT), wrong), 1 - labels, labels)
        images = [f"{dataset}/{index}" for index in range(COUNT)]
        logits = np.eye(2, dtype=np.float16)[predicted]
        kept = replace(Predictions("test", images, labels, logits, ["a", "b"]), **changes)
        name = f"final/{dataset}/{method}{seed}"
        data, config = {"num_classes": 2, "test_images": COUNT}, {"protocol.scored_on": kept.split}
        top1 = 100 - 100 * len(wrong) / COUNT
        result = stored(name, method=method, dataset=dataset, seed=seed, top1=top1, val=top1, data=data, config=config)
        folder = tmp_path / "outputs" / name
        write_result(
            folder / "result.json", replace(result, predictions=write_predictions(folder / "predictions.parquet", [kept]))
        )
        (folder / "config.yaml").write_text(CONFIG)  # of a final run
        return folder

    return write


CONFIG = (Path(__file__).parents[1] / "runs/old_run/final/digits/gift/vit_mini/old/config.yaml").read_text()


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (0, 5), (7, 7), (12, 3), (30, 41)])
def test_mcnemar_is_a_coin_thrown_for_each_image_on_which_they_differ(gained: int, lost: int) -> None:
    n = gained + lost
    likely = [comb(n, k) for k in range(n + 1)]
    expected = sum(count for count in likely if count <= likely[gained]) / 2**n
    assert SeedPair("d", 0, gained, lost, np.zeros(1, np.int64)).p_value == pytest.approx(expected)


def test_the_interval_is_that_of_resampled_images() -> None:
    generator = np.random.default_rng(1)
    tasks = [generator.choice([-1.0, 0.0, 0.5, 1.0], size=n, p=[0.1, 0.5, 0.2, 0.2]) for n in (300, 120)]
    mean, low, high = bootstrap_images(tasks)
    drawn = [np.mean([generator.choice(task, len(task)).mean() for task in tasks]) for _ in range(4000)]
    assert mean == pytest.approx(np.mean([task.mean() for task in tasks]))
    np.testing.assert_allclose([low, high], np.quantile(drawn, [0.025, 0.975]), atol=0.006)
    assert bootstrap_images([np.ones(5)]) == (1.0, 1.0, 1.0)


def notes_of(root: Path) -> list[str]:
    results = collect_results(root / "outputs")
    return list(comparison_notes(build_grid(results, "mini"), ["gift", "lora"]))


def test_sentences_count_by_seed_and_average_over_seeds(keep: Keep, tmp_path: Path) -> None:
    for seed, (gift, lora) in enumerate([(range(10), range(5, 30)), (range(4), range(8))]):
        keep("gift", gift, seed=seed)
        keep("lora", lora, seed=seed)
    keep("lora", range(9), seed=7)  # which gift has not
    few, mcnemar, over_images = notes_of(tmp_path)
    assert few.endswith("a comparison needs two.")
    assert "Digits seed 0 +20/−5 of 200, p = 0.00408, seed 1 +4/−0 of 200, p = 0.125. It asks whether these two" in mcnemar
    assert "These are 2 tests, and the p values are not corrected for that." in mcnemar
    assert "Digits +4.75 [+2.2" in over_images  # (7.5 + 2) / 2
    assert "is what Wilcoxon's test over datasets asks." in over_images


def test_over_several_datasets_and_what_is_left_out(keep: Keep, stored: Callable[..., Result], tmp_path: Path) -> None:
    for dataset, wrong in (("digits", 20), ("tiny_mammals", 40), ("tiny_insects", 10)):
        keep("gift", range(5), dataset)
        keep("lora", range(wrong), dataset, **({"images": ["x"] * COUNT} if dataset == "tiny_insects" else {}))
    data = {"num_classes": 2, "test_images": COUNT}
    stored("final/old", method="gift", dataset="cifar10_1k", data=data)
    stored("final/old2", method="lora", dataset="cifar10_1k", data=data)
    *_, over_images, left_out, _rank = notes_of(tmp_path)
    assert "Digits +7.50 [" in over_images
    assert "mean over these 2 datasets +12.50 [" in over_images
    old = tmp_path / "outputs/final/old"
    expected = (
        f"No test over images for CIFAR-10 (1k) seed 0: make them with `python -m gift_vit.evaluate run={old} keep_predictions"
    )
    assert left_out == f"{expected}=true` (and 1 more)."


def test_predictions_that_are_gone_leave_their_seed_out(keep: Keep, tmp_path: Path) -> None:
    folders = [keep(method, range(wrong), seed=seed) for seed in (0, 1) for method, wrong in (("gift", 4), ("lora", 9))]
    (folders[-1] / "predictions.parquet").unlink()
    _few, mcnemar, _over_images, left_out = notes_of(tmp_path)
    assert "Digits seed 0 +5/−0 of 200, p = 0.0625. It asks" in mcnemar
    assert left_out.startswith("No test over images for Digits seed 1: make them with `python -m gift_vit.evaluate run=")


def test_methods_without_a_common_seed_are_said_to_have_none(keep: Keep, tmp_path: Path) -> None:
    keep("gift", range(4), seed=0)
    keep("lora", range(9), seed=1)
    keep("gift", range(4), "tiny_mammals")  # where lora has none
    assert notes_of(tmp_path)[-1] == "No test over images for Digits: no seed in common."


def test_predictions_of_another_run_are_not_compared(keep: Keep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gift, lora = keep("gift", range(4)), keep("lora", range(9))
    file = gift / "predictions.parquet"
    record = read_result(gift / "result.json")
    write_result(gift / "result.json", replace(record, files={file.name: sha256_of(file)}))
    assert len(notes_of(tmp_path)) == 3
    file.write_bytes((lora / file.name).read_bytes())
    with pytest.raises(ConfigError, match=r"gift0/predictions.parquet has another SHA-256 than result.json says: .*; restore"):
        notes_of(tmp_path)
    said = refused(run_ensemble, capsys, f"runs=[{gift},{lora}]")
    assert "gift0/predictions.parquet has another SHA-256 than result.json says" in said
    write_result(gift / "result.json", record)  # which knows no hash, of a file without the split
    write_predictions(file, [replace(read_predictions(file)["test"], split="val")])
    with pytest.raises(ConfigError, match=r"predictions.parquet is of val, and result.json says that test is kept; restore it"):
        notes_of(tmp_path)


def test_runs_that_are_scored_on_val_are_compared_there(keep: Keep, tmp_path: Path) -> None:
    for dataset in ("digits", "tiny_mammals"):
        keep("gift", range(5), dataset, split="val")
        keep("lora", range(9), dataset, split="val", **({"images": ["x"] * COUNT} if dataset != "digits" else {}))
    *_, mcnemar, over_images, left_out, _rank = notes_of(tmp_path)
    assert "Digits seed 0 +4/−0 of 200" in mcnemar
    assert "difference over the val images in points" in over_images
    assert "could come from which images are in the val split" in over_images
    assert left_out == "No test over images for Tiny mammals seed 0: their val images are others."


def test_other_labels_and_another_order_are_other_images() -> None:
    first = Predictions("test", ["a", "b"], np.array([0, 0]), np.zeros((2, 2), np.float16), None)
    assert pair_seed("d", 0, first, replace(first, labels=np.array([0, 1]))) is None
    assert pair_seed("d", 0, first, replace(first, images=["b", "a"])) is None
    assert pair_seed("d", 0, first, first) is not None


def test_columns_of_further_scores(keep: Keep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep("gift", range(10), seed=0)
    keep("gift", range(30), seed=1)
    keep("lora", range(50))
    keep("lora", range(20), "tiny_mammals")
    runs = collect_results(tmp_path / "outputs")
    table = with_scores(mini_table(Request(runs)), ["mean_class_accuracy", "temperature"])
    added = table.columns[-6:]
    assert [(c.title, c.group) for c in added][:3] == [
        (t, "Mean class accuracy (%)") for t in ("Digits", "Tiny mammals", "Mean")
    ]
    assert [[cell.text for cell in row[-6:]] for row in table.rows] == [  # LoRA stands before GIFT
        ["75.00", "90.00", "82.50", "–", "–", "–"],
        ["90.00 ± 7.07", "–", "–", "–", "–", "–"],
    ]
    assert len({len(table.columns), *map(len, table.rows)}) == 1
    others = with_scores(mini_table(Request(runs)), ["nll", "ece", "top1"]).columns[-9:]
    assert [column.ranked for column in others] == [False] * 6 + [True] * 3, "the highest NLL and ECE are the worst"
    root = f"root={tmp_path / 'outputs'}"
    assert run_tables(root, "columns=[mean_class_accuracy,temperature]", "format=csv") == 0
    assert capsys.readouterr().out == render_csv(table)
    assert "unknown score top6 (known: top1, top5, " in refused(run_tables, capsys, root, "columns=[top6]")


def test_columns_of_runs_without_predictions(stored: Callable[..., Result], tmp_path: Path, capsys: Any) -> None:
    stored("final/gift")
    said = refused(run_tables, capsys, f"root={tmp_path / 'outputs'}", "columns=[ece]")
    assert "no run of the table keeps predictions; make them with `python -m gift_vit.evaluate run=" in said


def test_an_ensemble_averages_probabilities(keep: Keep, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.arange(COUNT) % 2
    sure, unsure = (np.stack([(1 - 2 * labels) * scale, 0 * labels], 1).astype(np.float16) for scale in (4, -1))
    folders = [keep("gift", [], logits=sure), keep("lora", [], logits=unsure), keep("linear", [], logits=unsure)]
    assert run_ensemble(f"runs=[{','.join(map(str, folders))}]") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{folders[0]}: Top-1 (%) 100.0000, ")
    assert lines[1].startswith(f"{folders[1]}: Top-1 (%) 0.0000, ")
    probability = (1 / (1 + np.exp(-4)) + 2 / (1 + np.exp(1))) / 3  # of the true class
    assert probability > 0.5
    assert lines[3].startswith("ensemble of 3 over 200 images of test: Top-1 (%) 100.0000, ")
    assert f"NLL {-np.log(probability):.4f}" in lines[3]


def test_an_ensemble_of_runs_on_other_data_says_so(keep: Keep, capsys: pytest.CaptureFixture[str]) -> None:
    """Corrupted pictures, say, whose ids are those of the clean ones."""
    folders = [keep("gift", []), keep("lora", [])]
    record = read_result(folders[1] / "result.json")
    write_result(folders[1] / "result.json", replace(record, data=replace(record.data, fingerprint="other")))
    assert run_ensemble(f"runs=[{','.join(map(str, folders))}]") == 0
    assert "the data of the runs differ: their images have the same names, and may be others" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["val", "train"])
def test_predictions_that_cannot_be_kept_are_not_advised(keep: Keep, capsys: pytest.CaptureFixture[str], split: str) -> None:
    folders = [keep("gift", []), keep("lora", [])]
    said = refused(run_ensemble, capsys, f"runs=[{','.join(map(str, folders))}]", f"split={split}")
    assert f"gift0 keeps no predictions of {split}; it is scored on test: give split=test" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["a", "c"]}, "have other lists of classes"),
        ({"logits": np.zeros((COUNT, 3), np.float16)}, "have other lists of classes"),
        ({"images": ["x"] * COUNT}, "predicted other images of test"),
        ({"labels": np.zeros(COUNT, np.int64)}, "predicted other images of test"),
    ],
)
def test_an_ensemble_of_what_does_not_belong_together(
    changes: dict[str, Any], message: str, keep: Keep, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [keep("gift", []), keep("lora", [], **changes)]
    assert message in refused(run_ensemble, capsys, f"runs=[{folders[0]},{folders[1]}]")


def test_an_ensemble_of_one_and_of_an_old_run(keep: Keep, capsys: pytest.CaptureFixture[str]) -> None:
    folder = keep("gift", [])
    for runs in (folder, f"{folder},{folder}/", f"{folder},{folder.parent}/../{folder.parent.name}/{folder.name}"):
        assert "give at least two folders, each once" in refused(run_ensemble, capsys, f"runs=[{runs}]")
    old = Path(__file__).parents[1] / "runs/old_run/final/digits/gift/vit_mini/old"
    said = refused(run_ensemble, capsys, f"runs=[{folder},{old}]")
    assert "keeps no predictions of test; make them with `python -m gift_vit.evaluate run=" in said
