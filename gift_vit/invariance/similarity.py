"""Linear CKA (Kornblith et al., arXiv 1905.00414) and its unbiased estimator (Nguyen et al., arXiv 2010.15327)."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from gift_vit.common.errors import ConfigError

_RELATIVE_ZERO = 1e-12  # of a norm in float64: below it is rounding
_COARSEST = 1e-4  # relative: rounding of a format beyond float32 is in what was stored, not in what is computed of it


def cka(a: ArrayLike | Tensor, b: ArrayLike | Tensor, unbiased: bool = False) -> float:
    """Linear CKA of two representations of the same n inputs, one row each.

    With A and B centred by column, ``|Bᵀ A|² / (|Aᵀ A| |Bᵀ B|)``: 1 for equal ones, unchanged by orthogonal maps, one scale
    and translations. Of independent ones it is about d / (d + n), not 0; with ``unbiased`` it is about 0, and may be negative.

    Args:
        a: (n, d).
        b: (n, e); e may differ from d.
        unbiased: HSIC by Song et al. (2012), equation 5, in place of the biased one.

    Returns:
        NaN where it is not defined: a representation is constant or not finite, or n < 2 (unbiased: n < 4).

    Raises:
        ConfigError: If these are no matrices of numbers with as many rows.
    """
    first, second = map(_as_tensor, (a, b))
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ConfigError(f"cka compares (n, d) with (n, e), got {tuple(first.shape)} and {tuple(second.shape)}")
    return float(gram_cka(gram(first), gram(second.to(first.device)), unbiased))


def gram(rows: Tensor) -> Tensor:
    """Inner products (n, n) in float64 of rows (n, d), centred by column; zeros where all rows are the same."""
    if not rows.is_floating_point():
        rows = rows.double()
    wide = rows.detach().double()
    centred = wide - wide.mean(0)
    rounding = 10 * min(torch.finfo(rows.dtype).eps, _COARSEST)
    return centred @ centred.T * (centred.norm() > rounding * wide.norm())


def gram_cka(first: Tensor, second: Tensor, unbiased: bool = False) -> Tensor:
    """CKA of Gram matrices (…, n, n), whose leading dimensions are broadcast; NaN where it is not defined."""
    n = first.shape[-1]
    if n < (4 if unbiased else 2):
        return torch.full(torch.broadcast_shapes(first.shape[:-2], second.shape[:-2]), torch.nan, dtype=torch.float64)
    centre = _u_centred if unbiased else _centred
    parts = [centre(matrix) for matrix in (first, second)]
    product = (parts[0] * parts[1]).sum((-2, -1))
    norms = []
    for part, raw in zip(parts, (first, second), strict=True):
        norm = part.square().sum((-2, -1)).sqrt()
        norms.append(norm.where(norm > _RELATIVE_ZERO * raw.square().sum((-2, -1)).sqrt(), torch.nan))
    return product / (norms[0] * norms[1])


def _as_tensor(value: ArrayLike | Tensor) -> Tensor:
    try:
        return value if isinstance(value, Tensor) else torch.as_tensor(np.array(value))  # a copy: strides may be negative
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cka compares matrices of numbers, got a {type(value).__name__}: {error}") from error


def _centred(matrix: Tensor) -> Tensor:
    """H K H for H = 1 - 1/n."""
    rows = matrix - matrix.mean(-1, keepdim=True)
    return rows - rows.mean(-2, keepdim=True)


def _u_centred(matrix: Tensor) -> Tensor:
    """The matrix whose inner products, over n (n - 3), are the unbiased HSIC (Székely and Rizzo, 2014, definition 2)."""
    n = matrix.shape[-1]
    hollow = matrix - torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))
    rows, columns = (hollow.sum(dim, keepdim=True) / (n - 2) for dim in (-1, -2))
    centred = hollow - rows - columns + hollow.sum((-2, -1), keepdim=True) / ((n - 1) * (n - 2))
    return centred - torch.diag_embed(centred.diagonal(dim1=-2, dim2=-1))
