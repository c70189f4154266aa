"""Hits of parts on scenes whose parts are known, and how exclusive a cluster is."""

import pytest
import torch
from torch import Tensor

from gift_vit.explain.maps import join, normalise_maps
from gift_vit.explain.scoring.estimates import Estimate
from gift_vit.explain.scoring.object_parts import exclusivity, report_parts, score_parts

NAMES = ["beak", "tail"]
CANDIDATES = ["on beak", "mixed", "constant"]


def peaks(*places: tuple[int, int]) -> Tensor:
    """Maps (len, 20, 20) with one 1 each, at (x, y)."""
    maps = torch.zeros(len(places), 20, 20)
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
    # radii that differ along x and y
    hits = score_parts(peaks((9, 5), (5, 9), (7, 6), (8, 7))[None], torch.tensor([[[5.5, 5.5, 4.0, 2.0]]])).hits
    assert hits.flatten().tolist() == [1, 0, 1, 0]  # (3/4)² + (2/2)² > 1


def test_a_constant_map_hits_nothing_and_equal_values_share() -> None:
    parts = circles((5.5, 5.5))[None]
    scores = score_parts(normalise_maps(torch.full((1, 1, 4, 4), 7.0), 20), parts)
    assert scores.hits.item() == scores.nearest.item() == 0
    assert score_parts(peaks((5, 5), (15, 15)).sum(0)[None, None], parts).hits.item() == 0.5


def test_a_part_that_is_not_in_the_picture_is_left_out() -> None:
    parts = circles((5.5, 5.5), (5.5, 5.5))[None]
    parts[0, 1] = torch.nan
    scores = score_parts(peaks((5, 5))[None], parts)
    assert scores.hits[0, 0].tolist() == [1, pytest.approx(float("nan"), nan_ok=True)]
    assert scores.nearest[0, 0].tolist() == [1, 0]


def scenes(where: list[tuple[int, int]], cluster_of: list[int], radius: float = 1.5) -> tuple[Tensor, Tensor]:
    """Maps of three clusters, on the beak, on beak or tail as ``cluster_of`` says, and constant; and the two parts."""
    maps = [
        torch.stack([peaks(xy)[0], peaks([xy, (17, 17)][own])[0], torch.zeros(20, 20)])
        for xy, own in zip(where, cluster_of, strict=True)
    ]
    return torch.stack(maps), torch.stack([circles((x + 0.5, y + 0.5), (17.5, 17.5), radius=radius) for x, y in where])


def test_a_cluster_that_always_sits_on_one_part_is_exclusive() -> None:
    scores = score_parts(*scenes([(3, 4), (8, 2), (11, 9), (5, 12)], [0, 1, 1, 1]))
    beak, tail = report_parts(scores, scores, NAMES, CANDIDATES)
    assert (beak.part, beak.candidate, beak.images) == ("beak", "on beak", 4)
    assert (beak.hit, beak.exclusivity.mean) == (Estimate(1, 1, 1), 1)
    assert (tail.candidate, tail.hit.mean, tail.exclusivity.mean) == ("mixed", 0.75, 0.75)
    assert exclusivity(scores.nearest[:, 2], 0).tolist() == [0]
    assert exclusivity(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 0).tolist() == [1], "an image without a hit does not count"


def test_candidates_are_chosen_on_val_among_images_that_show_the_part() -> None:
    maps, parts = scenes([(3, 4), (8, 2)], [0, 1])
    maps, names, val = maps[:, [1, 0, 2]], ["mixed", "on beak", "constant"], parts.clone()
    val[1, 0] = torch.nan  # the beak is to be seen in the first image alone, where both clusters sit on it
    rows = report_parts(score_parts(maps, val), score_parts(maps, parts), NAMES, names)
    assert [(row.part, row.candidate, row.hit.mean) for row in rows] == [("beak", "mixed", 0.5), ("tail", "mixed", 0.5)]
    val[:, 1] = torch.nan
    left = report_parts(score_parts(maps, val), score_parts(maps, parts), NAMES, names)
    assert [row.part for row in left] == ["beak"]


def test_several_batches_and_layers_are_one() -> None:
    maps, parts = scenes([(3, 4), (8, 2), (11, 9)], [0, 1, 1], radius=3)
    whole = score_parts(maps, parts)
    images = join([score_parts(maps[:2], parts[:2]), score_parts(maps[2:], parts[2:])])
    layers = join([score_parts(maps[:, :1], parts), score_parts(maps[:, 1:], parts)], dim=1)
    for joined in (images, layers):
        assert torch.equal(joined.hits, whole.hits)
        assert torch.equal(joined.nearest, whole.nearest)
    assert len(whole) == 3
