"""Columns and notes of what ``gift_vit.invariance`` has left in runs' folders."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from experiments import tables
from experiments.report import __main__ as report
from experiments.report.charts import Point
from experiments.report.kept import forgetting_points
from gift_vit.invariance.probes import DRIFT_IMAGES
from gift_vit.results.collect import build_grid
from gift_vit.runs.result import Result
from tests.results.conftest import exit_code, refused

main = partial(exit_code, tables.main)
ON = {"dataset": "upstream", "classes": 164, "train_images": 8200, "test_images": 4100, "seed": 0}
STIR = ["STIR retained, mean over blocks", "STIR of the pooled vector"]


def forgetting(linear: float, **facts: Any) -> dict[str, Any]:
    lost = {"forgetting": {"mean": linear, "low": 0.0, "high": 9.0}}
    knn = {"forgetting": {"mean": linear / 2, "low": 0.0, "high": 9.0}}
    return {"on": ON | facts, "linear": lost, "knn": knn, "drift": {"mean": 0.0625, "low": 0.0, "high": 1.0}}


def invariance(retained: float | None, images: int = 64) -> dict[str, Any]:
    means = {"all": {"retained": {"mean": retained, "low": None, "high": None}}}
    made = {"split": "val", "tokens": "all", "layers": ["0", "pooled"], "descent": {"steps": 143}, "images": ["a"] * images}
    return made | {"unbiased": {"measures": {"invariances_of_pretrained": {"means": means, "pooled": 0.5}}}}


@pytest.fixture
def root(stored: Callable[..., Result], tmp_path: Path) -> Path:
    """GIFT with two seeds that are measured, LoRA with one that is not."""
    for seed, lost in enumerate((1.0, 2.0)):
        stored(f"final/gift{seed}", seed=seed)
        keep(tmp_path / f"outputs/final/gift{seed}", forgetting(lost), invariance(0.875))
    stored("final/lora", method="lora")
    return tmp_path / "outputs"


def keep(folder: Path, *records: dict[str, Any] | str) -> None:
    (folder / "invariance").mkdir(exist_ok=True)
    for name, record in zip(("forgetting.json", "invariance.json"), records, strict=False):
        (folder / "invariance" / name).write_text(record if isinstance(record, str) else json.dumps(record))


def test_columns_and_what_to_run_for_those_that_lack(
    root: Path, stored: Callable[..., Result], capsys: pytest.CaptureFixture[str]
) -> None:
    run = (root / "final" / "lora").rename(root / "final" / "low rank")
    stored("final/a", method="toast", run={"kind": "toast"})
    assert main(f"root={root}", "columns=[forgetting,forgetting_knn,drift,stir,stir_pooled]") == 0
    out = capsys.readouterr().out
    header, lora, _, gift = (line.split(" | ") for line in out.splitlines() if line.startswith("| "))
    titles = ["Forgetting (points)", "Forgetting, k-NN (points)", "Drift (1 − CKA)", *STIR]
    assert [title.strip(" |") for title in header[-5:]] == [f"{title}: Digits" for title in titles]
    assert [cell.strip(" |") for cell in gift[-5:-2]] == ["1.50 ± 0.71", "0.75 ± 0.35", "0.062 ± 0.000"]
    assert [cell.strip(" |") for cell in gift[-2:]] == ["0.875 ± 0.000", "0.500 ± 0.000"]
    assert [cell.strip(" |") for cell in lora[-5:]] == ["–"] * 5
    assert "of the features of 4,100 images of 164 classes of upstream, classifiers fitted to 8,200 others; seed 0." in out
    assert f" The drift is that of {DRIFT_IMAGES:,} of these images at most." in out
    assert f"{', '.join(STIR)}: unbiased, 64 images of val." in out
    assert f"without {', '.join(STIR)}: 2, of which 1 cannot be measured: toast. To make it: " in out
    assert f"To make it: `python -m gift_vit.invariance 'run={run}'`." in out
    assert f"`python -m gift_vit.invariance 'run={run}' images=0 forgetting=" in out


def test_the_command_makes_records_like_those_that_are_there(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"images": 4, "layers": "[-1]", "steps": 2, "step_size": None}
    made = invariance(0.875) | {"made_of": {"format": 1, "adapter_sha256": None, **options}}
    for seed in (0, 1):
        keep(root / f"final/gift{seed}", forgetting(1.0, per_class=None), made)
    assert main(f"root={root}", "columns=[forgetting,stir]") == 0
    out = capsys.readouterr().out
    assert f"run={root}/final/lora images=0 forgetting=upstream per_class=0 seed=0`." in out
    assert f"run={root}/final/lora images=4 'layers=[-1]' steps=2`." in out


def test_a_table_without_any_has_dashes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"root={root}", "method=lora", "columns=[forgetting]", "format=csv") == 0
    out, notes = capsys.readouterr()
    assert out.splitlines()[0].endswith("digits_forgetting_mean,digits_forgetting_std,digits_forgetting_n")
    assert out.splitlines()[1].endswith(",,,0")
    assert "Runs without forgetting.json, and so without Forgetting (points): 1." in notes
    shutil.rmtree(root / "final" / "gift1" / "invariance")
    assert main(f"root={root}", "method=gift", "columns=[forgetting]", "format=csv") == 0
    assert capsys.readouterr().out.splitlines()[1].endswith(",,,1"), "one of two seeds is no mean of both"


@pytest.mark.parametrize(
    ("records", "column", "message"),
    [
        ([forgetting(1.0, seed=1)], "forgetting", "differ in seed, and cannot stand in one table"),
        ([forgetting(1.0), invariance(0.5, images=8)], "stir", "differ in images, and cannot stand in one table"),
        ([{**forgetting(1.0), "on": {**ON, "per_class": 5}}], "forgetting", "in one table (per_class absent and 5)"),
        ([forgetting(1.0), {**invariance(0.5), "descent": {"steps": 9}}], "stir", "in one table (descent.steps"),
        ([forgetting(1.0), {**invariance(0.5), "descent": {"steps": 143, "decay": 0.1}}], "stir", "differ in descent.decay, "),
        (["{"], "drift", "forgetting.json cannot be read"),
        (["[]"], "forgetting", "forgetting.json cannot be read"),
        ([{"on": ON}], "forgetting", "forgetting.json cannot be read (KeyError('linear')); delete it, and make it again"),
        ([forgetting(1.0)], "forgeting", "unknown score forgeting (known: top1, "),
    ],
)
def test_records_that_cannot_stand_in_one_table(
    root: Path, capsys: pytest.CaptureFixture[str], records: list[Any], column: str, message: str
) -> None:
    keep(root / "final" / "lora", *records)
    assert message in refused(main, capsys, f"root={root}", f"columns=[{column}]")


def test_a_split_may_have_fewer_images_than_were_asked_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, images in {"gift0": 64, "gift1": 64, "lora": 8}.items():
        keep(root / "final" / name, forgetting(1.0), invariance(0.5, images) | {"made_of": {"images": 64}})
    assert main(f"root={root}", "columns=[stir]") == 0
    assert "unbiased, 8 to 64 images of val." in capsys.readouterr().out


def test_a_record_of_an_adapter_that_is_no_more(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run was trained anew in its folder after it had been measured."""
    record = root / "final" / "lora" / "result.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"files": {"adapter.safetensors": "1" * 64}}))
    for own, code in (("1" * 64, 0), ("0" * 64, 2)):
        keep(root / "final" / "lora", {**forgetting(1.0), "made_of": {"adapter_sha256": own}})
        assert main(f"root={root}", "columns=[drift]") == code
    assert "forgetting.json is of an adapter that" in capsys.readouterr().err


def test_what_is_not_defined_is_a_dash(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(root / "final" / "lora", forgetting(1.0), invariance(None))
    assert main(f"root={root}", "columns=[stir]") == 0
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| LoRA")]
    assert row.endswith("| – |")


def test_the_figure_needs_runs_that_were_measured(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(f"root={root}", "figure=~/plot") == 0
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "plot.pdf").read_bytes()[:5] == b"%PDF-"
    capsys.readouterr()
    said = refused(main, capsys, f"root={root}", "method=lora", f"figure={tmp_path / 'other'}")
    assert "no row has a measured run on each of digits. Runs without forgetting.json" in said


def test_two_rows_are_compared_over_pairs_of_runs(
    root: Path, stored: Callable[..., Result], capsys: pytest.CaptureFixture[str]
) -> None:
    """The interval is that of least squares with a mean for each dataset; LoRA's seed 7 has no partner."""
    lost = {("digits", "lora"): (2.0, 5.0), ("tiny_mammals", "gift"): (4.0, 6.0, 5.0)}
    lost["tiny_mammals", "lora"] = (6.4, 7.0, 5.0)
    scores = {"gift": 80.0, "lora": 79.5}
    for (dataset, method), values in lost.items():
        for seed, value in enumerate(values):
            stored(f"final/{method}{dataset}{seed}", dataset=dataset, method=method, seed=seed, top1=scores[method] + seed)
            keep(root / "final" / f"{method}{dataset}{seed}", forgetting(value))
    for seed in (0, 1):
        stored(f"final/gift{seed}", seed=seed, top1=80.0 + seed)
    shutil.rmtree(root / "final" / "lora")
    stored("final/lora7", method="lora", seed=7)
    keep(root / "final" / "lora7", forgetting(90.0))
    assert main(f"root={root}", "columns=[forgetting,drift]", "compare=[gift,lora]") == 0
    differences, effects = np.array([1 - 2, 2 - 5, 4 - 6.4, 6 - 7, 5 - 5]), np.repeat(np.eye(2), (2, 3), axis=0)
    fitted, rest, *_ = np.linalg.lstsq(effects, differences, rcond=None)
    error = np.sqrt(rest.item() / 3 * np.linalg.inv(effects.T @ effects).sum()) / 2
    half = stats.t.interval(0.95, 3, scale=error)[1]
    expected = (
        f"Forgetting (points), GIFT less LoRA: {fitted.mean():+.2f} ± {half:.2f} (Digits -2.00, Tiny mammals -1.13), and their "
        "test scores +0.50 ± 0.00 points. 5 pairs of runs of one dataset and seed, 95% intervals over seeds; below 0 in 4 "
        "pairs."
    )
    out = capsys.readouterr().out
    assert expected in out
    assert out.count("| 0.062 ± 0.000 | 0.062 |\n") == 2, "the mean has as many decimals"
    assert main(f"root={root}", "datasets=[digits]", "columns=[drift]", "compare=[lora,gift]") == 0
    assert "Drift (1 − CKA), LoRA less GIFT: +0.000 ± 0.000 (Digits +0.000)" in capsys.readouterr().out


def test_one_pair_has_no_interval_and_zero_no_minus(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(root / "final" / "lora", {**forgetting(1.004), "drift": {"mean": -0.0001}})
    assert main(f"root={root}", "columns=[drift,forgetting]", "compare=[gift,lora]") == 0
    out = capsys.readouterr().out
    assert "Forgetting (points), GIFT less LoRA: +0.00 (no interval: one seed) (Digits +0.00)" in out
    assert "points. 1 pair of runs of one dataset and seed; below 0 in 1 pair. About" in out
    [row] = [line for line in out.splitlines() if line.startswith("| LoRA")]
    assert row.endswith("| 0.000 | 1.00 |")


def test_points_are_means_over_datasets_of_seeds_that_all_have(root: Path, stored: Callable[..., Result]) -> None:
    """GIFT's second seed lacks the second dataset, and LoRA was measured on one of the two."""
    results = [stored(f"final/gift{seed}", seed=seed, top1=80.0 + seed) for seed in (0, 1)]
    results += [
        stored("final/lora", method="lora", top1=70.0),
        stored("final/lora2", method="lora", dataset="tiny_mammals", top1=30.0),
    ]
    results += [stored(f"final/mammals{seed}", dataset="tiny_mammals", seed=seed, top1=40.0) for seed in (0, 1)]
    keep(root / "final" / "mammals0", forgetting(4.0))
    keep(root / "final" / "lora", forgetting(7.0))
    grid = build_grid(results, "mini")
    assert forgetting_points(grid, ["digits", "tiny_mammals"]) == [Point("GIFT", 2.5, None, 60.0, None, 1)]
    lora, gift = forgetting_points(grid, ["digits"])
    assert lora == Point("LoRA", 7.0, None, 70.0, None, 1)
    assert (gift.forgetting, gift.top1, gift.n) == (1.5, 80.5, 2)
    assert (gift.forgetting_std, gift.top1_std) == (pytest.approx(0.5**0.5), pytest.approx(0.5**0.5))


def test_the_page_has_a_table_and_a_plot(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert exit_code(report.main, f"root={root}", f"out={out}") == 0
    text = out.read_text()
    assert "What was kept and forgotten" in text
    assert "1.50 ± 0.71" in text
    assert 'aria-label="Digits: test top-1 against forgetting of 1 methods' in text
    assert "GIFT: 90.00 %, forgetting 1.50 points" in text
    keep(root / "final" / "lora", forgetting(1.0, seed=1))
    assert exit_code(report.main, f"root={root}", f"out={out}") == 0
    assert "warning: nothing on forgetting of mini, protocol clean, backbone vit_mini: " in capsys.readouterr().err
    assert "differ in seed" in out.read_text()
