"""STIR, the invariances that two models share (Nanda et al., arXiv 2206.11939), between all of their layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gift_vit.invariance.inversion import Descent, invert
from gift_vit.invariance.measures import GramPair
from gift_vit.invariance.representations import Layers, open_layers
from gift_vit.invariance.similarity import gram


def stir(
    evaluated: nn.Module,
    reference: nn.Module,
    images: Tensor,
    layers: Sequence[int] | None = None,
    unbiased: bool = False,
    descent: Descent | None = None,
) -> Tensor:
    """STIR of one model given another: how far the one ignores, too, what the other ignores.

    For each layer i of ``reference`` images x' are found that it represents as it does x. At each layer j of ``evaluated`` the
    representations of x and x' are compared by linear CKA. It is not symmetric.

    Args:
        evaluated: A timm ViT.
        reference: A timm ViT of the same input size, which is inverted; both are put into eval mode and frozen.
        images: x, (n, 3, H, W) in 0..1.
        layers: Indices of blocks, of both; None: all of each. The pooled vector comes last in any case.
        unbiased: The unbiased estimator of CKA, for which n must be 4 or more.
        descent: How images are found.

    Returns:
        (L, L) in float64: row i of the reference, column j of the evaluated model; (R, L) where they differ in depth.

    Raises:
        ConfigError: As :func:`invert`, of either model.
        RunError: If the representations of the reference are not finite.
    """
    opened = open_layers(evaluated, layers)
    opened.taken(images, "stir")
    found = invert(reference, images, layers, descent).images
    return gram_pair(opened, images, found).stir(unbiased)


def gram_pair(layers: Layers, images: Tensor, inverted: Tensor) -> GramPair:
    """What STIR needs of the model that is evaluated: images (n, 3, H, W), and inversions of R layers (R, n, 3, H, W)."""
    return GramPair(grams(layers, images), torch.stack([grams(layers, own) for own in inverted]))


@torch.no_grad()
def grams(layers: Layers, images: Tensor, batch_size: int = 32) -> Tensor:
    """Centred inner products of the rows of n images (n, 3, H, W) at each layer: (L, n, n) in float64, on the CPU."""
    batches = [layers.rows(batch.to(next(layers.model.parameters()))) for batch in images.split(batch_size)]
    return torch.stack([gram(torch.cat(rows)).cpu() for rows in zip(*batches, strict=True)])
