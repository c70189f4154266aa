"""How alike the cluster maps of several trainings are, given what training leaves open: φ up to an invertible matrix.

An alignment makes such a matrix (K × K) of the maps of two models for the same images; it is fitted on some images and judged
on others. Each of ``ALIGNMENTS`` may do more than the one before:

``index``     only signs: cluster k is compared with cluster k.
``match``     signs and an order: the assignment with the largest sum of absolute correlations (Hungarian method).
``rotation``  an orthogonal matrix: orthogonal Procrustes.
``linear``    any matrix, by least squares: all that (φ R, R⁻¹ ψ) being the same model allows.

A correlation is Pearson's over the patches of one image: scale and offset of a map do not count, and of a constant one it is 0.
A sign is that of the mean over the images that are fitted, so that a map which flips from image to image is not stable.
"""

from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes, subspace_angles
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gift_vit.explain.select import standardise_maps


def pairwise_stability(fitted: Sequence[Tensor], judged: Sequence[Tensor], alignment: str) -> Tensor:
    """:func:`stability` of every ordered pair of R models in every layer, (R (R - 1), N, L), pairs in permutation order.

    Args:
        fitted: Of each model the maps of the images that alignments are fitted on, (F, L, K, h, w).
        judged: Of each model the maps of N other images, (N, L, K, h, w).
        alignment: One of ``ALIGNMENTS``.
    """
    fit = ALIGNMENTS[alignment]

    def of_pair(one: int, other: int) -> Tensor:
        layers = range(fitted[one].shape[1])
        matrices = [fit(fitted[one][:, layer], fitted[other][:, layer]) for layer in layers]
        return torch.stack([stability(judged[one][:, layer], judged[other][:, layer], matrices[layer]) for layer in layers], 1)

    return torch.stack([of_pair(one, other) for one, other in permutations(range(len(fitted)), 2)])


def stability(first: Tensor, second: Tensor, matrix: Tensor) -> Tensor:
    """Correlation of the aligned first maps with the second, mean over clusters, (N,).

    Args:
        first: (N, K, h, w).
        second: Another model's maps of the same images, (N, K, h, w).
        matrix: (K, K); column k holds the weights of the first model's clusters that stand for the second's cluster k.
    """
    mixed = torch.einsum("nkhw,kj->njhw", first.double(), matrix)
    return (standardise_maps(mixed) * standardise_maps(second.double())).mean((1, 2, 3))


def correlations(first: Tensor, second: Tensor) -> Tensor:
    """Correlation of every cluster with every other, mean over images, (K, K), of maps (N, K, h, w) each."""
    one, other = (standardise_maps(maps.double()).flatten(2) for maps in (first, second))
    return torch.einsum("nip,njp->ij", one, other) / (len(one) * one.shape[-1])


def subspace_overlap(first: Tensor, second: Tensor) -> float:
    """Mean squared cosine of the principal angles between the spans of two (d, K): 1 for equal ones, K / d by chance."""
    angles = subspace_angles(first.double().numpy(), second.double().numpy())
    return float(np.square(np.cos(angles)).mean())


def _index(first: Tensor, second: Tensor) -> Tensor:
    return torch.diag(_signs(correlations(first, second).diagonal()))


def _match(first: Tensor, second: Tensor) -> Tensor:
    found = correlations(first, second)
    rows, columns = linear_sum_assignment(found.abs().numpy(), maximize=True)
    matrix = torch.zeros_like(found)
    matrix[rows, columns] = _signs(found[rows, columns])
    return matrix


def _rotation(first: Tensor, second: Tensor) -> Tensor:
    return torch.from_numpy(orthogonal_procrustes(_observations(first), _observations(second))[0])


def _linear(first: Tensor, second: Tensor) -> Tensor:
    return torch.from_numpy(np.linalg.lstsq(_observations(first), _observations(second), rcond=None)[0])


Alignment = Callable[[Tensor, Tensor], Tensor]
ALIGNMENTS: dict[str, Alignment] = {"index": _index, "match": _match, "rotation": _rotation, "linear": _linear}


def _observations(maps: Tensor) -> NDArray[np.float64]:
    """Maps (N, K, h, w) as (N h w, K), each without its mean over the patches, which no correlation sees."""
    flat = maps.double().flatten(2)
    return (flat - flat.mean(-1, keepdim=True)).mT.flatten(0, 1).numpy()


def _signs(values: Tensor) -> Tensor:
    """1 or -1, and 1 for 0."""
    return torch.where(values < 0, -1, 1).to(values)
