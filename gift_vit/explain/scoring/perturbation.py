"""Whether a map shows what the model uses: how probable its answer stays as patches are hidden or shown in the map's order.

Insertion and deletion curves of Petsiuk et al. (RISE, arXiv 1806.07421), patch by patch.
"""

from dataclasses import dataclass
from typing import cast

import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from gift_vit.common.errors import ConfigError
from gift_vit.common.tensors import check_finite
from gift_vit.explain.maps import eval_mode, patch_grid


@dataclass(frozen=True)
class Curves:
    """Probability of the class that the model gives the whole image.

    Attributes:
        fractions: (S,), parts of the patches, 0 to 1.
        insertion: (B, S), with that part of the patches shown, first those where the map is largest.
        deletion: (B, S), with that part of them hidden, in the same order.
    """

    fractions: Tensor
    insertion: Tensor
    deletion: Tensor

    def areas(self) -> tuple[Tensor, Tensor]:
        """Areas under the curves, 0..1, each (B,): large for insertion and small for deletion where the map is faithful."""
        return torch.trapezoid(self.insertion, self.fractions), torch.trapezoid(self.deletion, self.fractions)

    def gains(self) -> Tensor:
        """Area under insertion minus that under deletion, −1..1, (B,): 0 is expected of an order that knows nothing."""
        insertion, deletion = self.areas()
        return insertion - deletion


@torch.no_grad()
def perturbation_curves(model: nn.Module, images: Tensor, maps: Tensor, steps: int = 16) -> Curves:
    """Insertion and deletion curves of one map per image.

    Hidden patches have the mean colour of the model's training images: 0 after normalisation. Equal values of a map are taken
    in row-major order.

    Args:
        model: A timm ViT, left as it was found.
        images: (B, 3, H, W), as the model expects them.
        maps: (B, h, w) on the model's patch grid.
        steps: Points of a curve after the first.

    Raises:
        ConfigError: If the maps are not on the model's grid.
    """
    grid = patch_grid(model, images)
    if maps.shape != (len(images), *grid):
        raise ConfigError(f"maps have shape {tuple(maps.shape)}; these images need {(len(images), *grid)}")
    count, (rows, columns) = grid[0] * grid[1], _patch_of_pixels(model, grid, images)
    order = torch.argsort(maps.flatten(1), dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(count, device=order.device).expand_as(order))
    shown = torch.linspace(0, count, min(steps, count) + 1).round().long().tolist()
    curves: list[list[Tensor]] = [[], []]
    with eval_mode(model):
        classes = model(images).argmax(1, keepdim=True)
        for number in shown:
            first = (rank < number).unflatten(1, grid)[:, None, rows, columns]
            for curve, mask in zip(curves, (first, ~first), strict=True):
                curve.append(cast(Tensor, model(images * mask)).softmax(1).gather(1, classes)[:, 0])
    insertion, deletion = (torch.stack(curve, 1) for curve in curves)
    check_finite("no curve can be made", insertion=insertion, deletion=deletion)
    return Curves(torch.tensor(shown, device=images.device) / count, insertion, deletion)


def _patch_of_pixels(model: nn.Module, grid: tuple[int, int], images: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the patch's row (H, 1) and column (W,) of every pixel; patches at the lower and right edge may stand out."""
    embed = cast(PatchEmbed, model.get_submodule("patch_embed"))
    patch = cast("tuple[int, int]", embed.feat_ratio(as_scalar=False))
    rows, columns = (
        (torch.arange(side, device=images.device) // own).clamp(max=number - 1)
        for side, own, number in zip(images.shape[2:], patch, grid, strict=True)
    )
    return rows[:, None], columns
