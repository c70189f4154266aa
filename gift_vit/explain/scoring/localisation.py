"""Scores of GIFT's maps and of the baselines on scenes with ground truth, all by the same code."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gift_vit.common.errors import ConfigError
from gift_vit.explain.explainer import Explainer
from gift_vit.explain.layers import cluster_columns, find_layers
from gift_vit.explain.maps import Found, explain, join, normalise_maps
from gift_vit.explain.samples import batches
from gift_vit.explain.scoring.baselines import attention_maps, centre_map, gradient_map, shows_attention
from gift_vit.explain.scoring.scenes import Scene

log = logging.getLogger(__name__)
CLUSTERS, RANDOM = "clusters", "random φ"
BASELINES = ("cls_attention", "rollout", "gradient", "centre")


def score_scenes(
    explainer: Explainer, scenes: Iterable[Scene], score: Callable[[Tensor, Tensor], Found], response: str = "post"
) -> dict[str, Found]:
    """Scores by what makes the maps: ``clusters`` and ``random φ`` (each cluster with either sign), and ``BASELINES``.

    Attention is left out where the model shows none of a class token.

    Args:
        explainer: Model and choice of maps.
        scenes: Images with ground truth.
        score: Scores normalised maps (B, C, H, W) against the truths of B scenes, such as
            :func:`gift_vit.explain.scoring.masks.score_masks`.
        response: ``post`` or ``pre``.

    Raises:
        ConfigError: If there is no scene.
    """
    by_batch: dict[str, list[Found]] = {}
    device, makers = explainer.device, _map_makers(explainer, response)
    for batch in batches(scenes, explainer.batch_size):
        images = explainer.transform.normalise(torch.stack([scene.pixels for scene in batch]).to(device))
        truths = torch.stack([scene.truth for scene in batch]).to(device)
        for name, make in makers.items():
            scores = [score(normalise_maps(maps, _size(images)), truths) for maps in make(images)]
            by_batch.setdefault(name, []).append(join(scores, dim=1))  # of several candidates
    if not by_batch:
        raise ConfigError("there is no image to score")
    return {name: join(scores) for name, scores in by_batch.items()}


def candidate_names(explainer: Explainer, makers: Sequence[str] = (CLUSTERS, RANDOM)) -> dict[str, list[str]]:
    """The names of the candidates in their order, by what makes the maps; − is the map with its sign turned."""
    layers = find_layers(explainer.model, explainer.choice)
    bases, names = {CLUSTERS: explainer.choice.basis, RANDOM: "random"}, {}
    for maker in makers:
        count = cluster_columns(layers[0], replace(explainer.choice, basis=bases[maker])).shape[1]
        clusters = explainer.choice.clusters or range(count)
        names[maker] = [f"{layer.name}, {sign}{cluster}" for layer in layers for sign in ("", "−") for cluster in clusters]
    attends = shows_attention(explainer.model)
    if not attends:
        log.info("attention is left out: %s shows none of a class token", type(explainer.model).__name__)
    return names | {name: [name] for name in (BASELINES if attends else BASELINES[2:])}


def _map_makers(explainer: Explainer, response: str) -> dict[str, Callable[[Tensor], Iterable[Tensor]]]:
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
    if shows_attention(model):
        makers |= {name: of_attention(name) for name in BASELINES[:2]}
    return makers | {"gradient": lambda images: [gradient_map(model, images)[:, None]], "centre": centre}


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]
