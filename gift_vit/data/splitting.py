"""A part of a set of images, stratified: as scikit-learn draws it."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def stratified_split(
    labels: NDArray[np.int64], size: int | float, seed: int, names: Sequence[str] | None = None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the rest and of a part of ``size`` (a count or a fraction), both ascending, each class in proportion.

    Draw for draw scikit-learn's ``train_test_split(stratify=labels)``, which takes two seconds to import.

    Raises:
        ValueError: If there are fewer images than classes in one of the two, or a class has a single one; says which of
            ``names``. Of a rare class the part may still have none.
    """
    classes, counts = np.unique(labels, return_counts=True)
    in_part = math.ceil(size * len(labels)) if isinstance(size, float) else size
    in_rest = len(labels) - in_part
    if min(in_part, in_rest) < max(len(classes), 1):
        raise ValueError(
            f"{in_part} and {in_rest} images cannot both hold all of {len(classes)} classes; give another fraction"
        )
    if counts.min() < 2:
        rare = classes[counts.argmin()]
        raise ValueError(f"class {names[rare] if names else rare} has one image only; add others or remove it")
    generator = np.random.RandomState(seed)
    of_rest = _apportion(counts, in_rest, generator)
    of_part = _apportion(counts - of_rest, in_part, generator)
    rest, part = [], []
    for label, first, second in zip(classes, of_rest, of_part, strict=True):
        drawn = generator.permutation(np.flatnonzero(labels == label))
        rest.append(drawn[:first])
        part.append(drawn[first : first + second])
    return np.sort(np.concatenate(rest)), np.sort(np.concatenate(part))


def _apportion(counts: NDArray[np.intp], size: int, generator: np.random.RandomState) -> NDArray[np.intp]:
    """``size`` over the classes in proportion to ``counts``: what is left by rounding down to the largest remainders."""
    exact = counts / counts.sum() * size
    whole = np.floor(exact)
    left, remainders = int(size - whole.sum()), exact - whole
    for remainder in np.unique(remainders)[::-1]:
        if left == 0:
            break
        equal = np.flatnonzero(remainders == remainder)
        chosen = generator.choice(equal, min(len(equal), left), replace=False)  # a draw even where all are taken
        whole[chosen] += 1
        left -= len(chosen)
    return whole.astype(np.intp)
