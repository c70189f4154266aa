"""How faithful the orders are that maps put patches in: GIFT's clusters beside attention, gradients and chance."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from gift_vit.explain.baselines import attention_maps, gradient_map
from gift_vit.explain.inputs import Explainer, Sample
from gift_vit.explain.localisation import CLUSTERS
from gift_vit.explain.maps import Response, explain
from gift_vit.explain.perturbation import Curves, join_curves, perturbation_curves

RANDOM_ORDER = "random order"


def model_inputs(explainer: Explainer, samples: Iterable[Sample]) -> Iterator[Tensor]:
    """The samples' images as the explainer's model is given them, in batches."""
    device, remaining = next(explainer.model.parameters()).device, iter(samples)
    while batch := list(islice(remaining, explainer.batch_size)):
        yield torch.stack([explainer.transform(sample.image) for sample in batch]).to(device)


def candidate_gains(explainer: Explainer, batches: Iterable[Tensor], response: Response, steps: int) -> Tensor:
    """Insertion minus deletion of every candidate of either sign, (N, 2·L·K) in the order of ``candidate_names``.

    What is shown of a map with its sign turned is what is left of the map itself, so that insertion and deletion swap: its gain
    is minus that of the map, but for ties and for how steps round, and is not computed again.
    """
    parts = []
    for images in batches:
        maps = explain(explainer.model, images, explainer.choice).raw(response)
        gains = [perturbation_curves(explainer.model, images, own, steps).gains() for own in maps.flatten(1, 2).unbind(1)]
        own = torch.stack(gains, 1).unflatten(1, maps.shape[1:3])
        parts.append(torch.stack([own, -own], 2).flatten(1))
    return torch.cat(parts)


def order_curves(
    explainer: Explainer, batches: Iterable[Tensor], candidate: int, response: Response, steps: int
) -> dict[str, Curves]:
    """Insertion and deletion curves by order: of one candidate, ``cls_attention``, ``gradient`` and ``random order``.

    Attention is left out where the model has no class token. The random order is another one in each image, and the same each
    time.

    Args:
        explainer: Model and choice of maps.
        batches: As :func:`model_inputs` gives them.
        candidate: Its position among the columns of :func:`candidate_gains`.
        response: ``post`` or ``pre``.
        steps: Points of a curve after the first.
    """
    parts: dict[str, list[Curves]] = {}
    generator, model = torch.Generator().manual_seed(0), explainer.model
    for images in batches:
        raw = explain(model, images, explainer.choice).raw(response)
        maps = {CLUSTERS: torch.stack([raw, -raw], 2).flatten(1, 3)[:, candidate]}
        if getattr(model, "has_class_token", False):
            maps["cls_attention"] = attention_maps(model, images)["cls_attention"]
        maps["gradient"] = gradient_map(model, images)
        maps[RANDOM_ORDER] = torch.rand(maps[CLUSTERS].shape, generator=generator).to(images.device)
        for name, own in maps.items():
            parts.setdefault(name, []).append(perturbation_curves(model, images, own, steps))
    return {name: join_curves(curves) for name, curves in parts.items()}
