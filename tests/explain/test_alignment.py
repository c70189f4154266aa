"""Alignments of cluster maps: what each of them can undo, and against correlations and projections computed another way."""

import numpy as np
import pytest
import torch
from scipy.stats import special_ortho_group
from torch import Tensor
from torch.testing import assert_close

from gift_vit.explain.scoring.alignment import ALIGNMENTS, correlations, pairwise_stability, stability, subspace_overlap
from tests.explain.conftest import noise

CLUSTERS = 4


def some_maps(seed: int = 0, images: int = 6) -> Tensor:
    return noise(images, CLUSTERS, 5, 7, seed=seed)


def mixed(maps: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("nkhw,kj->njhw", maps, matrix)


SIGNS = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
ORDER = SIGNS @ torch.eye(CLUSTERS, dtype=torch.float64)[[2, 0, 3, 1]]
ROTATION = torch.from_numpy(special_ortho_group.rvs(CLUSTERS, random_state=0))
INVERTIBLE = noise(CLUSTERS, CLUSTERS, seed=3)


@pytest.mark.parametrize(("matrix", "first_able"), [(SIGNS, 0), (ORDER, 1), (ROTATION, 2), (INVERTIBLE, 3)])
def test_each_alignment_undoes_what_it_may(matrix: Tensor, first_able: int) -> None:
    assert list(ALIGNMENTS) == ["index", "match", "rotation", "linear"]
    fitted, judged = some_maps(0), some_maps(1)
    for place, fit in enumerate(ALIGNMENTS.values()):
        found = stability(judged, mixed(judged, matrix), fit(fitted, mixed(fitted, matrix)))
        if place >= first_able:
            assert_close(found, torch.ones(len(judged)).double())
        else:
            assert found.mean() < 0.95, place


def test_neither_scale_nor_offset_of_a_map_counts() -> None:
    maps, offsets = some_maps(), 100 * noise(6, CLUSTERS, 1, 1, seed=5)
    other = maps * torch.tensor([0.1, 1, 5, 30])[:, None, None] + offsets
    for name in ("index", "match", "linear"):
        assert_close(stability(maps, other, ALIGNMENTS[name](maps, other)), torch.ones(len(maps)).double())
    assert_close(ALIGNMENTS["rotation"](maps, maps + offsets), torch.eye(CLUSTERS).double())


def test_correlations_are_numpys() -> None:
    first, second = some_maps(0), some_maps(1)
    pairs = zip(first.flatten(2).numpy(), second.flatten(2).numpy(), strict=True)
    expected = [np.corrcoef(one, other)[:CLUSTERS, CLUSTERS:] for one, other in pairs]
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
    flat = some_maps(images=1)[0].flatten(1).T
    first = torch.linalg.qr(flat - flat.mean(0)).Q.T.unflatten(1, (5, 7))[None]
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
    first, second = noise(20, 6), noise(20, 6, seed=1)
    one, other = (torch.linalg.qr(matrix).Q for matrix in (first, second))
    assert subspace_overlap(first, second) == pytest.approx(torch.trace(one @ one.T @ other @ other.T).item() / 6)
    assert subspace_overlap(first, first @ noise(6, 6, seed=2)) == pytest.approx(1)
