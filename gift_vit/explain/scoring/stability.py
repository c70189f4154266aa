"""How stable cluster maps are across trainings that differ in their seed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations, permutations
from typing import Any

from torch import Tensor

from gift_vit.common.files import expanded, write_json, write_text
from gift_vit.data.base import VisionDataset
from gift_vit.explain.config import MapChoice, StabilityArguments
from gift_vit.explain.explainer import Explainer, build_explainer
from gift_vit.explain.layers import find_layers
from gift_vit.explain.samples import spread_samples
from gift_vit.explain.scoring.alignment import ALIGNMENTS, pairwise_stability, subspace_overlap
from gift_vit.explain.scoring.estimates import Estimate, estimate_mean
from gift_vit.methods.gift import GiftPair
from gift_vit.results.render import render_markdown, text_table
from gift_vit.runs.run import Run

ALL = "all"
NOTES = (
    "Correlation over the patches of an image: mean over ordered pairs of runs, clusters and test images, with its bootstrap "
    "interval of 95 % over images. One run's clusters are aligned with another's on val. index: signs alone; match: signs and "
    "the best assignment; rotation: orthogonal Procrustes; linear: least squares, which is all that training leaves open.",
    "Random φ: of the same shape, untrained. Drawn for each run: the level of chance. One for all runs: 1, less what the "
    "difference between the networks takes away.",
)


def compare_runs(runs: Sequence[Run], arguments: StabilityArguments) -> None:
    """Compare the maps of comparable runs, print the table and write the files."""
    explainers, first = [build_explainer(run, arguments) for run in runs], runs[0].config
    data = runs[0].data()
    for run in runs[1:]:
        run.check_fingerprint(data)
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
        "runs": [run.config.run_name for run in runs],
        "pairs": list(permutations(range(len(runs)), 2)),
        "response": arguments.response,
        "images": {split: min(arguments.count, len(data.split(split))) for split in ("val", "test")},
        "val_seen_in_training": first.train_split == "trainval",
        "subspaces": _subspace_rows(explainers),
        "maps": rows,
    }
    markdown = _markdown(found)
    print(markdown, end="")
    write_json(expanded(f"{arguments.out}.json"), found)
    write_text(expanded(f"{arguments.out}.md"), markdown)


def _bases(explainers: Sequence[Explainer]) -> dict[str, list[MapChoice]]:
    """What the clusters of each run are, by the table's name for it."""
    trained = [explainer.choice for explainer in explainers]
    drawn = [replace(choice, basis="random", seed=run) for run, choice in enumerate(trained)]
    bases = {"trained": trained, "canonical": [replace(choice, basis="canonical") for choice in trained]}
    if not all(pair.is_linear for explainer in explainers for pair in _pairs(explainer).values()):
        del bases["canonical"]  # is of φ ψ alone
    return {**bases, "random φ for each run": drawn, "random φ for all runs": [drawn[0]] * len(drawn)}


def _pairs(explainer: Explainer) -> dict[str, GiftPair]:
    """The pairs (φ, ψ) by target."""
    return {layer.name.target: layer.pair for layer in find_layers(explainer.model, explainer.choice)}


def _maps(explainer: Explainer, data: VisionDataset, split: str, arguments: StabilityArguments) -> Tensor:
    """The chosen response of images at equal distances in a split, (N, L, K, h, w)."""
    return explainer.explain(spread_samples(data, split, arguments.count)).maps.raw(arguments.response)


def _map_rows(basis: str, layers: Sequence[str], fitted: Sequence[Tensor], judged: Sequence[Tensor]) -> list[dict[str, object]]:
    """A row per alignment and layer, and for all layers together."""
    rows: list[dict[str, object]] = []
    for alignment in ALIGNMENTS:
        values = pairwise_stability(fitted, judged, alignment)
        for layer, own in zip((ALL, *layers), (values.mean(2), *values.unbind(2)), strict=True):
            facts = {"layer": layer, "basis": basis, "alignment": alignment, **asdict(estimate_mean(own.mean(0)))}
            rows.append({**facts, "by_pair": own.mean(1).tolist()})
    return rows


def _subspace_rows(explainers: Sequence[Explainer]) -> list[dict[str, object]]:
    """How much the spans of φ's columns and of ψ's rows overlap, by target."""
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
    titles = {row["alignment"]: None for row in found["maps"]}
    lines: dict[tuple[str, str], list[str]] = {}
    for row in found["maps"]:
        texts = lines.setdefault((row["layer"], row["basis"]), [row["layer"], row["basis"]])
        texts.append(str(Estimate(row["mean"], row["low"], row["high"])))
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
    provenance = f"{len(found['runs'])} runs: {', '.join(found['runs'])}"
    rows = (lines[line] for line in layers)
    return render_markdown(text_table(caption, provenance, ("Layer", "Clusters", *titles), rows, notes))
