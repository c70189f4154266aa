"""How faithful the orders are that maps put patches in: GIFT's clusters beside attention, gradients and chance."""

from collections.abc import Iterable
from dataclasses import asdict

import torch
from torch import Tensor

from gift_vit.common.files import write_json
from gift_vit.explain.config import FaithfulnessArguments
from gift_vit.explain.explainer import Explainer, build_explainer
from gift_vit.explain.maps import explain, join
from gift_vit.explain.samples import spread_samples
from gift_vit.explain.scoring.baselines import attention_maps, gradient_map, shows_attention
from gift_vit.explain.scoring.estimates import Estimate, estimate_mean
from gift_vit.explain.scoring.localisation import CLUSTERS, candidate_names
from gift_vit.explain.scoring.perturbation import Curves, perturbation_curves
from gift_vit.runs.run import Run

RANDOM_ORDER = "random order"


def measure_run(run: Run, arguments: FaithfulnessArguments) -> None:
    """Choose a candidate on val, write and print its curves on test."""
    response, steps = arguments.response, arguments.steps
    explainer, data = build_explainer(run, arguments), run.data()
    names = candidate_names(explainer, [CLUSTERS])[CLUSTERS]
    val, test = (
        explainer.inputs(spread_samples(data, split, count))
        for split, count in (("val", arguments.val_count), ("test", arguments.count))
    )
    gains = candidate_gains(explainer, val, response, steps)
    best = int(gains.mean(0).argmax())
    curves = order_curves(explainer, test, best, response, steps)
    estimates = _estimates(curves)
    images = {"val": len(gains), "test": len(curves[CLUSTERS].insertion)}
    facts = {"run": run.config.run_name, "dataset": data.name, "basis": arguments.basis, "response": response}
    facts |= {"layers": arguments.layers, "targets": arguments.targets, "steps": steps}
    facts |= {"val_seen_in_training": run.config.train_split == "trainval"}
    facts |= {"candidate": names[best], "images": images, "fractions": curves[CLUSTERS].fractions.tolist()}
    file = arguments.folder / "faithfulness.json"
    write_json(file, {**facts, "orders": _orders(curves, estimates)})
    print(f"clusters: {names[best]}, chosen on {images['val']} images of val; on {images['test']} of test")
    for name, own in estimates.items():
        print(f"{name:>14}  " + "  ".join(f"{score} {estimate}" for score, estimate in own.items()))
    print(f"wrote {file}")


def candidate_gains(explainer: Explainer, batches: Iterable[Tensor], response: str, steps: int) -> Tensor:
    """Insertion minus deletion of every candidate of either sign, (N, 2·L·K) in the order of ``candidate_names``.

    What is shown of a map with its sign turned is what is left of the map itself, so that insertion and deletion swap: its gain
    is minus that of the map, but for ties and for how steps round, and is not computed again.
    """
    found = []
    for images in batches:
        maps = explain(explainer.model, images, explainer.choice).raw(response)
        gains = [perturbation_curves(explainer.model, images, own, steps).gains() for own in maps.flatten(1, 2).unbind(1)]
        own = torch.stack(gains, 1).unflatten(1, maps.shape[1:3])
        found.append(torch.stack([own, -own], 2).flatten(1))
    return torch.cat(found)


def order_curves(
    explainer: Explainer, batches: Iterable[Tensor], candidate: int, response: str, steps: int
) -> dict[str, Curves]:
    """Insertion and deletion curves by order: of one candidate, ``cls_attention``, ``gradient`` and ``random order``.

    Attention is left out where the model shows none of a class token. The random order differs from image to image, and is the
    same each time.

    Args:
        explainer: Model and choice of maps.
        batches: As :meth:`gift_vit.explain.explainer.Explainer.inputs` gives them.
        candidate: Its position among the columns of :func:`candidate_gains`.
        response: ``post`` or ``pre``.
        steps: Points of a curve after the first.
    """
    by_batch: dict[str, list[Curves]] = {}
    generator, model = torch.Generator().manual_seed(0), explainer.model
    for images in batches:
        raw = explain(model, images, explainer.choice).raw(response)
        maps = {CLUSTERS: torch.stack([raw, -raw], 2).flatten(1, 3)[:, candidate]}
        if shows_attention(model):
            maps["cls_attention"] = attention_maps(model, images)["cls_attention"]
        maps["gradient"] = gradient_map(model, images)
        maps[RANDOM_ORDER] = torch.rand(maps[CLUSTERS].shape, generator=generator).to(images.device)
        for name, own in maps.items():
            by_batch.setdefault(name, []).append(perturbation_curves(model, images, own, steps))
    return {name: join(curves, "insertion", "deletion") for name, curves in by_batch.items()}


def _orders(curves: dict[str, Curves], estimates: dict[str, dict[str, Estimate]]) -> dict[str, dict[str, object]]:
    """What faithfulness.json says of each order."""
    return {
        name: {
            **{score: asdict(estimate) for score, estimate in own.items()},
            "insertion_curve": curves[name].insertion.mean(0).tolist(),
            "deletion_curve": curves[name].deletion.mean(0).tolist(),
        }
        for name, own in estimates.items()
    }


def _estimates(curves: dict[str, Curves]) -> dict[str, dict[str, Estimate]]:
    """Areas, their difference, and how far it is above that of a random order in the same images, by order."""
    chance, estimates = curves[RANDOM_ORDER].gains(), {}
    for name, own in curves.items():
        insertion, deletion = own.areas()
        values = {"insertion": insertion, "deletion": deletion, "gain": own.gains(), "above_random": own.gains() - chance}
        estimates[name] = {score: estimate_mean(value) for score, value in values.items()}
    return estimates
