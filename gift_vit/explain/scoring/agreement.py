"""How a run's maps agree with annotations: the candidates that val chose, on test, and the means of all of them."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded, write_json, write_text
from gift_vit.data.config import DatasetConfig
from gift_vit.explain.config import ScoreArguments
from gift_vit.explain.explainer import build_explainer
from gift_vit.explain.scoring.boxes import box_truth
from gift_vit.explain.scoring.localisation import CLUSTERS, candidate_names, score_scenes
from gift_vit.explain.scoring.masks import MaskScores, report_best, score_masks
from gift_vit.explain.scoring.object_parts import PartScores, part_truth, report_parts, score_parts
from gift_vit.explain.scoring.scenes import Truth, read_scenes
from gift_vit.explain.scoring.segmentations import segmentation_truth
from gift_vit.runs.run import Run

SPLITS = ("val", "test")
Named = Mapping[str, Sequence[str]]
"""The names of the candidates, by what makes the maps."""


@dataclass(frozen=True)
class Report:
    """Rows about the chosen candidates, what to print of them, the means of every candidate as CSV, and images per split."""

    rows: list[dict[str, object]]
    lines: list[str]
    candidates: str
    images: dict[str, int]


def score_run(run: Run, arguments: ScoreArguments) -> None:
    """Score the maps of val and test, write and print the report."""
    truth = _truth(arguments, run.config.dataset)
    explainer, data, response = build_explainer(run, arguments), run.data(), arguments.response
    names = candidate_names(explainer)
    score = score_parts if truth.parts else score_masks
    scores: Any = {
        split: score_scenes(
            explainer, islice(read_scenes(data, split, truth, explainer.transform), arguments.count), score, response
        )
        for split in SPLITS
    }
    report = part_report(scores, names, truth.parts) if truth.parts else mask_report(scores, names)
    setting = {"segmentations": ["mask_threshold"], "parts": ["alpha"]}.get(arguments.truth, [])
    facts = {"run": run.config.run_name, "dataset": data.name, "truth": arguments.truth}
    facts |= {name: getattr(arguments, name) for name in setting}
    facts |= {"basis": arguments.basis, "response": response, "images": report.images, "scores": report.rows}
    suffix = "" if arguments.truth == "boxes" else f"_{arguments.truth}"
    file = arguments.folder / f"scores{suffix}.json"
    write_json(file, facts)
    write_text(arguments.folder / f"candidates{suffix}.csv", report.candidates)
    print("\n".join(report.lines))
    print("chosen on {val} images of val, reported on {test} of test; wrote {file}".format(**report.images, file=file))


def mask_report(scores: Mapping[str, Mapping[str, MaskScores]], names: Named) -> Report:
    """The report on maps against masks.

    Args:
        scores: By split (``val`` and ``test``) and by what makes the maps.
        names: Of the candidates.
    """
    rows, lines = [], []
    for maker, own in names.items():
        for best in report_best(scores["val"][maker], scores["test"][maker], own):
            rows.append({"maps": maker, **best.row()})
            lines.append(f"{maker:>14}  {best.score:8}  {best.estimate}  {best.candidate}")
    return _report(rows, lines, ("pointing", "energy", "iou"), scores, names)


def part_report(scores: Mapping[str, Mapping[str, PartScores]], names: Named, parts: Sequence[str]) -> Report:
    """The report on maps against parts, of which the names are given; the rest as for :func:`mask_report`."""
    rows, lines = [], []
    for maker, own in names.items():
        found = report_parts(scores["val"][maker], scores["test"][maker], parts, own)
        rows += [{"maps": maker, **asdict(best)} for best in found]
        if maker == CLUSTERS:
            lines += [f"{best.part:>14}  hit {best.hit}  exclusivity {best.exclusivity}  {best.candidate}" for best in found]
        mean = sum(best.hit.mean for best in found) / max(len(found), 1)
        lines.append(f"{maker:>14}  hit {mean:.3f}, mean over {len(found)} parts, each with its best candidate")
    return _report(rows, lines, [f"{part} hit" for part in parts], scores, names)


def _truth(arguments: ScoreArguments, dataset: DatasetConfig) -> Truth:
    """The annotations that are asked for."""
    where = arguments.annotations or getattr(dataset, "root", None)
    if where is None:
        raise ConfigError(f"there are no {arguments.truth} for dataset {dataset.name}: its images are no files with a path")
    folder = expanded(where)
    if arguments.truth == "parts":
        return part_truth(folder, arguments.alpha)
    return segmentation_truth(folder, arguments.mask_threshold) if arguments.truth == "segmentations" else box_truth(folder)


def _report(
    rows: list[dict[str, object]],
    lines: list[str],
    columns: Sequence[str],
    scores: Mapping[str, Mapping[str, MaskScores | PartScores]],
    names: Named,
) -> Report:
    """The report with every candidate's mean of each score, split by split, as CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["maps", "candidate", *(f"{split}_{column}" for split in SPLITS for column in columns)])
    for maker, own in names.items():
        means = [mean.tolist() for split in SPLITS for mean in scores[split][maker].means()]
        numbers = [[round(value, 6) for value in mean] for mean in means]
        table.writerows(zip([maker] * len(own), own, *numbers, strict=True))
    return Report(rows, lines, text.getvalue(), {split: len(own[CLUSTERS]) for split, own in scores.items()})
