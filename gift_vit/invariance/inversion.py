"""Representation inversion: images that a model represents as it does others.

From noise, by gradient descent on the relative distance of the rows, in the box [0, 1], each image's gradient at unit length,
as the code of Merlin et al. (arXiv 2307.06006) does it. One thing differs: nothing is clamped inside what is differentiated.
PyTorch's clamp has gradient 0 at its bounds, where pixels would be stuck for ever; after each projection it would change
nothing anyway. Their steps of equal length end in an oscillation; Adam's, which shorten, come nearer in as many.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from gift_vit.common.checks import expect
from gift_vit.common.tensors import check_finite
from gift_vit.invariance.representations import Layers, open_layers

_STEPS_PER_PIXEL = 500 / 224  # of the image's side: the authors' 500 steps at 224 pixels; the way to go grows with the side
_TINY = 1e-10
_RULES: dict[str, tuple[Callable[..., Optimizer], float, float]] = {  # the first step's size, and the last one's over it
    "sgd": (SGD, 0.5, 1.0),
    "adam": (partial(Adam, betas=(0.95, 0.99)), 0.15, 0.01),
}


@dataclass(frozen=True)
class Descent:
    """How images are found.

    Attributes:
        steps: None: in proportion to the image's side, 500 for 224 pixels.
        step_size: The learning rate. Of sgd: the L2 norm of each step of an image; of adam: how far a pixel goes in one of the
            first steps, at most. None: 0.5 of sgd, as the authors', and 0.15 of adam.
        seed: Of the noise.
        optimizer: sgd: equal steps along the gradient, as the authors'. adam: with a cosine to a hundredth of the first rate.
    """

    steps: int | None = None
    step_size: float | None = None
    seed: int = 0
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        expect(self.optimizer in _RULES, "optimizer", self.optimizer, "sgd or adam")
        expect(self.steps is None or self.steps >= 0, "steps", self.steps, "0 or more")
        expect(self.step_size is None or self.step_size > 0, "step_size", self.step_size, "a number above 0")

    def steps_for(self, side: int) -> int:
        """Steps for images of ``side`` pixels."""
        return round(_STEPS_PER_PIXEL * side) if self.steps is None else self.steps

    @property
    def size(self) -> float:
        """Of the first step."""
        return _RULES[self.optimizer][1] if self.step_size is None else self.step_size

    def resolved(self, side: int) -> dict[str, int | float | str]:
        """All of it as JSON has it, with the defaults for images of ``side`` pixels filled in."""
        return {"optimizer": self.optimizer, "steps": self.steps_for(side), "step_size": self.size, "seed": self.seed}

    def begin(self, images: Tensor) -> tuple[Optimizer, LRScheduler]:
        """Optimizer and schedule of images (n, 3, H, W), for their own gradients at unit length."""
        make, _, last = _RULES[self.optimizer]
        optimizer = make([images], lr=self.size)
        return optimizer, CosineAnnealingLR(optimizer, max(self.steps_for(images.shape[-1]), 1), last * self.size)


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
        layers: Indices of blocks; negative: from the end. None: all. They are taken in ascending order, and the pooled vector
            comes last in any case.
        descent: Steps, their size, and the noise's seed.
        tokens: What of a block's tokens is compared: all, cls or mean.

    Returns:
        Of L = blocks + 1 layers, the best image of each descent and its error ``|m(x') - m(x)| / |m(x)|``.

    Raises:
        ConfigError: If the images are not of that shape and range and of the model's size, or it has no such layer.
        RunError: If the representations are not finite.
    """
    opened, descent = open_layers(model, layers, tokens), descent or Descent()
    images = opened.taken(images, "invert")
    return invert_layers(opened, images, noise_like(images, descent.seed), descent)


def noise_like(images: Tensor, seed: int) -> Tensor:
    """Where the descent begins: normal noise, clamped to 0..1, for each image its own."""
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).clamp(0, 1).to(images)


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

    optimizer, schedule = descent.begin(x.requires_grad_(True))
    for _ in range(descent.steps_for(images.shape[-1])):
        found = errors(x)
        keep(found.detach())
        [gradient] = torch.autograd.grad(found.sum(), x)
        x.grad = gradient / (gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + _TINY)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(0, 1)
        stepped()
    with torch.no_grad():
        keep(errors(x))
    return Inversion(best.unflatten(0, (num_layers, count)), lowest.view(num_layers, count))
