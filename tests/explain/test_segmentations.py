"""Segmentations from file to mask: threshold, geometry, and files that are none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gift_vit.data import InputStatistics, TransformConfig, build_eval_transform
from gift_vit.errors import ConfigError
from gift_vit.explain.scores import score_maps
from gift_vit.explain.segmentations import segmentation_truth

STATS = InputStatistics(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")


def write_mask(root: Path, votes: np.ndarray, mode: str = "L") -> None:
    file = root / "segmentations" / "001.Bird" / "bird_1.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(votes.astype(np.uint8)).convert(mode).save(file)


def placed(root: Path, size: tuple[int, int], crop_ratio: float | None = 1.0, threshold: float = 0.5) -> Tensor | None:
    transform = build_eval_transform(TransformConfig(crop_ratio, False, 0.0, None), STATS)
    truth = segmentation_truth(root, threshold)
    assert truth.covers("001.Bird/bird_1.jpg")
    assert not truth.covers("001.Bird/bird_2.jpg")
    return truth.place("001.Bird/bird_1.jpg", Image.new("RGB", size), transform)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_the_object_is_what_more_than_the_threshold_of_the_annotators_say(tmp_path: Path, mode: str) -> None:
    votes = np.zeros((64, 64))
    for count in range(6):  # five annotators: columns of 0, 51, 102, … 255
        votes[:, 10 * count : 10 * count + 10] = 51 * count
    write_mask(tmp_path, votes, mode)
    for threshold, first in [(0.0, 1), (0.5, 3), (0.6, 4), (0.9, 5)]:
        mask = placed(tmp_path, (64, 64), threshold=threshold)
        assert mask is not None
        assert torch.equal(mask, torch.from_numpy(votes >= 51 * first))


@pytest.mark.parametrize("crop_ratio", [None, 0.875])
@pytest.mark.parametrize("size", [(300, 200), (211, 333)])
def test_a_mask_is_where_the_object_is_after_the_transform(
    tmp_path: Path, crop_ratio: float | None, size: tuple[int, int]
) -> None:
    width, height = size
    rows, columns = np.ogrid[:height, :width]
    disc = (columns - 0.4 * width) ** 2 + (rows - 0.6 * height) ** 2 < (0.25 * min(size)) ** 2
    write_mask(tmp_path, 255 * disc)
    mask = placed(tmp_path, size, crop_ratio)
    transform = build_eval_transform(TransformConfig(crop_ratio, False, 0.0, None), STATS)
    centres = torch.arange(64) + 0.5
    # independently: an affine map from the file's pixels to the model's
    x, y, radius_x, radius_y = transform.place_box((0.4 * width, 0.6 * height, 0.25 * min(size), 0.25 * min(size)), *size)
    expected = ((centres - x) / radius_x) ** 2 + ((centres[:, None] - y) / radius_y) ** 2 < 1
    assert mask is not None
    assert (mask & expected).sum() / (mask | expected).sum() > 0.93
    scores = score_maps(mask.float()[None, None], mask[None])
    assert scores.pointing.item() == scores.energy.item() == scores.iou.min().item() == 1


def test_an_object_outside_the_picture_has_no_mask(tmp_path: Path) -> None:
    votes = np.zeros((64, 200))
    votes[:, :20] = 255
    write_mask(tmp_path, votes)
    assert placed(tmp_path, (200, 64)) is None


def test_what_is_no_segmentation_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there are no segmentations: .*segmentations is not there; give annotations=.*tgz"):
        segmentation_truth(tmp_path)
    write_mask(tmp_path, np.full((30, 40), 255))
    with pytest.raises(ConfigError, match=r"bird_1.png is of 40 × 30 pixels and its image of 64 × 64"):
        placed(tmp_path, (64, 64))
    for threshold in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=f"mask_threshold={threshold}: give a number from 0 to below 1"):
            segmentation_truth(tmp_path, threshold)
    (tmp_path / "segmentations" / "001.Bird" / "bird_1.png").write_text("no image")
    with pytest.raises(ConfigError, match=r"cannot decode image .*bird_1.png"):
        placed(tmp_path, (64, 64))
