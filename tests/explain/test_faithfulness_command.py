"""``python -m gift_vit.explain.faithfulness`` on a finished run without annotations."""

import json
from pathlib import Path

import pytest
import torch

from gift_vit.backbones import input_statistics
from gift_vit.compose import compose_config
from gift_vit.config import load_config
from gift_vit.data import build_dataset, build_eval_transform
from gift_vit.explain import faithfulness as command
from gift_vit.explain.layers import MapChoice
from gift_vit.explain.maps import explain
from gift_vit.explain.perturbation import perturbation_curves
from gift_vit.record import Call
from gift_vit.run import execute, load_finished_model, load_run
from tests.explain.calling import call_command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["debug=smoke", "phase=final", "run_name=digits", f"paths.output_root={tmp_path_factory.mktemp('outputs')}"]
    cfg = load_config(compose_config(words))
    execute(cfg, Call("python -m gift_vit.train", []))
    return cfg.folder


def expected_gains(run: Path, split: str, count: int, clusters: list[int]) -> torch.Tensor:
    """Insertion minus deletion of clusters and of their negatives in the last block, (count, 2, K), each by its own curves."""
    cfg = load_run(run)
    model = load_finished_model(cfg, run)
    transform = build_eval_transform(cfg.dataset.transform, input_statistics(model))
    source = build_dataset(cfg.dataset).split(split)
    places = [round(index * (len(source) - 1) / (count - 1)) for index in range(count)]
    images = torch.stack([transform(source[place][0]) for place in places])
    maps = explain(model, images, MapChoice(blocks=[5], clusters=clusters)).post[:, 0]
    both = torch.cat([maps, -maps], 1).unbind(1)
    areas = [perturbation_curves(model, images, own, steps=4).areas() for own in both]
    return torch.stack([insertion - deletion for insertion, deletion in areas], 1).unflatten(1, (2, len(clusters)))


def test_the_candidate_that_val_chooses_is_reported_on_test(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"run={run}", f"out={tmp_path}", "clusters=[3,8,1]", "val_count=3", "count=4", "steps=4", "batch_size=3"]
    assert call_command(command, monkeypatch, *words) == 0
    report = json.loads((tmp_path / "faithfulness.json").read_text())
    assert report["images"] == {"val": 3, "test": 4}
    assert report["fractions"] == [0, 0.25, 0.5, 0.75, 1]
    sign, cluster = divmod(int(expected_gains(run, "val", 3, [3, 8, 1]).mean(0).flatten().argmax()), 3)
    assert report["candidate"] == f"attn.proj of block 5, {'−' * sign}{[3, 8, 1][cluster]}"
    assert list(report["orders"]) == ["clusters", "cls_attention", "gradient", "random order"]
    got, chance = report["orders"]["clusters"], report["orders"]["random order"]
    gains = expected_gains(run, "test", 4, [3, 8, 1])[:, sign, cluster]
    assert got["gain"]["mean"] == pytest.approx(float(gains.mean()), abs=1e-5)
    assert got["gain"]["low"] <= got["gain"]["mean"] <= got["gain"]["high"]
    assert got["gain"]["mean"] == pytest.approx(got["insertion"]["mean"] - got["deletion"]["mean"], abs=1e-6)
    assert got["above_random"]["mean"] == pytest.approx(got["gain"]["mean"] - chance["gain"]["mean"], abs=1e-6)
    assert chance["above_random"] == {"mean": 0, "low": 0, "high": 0}
    for own in report["orders"].values():  # all shown is nothing hidden, and the other way round
        assert own["insertion_curve"][-1] == own["deletion_curve"][0] == pytest.approx(got["insertion_curve"][-1])
        assert own["insertion_curve"][0] == own["deletion_curve"][-1] == pytest.approx(got["insertion_curve"][0])
    printed = capsys.readouterr().out
    assert f"clusters: {report['candidate']}, chosen on 3 images of val; on 4 of test" in printed
    assert f"gain {got['gain']['mean']:.3f} [" in printed


MISTAKES = [
    (["count=0"], "error: count=0: give a positive number"),
    (["val_count=-1"], "error: val_count=-1: give a positive number"),
    (["steps=0"], "error: steps=0: give a positive number"),
    (["layers=[9]"], "error: block=9: target 'attn.proj' is not adapted there"),
    (["clusters=[99]"], "error: clusters=[99]: give indices from 0 to 15"),
    (["response=both"], "error: unknown response 'both'"),
    (["phase"], "error: unexpected argument 'phase'"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_every_mistake_is_one_line(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert len(MISTAKES) == 7
    assert call_command(command, monkeypatch, f"run={run}", f"out={tmp_path / 'out'}", *words) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert not (tmp_path / "out").exists()


def test_a_search_run_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (run / "config.yaml").read_text()
    assert "phase: final" in text
    (tmp_path / "config.yaml").write_text(text.replace("phase: final", "phase: search"))
    assert call_command(command, monkeypatch, f"run={tmp_path}") == 2
    assert "is a search run, and test is for the final phase" in capsys.readouterr().err
