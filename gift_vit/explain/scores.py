"""How well maps agree with a mask of the object: pointing game, energy inside, intersection over union.

All are 0..1 and larger is better. Clusters are many and their signs are not determined by training, so one is chosen on
validation images and reported on others: :func:`report_best`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor

from gift_vit.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Scores = TypeVar("Scores", bound="DataclassInstance")

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
_RESAMPLES = 2000
_LEVEL = 0.95


@dataclass(frozen=True)
class MapScores:
    """Scores of N images for C candidate maps each.

    Attributes:
        pointing: (N, C), the pointing game (Zhang et al., arXiv 1608.00507): 1 where the map's largest value lies in the mask;
            of several equal ones the part that does.
        energy: (N, C), the energy-based pointing game (Wang et al., arXiv 1910.01279): the part of the normalised map's sum
            that lies in the mask.
        iou: (N, C, T), intersection over union of mask and map above each of ``THRESHOLDS``.
    """

    pointing: Tensor
    energy: Tensor
    iou: Tensor

    def __len__(self) -> int:
        return len(self.pointing)


@dataclass(frozen=True)
class Estimate:
    """A mean over images and its bootstrap interval of 95 %, which a single image does not have."""

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.low is None else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class BestCandidate:
    """One score of the candidate that was best on validation images, on other images.

    Attributes:
        score: ``pointing``, ``energy``, ``iou`` (at the threshold that was best on validation images) or ``iou_best`` (of the
            same candidate at the threshold that is best on the reported images themselves: an upper bound).
        candidate: Its name.
        threshold: Of ``iou`` and ``iou_best``.
        estimate: On the reported images.
    """

    score: str
    candidate: str
    threshold: float | None
    estimate: Estimate

    def row(self) -> dict[str, object]:
        """The same as a flat mapping."""
        return {"score": self.score, "candidate": self.candidate, "threshold": self.threshold, **asdict(self.estimate)}


def score_maps(normalised: Tensor, masks: Tensor) -> MapScores:
    """Score maps against masks.

    Args:
        normalised: (N, C, H, W) in 0..1, as :func:`gift_vit.explain.maps.normalise_maps` gives them; a constant map is zero,
            points nowhere, and scores 0.
        masks: (N, H, W), boolean, each with at least one pixel.

    Raises:
        ConfigError: If the shapes differ or a mask is empty.
    """
    if normalised.ndim != 4 or masks.shape != (len(normalised), *normalised.shape[2:]):
        raise ConfigError(f"maps (N, C, H, W) and masks (N, H, W) do not fit: {tuple(normalised.shape)}, {tuple(masks.shape)}")
    inside = masks.flatten(1).unsqueeze(1)  # (N, 1, P)
    if not inside.any(-1).all():
        raise ConfigError("a mask is empty: leave out images whose object is not in the picture")
    maps = normalised.flatten(2)
    total = maps.sum(-1)
    energy = torch.where(total > 0, (maps * inside).sum(-1) / total, 0)
    iou = torch.stack([_iou(maps > threshold, inside) for threshold in THRESHOLDS], -1)
    return MapScores(pointing_game(normalised, masks.unsqueeze(1))[..., 0], energy, iou)


def pointing_game(normalised: Tensor, regions: Tensor) -> Tensor:
    """1 where a map's largest value lies in a region; of several equal ones the part that does; 0 for a constant map.

    Args:
        normalised: (N, C, H, W), as for :func:`score_maps`.
        regions: (N, R, H, W), boolean.

    Returns:
        (N, C, R).
    """
    maps = normalised.flatten(2)
    highest = maps.amax(-1, keepdim=True)
    largest = ((maps == highest) & (highest > 0)).to(maps.dtype)
    return largest @ regions.flatten(2).to(maps.dtype).mT / largest.sum(-1, keepdim=True).clamp(min=1)


def join_scores(parts: Sequence[Scores], dim: int = 0) -> Scores:
    """Scores of several batches as those of one; with ``dim=1`` those of several candidates for the same images."""
    names = [field.name for field in fields(parts[0])]
    return type(parts[0])(*(torch.cat([getattr(part, name) for part in parts], dim) for name in names))


def report_best(val: MapScores, test: MapScores, names: Sequence[str]) -> list[BestCandidate]:
    """For each score the candidate (and threshold) with the best mean on ``val``, and its mean on ``test``.

    Args:
        val: Scores that choose.
        test: Scores that are reported, of other images and the same C candidates.
        names: Of the C candidates.
    """
    rows = []
    for score in ("pointing", "energy"):
        best = int(getattr(val, score).mean(0).argmax())
        rows.append(BestCandidate(score, names[best], None, estimate_mean(getattr(test, score)[:, best])))
    best, threshold = divmod(int(val.iou.mean(0).argmax()), len(THRESHOLDS))
    rows.append(BestCandidate("iou", names[best], THRESHOLDS[threshold], estimate_mean(test.iou[:, best, threshold])))
    highest = int(test.iou[:, best].mean(0).argmax())
    rows.append(BestCandidate("iou_best", names[best], THRESHOLDS[highest], estimate_mean(test.iou[:, best, highest])))
    return rows


def estimate_mean(values: Tensor) -> Estimate:
    """The mean of one value per image, and the percentile bootstrap interval over images; equal inputs give equal intervals."""
    numbers = values.double().cpu().numpy()
    if len(numbers) < 2:
        return Estimate(float(numbers.mean()), None, None)
    interval = bootstrap(
        (numbers,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=100,
        confidence_level=_LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(float(numbers.mean()), float(interval.low), float(interval.high))


def _iou(predicted: Tensor, inside: Tensor) -> Tensor:
    """(N, C) for predictions (N, C, P) and masks (N, 1, P)."""
    return (predicted & inside).sum(-1) / (predicted | inside).sum(-1)
