"""Hits of parts on scenes whose parts are known, and how exclusive a cluster is."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from gift_vit.data import InputStatistics, TransformConfig, build_eval_transform
from gift_vit.errors import ConfigError
from gift_vit.explain.maps import normalise_maps
from gift_vit.explain.parts import exclusivity, part_truth, place_parts, report_parts, score_parts
from gift_vit.explain.scores import join_scores

STATS = InputStatistics(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
NAMES = ["beak", "tail"]


def peaks(*places: tuple[int, int], side: int = 20) -> Tensor:
    """Maps (len, side, side) with one 1 each, at (x, y)."""
    maps = torch.zeros(len(places), side, side)
    for index, (x, y) in enumerate(places):
        maps[index, y, x] = 1
    return maps


def circles(*parts: tuple[float, float], radius: float = 3.0) -> Tensor:
    return torch.tensor([[x, y, radius, radius] for x, y in parts])


def test_a_peak_hits_within_the_radius_and_the_nearest_gets_it() -> None:
    # pixel (5, 5) has its centre at 5.5: 0 from the first part, 2 from the second, 3.5 from the third
    parts = circles((5.5, 5.5), (7.5, 5.5), (5.5, 9.0))[None]
    scores = score_parts(peaks((5, 5), (7, 5), (9, 5), (15, 15))[None], parts)
    assert scores.hits[0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert scores.nearest[0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]
    for distance, hit in [(2.999, 1), (3.001, 0)]:
        assert score_parts(peaks((5, 5))[None], circles((5.5 + distance, 5.5))[None]).hits.item() == hit


def test_the_radii_may_differ_along_x_and_y() -> None:
    parts = torch.tensor([[[5.5, 5.5, 4.0, 2.0]]])
    hits = score_parts(peaks((9, 5), (5, 9), (7, 6), (8, 7))[None], parts).hits[0, :, 0]
    assert hits.tolist() == [1, 0, 1, 0]  # (3/4)² + (2/2)² > 1


def test_a_constant_map_hits_nothing_and_equal_values_share() -> None:
    parts = circles((5.5, 5.5))[None]
    scores = score_parts(normalise_maps(torch.full((1, 1, 4, 4), 7.0), 20), parts)
    assert scores.hits.item() == scores.nearest.item() == 0
    both = (peaks((5, 5)) + peaks((15, 15)))[None]
    assert score_parts(both, parts).hits.item() == 0.5


def test_a_part_that_is_not_in_the_picture_is_left_out() -> None:
    parts = circles((5.5, 5.5), (5.5, 5.5))[None]
    parts[0, 1] = torch.nan
    scores = score_parts(peaks((5, 5))[None], parts)
    assert scores.hits[0, 0].tolist() == [1, pytest.approx(float("nan"), nan_ok=True)]
    assert scores.nearest[0, 0].tolist() == [1, 0]


def moving(where: list[tuple[int, int]], cluster_of: list[int]) -> Tensor:
    """Maps of three clusters, (N, 3, 20, 20): on the beak, on beak or tail as ``cluster_of`` says, and constant."""
    return torch.stack(
        [
            torch.stack([peaks(xy)[0], peaks([xy, (17, 17)][own])[0], torch.zeros(20, 20)])
            for xy, own in zip(where, cluster_of, strict=True)
        ]
    )


def test_a_cluster_that_always_sits_on_one_part_is_exclusive() -> None:
    where = [(3, 4), (8, 2), (11, 9), (5, 12)]
    parts = torch.stack([circles((x + 0.5, y + 0.5), (17.5, 17.5), radius=1.5) for x, y in where])
    scores = score_parts(moving(where, [0, 1, 1, 1]), parts)
    beak, tail = report_parts(scores, scores, NAMES, ["on beak", "mixed", "constant"])
    assert (beak.part, beak.candidate, beak.images) == ("beak", "on beak", 4)
    assert (beak.hit.mean, beak.hit.low, beak.exclusivity.mean) == (1, 1, 1)
    assert (tail.candidate, tail.hit.mean, tail.exclusivity.mean) == ("mixed", 0.75, 0.75)
    assert exclusivity(scores.nearest[:, 1], 0).tolist() == [1, 0, 0, 0]
    assert exclusivity(scores.nearest[:, 2], 0).tolist() == [0]
    assert beak.row()["hit"] == {"mean": 1, "low": 1, "high": 1}


def test_candidates_are_chosen_on_val_among_images_that_show_the_part() -> None:
    where = [(3, 4), (8, 2)]
    parts = torch.stack([circles((x + 0.5, y + 0.5), (17.5, 17.5), radius=1.5) for x, y in where])
    val = parts.clone()
    val[1, 0] = torch.nan  # the beak is to be seen in the first image alone, where both clusters sit on it
    names = ["on beak", "mixed", "constant"]
    maps = moving(where, [0, 1])[:, [1, 0, 2]]
    rows = report_parts(score_parts(maps, val), score_parts(maps, parts), NAMES, [names[1], names[0], names[2]])
    assert [(row.part, row.candidate, row.hit.mean) for row in rows] == [("beak", "mixed", 0.5), ("tail", "mixed", 0.5)]
    val[:, 1] = torch.nan
    left = report_parts(score_parts(maps, val), score_parts(maps, parts), NAMES, names)
    assert [row.part for row in left] == ["beak"]


def test_several_batches_and_layers_are_one() -> None:
    where = [(3, 4), (8, 2), (11, 9)]
    parts = torch.stack([circles((x + 0.5, y + 0.5), (17.5, 17.5)) for x, y in where])
    maps = moving(where, [0, 1, 1])
    whole = score_parts(maps, parts)
    images = join_scores([score_parts(maps[:2], parts[:2]), score_parts(maps[2:], parts[2:])])
    layers = join_scores([score_parts(maps[:, :1], parts), score_parts(maps[:, 1:], parts)], dim=1)
    for joined in (images, layers):
        assert torch.equal(joined.hits, whole.hits)
        assert torch.equal(joined.nearest, whole.nearest)
    assert len(whole) == 3


@pytest.mark.parametrize("crop_ratio", [None, 0.875])
def test_parts_are_where_the_transform_puts_them(crop_ratio: float | None) -> None:
    transform = build_eval_transform(TransformConfig(crop_ratio, False, 0.0, None), STATS)
    width, height = 300, 200
    picture = np.zeros((height, width, 3), np.uint8)
    picture[110:130, 170:190] = 255
    seen = transform.finish(transform.prepare(Image.fromarray(picture)))[0].double()
    rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    centre = [float((axis * seen).sum() / seen.sum()) for axis in (columns, rows)]
    points = {"beak": (180.0, 120.0), "tail": (2.0, 120.0)}
    placed = place_parts(points, [*NAMES, "eye"], 10, (width, height), transform)
    assert placed[0, :2].tolist() == pytest.approx(centre, abs=0.3)
    side = seen > 127
    diameter = [float(side.any(0).sum()), float(side.any(1).sum())]
    assert [2 * radius for radius in placed[0, 2:].tolist()] == pytest.approx(diameter, abs=1)
    assert placed[1].isnan().all() == (crop_ratio is not None)  # cropped away
    assert placed[2].isnan().all()


def write_parts(folder: Path, rows: list[tuple[str, str, float, float, bool]]) -> None:
    columns = zip(("path", "part", "x", "y", "visible"), zip(*rows, strict=True), strict=True)
    pq.write_table(pa.table({name: list(values) for name, values in columns}), folder / "parts.parquet")


def test_visible_parts_of_images_with_a_box(tmp_path: Path) -> None:
    rows = [("a.jpg", "beak", 10.0, 20.0, True), ("a.jpg", "tail", 0.0, 0.0, False), ("b.jpg", "tail", 1.0, 1.0, True)]
    write_parts(tmp_path, rows)
    box = {"path": ["a.jpg"], "x": [0.0], "y": [0.0], "width": [30.0], "height": [50.0]}
    pq.write_table(pa.table(box), tmp_path / "boxes.parquet")
    names, truth = part_truth(tmp_path, 0.2)
    assert names == NAMES
    assert [truth.covers(path) for path in ("a.jpg", "b.jpg", "c.jpg")] == [True, False, False]
    transform = build_eval_transform(TransformConfig(1.0, False, 0.0, None), STATS)
    placed = truth.place("a.jpg", Image.new("RGB", (64, 64)), transform)
    assert placed is not None
    assert placed[0].tolist() == [10, 20, 10, 10]  # 0.2 of the longer side
    assert placed[1].isnan().all()
    assert truth.place("a.jpg", Image.new("RGB", (15, 15)), transform) is None  # outside


def test_files_that_hold_no_parts_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there are no parts: .*parts.parquet is not there; give annotations="):
        part_truth(tmp_path)
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "parts.parquet")
    with pytest.raises(ConfigError, match=r"parts.parquet is no table of parts: "):
        part_truth(tmp_path)
    write_parts(tmp_path, [("a", "beak", 1.0, 1.0, True)])
    with pytest.raises(ConfigError, match=r"there are no boxes: .*boxes.parquet is not there"):
        part_truth(tmp_path)
    with pytest.raises(ConfigError, match="alpha=0: give a positive number"):
        part_truth(tmp_path, 0)
