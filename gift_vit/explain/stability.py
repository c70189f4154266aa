"""Measure how stable the cluster maps are across trainings that differ in their seed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from gift_vit import cli
from gift_vit.explain import __main__ as show

if TYPE_CHECKING:
    from torch import Tensor

    from gift_vit.config import RunConfig
    from gift_vit.data import VisionDataset
    from gift_vit.explain.inputs import Explainer
    from gift_vit.explain.layers import MapChoice

USAGE = """
Measure how alike the GIFT maps of several finished runs are: correlations of clusters, after alignments of four kinds.

    python -m gift_vit.explain.stability runs=[<folder>,<folder>,<folder>]

    runs           folders of finished runs of the final phase: one dataset, backbone and method; different seeds, say
    layers         blocks, such as [0,5,-1] (default: all that are adapted)
    targets        such as [attn.proj] (default: all that are adapted)
    response       post or pre: after or before the update (default: post)
    count          how many images of val and of test at most, evenly over the split (default: 500)
    out            the files to write, without their suffixes: .json and .md (default: outputs/stability)
    dataset_root   the dataset.root of now, if the data is not where it was during training
    device         auto, cpu, cuda, cuda:1 … (default: auto)
    batch_size     images per forward pass (default: 32)

Alignments are fitted on val and judged on test. The same is done with a random phi in place of the trained one: drawn for each
run anew it shows the level of chance, and one for all runs how alike the networks' tokens are. Prints the table.
"""
ALL = "all"
NOTES = (
    "Correlation over the patches of an image: mean over ordered pairs of runs, clusters and test images, with its bootstrap "
    "interval of 95 % over images. One run's clusters are aligned with another's on val. index: signs alone; match: signs and "
    "the best assignment; rotation: orthogonal Procrustes; linear: least squares, which is all that training leaves open.",
    "Random φ: of the same shape, untrained. Drawn for each run: the level of chance. One for all runs: 1, less what the "
    "difference between the networks takes away.",
)


@dataclass
class Arguments:
    """Words of the command line."""

    runs: list[str] = MISSING
    layers: list[int] | None = None
    targets: list[str] | None = None
    response: str = "post"
    count: int = 500
    out: str = "outputs/stability"
    dataset_root: str | None = None
    device: str = "auto"
    batch_size: int = 32


def compare_runs(arguments: Arguments) -> None:
    """Rebuild the runs' models, compare their maps, print the table and write the files."""
    from gift_vit.explain.layers import find_layers
    from gift_vit.explain.maps import check_response
    from gift_vit.files import write_json, write_text

    check_response(arguments.response)
    configs = _load_runs(arguments)
    words, first = show.model_words(arguments), next(iter(configs.values()))
    explainers = [show.build_explainer(words, cfg, folder) for folder, cfg in configs.items()]
    data = show.load_data(first, *configs)
    layers = [str(layer.name) for layer in find_layers(explainers[0].model, explainers[0].choice)]
    rows = []
    for basis, choices in _bases(explainers).items():
        own = [replace(explainer, choice=choice) for explainer, choice in zip(explainers, choices, strict=True)]
        fitted, judged = ([_maps(explainer, data, split, arguments) for explainer in own] for split in ("val", "test"))
        rows += _map_rows(basis, layers, fitted, judged)
    found = {
        "dataset": data.name,
        "backbone": first.backbone.name,
        "method": first.method_name,
        "runs": [cfg.run_name for cfg in configs.values()],
        "pairs": list(permutations(range(len(configs)), 2)),
        "response": arguments.response,
        "images": {split: min(arguments.count, len(data.split(split))) for split in ("val", "test")},
        "val_seen_in_training": first.train_split == "trainval",
        "subspaces": _subspace_rows(explainers),
        "maps": rows,
    }
    markdown = _markdown(found)
    print(markdown, end="")
    write_json(Path(f"{arguments.out}.json"), found)
    write_text(Path(f"{arguments.out}.md"), markdown)


def _load_runs(arguments: Arguments) -> "dict[Path, RunConfig]":
    """The runs' configs by folder; runs that cannot be compared are an error."""
    from gift_vit.errors import ConfigError

    if arguments.count < 1:
        raise ConfigError(f"count={arguments.count}: give a positive number of images")
    folders = [Path(folder) for folder in arguments.runs]
    if len(folders) < 2 or len(set(folders)) < len(folders):
        raise ConfigError(f"runs=[{','.join(arguments.runs)}]: give at least two folders, each once")
    configs = {folder: show.load_final_run(folder, arguments.dataset_root) for folder in folders}
    first, *others = configs.items()
    for folder, cfg in others:
        for name in ("dataset", "backbone", "method", "protocol"):
            if getattr(cfg, name) != getattr(first[1], name):
                raise ConfigError(f"{folder} has another {name} than {first[0]}; give runs that differ in their seed, say")
    return configs


def _bases(explainers: "Sequence[Explainer]") -> "dict[str, list[MapChoice]]":
    """What the clusters of each run are, by the table's name for it."""
    trained = [explainer.choice for explainer in explainers]
    drawn = [replace(choice, basis="random", seed=run) for run, choice in enumerate(trained)]
    bases = {"trained": trained, "canonical": [replace(choice, basis="canonical") for choice in trained]}
    if not all(pair.is_linear for explainer in explainers for pair in _pairs(explainer).values()):
        del bases["canonical"]  # is of φ ψ alone
    return {**bases, "random φ for each run": drawn, "random φ for all runs": [drawn[0]] * len(drawn)}


def _pairs(explainer: "Explainer") -> "dict[str, Any]":
    """The pairs (φ, ψ) by target."""
    from gift_vit.explain.layers import find_layers

    return {layer.name.target: layer.pair for layer in find_layers(explainer.model, explainer.choice)}


def _maps(explainer: "Explainer", data: "VisionDataset", split: str, arguments: Arguments) -> "Tensor":
    """The chosen response of images at equal distances in a split, (N, L, K, h, w)."""
    from gift_vit.explain.inputs import spread_samples
    from gift_vit.explain.maps import check_response

    return explainer.explain(spread_samples(data, split, arguments.count)).maps.raw(check_response(arguments.response))


def _map_rows(
    basis: str, layers: Sequence[str], fitted: "Sequence[Tensor]", judged: "Sequence[Tensor]"
) -> list[dict[str, object]]:
    """A row per alignment and layer, and for all layers together."""
    from gift_vit.explain.alignment import ALIGNMENTS, pairwise_stability
    from gift_vit.explain.scores import estimate_mean

    rows: list[dict[str, object]] = []
    for alignment in ALIGNMENTS:
        values = pairwise_stability(fitted, judged, alignment)
        for layer, own in zip((ALL, *layers), (values.mean(2), *values.unbind(2)), strict=True):
            facts = {"layer": layer, "basis": basis, "alignment": alignment, **asdict(estimate_mean(own.mean(0)))}
            rows.append({**facts, "by_pair": own.mean(1).tolist()})
    return rows


def _subspace_rows(explainers: "Sequence[Explainer]") -> list[dict[str, object]]:
    """How much the spans of φ's columns and of ψ's rows overlap, by target."""
    from gift_vit.explain.alignment import subspace_overlap

    rows: list[dict[str, object]] = []
    runs = [_pairs(explainer) for explainer in explainers]
    for target, pair in runs[0].items():
        d_in, rank = pair.phi.shape
        spans = {"φ": [own[target].phi for own in runs], "ψ": [own[target].psi.T for own in runs]}
        for name, matrices in spans.items():
            overlaps = [subspace_overlap(*(matrix.detach().cpu() for matrix in two)) for two in combinations(matrices, 2)]
            mean = sum(overlaps) / len(overlaps)
            rows.append({"target": target, "span": name, "overlap": mean, "by_pair": overlaps, "chance": rank / d_in})
    return rows


def _markdown(found: Mapping[str, Any]) -> str:
    from gift_vit.results.render import Cell, Column, Table, render_markdown

    titles = {row["alignment"]: None for row in found["maps"]}
    lines: dict[tuple[str, str], list[Cell]] = {}
    for row in found["maps"]:
        cells = lines.setdefault((row["layer"], row["basis"]), [Cell(row["layer"], ()), Cell(row["basis"], ())])
        cells.append(Cell("{mean:.3f} [{low:.3f}, {high:.3f}]".format(**row), ()))
    order = {layer: place for place, (layer, _) in reversed(list(enumerate(lines)))}
    layers = sorted(lines, key=lambda line: order[line[0]])
    images, seen = found["images"], " (which the runs were trained on)" if found["val_seen_in_training"] else ""
    spans = ", ".join("{span} of {target} {overlap:.3f} (chance {chance:.3f})".format(**row) for row in found["subspaces"])
    notes = (
        *NOTES,
        f"{images['val']} images of val{seen}, {images['test']} of test; maps {found['response']}.",
        f"Overlap of the spans (mean squared cosine of the principal angles): {spans}.",
    )
    caption = "Stability of the cluster maps of {method} on {dataset}, {backbone}".format(**found)
    columns = tuple(Column(title, "", ()) for title in ("Layer", "Clusters", *titles))
    provenance = f"{len(found['runs'])} runs: {', '.join(found['runs'])}"
    return render_markdown(Table(caption, provenance, columns, tuple(tuple(lines[line]) for line in layers), notes))


def main() -> None:
    """Entry point."""
    cli.log_to_stderr()
    raise SystemExit(cli.run_command(lambda: compare_runs(cli.parse_arguments(Arguments, USAGE))))


if __name__ == "__main__":
    main()
