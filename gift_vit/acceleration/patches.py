"""A ViT's patch embedding as a product: its convolution sees every pixel once, and is a linear layer of the patches."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def embed_by_product(model: nn.Module) -> bool:
    """Compute a model's patch embedding as one matrix product, in place; whether it is one.

    The same numbers but for rounding. On a GPU a convolution that strides by its own width changes the order of its input
    twice, and takes ten times as long as the product.
    """
    projection: Any = getattr(getattr(model, "patch_embed", None), "proj", None)
    if type(projection) is not nn.Conv2d or not _tiles(projection):
        return False
    vars(projection)["forward"] = partial(_forward, projection)
    return True


def is_by_product(module: nn.Module) -> bool:
    """Whether it is the convolution that :func:`embed_by_product` computes as a product."""
    return getattr(vars(module).get("forward"), "func", None) is _forward


def _tiles(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size == convolution.stride
        and convolution.padding in ((0, 0), "valid")
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
    )


def _forward(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Images (B, C, H, W) to (B, d, H / p, W / p), whose tokens lie one after the other in memory."""
    height, width = convolution.kernel_size
    if x.shape[-2] % height or x.shape[-1] % width:
        return nn.Conv2d.forward(convolution, x)
    grid = x.unflatten(-1, (-1, width)).unflatten(-3, (-1, height))  # (B, C, rows, height, columns, width)
    patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3)
    return F.linear(patches, convolution.weight.flatten(1), convolution.bias).permute(0, 3, 1, 2)
