"""What is written and printed about scores: the candidates that val chose, on test, and the means of all of them."""

import csv
import io
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass

from torch import Tensor

from gift_vit.explain.localisation import CLUSTERS
from gift_vit.explain.parts import PartScores, report_parts
from gift_vit.explain.scores import MapScores, report_best

SPLITS = ("val", "test")


@dataclass(frozen=True)
class Report:
    """Rows about the chosen candidates, what to print of them, the means of every candidate as CSV, and images per split."""

    rows: list[dict[str, object]]
    lines: list[str]
    candidates: str
    images: dict[str, int]


def mask_report(scores: Mapping[str, Mapping[str, MapScores]], names: Mapping[str, Sequence[str]]) -> Report:
    """The report on maps against masks.

    Args:
        scores: By split (``val`` and ``test``) and by what makes the maps.
        names: Of the candidates, by what makes the maps.
    """
    rows, lines = [], []
    for maker, own in names.items():
        for best in report_best(scores["val"][maker], scores["test"][maker], own):
            rows.append({"maps": maker, **best.row()})
            lines.append(f"{maker:>14}  {best.score:8}  {best.estimate}  {best.candidate}")
    means = {
        maker: [
            column
            for split in SPLITS
            for column in (
                scores[split][maker].pointing.mean(0),
                scores[split][maker].energy.mean(0),
                scores[split][maker].iou.mean(0).amax(-1),
            )
        ]
        for maker in names
    }
    return Report(rows, lines, _table(("pointing", "energy", "iou"), names, means), _images(scores))


def part_report(
    scores: Mapping[str, Mapping[str, PartScores]], names: Mapping[str, Sequence[str]], parts: Sequence[str]
) -> Report:
    """The report on maps against parts, of which the names are given; the rest as for :func:`mask_report`."""
    rows, lines = [], []
    for maker, own in names.items():
        found = report_parts(scores["val"][maker], scores["test"][maker], parts, own)
        rows += [{"maps": maker, **best.row()} for best in found]
        if maker == CLUSTERS:
            lines += [f"{best.part:>14}  hit {best.hit}  exclusivity {best.exclusivity}  {best.candidate}" for best in found]
        mean = sum(best.hit.mean for best in found) / max(len(found), 1)
        lines.append(f"{maker:>14}  hit {mean:.3f}, mean over {len(found)} parts, each with its best candidate")
    means = {
        maker: [column for split in SPLITS for column in scores[split][maker].hits.nanmean(0).unbind(-1)] for maker in names
    }
    return Report(rows, lines, _table([f"{part} hit" for part in parts], names, means), _images(scores))


def _images(scores: Mapping[str, Mapping[str, Sized]]) -> dict[str, int]:
    return {split: len(own[CLUSTERS]) for split, own in scores.items()}


def _table(columns: Sequence[str], names: Mapping[str, Sequence[str]], means: Mapping[str, Sequence[Tensor]]) -> str:
    """Every candidate's mean of each score, split by split, as CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["maps", "candidate", *(f"{split}_{column}" for split in SPLITS for column in columns)])
    for maker, own in names.items():
        numbers = [[round(value, 6) for value in column.tolist()] for column in means[maker]]
        table.writerows(zip([maker] * len(own), own, *numbers, strict=True))
    return text.getvalue()
