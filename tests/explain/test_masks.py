"""Scores on synthetic scenes whose boxes are known."""

from dataclasses import astuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gift_vit.common.errors import ConfigError
from gift_vit.explain.maps import normalise_maps
from gift_vit.explain.scoring.estimates import estimate_mean
from gift_vit.explain.scoring.masks import THRESHOLDS, MaskScores, report_best, score_masks


def box(top: int, left: int, height: int, width: int) -> Tensor:
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


SCENES = torch.stack([box(2, 3, 8, 10), box(10, 0, 5, 5)])


def test_a_map_that_is_the_box_scores_one_and_a_shifted_one_its_exact_overlap() -> None:
    shifted = torch.stack([box(4, 6, 8, 10), box(10, 5, 5, 5)])
    scores = score_masks(torch.stack([SCENES, shifted], 1).float(), SCENES)
    overlap = 6 * 7  # rows 4–9, columns 6–12
    for found in (scores.energy, scores.pointing):  # all pixels of a box are equally the largest
        assert_close(found, torch.tensor([[1, overlap / 80], [1, 0]]))
    assert_close(scores.iou, torch.tensor([[1, overlap / (160 - overlap)], [1, 0]])[..., None].expand(-1, -1, 19))


@pytest.mark.parametrize("value", [0.0, 0.1, -3e5])
def test_a_constant_map_scores_zero(value: float) -> None:
    scores = score_masks(normalise_maps(torch.full((2, 3, 4, 4), value), 20), SCENES)
    assert all(torch.equal(found, torch.zeros_like(found)) for found in (scores.pointing, scores.energy, scores.iou))


def test_scores_of_a_slope_by_hand() -> None:
    slope = torch.linspace(0, 1, 20).expand(20, 20)  # grows to the right
    scores = score_masks(torch.stack([slope, 1 - slope]).unsqueeze(0), box(0, 15, 20, 5).unsqueeze(0))
    assert scores.pointing.tolist() == [[1, 0]]
    inside = sum(range(15, 20)) / sum(range(20))
    assert scores.energy[0].tolist() == pytest.approx([inside, sum(range(5)) / sum(range(20))])
    half, most = THRESHOLDS.index(0.5), THRESHOLDS.index(0.75)
    # above 0.75 are columns 15–19 (14.25 / 19), above 0.5 columns 10–19
    assert (scores.iou[0, 0, most], scores.iou[0, 0, half], scores.iou[0, 1, half]) == (1, 0.5, 0)


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"do not fit: \(2, 1, 20, 20\), \(1, 20, 20\)"):
        score_masks(torch.zeros(2, 1, 20, 20), SCENES[:1])
    with pytest.raises(ConfigError, match="a mask is empty"):
        score_masks(torch.zeros(2, 1, 20, 20), SCENES & False)


def fixed_scores(pointing: list[float], iou: list[list[float]], images: int) -> MaskScores:
    curves = torch.zeros(len(pointing), 19)
    curves[:, [4, 9]] = torch.tensor(iou)
    pointed = torch.tensor(pointing).expand(images, -1)
    return MaskScores(pointed, pointed, curves.expand(images, -1, -1))


def test_candidate_and_threshold_are_chosen_on_val_and_reported_on_test() -> None:
    val = fixed_scores([0.2, 0.9, 0.5], [[0.1, 0.2], [0.3, 0.2], [0.0, 0.4]], 5)
    test = fixed_scores([0.8, 0.3, 0.4], [[0.9, 0.9], [0.9, 0.9], [0.7, 0.6]], 7)
    expected = [("pointing", "b", None, 0.3), ("energy", "b", None, 0.3), ("iou", "c", 0.5, 0.6), ("iou_best", "c", 0.25, 0.7)]
    for best, (score, candidate, threshold, value) in zip(report_best(val, test, ["a", "b", "c"]), expected, strict=True):
        estimate = dict.fromkeys(("mean", "low", "high"), pytest.approx(value))
        assert best.row() == {"score": score, "candidate": candidate, "threshold": threshold, **estimate}


def test_the_best_threshold_is_that_of_the_mean_over_images() -> None:
    pointed = torch.tensor([[0.0], [1.0]])
    means = MaskScores(pointed, pointed / 2, torch.tensor([[[1.0, 0.4]], [[0.0, 0.8]]])).means()
    assert torch.cat(means).tolist() == pytest.approx([0.5, 0.25, 0.6])


def test_the_interval_is_that_of_the_mean() -> None:
    values = torch.from_numpy(np.random.default_rng(1).normal(0.4, 0.2, 400))
    mean, low, high = astuple(estimate_mean(values))
    half = 1.96 * float(values.std()) / 20
    assert mean == pytest.approx(float(values.mean()))
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.1)
    assert astuple(estimate_mean(values)) == (mean, low, high)
    assert str(estimate_mean(torch.ones(9))) == "1.000 [1.000, 1.000]"
    assert (estimate_mean(torch.ones(1)).low, str(estimate_mean(torch.ones(1)))) == (None, "1.000")


def test_a_value_at_the_threshold_is_not_above_it() -> None:
    curve = score_masks(torch.tensor([[[[0.5, 1], [0, 0]]]]), torch.tensor([[[True, True], [False, False]]])).iou[0, 0]
    assert [curve[THRESHOLDS.index(threshold)].item() for threshold in (0.45, 0.5, 0.95)] == [1, 0.5, 0.5]
