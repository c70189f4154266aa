"""What GIFT's clusters respond to: ω φ as a token-clustering head.

For an adapted layer, C = ω φ has one column per cluster. Its inner products with the layer's output tokens T say where in the
image each cluster responds: M = Cᵀ Tᵀ (arXiv 2312.00700). :mod:`gift_vit.explain.layers` says what else C can be.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.acceleration.accelerate import all_tokens
from gift_vit.common.checks import one_of
from gift_vit.common.errors import ConfigError
from gift_vit.common.tensors import check_finite
from gift_vit.explain.config import RESPONSES, MapChoice
from gift_vit.explain.layers import AdaptedLayer, LayerName, cluster_columns, find_layers

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Found = TypeVar("Found", bound="DataclassInstance")
THRESHOLD = 0.5


@dataclass(frozen=True)
class ClusterMaps:
    """The maps of B images in L layers for K clusters, on a grid of h × w patches.

    Attributes:
        layers: The L layers.
        clusters: The K clusters' indices.
        post: (B, L, K, h, w), from what the adapted layer puts out.
        pre: (B, L, K, h, w), from what the frozen layer would put out for the same input, which the adapted network made.
        logits: (B, classes), of the same forward pass.
        size: Height and width of the images in pixels.
    """

    layers: tuple[LayerName, ...]
    clusters: tuple[int, ...]
    post: Tensor
    pre: Tensor
    logits: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.logits)

    def raw(self, response: str = "post") -> Tensor:
        """M = Cᵀ Tᵀ as it is, (B, L, K, h, w)."""
        one_of(RESPONSES)("response", response)
        return getattr(self, response)

    def normalised(self, response: str = "post") -> Tensor:
        """The maps at every pixel, each scaled to 0..1 over its own pixels, (B, L, K, H, W)."""
        return normalise_maps(self.raw(response), self.size)

    def thresholded(self, response: str = "post") -> Tensor:
        """The normalised maps with zeros where they are not above one half, (B, L, K, H, W)."""
        return threshold_maps(self.normalised(response))

    def images(self, indices: Sequence[int]) -> "ClusterMaps":
        """The maps of some of the images."""
        chosen = list(indices)
        return replace(self, post=self.post[chosen], pre=self.pre[chosen], logits=self.logits[chosen])

    def layer(self, index: int) -> "ClusterMaps":
        """The maps of one of the layers, L = 1."""
        chosen = slice(index, index + 1)
        return replace(self, layers=self.layers[chosen], post=self.post[:, chosen], pre=self.pre[:, chosen])

    def of_clusters(self, positions: Sequence[int]) -> "ClusterMaps":
        """The maps of some of the clusters, by their positions among the K."""
        chosen = list(positions)
        names = tuple(self.clusters[position] for position in chosen)
        return replace(self, clusters=names, post=self.post[:, :, chosen], pre=self.pre[:, :, chosen])

    def cpu(self) -> "ClusterMaps":
        """The same in main memory."""
        return replace(self, post=self.post.cpu(), pre=self.pre.cpu(), logits=self.logits.cpu())


@torch.no_grad()
def explain(model: nn.Module, images: Tensor, choice: MapChoice | None = None) -> ClusterMaps:
    """The cluster maps of images, in one forward pass for all layers and clusters.

    T are a layer's output tokens (bias included, class and register tokens left out) for the input it has inside the adapted
    network, in eval mode. The layers are seen through hooks; their maps come from d_in × K and d_out × K products, which cost
    little beside the layer itself.

    Args:
        model: A timm ViT with GIFT applied, left as it was found; of a merged one :func:`gift_vit.explain.unmerge.unmerge`
            makes one again.
        images: (B, 3, H, W) of a size that the model takes, normalised as it expects, on its device.
        choice: Which layers and clusters; None: all of them.

    Raises:
        ConfigError: If the model has no GIFT, the choice does not fit it, or the images do not.
        RunError: If a logit or a response is NaN or infinite.
    """
    choice = choice or MapChoice()
    layers = find_layers(model, choice)
    grid = patch_grid(model, images)
    columns = [cluster_columns(layer, choice) for layer in layers]
    patches = grid[0] * grid[1]
    most = patches + getattr(model, "num_prefix_tokens", 0)
    maps: dict[LayerName, tuple[Tensor, Tensor]] = {}

    def remember(layer: AdaptedLayer, columns: Tensor, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if output.ndim != 3 or len(output) != len(images) or not patches <= output.shape[1] <= most:  # windows, also padded
            raise ConfigError(
                f"{layer.name} gives {tuple(output.shape)} for {patches} patches; maps need tokens (B, N, d), as of a "
                "plain ViT: choose other layers"
            )
        # class and register tokens come first; how many there are a model of several stages does not say for each layer
        maps[layer.name] = _responses(layer, columns, inputs[0][:, -patches:], output[:, -patches:])

    with ExitStack() as stack:
        for layer, own in zip(layers, columns, strict=True):
            stack.callback(layer.layer.register_forward_hook(partial(remember, layer, own)).remove)
        stack.enter_context(eval_mode(model))
        logits = model(images)
    post, pre = (torch.stack([maps[layer.name][which] for layer in layers], 1).unflatten(-1, grid) for which in (0, 1))
    check_finite("no map can be made", logits=logits, post=post, pre=pre)
    clusters = tuple(range(post.shape[2])) if choice.clusters is None else tuple(choice.clusters)
    return ClusterMaps(tuple(layer.name for layer in layers), clusters, post, pre, logits, (images.shape[2], images.shape[3]))


def join(several: Sequence[Found], *names: str, dim: int = 0) -> Found:
    """What was found of several batches as of one: tensors of these names, without any of all, are joined along ``dim``."""
    names = names or tuple(field.name for field in fields(several[0]))
    return replace(several[0], **{name: torch.cat([getattr(found, name) for found in several], dim) for name in names})


def normalise_maps(raw: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Upsample maps (..., h, w) bilinearly to ``size`` pixels and scale each to 0..1 over its own pixels.

    A map that is constant up to rounding has nothing to show: it becomes zero.
    """
    maps = F.interpolate(raw.flatten(0, -3).unsqueeze(1), size=size, mode="bilinear", align_corners=False)
    maps = maps.squeeze(1).unflatten(0, raw.shape[:-2])
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span = high - low
    # equal tokens give equal responses only up to the rounding of the matrix products before them
    rounding = 32 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())
    return torch.where(span > rounding, (maps - low) / span, 0)


def threshold_maps(normalised: Tensor) -> Tensor:
    """Normalised maps with zeros where they are not above the threshold; the values above it are kept."""
    return torch.where(normalised > THRESHOLD, normalised, 0)


def patch_grid(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """Rows and columns of the patches that the model makes of images (B, 3, H, W); images it does not take are an error."""
    patches = cast(PatchEmbed, model.get_submodule("patch_embed"))
    fixed = patches.strict_img_size
    sides = cast("tuple[int, int]", patches.img_size if fixed else patches.patch_size)
    given = tuple(images.shape[2:])
    whole = patches.dynamic_img_pad or all(side % patch == 0 for side, patch in zip(given, sides, strict=False))
    if images.ndim != 4 or images.shape[1] != 3 or not (given == sides if fixed else whole):
        expected = ", ".join(f"{side}" if fixed else f"a multiple of {side}" for side in sides)
        raise ConfigError(
            f"images have shape {tuple(images.shape)}, the model expects (B, 3, {expected}); "
            "prepare them with the model's own evaluation transform"
        )
    return patches.dynamic_feat_size((images.shape[2], images.shape[3]))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode and all tokens computed for the time being; every module gets its own flag back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with all_tokens(model):
            yield
    finally:
        for module, training in flags:
            module.training = training


def _responses(layer: AdaptedLayer, columns: Tensor, tokens_in: Tensor, tokens_out: Tensor) -> tuple[Tensor, Tensor]:
    """Post and pre maps, each (B, K, N), of tokens (B, N, d_in) and (B, N, whole d_out).

    ``pre = (x ωᵀ + b) C = x (ωᵀ C) + b C``: through K channels, without a second pass through the frozen layer.
    """
    post = tokens_out[..., layer.rows].to(columns.dtype) @ columns
    pre = tokens_in.to(columns.dtype) @ (layer.weight.to(columns.dtype).T @ columns)
    if layer.bias is not None:
        pre = pre + layer.bias.to(columns.dtype) @ columns
    return post.mT, pre.mT
