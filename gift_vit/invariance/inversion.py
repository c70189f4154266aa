"""Representation inversion: images that a model represents as it does others.

From noise, by normalised gradient descent on the relative distance of the rows, in the box [0, 1], as the code of Merlin et al.
(arXiv 2307.06006) does it. One thing differs: nothing is clamped inside what is differentiated. PyTorch's clamp has gradient 0
at its bounds, where pixels would be stuck for ever; after each projection it would change no value anyway.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gift_vit.common.errors import ConfigError
from gift_vit.common.tensors import check_finite
from gift_vit.invariance.representations import Layers, open_layers

_STEPS_PER_PIXEL = 500 / 224  # of the image's side: the authors' 500 steps at 224 pixels; the way to go grows with the side
_TINY = 1e-10


@dataclass(frozen=True)
class Descent:
    """How images are found.

    Attributes:
        steps: None: in proportion to the image's side, 500 for 224 pixels.
        step_size: The L2 norm of each step of an image; with momentum the largest it can have.
        seed: Of the noise.
        momentum: What is kept of the direction of the step before; 0: nothing, as the authors'.
        decay: The last step's size over the first one's, on a cosine between them; 1: all the same, as the authors'.
    """

    steps: int | None = None
    step_size: float = 0.5
    seed: int = 0
    momentum: float = 0.0
    decay: float = 1.0

    def steps_for(self, side: int) -> int:
        """Steps for images of ``side`` pixels."""
        return round(_STEPS_PER_PIXEL * side) if self.steps is None else self.steps

    def sizes(self, side: int) -> list[float]:
        """Of each step."""
        count = self.steps_for(side)
        cosines = ((1 + math.cos(math.pi * step / count)) / 2 for step in range(count))
        return [self.step_size * (self.decay + (1 - self.decay) * cosine) for cosine in cosines]


class Inversion(NamedTuple):
    """Images (L, n, 3, H, W) in 0..1 for L layers, and how far their rows are from the targets, relative, (L, n)."""

    images: Tensor
    errors: Tensor


def invert(
    model: nn.Module, images: Tensor, layers: Sequence[int] | None = None, descent: Descent | None = None, tokens: str = "all"
) -> Inversion:
    """Images that a ViT represents at a layer as it does the given ones, for each layer.

    Args:
        model: A timm ViT; it is put into eval mode, and its parameters are frozen. It normalises by its own mean and std.
        images: (n, 3, H, W) in 0..1.
        layers: Indices of blocks; negative: from the end. None: all. The pooled vector comes last in any case.
        descent: Steps, their size, and the noise's seed.
        tokens: What of a block's tokens is compared: all, cls or mean.

    Returns:
        Of L = blocks + 1 layers, the best image of each descent and its error ``|m(x') - m(x)| / |m(x)|``.

    Raises:
        ConfigError: If the images are not of that shape and range, or the model has no such layer.
        RunError: If the representations are not finite.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.min() < 0 or images.max() > 1:
        raise ConfigError(f"invert takes images (n, 3, H, W) in 0..1, got {tuple(images.shape)}")
    opened, descent = open_layers(model, layers, tokens), descent or Descent()
    return invert_layers(opened, images, noise_like(images, descent.seed), descent)


def noise_like(images: Tensor, seed: int) -> Tensor:
    """Where the descent begins: normal noise, clamped to 0..1, for each image its own."""
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).clamp(0, 1).to(images.device)


def invert_layers(
    layers: Layers, images: Tensor, noise: Tensor, descent: Descent, stepped: Callable[[], object] = lambda: None
) -> Inversion:
    """As :func:`invert`, of images (n, 3, H, W) from noise of their shape, all layers in one batch; told of each step."""
    count, num_layers = len(images), len(layers.names)
    with torch.no_grad():
        targets = layers.rows(images)
    check_finite("nothing is inverted", **{f"representations of {n}": t for n, t in zip(layers.names, targets, strict=True)})
    scales = [target.norm(dim=1).clamp_min(_TINY) for target in targets]

    def errors(x: Tensor) -> Tensor:
        rows = layers.rows(x, [count] * num_layers)
        return torch.cat([(r - t).norm(dim=1) / s for r, t, s in zip(rows, targets, scales, strict=True)])

    x = noise.repeat(num_layers, 1, 1, 1)
    best, lowest = x.clone(), x.new_full((len(x),), torch.inf)

    def keep(found: Tensor) -> None:
        better = found < lowest
        lowest[better] = found[better]
        best[better] = x[better].detach()

    direction = torch.zeros_like(x)
    for size in descent.sizes(images.shape[-1]):
        x.requires_grad_(True)
        found = errors(x)
        [gradient] = torch.autograd.grad(found.sum(), x)
        x = x.detach()
        keep(found.detach())
        norm = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        direction = descent.momentum * direction + (1 - descent.momentum) * gradient / (norm + _TINY)
        x = (x - size * direction).clamp_(0, 1)
        stepped()
    with torch.no_grad():
        keep(errors(x))
    return Inversion(best.unflatten(0, (num_layers, count)), lowest.view(num_layers, count))
