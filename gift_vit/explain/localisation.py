"""Scores of GIFT's maps and of the baselines on scenes with ground truth, all by the same code."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from gift_vit.errors import ConfigError
from gift_vit.explain.baselines import attention_maps, centre_map, gradient_map
from gift_vit.explain.inputs import Explainer
from gift_vit.explain.layers import cluster_columns, find_layers
from gift_vit.explain.maps import Response, explain, normalise_maps
from gift_vit.explain.scenes import Scene
from gift_vit.explain.scores import Scores, join_scores

CLUSTERS, RANDOM = "clusters", "random φ"
BASELINES = ("cls_attention", "rollout", "gradient", "centre")


def score_scenes(
    explainer: Explainer, scenes: Iterable[Scene], score: Callable[[Tensor, Tensor], Scores], response: Response = "post"
) -> dict[str, Scores]:
    """Scores by what makes the maps: ``clusters`` and ``random φ`` (each cluster with either sign), and ``BASELINES``.

    Attention is left out where the model has no class token.

    Args:
        explainer: Model and choice of maps.
        scenes: Images with ground truth.
        score: Scores normalised maps (B, C, H, W) against the truths of B scenes, such as
            :func:`gift_vit.explain.scores.score_maps`.
        response: ``post`` or ``pre``.

    Raises:
        ConfigError: If there is no scene.
    """
    parts: dict[str, list[Scores]] = {}
    device, makers = next(explainer.model.parameters()).device, _map_makers(explainer, response)
    for batch in _batches(scenes, explainer.batch_size):
        images = explainer.transform.normalise(torch.stack([scene.pixels for scene in batch]).to(device))
        truths = torch.stack([scene.truth for scene in batch]).to(device)
        for name, make in makers.items():
            scores = [score(normalise_maps(maps, _size(images)), truths) for maps in make(images)]
            parts.setdefault(name, []).append(join_scores(scores, dim=1))
    if not parts:
        raise ConfigError("there is no image to score")
    return {name: join_scores(scores) for name, scores in parts.items()}


def candidate_names(explainer: Explainer) -> dict[str, list[str]]:
    """The names of the candidates in their order, by what makes the maps; − is the map with its sign turned."""
    layers = find_layers(explainer.model, explainer.choice)
    names = {}
    for maker, basis in ((CLUSTERS, explainer.choice.basis), (RANDOM, "random")):
        count = cluster_columns(layers[0], replace(explainer.choice, basis=basis)).shape[1]
        clusters = explainer.choice.clusters or range(count)
        names[maker] = [f"{layer.name}, {sign}{cluster}" for layer in layers for sign in ("", "−") for cluster in clusters]
    attends = getattr(explainer.model, "has_class_token", False)
    return names | {name: [name] for name in (BASELINES if attends else BASELINES[2:])}


def _map_makers(explainer: Explainer, response: Response) -> dict[str, Callable[[Tensor], Iterable[Tensor]]]:
    """By name, what makes raw maps (B, C, h, w) of images: layer by layer, as at pixels they are large."""
    model = explainer.model

    def of_clusters(basis: str) -> Callable[[Tensor], Iterable[Tensor]]:
        choice = replace(explainer.choice, basis=basis)

        def make(images: Tensor) -> Iterator[Tensor]:
            for layer in explain(model, images, choice).raw(response).unbind(1):
                yield torch.cat([layer, -layer], 1)

        return make

    def of_attention(name: str) -> Callable[[Tensor], Iterable[Tensor]]:
        return lambda images: [attention_maps(model, images)[name][:, None]]

    def centre(images: Tensor) -> Iterable[Tensor]:
        return [centre_map(_size(images)).to(images).expand(len(images), 1, -1, -1)]

    makers = {CLUSTERS: of_clusters(explainer.choice.basis), RANDOM: of_clusters("random")}
    if getattr(model, "has_class_token", False):
        makers |= {name: of_attention(name) for name in BASELINES[:2]}
    return makers | {"gradient": lambda images: [gradient_map(model, images)[:, None]], "centre": centre}


def _batches(scenes: Iterable[Scene], size: int) -> Iterator[list[Scene]]:
    remaining = iter(scenes)
    while batch := list(islice(remaining, size)):
        yield batch


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]
