"""How well maps agree with a mask of the object: pointing game, energy inside, intersection over union.

All are 0..1, and larger is better. There are many clusters, and training does not determine their signs. So one candidate is
chosen on validation images and reported on others: :func:`report_best`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from gift_vit.common.errors import ConfigError
from gift_vit.explain.scoring.estimates import Estimate, estimate_mean

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True)
class MaskScores:
    """Scores of N images for C candidate maps each.

    Attributes:
        pointing: (N, C), the pointing game (Zhang et al., arXiv 1608.00507): 1 where the map's largest value lies in the mask;
            of several equal maxima the share that does.
        energy: (N, C), the energy-based pointing game (Wang et al., arXiv 1910.01279): the share of the normalised map's sum
            that lies in the mask.
        iou: (N, C, T), intersection over union of mask and map above each of ``THRESHOLDS``.
    """

    pointing: Tensor
    energy: Tensor
    iou: Tensor

    def __len__(self) -> int:
        return len(self.pointing)

    def means(self) -> tuple[Tensor, ...]:
        """Over the images, of pointing, energy and IoU at its best threshold, each (C,)."""
        return self.pointing.mean(0), self.energy.mean(0), self.iou.mean(0).amax(-1)


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


def score_masks(normalised: Tensor, masks: Tensor) -> MaskScores:
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
    return MaskScores(pointing_game(normalised, masks.unsqueeze(1))[..., 0], energy, iou)


def pointing_game(normalised: Tensor, regions: Tensor) -> Tensor:
    """1 where a map's largest value lies in a region; of several equal maxima the share that does; 0 for a constant map.

    Args:
        normalised: (N, C, H, W), as for :func:`score_masks`.
        regions: (N, R, H, W), boolean.

    Returns:
        (N, C, R).
    """
    maps = normalised.flatten(2)
    highest = maps.amax(-1, keepdim=True)
    largest = ((maps == highest) & (highest > 0)).to(maps.dtype)
    return largest @ regions.flatten(2).to(maps.dtype).mT / largest.sum(-1, keepdim=True).clamp(min=1)


def report_best(val: MaskScores, test: MaskScores, names: Sequence[str]) -> list[BestCandidate]:
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


def _iou(predicted: Tensor, inside: Tensor) -> Tensor:
    """(N, C) for predictions (N, C, P) and masks (N, 1, P)."""
    return (predicted & inside).sum(-1) / (predicted | inside).sum(-1)
