"""Scores on synthetic scenes whose boxes are known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from gift_vit.errors import ConfigError
from gift_vit.explain.maps import normalise_maps
from gift_vit.explain.scores import THRESHOLDS, MapScores, estimate_mean, join_scores, report_best, score_maps


def box(top: int, left: int, height: int, width: int, side: int = 20) -> Tensor:
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


SCENES = torch.stack([box(2, 3, 8, 10), box(10, 0, 5, 5)])


def test_a_map_that_is_the_box_scores_one() -> None:
    scores = score_maps(SCENES.float().unsqueeze(1), SCENES)
    assert torch.equal(scores.pointing, torch.ones(2, 1))
    assert torch.equal(scores.energy, torch.ones(2, 1))
    assert torch.equal(scores.iou, torch.ones(2, 1, len(THRESHOLDS)))


def test_a_shifted_box_scores_its_exact_overlap() -> None:
    shifted = torch.stack([box(4, 6, 8, 10), box(10, 5, 5, 5)])
    scores = score_maps(shifted.float().unsqueeze(1), SCENES)
    overlap = 6 * 7  # rows 4–9, columns 6–12
    assert scores.iou[0, 0].tolist() == pytest.approx([overlap / (160 - overlap)] * 19)
    assert scores.energy[:, 0].tolist() == pytest.approx([overlap / 80, 0])
    assert scores.pointing[:, 0].tolist() == pytest.approx([overlap / 80, 0])  # all its pixels are equally the largest
    assert torch.equal(scores.iou[1], torch.zeros(1, 19))


@pytest.mark.parametrize("value", [0.0, 0.1, -3e5])
def test_a_constant_map_scores_zero(value: float) -> None:
    scores = score_maps(normalise_maps(torch.full((2, 3, 4, 4), value), 20), SCENES)
    for name in ("pointing", "energy", "iou"):
        assert not getattr(scores, name).any()
        assert torch.isfinite(getattr(scores, name)).all()


def test_scores_of_a_slope_by_hand() -> None:
    slope = torch.linspace(0, 1, 20).expand(20, 20)  # grows to the right
    scores = score_maps(torch.stack([slope, 1 - slope]).unsqueeze(0), box(0, 15, 20, 5).unsqueeze(0))
    assert scores.pointing.tolist() == [[1, 0]]
    inside = sum(range(15, 20)) / sum(range(20))
    assert scores.energy[0].tolist() == pytest.approx([inside, sum(range(5)) / sum(range(20))])
    # above 0.75 are columns 15–19 (14.25 / 19), above 0.5 columns 10–19
    assert scores.iou[0, 0, THRESHOLDS.index(0.75)] == 1
    assert scores.iou[0, 0, THRESHOLDS.index(0.5)] == 0.5
    assert scores.iou[0, 1, THRESHOLDS.index(0.5)] == 0


def test_several_batches_are_one() -> None:
    maps = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    whole = score_maps(maps, SCENES)
    parts = join_scores([score_maps(maps[:1], SCENES[:1]), score_maps(maps[1:], SCENES[1:])])
    for name in ("pointing", "energy", "iou"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))
    assert len(whole) == 2


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"do not fit: \(2, 1, 20, 20\), \(1, 20, 20\)"):
        score_maps(torch.zeros(2, 1, 20, 20), SCENES[:1])
    with pytest.raises(ConfigError, match="a mask is empty"):
        score_maps(torch.zeros(2, 1, 20, 20), SCENES & False)


def fixed_scores(pointing: list[float], iou: list[list[float]], images: int) -> MapScores:
    curves = torch.zeros(len(pointing), 19)
    curves[:, [4, 9]] = torch.tensor(iou)
    pointed = torch.tensor(pointing).expand(images, -1)
    return MapScores(pointed, pointed, curves.expand(images, -1, -1))


def test_candidate_and_threshold_are_chosen_on_val_and_reported_on_test() -> None:
    val = fixed_scores([0.2, 0.9, 0.5], [[0.1, 0.2], [0.3, 0.2], [0.0, 0.4]], 5)
    test = fixed_scores([0.8, 0.3, 0.4], [[0.9, 0.9], [0.9, 0.9], [0.7, 0.6]], 7)
    rows = {row.score: row for row in report_best(val, test, ["a", "b", "c"])}
    assert {name: row.candidate for name, row in rows.items()} == {"pointing": "b", "energy": "b", "iou": "c", "iou_best": "c"}
    assert [rows[name].threshold for name in rows] == [None, None, 0.5, 0.25]
    assert [round(rows[name].estimate.mean, 6) for name in rows] == [0.3, 0.3, 0.6, 0.7]
    assert rows["iou"].row() == {"score": "iou", "candidate": "c", "threshold": 0.5, "mean": rows["iou"].estimate.mean} | {
        key: pytest.approx(0.6) for key in ("low", "high")
    }


def test_the_interval_is_that_of_the_mean() -> None:
    values = torch.from_numpy(np.random.default_rng(1).normal(0.4, 0.2, 400))
    estimate = estimate_mean(values)
    assert estimate.low is not None
    assert estimate.high is not None
    half = 1.96 * float(values.std()) / 20
    assert estimate.mean == pytest.approx(float(values.mean()))
    assert (estimate.mean - estimate.low, estimate.high - estimate.mean) == pytest.approx((half, half), rel=0.1)
    assert estimate_mean(values) == estimate
    assert estimate_mean(torch.ones(9)).low == 1
    assert str(estimate_mean(torch.ones(9))) == "1.000 [1.000, 1.000]"
    assert (estimate_mean(torch.ones(1)).low, str(estimate_mean(torch.ones(1)))) == (None, "1.000")


def test_a_value_at_the_threshold_is_not_above_it() -> None:
    heat = torch.zeros(1, 1, 2, 2)
    heat[..., 0, :] = torch.tensor([0.5, 1.0])
    mask = torch.tensor([[[True, True], [False, False]]])
    curve = score_maps(heat, mask).iou[0, 0]
    assert [curve[THRESHOLDS.index(threshold)].item() for threshold in (0.45, 0.5, 0.95)] == [1, 0.5, 0.5]
