"""Where an object's parts are, and whether a map's peak hits one: read from ``parts.parquet``, as ``data_prep.fgvc`` writes it.

Its columns are ``path``, ``part`` (a name), ``x``, ``y`` in pixels of the file, and ``visible``. A peak hits a part
by the rule of PCK (Yang and Ramanan, Articulated Human Detection with Flexible Mixtures of Parts, TPAMI 2013): it is at most
α · max(height, width) of the object's bounding box away, in pixels of the file; α = 0.1 is usual on CUB. A peak lies at the
centre of a patch, so where the box is only a few patches wide, no map may hit a part between two patches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gift_vit.data.transforms import Box, ImageTransform
from gift_vit.explain.scoring.boxes import read_boxes
from gift_vit.explain.scoring.estimates import Estimate, estimate_mean
from gift_vit.explain.scoring.masks import pointing_game
from gift_vit.explain.scoring.scenes import Truth, read_table

COLUMNS = ("path", "part", "x", "y", "visible")
Points = Mapping[str, tuple[float, float]]
"""Where the visible parts are, by name."""


@dataclass(frozen=True)
class PartScores:
    """Scores of N images for C candidate maps and P parts each.

    Attributes:
        hits: (N, C, P), 1 where the map's largest value hits the part; of several equal maxima the share that does. NaN where
            the part is not in the picture.
        nearest: (N, C, P), the same, but 0 unless no other part is nearer to it.
    """

    hits: Tensor
    nearest: Tensor

    def __len__(self) -> int:
        return len(self.hits)

    def means(self) -> tuple[Tensor, ...]:
        """Hits of each part over the images that show it, P of (C,)."""
        return self.hits.nanmean(0).unbind(-1)


@dataclass(frozen=True)
class BestForPart:
    """How well the candidate that hits a part most often on validation images does on other images.

    Attributes:
        part: Its name.
        candidate: Its name.
        images: How many of the reported images show the part.
        hit: Over these images.
        exclusivity: Of the images in which the candidate hits any part, the share where this is the nearest; 0 if it hits none.
    """

    part: str
    candidate: str
    images: int
    hit: Estimate
    exclusivity: Estimate


def part_truth(folder: Path, alpha: float) -> Truth:
    """The parts in a folder's ``parts.parquet``; its ``boxes.parquet`` gives the scale.

    Args:
        folder: Where the files are.
        alpha: How near a hit is, as a share of the box's longer side; above 0.

    Raises:
        ConfigError: If a file is not there or no such table.
    """
    points: dict[str, dict[str, tuple[float, float]]] = {}
    names: dict[str, None] = {}
    for path, part, x, y, visible in read_table(folder / "parts.parquet", COLUMNS, "parts"):
        names[part] = None
        if visible:
            points.setdefault(path, {})[part] = (x, y)
    boxes = read_boxes(folder / "boxes.parquet")

    def place(path: str, image: Image.Image, transform: ImageTransform) -> Tensor | None:
        radius = alpha * max(side for box in boxes[path] for side in box[2:])
        placed = place_parts(points[path], list(names), radius, image.size, transform)
        return None if placed.isnan().all() else placed

    return Truth("parts", lambda path: path in points and path in boxes, place, tuple(names))


def place_parts(
    points: Points, names: Sequence[str], radius: float, size: tuple[int, int], transform: ImageTransform
) -> Tensor:
    """Parts in the pixels of what the model sees, (P, 4): x, y and the radii along x and y; NaN for what is not in the picture.

    Args:
        points: In pixels of the file.
        names: Of the P parts.
        radius: In pixels of the file.
        size: Width and height of the file.
        transform: Of evaluation; it may stretch the picture, so that a circle becomes an ellipse.
    """
    placed = torch.full((len(names), 4), torch.nan)
    for index, name in enumerate(names):
        if name in points:
            box: Box = (*points[name], radius, radius)
            row = torch.tensor(transform.place_box(box, *size))
            if bool(((row[:2] >= 0) & (row[:2] < transform.size)).all()):
                placed[index] = row
    return placed


def score_parts(normalised: Tensor, parts: Tensor) -> PartScores:
    """Score maps against parts.

    Args:
        normalised: (N, C, H, W) in 0..1, see :func:`gift_vit.explain.scoring.masks.score_masks`; a constant one hits nothing.
        parts: (N, P, 4), as :func:`place_parts` gives them.
    """
    rows, columns = (torch.arange(side, device=parts.device) + 0.5 for side in normalised.shape[2:])
    x, y, radius_x, radius_y = (value[..., None, None] for value in parts.unbind(-1))
    distance = ((columns - x) / radius_x).square() + ((rows[:, None] - y) / radius_y).square()
    distance = distance.nan_to_num(torch.inf)  # (N, P, H, W) in squared radii
    inside = distance <= 1
    hits, nearest = (pointing_game(normalised, own) for own in (inside, inside & (distance == distance.amin(1, keepdim=True))))
    return PartScores(hits.masked_fill(parts[:, None, :, 0].isnan(), torch.nan), nearest)


def report_parts(val: PartScores, test: PartScores, parts: Sequence[str], names: Sequence[str]) -> list[BestForPart]:
    """For each part the candidate with the most hits on ``val``, and its scores on ``test``.

    A part that no image of either shows is left out.

    Args:
        val: Scores that choose.
        test: Scores that are reported, of other images and the same C candidates.
        parts: Names of the P parts.
        names: Of the C candidates.
    """
    rows = []
    for index, part in enumerate(parts):
        chosen, hits = (_seen(scores.hits[..., index]) for scores in (val, test))
        if len(chosen) and len(hits):
            best = int(chosen.mean(0).argmax())
            own = exclusivity(test.nearest[:, best], index)
            rows.append(BestForPart(part, names[best], len(hits), estimate_mean(hits[:, best]), estimate_mean(own)))
    return rows


def exclusivity(nearest: Tensor, part: int) -> Tensor:
    """The share of one candidate's hits (N, P) that fall to a part, per image in which it hits any; one 0 if there is none."""
    total = nearest.sum(-1)
    return nearest[total > 0, part] / total[total > 0] if total.any() else torch.zeros(1).to(nearest)


def _seen(hits: Tensor) -> Tensor:
    """Of one part's hits (N, C) those in images that show it."""
    return hits[~hits[:, 0].isnan()]
