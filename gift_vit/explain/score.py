"""Score a finished run's cluster maps against bounding boxes."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from gift_vit import cli

if TYPE_CHECKING:
    from gift_vit.config import RunConfig
    from gift_vit.data import VisionDataset
    from gift_vit.explain.boxes import Scene
    from gift_vit.explain.inputs import Explainer
    from gift_vit.explain.scores import MapScores

USAGE = """
Score a finished run's GIFT maps, and baselines, against bounding boxes: pointing game, energy inside, intersection over union.

    python -m gift_vit.explain.score run=<folder> [boxes=<file>]

    run            the run's folder, of a dataset of image files; of the final phase
    boxes          a Parquet file with path, x, y, width, height (default: boxes.parquet in the dataset's root)
    layers         blocks, such as [0,5,-1] (default: all that are adapted)
    targets        such as [attn.proj] (default: all that are adapted)
    basis          trained, canonical or assignment (default: trained)
    response       post or pre: after or before the update (default: post)
    faithfulness   true: also insertion and deletion curves, of the cluster with the best overlap on val (default: false; takes
                   some hundred forward passes for a batch)
    count          how many images of each split, the first ones (default: all)
    out            the folder to write (default: explain/ in the run's folder)
    dataset_root   the dataset.root of now, if the data is not where it was during training
    device         auto, cpu, cuda, cuda:1 … (default: auto)
    batch_size     images per forward pass (default: 8)

Cluster, sign and threshold are chosen on val and reported on test. Writes scores.json (that, with bootstrap intervals) and
candidates.csv (the means of every candidate on both splits).
"""


@dataclass
class Arguments:
    """Words of the command line."""

    run: str = MISSING
    boxes: str | None = None
    layers: list[int] | None = None
    targets: list[str] | None = None
    basis: str = "trained"
    response: str = "post"
    faithfulness: bool = False
    count: int | None = None
    out: str | None = None
    dataset_root: str | None = None
    device: str = "auto"
    batch_size: int = 8


def score_run(arguments: Arguments) -> None:
    """Rebuild the run's data and model, score both splits, write and print the report."""
    from gift_vit.data import build_dataset
    from gift_vit.errors import ConfigError
    from gift_vit.explain.localisation import CLUSTERS, score_faithfulness, score_scenes
    from gift_vit.explain.maps import check_response
    from gift_vit.explain.scores import estimate_mean
    from gift_vit.run import load_run

    response = check_response(arguments.response)
    folder = Path(arguments.run)
    cfg = load_run(folder, arguments.dataset_root)
    if cfg.phase == "search":
        raise ConfigError(f"{folder} is a search run, and test is for the final phase; train it with phase=final")
    explainer = _build_explainer(arguments, cfg, folder)
    data = build_dataset(cfg.dataset)
    scenes = _scenes(arguments, cfg, data, explainer)
    scores = {split: score_scenes(explainer, own(), response) for split, own in scenes.items()}
    facts: dict[str, object] = {
        "run": cfg.run_name,
        "dataset": data.name,
        "basis": arguments.basis,
        "response": response,
    }
    if arguments.faithfulness:
        best = int(scores["val"][CLUSTERS].iou.mean(0).amax(-1).argmax())
        areas = score_faithfulness(explainer, scenes["test"](), best, response)
        facts["faithfulness"] = {
            maker: {curve: asdict(estimate_mean(values)) for curve, values in own.items()} for maker, own in areas.items()
        }
    out = Path(arguments.out) if arguments.out else folder / "explain"
    _write(out, scores, _names(explainer, scores["val"]), facts)


def _build_explainer(arguments: Arguments, cfg: "RunConfig", folder: Path) -> "Explainer":
    from gift_vit.explain import __main__ as show

    same = ("run", "layers", "targets", "basis", "device", "batch_size")
    return show.build_explainer(show.Arguments(**{name: getattr(arguments, name) for name in same}), cfg, folder)


def _scenes(
    arguments: Arguments, cfg: "RunConfig", data: "VisionDataset", explainer: "Explainer"
) -> "dict[str, Callable[[], Iterator[Scene]]]":
    """What reads the scenes of val and of test anew each time."""
    from gift_vit.errors import ConfigError
    from gift_vit.explain.boxes import read_boxes, read_scenes

    root = getattr(cfg.dataset, "root", None)
    if arguments.boxes is None and root is None:
        raise ConfigError(f"there are no boxes for dataset {data.name}: its images are no files with a path")
    boxes = read_boxes(Path(arguments.boxes or Path(str(root), "boxes.parquet")).expanduser())

    def read(split: str) -> "Iterator[Scene]":
        return islice(read_scenes(data, split, boxes, explainer.transform), arguments.count)

    return {split: partial(read, split) for split in ("val", "test")}


def _names(explainer: "Explainer", scores: "dict[str, MapScores]") -> dict[str, list[str]]:
    """The candidates' names by what makes the maps."""
    from gift_vit.explain.layers import find_layers
    from gift_vit.explain.localisation import candidate_names

    layers = [layer.name for layer in find_layers(explainer.model, explainer.choice)]
    names = {}
    for maker, own in scores.items():
        candidates = own.pointing.shape[1]
        clusters = range(candidates // (2 * len(layers)))
        names[maker] = [maker] if candidates == 1 else candidate_names(layers, clusters)
    return names


def _write(out: Path, scores: "dict[str, dict[str, MapScores]]", names: dict[str, list[str]], facts: dict[str, object]) -> None:
    import csv
    import io

    from gift_vit.explain.scores import report_best
    from gift_vit.files import write_json, write_text

    rows: list[dict[str, object]] = []
    for maker, own in names.items():
        best = report_best(scores["val"][maker], scores["test"][maker], own)
        rows += [{"maps": maker, **candidate.row()} for candidate in best]
    images = {split: len(next(iter(own.values()))) for split, own in scores.items()}
    write_json(out / "scores.json", {**facts, "images": images, "scores": rows})
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["maps", "candidate", *(f"{split}_{score}" for split in scores for score in ("pointing", "energy", "iou"))])
    for maker, own in names.items():
        table.writerows(zip([maker] * len(own), own, *_means(scores, maker), strict=True))
    write_text(out / "candidates.csv", text.getvalue())
    for row in rows:
        print("{maps:>14}  {score:8}  {mean:.3f} [{low:.3f}, {high:.3f}]  {candidate}".format(**row))
    print(f"chosen on {images['val']} images of val, reported on {images['test']} of test; wrote {out / 'scores.json'}")


def _means(scores: "dict[str, dict[str, MapScores]]", maker: str) -> list[list[float]]:
    """Mean pointing, energy and best IoU of every candidate, split by split."""
    columns = []
    for own in (split[maker] for split in scores.values()):
        columns += [own.pointing.mean(0), own.energy.mean(0), own.iou.mean(0).amax(-1)]
    return [[round(value, 6) for value in column.tolist()] for column in columns]


def main() -> None:
    """Entry point."""
    cli.log_to_stderr()
    raise SystemExit(cli.run_command(lambda: score_run(cli.parse_arguments(Arguments, USAGE))))


if __name__ == "__main__":
    main()
