"""``python -m gift_vit.explain.faithfulness`` on a finished run without annotations."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from gift_vit.explain.config import MapChoice
from gift_vit.explain.maps import explain
from gift_vit.explain.scoring.faithfulness import candidate_gains
from gift_vit.explain.scoring.perturbation import Curves, perturbation_curves
from gift_vit.methods import GiftConfig, apply_method
from gift_vit.runs.run import Run
from tests.explain.conftest import Command, Runs, opened

CLUSTERS = [3, 8, 1]
MODULE = "gift_vit.explain.scoring.faithfulness"


def expected_gains(run: Path, split: str, count: int) -> torch.Tensor:
    """Insertion minus deletion of clusters and of their negatives in the last block, (count, 2, K), each by its own curves."""
    data, model, transform = opened(run)
    source = data.split(split)
    places = [round(index * (len(source) - 1) / (count - 1)) for index in range(count)]
    images = torch.stack([transform(source[place][0]) for place in places])
    maps = explain(model, images, MapChoice(blocks=[5], clusters=CLUSTERS)).post[:, 0]
    areas = [perturbation_curves(model, images, own, steps=4).areas() for own in torch.cat([maps, -maps], 1).unbind(1)]
    return torch.stack([insertion - deletion for insertion, deletion in areas], 1).unflatten(1, (2, len(CLUSTERS)))


def test_the_candidate_that_val_chooses_is_reported_on_test(
    runs: Runs, tmp_path: Path, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, found = runs["zero"], []
    monkeypatch.setattr(f"{MODULE}.candidate_gains", lambda *given: found.append(candidate_gains(*given)) or found[0])
    words = [f"run={run}", f"out={tmp_path}", "clusters=[3,8,1]", "val_count=3", "count=4", "steps=4", "batch_size=3"]
    code, printed, _ = call("faithfulness", *words)
    assert code == 0
    report = json.loads((tmp_path / "faithfulness.json").read_text())
    assert report["images"] == {"val": 3, "test": 4}
    assert report["fractions"] == [0, 0.25, 0.5, 0.75, 1]
    expected = expected_gains(run, "val", 3)
    torch.testing.assert_close(found[0], expected.flatten(1), atol=1e-5, rtol=0)
    sign, cluster = divmod(int(expected.mean(0).flatten().argmax()), 3)
    assert report["candidate"] == f"attn.proj of block 5, {'−' * sign}{CLUSTERS[cluster]}"
    assert list(report["orders"]) == ["clusters", "cls_attention", "gradient", "random order"]
    got, chance = report["orders"]["clusters"], report["orders"]["random order"]
    gains = expected_gains(run, "test", 4)[:, sign, cluster]
    assert got["gain"]["mean"] == pytest.approx(float(gains.mean()), abs=1e-5)
    assert got["gain"]["low"] <= got["gain"]["mean"] <= got["gain"]["high"]
    assert got["gain"]["mean"] == pytest.approx(got["insertion"]["mean"] - got["deletion"]["mean"], abs=1e-6)
    assert got["above_random"]["mean"] == pytest.approx(got["gain"]["mean"] - chance["gain"]["mean"], abs=1e-6)
    assert chance["above_random"] == {"mean": 0, "low": 0, "high": 0}
    for own in report["orders"].values():  # all shown is nothing hidden, and the other way round
        assert own["insertion_curve"][-1] == own["deletion_curve"][0] == pytest.approx(got["insertion_curve"][-1])
        assert own["insertion_curve"][0] == own["deletion_curve"][-1] == pytest.approx(got["insertion_curve"][0])
    assert f"clusters: {report['candidate']}, chosen on 3 images of val; on 4 of test" in printed
    assert f"gain {got['gain']['mean']:.3f} [" in printed


def test_the_best_mean_is_chosen_and_each_image_has_a_random_order_of_its_own(
    runs: Runs, tmp_path: Path, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def watched(model: nn.Module, images: Tensor, maps: Tensor, steps: int) -> Curves:
        seen.append(maps)
        return perturbation_curves(model, images, maps, steps)

    gains = torch.tensor([[0.0, 0.2, 0.0, 0.0, 0.9, 0.0], [0.0, 0.2, 0.0, 0.0, -0.9, 0.0]])
    monkeypatch.setattr(f"{MODULE}.candidate_gains", lambda *_: gains)
    monkeypatch.setattr(f"{MODULE}.perturbation_curves", watched)
    words = [f"out={tmp_path}", "clusters=[3,8,1]", "val_count=2", "count=3", "steps=2"]
    assert call("faithfulness", f"run={runs['zero']}", *words)[0] == 0
    assert json.loads((tmp_path / "faithfulness.json").read_text())["candidate"] == "attn.proj of block 5, 8"
    assert len({tuple(row) for row in seen[-1].flatten(1).argsort(1).tolist()}) == 3, "the random order is the last one"


def test_a_cluster_beyond_the_rank(runs: Runs, tmp_path: Path, call: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIFT's first version has 96 clusters of rank 16; a random φ, which has 16, is no matter of this command."""
    vit = timm.create_model("test_vit.r160_in1k", img_size=64, num_classes=10)
    tuned = apply_method(vit, GiftConfig(schema="paca_transformer", num_clusters=96))
    monkeypatch.setattr(Run, "model", lambda _: tuned)
    words = [f"out={tmp_path}", "basis=assignment", "clusters=[40]", "val_count=2", "count=2", "steps=2"]
    code, printed, error = call("faithfulness", f"run={runs['zero']}", *words)
    assert code == 0, error
    assert printed.startswith("clusters: attn.proj of block 5, ")
    assert "40, chosen on 2 images of val; on 2 of test" in printed
