"""The bilinear resize of TensorFlow 1, with which VTAB-1k's published numbers were made, bit for bit.

``tf.compat.v1.image.resize``: no half-pixel centres, no antialiasing. Output sample ``i`` of an axis lies at
``pos = i · float32(n_in / n_out)``, between the input samples ``floor(pos)`` and ``min(floor(pos) + 1, n_in - 1)``. First along
the rows, then across them, all in float32 and in this order of operations. torch, torchvision and Pillow have no such kernel.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def tf1_bilinear(pixels: NDArray[np.uint8], size: int) -> Tensor:
    """Resize pixels (h, w, C), whatever their aspect ratio, to (C, size, size) float32, not rounded, in the same range."""
    (above, below, down), (left, right, along) = (_samples(side, size) for side in pixels.shape[:2])
    # the rows that are needed, each once: an image larger than the output has others too, a smaller one needs each many times
    needed, where = torch.unique(torch.cat([above, below]), return_inverse=True)
    rows = torch.from_numpy(pixels).index_select(0, needed)
    start, end = rows.index_select(1, left).float(), rows.index_select(1, right).float()
    across = start.add_(end.sub_(start).mul_(along[:, None]))
    top, bottom = across.index_select(0, where[:size]), across.index_select(0, where[size:])
    return top.add_(bottom.sub_(top).mul_(down[:, None, None])).permute(2, 0, 1)


@lru_cache(maxsize=64)
def _samples(n_in: int, n_out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each output sample: the input samples before and after it, and the weight of the latter."""
    position = torch.arange(n_out, dtype=torch.float32) * torch.tensor(n_in / n_out, dtype=torch.float32)
    before = position.floor().long()
    return before, (before + 1).clamp(max=n_in - 1), position - before
