"""Alignments of cluster maps: what each of them can undo, and against correlations and projections computed another way."""

import numpy as np
import pytest
import torch
from scipy.stats import special_ortho_group
from torch import Tensor
from torch.testing import assert_close

from gift_vit.explain.alignment import ALIGNMENTS, correlations, pairwise_stability, stability, subspace_overlap

CLUSTERS = 4


def some_maps(seed: int = 0, images: int = 6) -> Tensor:
    return torch.randn(images, CLUSTERS, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(maps: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("nkhw,kj->njhw", maps, matrix)


SIGNS = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
ORDER = SIGNS @ torch.eye(CLUSTERS, dtype=torch.float64)[[2, 0, 3, 1]]
ROTATION = torch.from_numpy(special_ortho_group.rvs(CLUSTERS, random_state=0))
INVERTIBLE = torch.randn(CLUSTERS, CLUSTERS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize(
    ("matrix", "able"),
    [
        (SIGNS, {"index", "match", "rotation", "linear"}),
        (ORDER, {"match", "rotation", "linear"}),
        (ROTATION, {"rotation", "linear"}),
        (INVERTIBLE, {"linear"}),
    ],
)
def test_each_alignment_undoes_what_it_may(matrix: Tensor, able: set[str]) -> None:
    assert list(ALIGNMENTS) == ["index", "match", "rotation", "linear"]
    fitted, judged = some_maps(0), some_maps(1)
    for name, fit in ALIGNMENTS.items():
        found = stability(judged, mixed(judged, matrix), fit(fitted, mixed(fitted, matrix)))
        assert found.shape == (len(judged),)
        if name in able:
            assert_close(found, torch.ones_like(found))
        else:
            assert found.mean() < 0.95, name


def test_neither_scale_nor_offset_of_a_map_counts() -> None:
    first, second = some_maps(0), some_maps(0)
    generator = torch.Generator().manual_seed(5)
    offsets = 100 * torch.randn(len(second), CLUSTERS, 1, 1, generator=generator, dtype=torch.float64)
    scales = torch.tensor([0.1, 1, 5, 30], dtype=torch.float64)[:, None, None]
    for name in ("index", "match", "linear"):
        matrix = ALIGNMENTS[name](first, second * scales + offsets)
        assert_close(stability(first, second * scales + offsets, matrix), torch.ones(len(first), dtype=torch.float64))
    rotation = ALIGNMENTS["rotation"](first, second + offsets)
    assert_close(rotation, torch.eye(CLUSTERS, dtype=torch.float64))


def test_correlations_are_numpys() -> None:
    first, second = some_maps(0), some_maps(1)
    expected = [
        np.corrcoef(first[image].flatten(1).numpy(), second[image].flatten(1).numpy())[:CLUSTERS, CLUSTERS:]
        for image in range(len(first))
    ]
    assert_close(correlations(first, second), torch.from_numpy(np.mean(expected, 0)))
    matrix = ALIGNMENTS["match"](first, second)
    assert_close(stability(first, second, matrix).mean(), (correlations(first, second) * matrix).sum() / CLUSTERS)


def test_a_sign_is_chosen_for_all_images_and_not_for_each() -> None:
    maps = some_maps(images=40)
    flips = torch.where(torch.arange(40) % 4 == 0, -1.0, 1.0).double()[:, None, None, None]
    matrix = ALIGNMENTS["index"](maps, -flips * maps)
    assert_close(matrix, -torch.eye(CLUSTERS, dtype=torch.float64))
    assert stability(maps, -flips * maps, matrix).mean().item() == pytest.approx(0.5)


def test_the_best_assignment_is_not_the_greedy_one() -> None:
    base = torch.linalg.qr(some_maps(images=1).flatten(2)[0].T - some_maps(images=1).flatten(2)[0].T.mean(0)).Q.T
    first = base.unflatten(1, (5, 7))[None]
    weights = torch.eye(CLUSTERS, dtype=torch.float64)
    weights[:2, :2] = torch.tensor([[0.7, 0.6], [0.6, 0.0]])  # greedy: 0.7 + 0, best: 0.6 + 0.6
    matrix = ALIGNMENTS["match"](first, mixed(first, weights))
    assert_close(matrix, torch.eye(CLUSTERS, dtype=torch.float64)[[1, 0, 2, 3]])


def test_constant_maps_correlate_with_nothing() -> None:
    first, second = some_maps(0), some_maps(0)
    second[:, 1] = 3
    for name, fit in ALIGNMENTS.items():
        found = stability(first, second, fit(first, second))
        slack = 0.05 if name == "rotation" else 1e-6  # a least-squares fit to the other three, which are not orthogonal
        assert_close(found, torch.full_like(found, 0.75), atol=slack, rtol=0)


def test_pairs_and_layers_are_told_apart() -> None:
    """Run 2 is run 0 with another order in layer 1 alone; run 1 has nothing to do with them."""
    runs = [torch.stack([some_maps(10 * run + layer) for layer in range(3)], 1) for run in range(2)]
    runs.append(runs[0].clone())
    runs[2][:, 1] = mixed(runs[0][:, 1], ORDER)
    found = pairwise_stability([run[:4] for run in runs], [run[4:] for run in runs], "index")
    assert found.shape == (6, 2, 3)
    same = found.mean(1)[[1, 4]]  # (0, 2) and (2, 0) of (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)
    assert_close(same[:, [0, 2]], torch.ones(2, 2, dtype=torch.float64))
    assert same[:, 1].max() < 0.9
    assert found.mean(1)[[0, 2, 3, 5]].max() < 0.9
    matched = pairwise_stability([run[:4] for run in runs], [run[4:] for run in runs], "match")
    assert_close(matched[[1, 4]], torch.ones(2, 2, 3, dtype=torch.float64))
    one, other = runs[0][:, 1], runs[1][:, 1]
    assert_close(found[0, :, 1], stability(one[4:], other[4:], ALIGNMENTS["index"](one[:4], other[:4])))


def test_overlap_is_that_of_the_projections() -> None:
    first, second = (torch.randn(20, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    one, other = (torch.linalg.qr(matrix.double()).Q for matrix in (first, second))
    assert subspace_overlap(first, second) == pytest.approx(torch.trace(one @ one.T @ other @ other.T).item() / 6)
    assert subspace_overlap(first, first @ torch.randn(6, 6, generator=torch.Generator().manual_seed(2))) == pytest.approx(1)
    by_chance = [subspace_overlap(*torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(seed))) for seed in range(200)]
    assert np.mean(by_chance) == pytest.approx(6 / 20, abs=0.01)
