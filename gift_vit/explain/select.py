"""Which clusters to show: those whose maps change with the image and are coherent, and that differ from each other."""

import torch
from torch import Tensor


def telling_clusters(raw: Tensor, count: int = 6) -> list[int]:
    """The most telling clusters of one layer, best first.

    Every map is centred and scaled over its positions. How telling a cluster is, 0..1, is the product of

    - *content*: the share of its variance that differs between images. A cluster that always lights up the same corner has
      none. A single image cannot show this, and the share counts as 1.
    - *coherence*: the correlation of neighbouring patches, or 0 if that is negative. Noise has none, an object's outline much.

    The first choice is the most telling cluster. For each further choice this is multiplied by one minus the largest absolute
    correlation with the maps chosen so far, so that neither a copy nor a negative, which shows the same, comes twice.

    Args:
        raw: (B, K, h, w), the maps of B images before any normalisation.
        count: How many; all of them if there are fewer.
    """
    maps = standardise_maps(raw.double())
    content = maps - maps.mean(0) if len(maps) > 1 else maps
    variance = content.square().mean((0, 2, 3))
    telling = variance * _coherence(content).clamp(min=0)
    flat = maps.transpose(0, 1).flatten(1)
    similarity = (flat @ flat.T / flat.shape[1]).abs()
    chosen: list[int] = []
    while len(chosen) < min(count, len(telling)):
        novelty = 1 - similarity[chosen].amax(0) if chosen else torch.ones_like(telling)
        worth = telling * novelty.clamp(min=0)
        worth[chosen] = -1
        chosen.append(int(worth.argmax()))
    return chosen


def standardise_maps(raw: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the positions of each map; a constant map is 0."""
    centred = raw - raw.mean((2, 3), keepdim=True)
    spread = centred.square().mean((2, 3), keepdim=True).sqrt()
    rounding = 1e-6 * raw.abs().amax((2, 3), keepdim=True)
    return torch.where(spread > rounding, centred / spread, 0)


def _coherence(maps: Tensor) -> Tensor:
    """Correlation of horizontally and vertically neighbouring patches, over all images, (K,); of constant maps 0."""
    pairs = [(maps[..., 1:, :], maps[..., :-1, :]), (maps[..., 1:], maps[..., :-1])]
    products, squares = torch.zeros(maps.shape[1]).to(maps), torch.zeros(maps.shape[1]).to(maps)
    for first, second in pairs:
        products += (first * second).sum((0, 2, 3))
        squares += (first.square() + second.square()).sum((0, 2, 3)) / 2
    return torch.where(squares > 0, products / squares, 0)
