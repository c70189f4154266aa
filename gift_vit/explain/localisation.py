"""Scores of GIFT's maps and of the baselines on scenes with boxes, all by the same code."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from gift_vit.errors import ConfigError
from gift_vit.explain.baselines import attention_maps, centre_map, gradient_map
from gift_vit.explain.boxes import Scene
from gift_vit.explain.faithfulness import perturbation_curves
from gift_vit.explain.inputs import Explainer
from gift_vit.explain.layers import LayerName
from gift_vit.explain.maps import Response, explain, normalise_maps
from gift_vit.explain.scores import MapScores, join_scores, score_maps

CLUSTERS, RANDOM = "clusters", "random φ"
BASELINES = ("cls_attention", "rollout", "gradient", "centre")


def score_scenes(explainer: Explainer, scenes: Iterable[Scene], response: Response = "post") -> dict[str, MapScores]:
    """Scores by what makes the maps: ``clusters`` and ``random φ`` (each cluster with either sign), and ``BASELINES``.

    Attention is left out where the model has no class token.

    Raises:
        ConfigError: If there is no scene.
    """
    parts: dict[str, list[MapScores]] = {}
    device = next(explainer.model.parameters()).device
    for batch in _batches(scenes, explainer.batch_size):
        images = explainer.transform.normalise(torch.stack([scene.pixels for scene in batch]).to(device))
        masks = torch.stack([scene.mask for scene in batch]).to(device)
        for name, score in _scorers(explainer, response).items():
            parts.setdefault(name, []).append(score(images, masks))
    if not parts:
        raise ConfigError("there is no image to score")
    return {name: join_scores(scores) for name, scores in parts.items()}


def score_faithfulness(
    explainer: Explainer, scenes: Iterable[Scene], candidate: int, response: Response = "post"
) -> dict[str, dict[str, Tensor]]:
    """Areas under the insertion and deletion curves, each (N,), of one candidate of ``clusters`` and of other orders.

    The others are ``cls_attention``, where the model has a class token, and ``random order``, the same each time.

    Args:
        explainer: As for :func:`score_scenes`.
        scenes: Images; their masks are not used.
        candidate: Its position among :func:`candidate_names`.
        response: As for :func:`score_scenes`.
    """
    areas: dict[str, list[tuple[Tensor, Tensor]]] = {}
    generator, model = torch.Generator().manual_seed(0), explainer.model
    device = next(model.parameters()).device
    for batch in _batches(scenes, explainer.batch_size):
        images = explainer.transform.normalise(torch.stack([scene.pixels for scene in batch]).to(device))
        raw = explain(model, images, explainer.choice).raw(response)
        maps = {CLUSTERS: torch.stack([raw, -raw], 2).flatten(1, 3)[:, candidate]}
        if getattr(model, "has_class_token", False):
            maps["cls_attention"] = attention_maps(model, images)["cls_attention"]
        maps["random order"] = torch.rand(maps[CLUSTERS].shape, generator=generator).to(device)
        for name, own in maps.items():
            areas.setdefault(name, []).append(perturbation_curves(model, images, own).areas())
    return {
        name: {curve: torch.cat([part[which] for part in parts]) for which, curve in enumerate(("insertion", "deletion"))}
        for name, parts in areas.items()
    }


def candidate_names(layers: Iterable[LayerName], clusters: Iterable[int]) -> list[str]:
    """The names of the candidates of ``clusters`` and ``random φ``, in their order; − is the map with its sign turned."""
    known = list(clusters)
    return [f"{layer}, {sign}{cluster}" for layer in layers for sign in ("", "−") for cluster in known]


def _scorers(explainer: Explainer, response: Response) -> dict[str, Callable[[Tensor, Tensor], MapScores]]:
    model = explainer.model

    def of_clusters(basis: str) -> Callable[[Tensor, Tensor], MapScores]:
        choice = replace(explainer.choice, basis=basis)

        def score(images: Tensor, masks: Tensor) -> MapScores:
            raw = explain(model, images, choice).raw(response)
            layers = [torch.cat([layer, -layer], 1) for layer in raw.unbind(1)]  # one at a time: at pixels they are large
            scores = [score_maps(normalise_maps(layer, _size(images)), masks) for layer in layers]
            return MapScores(
                *(torch.cat([getattr(part, name) for part in scores], 1) for name in ("pointing", "energy", "iou"))
            )

        return score

    def of_map(make: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], MapScores]:
        return lambda images, masks: score_maps(normalise_maps(make(images)[:, None], _size(images)), masks)

    def centre(images: Tensor) -> Tensor:
        return centre_map(_size(images)).to(images).expand(len(images), -1, -1)

    scorers = {CLUSTERS: of_clusters(explainer.choice.basis), RANDOM: of_clusters("random")}
    if getattr(model, "has_class_token", False):
        scorers |= {name: of_map(lambda images, name=name: attention_maps(model, images)[name]) for name in BASELINES[:2]}
    return scorers | {"gradient": of_map(lambda images: gradient_map(model, images)), "centre": of_map(centre)}


def _batches(scenes: Iterable[Scene], size: int) -> Iterator[list[Scene]]:
    remaining = iter(scenes)
    while batch := list(islice(remaining, size)):
        yield batch


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]
