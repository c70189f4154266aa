"""What matrices of STIR say: retained, forgotten, moved, compressed. The names and formulas are ours, not those of the paper.

``stir`` (…, L, L) is STIR(other, j | reference, i): rows are layers that were inverted, columns those that are evaluated.
``within`` is the same with the reference in the other's place. Layers are blocks, shallow first, and last the pooled vector,
which is in no mean. A value is NaN where it is not defined.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gift_vit.invariance.config import LEAST_IMAGES
from gift_vit.invariance.similarity import gram_cka
from gift_vit.results.render import decimal_text

DRAWS = 1000
THIRDS = ("all", "shallow", "middle", "deep")


@dataclass(frozen=True)
class GramPair:
    """Inner products of a model's L layers: of n images (L, n, n), and of the inversions of R layers (R, L, n, n)."""

    original: Tensor
    inverted: Tensor

    def stir(self, unbiased: bool, rows: Tensor | None = None) -> Tensor:
        """(R, L) in float64; of the images ``rows`` alone, if they are given."""
        first, second = (self.original, self.inverted) if rows is None else map(_of(rows), (self.original, self.inverted))
        return gram_cka(first, second, unbiased)

    def permuted(self, unbiased: bool) -> Tensor:
        """As :meth:`stir`, each image beside the inversion of another, by lot: what independent images give.

        Not of the next one: many a split is sorted by class.
        """
        ring = torch.randperm(self.original.shape[-1], generator=torch.Generator().manual_seed(0))
        others = ring.roll(1)[ring.argsort()]
        return gram_cka(self.original, _of(others)(self.inverted), unbiased)


def layer_measures(stir: Tensor, within: Tensor, floor: Tensor, blocks: Sequence[int] | None = None) -> dict[str, Tensor]:
    """One value for each layer i of the reference, blocks only, (L - 1).

    With ``rel = stir - within``: ``retained = stir_ii``, ``retained_any = max_j stir_ij``, ``forgotten = 1 - retained_any``,
    ``moved = retained_any - retained``, ``compression = mean_{j<i} rel_ij``, ``expansion = mean_{j>i} rel_ij``,
    ``shift = i - argmax_j stir_ij``, and ``centroid``, the mean j weighted by what of ``stir`` is above ``floor``. i and j are
    the numbers of the blocks, also where ``blocks`` are not all of the model's.
    """
    stir, within, floor = (matrix[:-1, :-1] for matrix in (stir, within, floor))
    weights = (stir - floor).clamp_min(0)
    places = _places(stir, blocks)
    values = _by_layer(stir, within, places)
    return values | {"centroid": (weights * places).nansum(1) / weights.nansum(1)}


def mean_measures(
    stir: Tensor, within: Tensor, blocks: Sequence[int] | None = None, depth: int | None = None
) -> dict[str, dict[str, Tensor]]:
    """Means (…) over all blocks and over thirds of the depth, by third and measure; see :func:`layer_measures`.

    Of compression and expansion it is the mean over all pairs of layers.

    Args:
        stir: See the module.
        within: See the module.
        blocks: The numbers of the blocks that were looked at, ascending; None: all.
        depth: How many the model has; None: as many as were looked at.
    """
    stir, within = stir[..., :-1, :-1], within[..., :-1, :-1]
    places = _places(stir, blocks)
    whole = torch.arange(depth or len(places), dtype=places.dtype)
    found = {}
    for third, members in zip(THIRDS, (whole, *whole.tensor_split(3)), strict=True):
        own = torch.isin(places, members).nonzero().flatten()
        chosen = {name: values[..., own].nanmean(-1) for name, values in _by_layer(stir, within, places).items()}
        rel = stir - within
        for name, below in _SIDES.items():
            pairs = below(places[None], places[own, None])
            chosen[name] = rel[..., own, :].where(pairs, torch.nan).flatten(-2).nanmean(-1)
        found[third] = chosen
    return found


def measure_intervals(
    given: GramPair,
    within: GramPair,
    unbiased: bool,
    draws: int = DRAWS,
    blocks: Sequence[int] | None = None,
    depth: int | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """:func:`mean_measures` with intervals of 95 %: ``mean``, ``low`` and ``high`` by third and measure.

    From ``draws`` halves of the images, drawn without replacement: of half the images a mean varies as far around its own value
    as one of all does around the truth. The bias of few images is taken out: an interval stands around the mean of all images.
    It is NaN where half of the images are too few for the unbiased estimator.
    """
    count = given.original.shape[-1]
    means = mean_measures(given.stir(unbiased), within.stir(unbiased), blocks, depth)
    drawn = None
    if chosen := halves(count, draws):
        stir, own = (torch.stack([pair.stir(unbiased, rows) for rows in chosen]) for pair in (given, within))
        drawn = mean_measures(stir, own, blocks, depth)
    return {
        third: {name: interval_of_halves(mean, None if drawn is None else drawn[third][name]) for name, mean in values.items()}
        for third, values in means.items()
    }


def halves(count: int, draws: int) -> list[Tensor]:
    """Indices of ``draws`` halves of ``count`` images, without replacement; none if the unbiased estimator needs more."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randperm(count, generator=generator)[: count // 2] for _ in range(draws if count // 2 >= LEAST_IMAGES else 0)]


def interval_of_halves(mean: Tensor, drawn: Tensor | None) -> dict[str, float]:
    """``mean``, and ``low`` and ``high`` of 95 % around it from its values on halves of the images; NaN without them."""
    around = torch.full((1,), torch.nan) if drawn is None else drawn
    low, high = (torch.nanquantile(around, share) - around.nanmean() for share in (0.025, 0.975))
    return {"mean": float(mean), "low": float(mean + low), "high": float(mean + high)}


def number(value: float) -> str:
    """A measure as a person reads it; a dash where it is not defined."""
    return "–" if math.isnan(value) else decimal_text(value, 3)


_SIDES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"compression": torch.lt, "expansion": torch.gt}


def _places(stir: Tensor, blocks: Sequence[int] | None) -> Tensor:
    return torch.tensor(range(stir.shape[-1]) if blocks is None else blocks, dtype=stir.dtype)


def _by_layer(stir: Tensor, within: Tensor, places: Tensor) -> dict[str, Tensor]:
    defined = ~stir.isnan().all(-1)
    ranked = stir.nan_to_num(nan=-torch.inf)
    retained, retained_any = stir.diagonal(dim1=-2, dim2=-1), ranked.amax(-1).where(defined, torch.nan)
    values = {
        "retained": retained,
        "retained_any": retained_any,
        "forgotten": 1 - retained_any,
        "moved": retained_any - retained,
        "shift": (places - places[ranked.argmax(-1)]).where(defined, torch.nan),
    }
    for name, below in _SIDES.items():
        values[name] = (stir - within).where(below(places[None], places[:, None]), torch.nan).nanmean(-1)
    return values


def _of(rows: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda grams: grams[..., rows[:, None], rows]
