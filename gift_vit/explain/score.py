"""Score a finished run's cluster maps against bounding boxes, segmentations or parts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from gift_vit import cli
from gift_vit.explain import __main__ as show

if TYPE_CHECKING:
    from gift_vit.config import RunConfig
    from gift_vit.explain.inputs import Explainer
    from gift_vit.explain.maps import Response
    from gift_vit.explain.reports import Report
    from gift_vit.explain.scenes import Scene, Truth

TRUTHS = ("boxes", "segmentations", "parts")
USAGE = """
Score a finished run's GIFT maps, and baselines, against what is known of the objects in the images.

    python -m gift_vit.explain.score run=<folder> [truth=boxes|segmentations|parts]

    run             the run's folder, of a dataset of image files; of the final phase
    truth           boxes or segmentations: pointing game, energy inside, intersection over union;
                    parts: how often the best cluster for each part hits it, and how often another one (default: boxes)
    annotations     the folder that holds boxes.parquet, segmentations/ or parts.parquet (default: the dataset's root, where
                    python -m data_prep.fgvc writes them)
    mask_threshold  segmentations: the part of the annotators that more must be for a pixel to be the object's (default: 0.5)
    alpha           parts: a hit is at most alpha * max(height, width) of the object's box away, as in PCK (default: 0.1)
    layers          blocks, such as [0,5,-1] (default: all that are adapted)
    targets         such as [attn.proj] (default: all that are adapted)
    basis           trained, canonical or assignment (default: trained)
    response        post or pre: after or before the update (default: post)
    count           how many images of each split, the first ones (default: all)
    out             the folder to write (default: explain/ in the run's folder)
    dataset_root    the dataset.root of now, if the data is not where it was during training
    device          auto, cpu, cuda, cuda:1 … (default: auto)
    batch_size      images per forward pass (default: 8)

Cluster, sign and threshold are chosen on val and reported on test. Writes scores.json (that, with bootstrap intervals) and
candidates.csv (the means of every candidate on both splits); segmentations and parts in files of their own.
"""


@dataclass
class Arguments:
    """Words of the command line."""

    run: str = MISSING
    truth: str = "boxes"
    annotations: str | None = None
    mask_threshold: float = 0.5
    alpha: float = 0.1
    layers: list[int] | None = None
    targets: list[str] | None = None
    basis: str = "trained"
    response: str = "post"
    count: int | None = None
    out: str | None = None
    dataset_root: str | None = None
    device: str = "auto"
    batch_size: int = 8


def score_run(arguments: Arguments) -> None:
    """Rebuild the run's data and model, score both splits, write and print the report."""
    from gift_vit.explain.maps import check_response
    from gift_vit.explain.scenes import read_scenes
    from gift_vit.files import write_json, write_text

    response, folder = check_response(arguments.response), Path(arguments.run)
    cfg = show.load_final_run(folder, arguments.dataset_root)
    explainer = show.build_explainer(show.model_words(arguments), cfg, folder)
    data = show.load_data(cfg, folder)
    names, truth = _truth(arguments, cfg)
    scenes = {split: islice(read_scenes(data, split, truth, explainer.transform), arguments.count) for split in ("val", "test")}
    report = _report(explainer, scenes, names, response)
    out = Path(arguments.out) if arguments.out else folder / "explain"
    suffix = "" if arguments.truth == "boxes" else f"_{arguments.truth}"
    facts = {"run": cfg.run_name, "dataset": data.name, "truth": arguments.truth, **_settings(arguments)}
    facts |= {"basis": arguments.basis, "response": response, "images": report.images}
    write_json(out / f"scores{suffix}.json", {**facts, "scores": report.rows})
    write_text(out / f"candidates{suffix}.csv", report.candidates)
    print("\n".join(report.lines))
    val, test = report.images["val"], report.images["test"]
    print(f"chosen on {val} images of val, reported on {test} of test; wrote {out / f'scores{suffix}.json'}")


def _truth(arguments: Arguments, cfg: "RunConfig") -> "tuple[list[str] | None, Truth]":
    """The names of the parts, None for masks, and the ground truth."""
    from gift_vit.errors import ConfigError
    from gift_vit.explain.boxes import box_truth
    from gift_vit.explain.parts import part_truth
    from gift_vit.explain.segmentations import segmentation_truth

    if arguments.truth not in TRUTHS:
        raise ConfigError(f"unknown truth {arguments.truth!r} (known: {', '.join(TRUTHS)})")
    where = arguments.annotations or getattr(cfg.dataset, "root", None)
    if where is None:
        raise ConfigError(f"there are no {arguments.truth} for dataset {cfg.dataset.name}: its images are no files with a path")
    folder = Path(where).expanduser()
    if arguments.truth == "parts":
        return part_truth(folder, arguments.alpha)
    if arguments.truth == "segmentations":
        return None, segmentation_truth(folder, arguments.mask_threshold)
    return None, box_truth(folder)


def _settings(arguments: Arguments) -> dict[str, float]:
    """What the scores depend on beside the annotations."""
    used = {"segmentations": ["mask_threshold"], "parts": ["alpha"]}.get(arguments.truth, [])
    return {name: getattr(arguments, name) for name in used}


def _report(
    explainer: "Explainer", scenes: "Mapping[str, Iterable[Scene]]", parts: list[str] | None, response: "Response"
) -> "Report":
    from gift_vit.explain.localisation import candidate_names, score_scenes
    from gift_vit.explain.parts import score_parts
    from gift_vit.explain.reports import mask_report, part_report
    from gift_vit.explain.scores import score_maps

    names = candidate_names(explainer)
    if parts is None:
        masked = {split: score_scenes(explainer, own, score_maps, response) for split, own in scenes.items()}
        return mask_report(masked, names)
    hits = {split: score_scenes(explainer, own, score_parts, response) for split, own in scenes.items()}
    return part_report(hits, names, parts)


def main() -> None:
    """Entry point."""
    cli.log_to_stderr()
    raise SystemExit(cli.run_command(lambda: score_run(cli.parse_arguments(Arguments, USAGE))))


if __name__ == "__main__":
    main()
