"""Annotations from file to the pixels that a model sees: boxes, segmentations and parts, and files that hold none."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gift_vit.common.errors import ConfigError
from gift_vit.explain.scoring.boxes import box_truth, object_mask
from gift_vit.explain.scoring.object_parts import part_truth, place_parts
from gift_vit.explain.scoring.scenes import Truth
from gift_vit.explain.scoring.segmentations import segmentation_truth
from tests.explain.conftest import drawn, eval_transform, write_table

NAMES = ["beak", "tail"]


@pytest.mark.parametrize("crop_ratio", [None, 0.875, 1.0])
@pytest.mark.parametrize("size", [(300, 200), (211, 333), (64, 64), (40, 90)])
def test_a_mask_covers_what_the_transform_makes_of_the_box(crop_ratio: float | None, size: tuple[int, int]) -> None:
    transform, (width, height) = eval_transform(crop_ratio), size
    box = (width // 4, height // 3, width // 2, height // 4)
    seen = drawn(transform, size, box) > 127
    mask = object_mask([transform.place_box(box, *size)], 64)
    assert 0 < mask.sum() < 64 * 64
    assert (mask & seen).sum() / (mask | seen).sum() > 0.93


def test_several_boxes_are_one_mask_and_what_is_outside_is_not_in_it() -> None:
    mask = object_mask([(0, 0, 2, 1), (1, 0, 2, 3), (-5, 2, 6, 9), (50, 50, 9, 9)], 4)
    assert mask.int().tolist() == [[1, 1, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize(("kind", "truth"), [("boxes", box_truth), ("parts", partial(part_truth, alpha=0.1))])
def test_a_file_that_holds_no_table_is_an_error(tmp_path: Path, kind: str, truth: Callable[[Path], Truth]) -> None:
    file = tmp_path / f"{kind}.parquet"
    with pytest.raises(ConfigError, match=f"there are no {kind}: .*{kind}.parquet is not there; give annotations="):
        truth(tmp_path)
    for write in (lambda: file.write_text("no table"), lambda: write_table(file, "path x", [("a", 1.0)])):
        write()
        with pytest.raises(ConfigError, match=f"{kind}.parquet is no table of {kind}: "):
            truth(tmp_path)


def write_mask(root: Path, votes: np.ndarray, mode: str = "L") -> None:
    file = root / "segmentations" / "001.Bird" / "bird_1.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(votes.astype(np.uint8)).convert(mode).save(file)


def placed(root: Path, size: tuple[int, int], crop_ratio: float | None = 1.0, threshold: float = 0.5) -> Any:
    transform = eval_transform(crop_ratio, "bicubic")
    truth = segmentation_truth(root, threshold)
    assert truth.covers("001.Bird/bird_1.jpg")
    assert not truth.covers("001.Bird/bird_2.jpg")
    return truth.place("001.Bird/bird_1.jpg", Image.new("RGB", size), transform)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_the_object_is_what_more_than_the_threshold_of_the_annotators_say(tmp_path: Path, mode: str) -> None:
    votes = np.tile(51 * np.minimum(np.arange(64) // 10, 5), (64, 1))  # five annotators: columns of 0, 51, 102, … 255
    write_mask(tmp_path, votes, mode)
    for threshold, first in [(0.0, 1), (0.5, 3), (0.6, 4), (0.9, 5)]:
        mask = placed(tmp_path, (64, 64), threshold=threshold)
        assert torch.equal(mask, torch.from_numpy(votes >= 51 * first))


@pytest.mark.parametrize("crop_ratio", [None, 0.875])
@pytest.mark.parametrize("size", [(300, 200), (211, 333)])
def test_a_disc_is_where_the_transform_puts_it(tmp_path: Path, crop_ratio: float | None, size: tuple[int, int]) -> None:
    centre_x, centre_y, radius = 0.4 * size[0], 0.6 * size[1], 0.25 * min(size)
    rows, columns = np.ogrid[: size[1], : size[0]]
    write_mask(tmp_path, 255 * ((columns - centre_x) ** 2 + (rows - centre_y) ** 2 < radius**2))
    mask = placed(tmp_path, size, crop_ratio)
    centres = torch.arange(64) + 0.5
    # independently: an affine map from the file's pixels to the model's
    box = (centre_x, centre_y, radius, radius)
    x, y, radius_x, radius_y = eval_transform(crop_ratio, "bicubic").place_box(box, *size)
    expected = ((centres - x) / radius_x) ** 2 + ((centres[:, None] - y) / radius_y) ** 2 < 1
    assert (mask & expected).sum() / (mask | expected).sum() > 0.93


def test_an_object_outside_the_picture_has_no_mask(tmp_path: Path) -> None:
    write_mask(tmp_path, np.tile(255 * (np.arange(200) < 20), (64, 1)))
    assert placed(tmp_path, (200, 64)) is None


def test_what_is_no_segmentation_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there are no segmentations: .*segmentations is not there; give annotations=.*tgz"):
        segmentation_truth(tmp_path, 0.5)
    write_mask(tmp_path, np.full((30, 40), 255))
    with pytest.raises(ConfigError, match=r"bird_1.png is of 40 × 30 pixels and its image of 64 × 64"):
        placed(tmp_path, (64, 64))
    (tmp_path / "segmentations" / "001.Bird" / "bird_1.png").write_text("no image")
    with pytest.raises(ConfigError, match=r"cannot decode image .*bird_1.png"):
        placed(tmp_path, (64, 64))


@pytest.mark.parametrize(("crop_ratio", "width"), [(None, 300), (0.875, 300), (0.875, 294)])  # 294: an odd slack, rounded up
def test_parts_are_where_the_transform_puts_them(crop_ratio: float | None, width: int) -> None:
    transform = eval_transform(crop_ratio)
    seen = drawn(transform, (width, 200), (170, 110, 20, 20)).double()
    rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    centre = [float((axis * seen).sum() / seen.sum()) for axis in (columns, rows)]
    points = {"beak": (180.0, 120.0), "tail": (2.0, 120.0)}
    placed = place_parts(points, [*NAMES, "eye"], 10, (width, 200), transform)
    assert placed[0, :2].tolist() == pytest.approx(centre, abs=0.3)
    diameter = [float((seen > 127).any(axis).sum()) for axis in (0, 1)]
    assert [2 * radius for radius in placed[0, 2:].tolist()] == pytest.approx(diameter, abs=1)
    assert placed[1].isnan().all() == (crop_ratio is not None)  # cropped away
    assert placed[2].isnan().all()


def test_visible_parts_of_images_with_a_box(tmp_path: Path) -> None:
    rows = [("a.jpg", "beak", 10.0, 20.0, True), ("a.jpg", "tail", 0.0, 0.0, False), ("b.jpg", "tail", 1.0, 1.0, True)]
    write_table(tmp_path / "parts.parquet", "path part x y visible", rows)
    with pytest.raises(ConfigError, match=r"there are no boxes: .*boxes.parquet is not there"):
        part_truth(tmp_path, 0.2)
    write_table(tmp_path / "boxes.parquet", "path x y width height", [("a.jpg", 0.0, 0.0, 30.0, 50.0)])
    truth = part_truth(tmp_path, 0.2)
    assert truth.parts == tuple(NAMES)
    assert [truth.covers(path) for path in ("a.jpg", "b.jpg", "c.jpg")] == [True, False, False]
    near, outside = (truth.place("a.jpg", Image.new("RGB", (side, side)), eval_transform(1.0)) for side in (64, 15))
    assert near is not None
    assert near[0].tolist() == [10, 20, 10, 10]  # 0.2 of the longer side
    assert near[1].isnan().all()
    assert outside is None
