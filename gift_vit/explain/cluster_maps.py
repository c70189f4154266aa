"""What GIFT's clusters respond to: W φ as a token-clustering head, drawn over the image.

For an adapted layer, C = W φ has one column per cluster. Its inner products with the layer's output tokens T say where in the
image each cluster responds: M = Cᵀ Tᵀ (arXiv 2312.00700). A single cluster's index means little: (φ R, R⁻¹ ψ) is the same model
for any invertible R, so even the sign of a map is not determined by training.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gift_vit.errors import ConfigError
from gift_vit.methods.adapter import applied_method
from gift_vit.methods.gift import GiftConfig, GiftLinear, GiftPair
from gift_vit.methods.targets import QKV_SLICES

Response = Literal["post", "pre"]


class _AdaptedLayer(NamedTuple):
    layer: GiftLinear
    pair: GiftPair
    rows: slice


def cluster_maps(
    model: nn.Module, images: Tensor, target: str = "attn.proj", block: int = -1, response: Response = "post"
) -> Tensor:
    """Each cluster's response at every pixel, normalised for display, shape (B, r, H, W).

    Arguments and errors are those of :func:`cluster_responses`, the values those of :func:`normalise_maps`.
    """
    raw = cluster_responses(model, images, target, block, response)
    return normalise_maps(raw, (images.shape[-2], images.shape[-1]))


@torch.no_grad()
def cluster_responses(
    model: nn.Module, images: Tensor, target: str = "attn.proj", block: int = -1, response: Response = "post"
) -> Tensor:
    """Each cluster's response at every patch, M = Cᵀ Tᵀ, shape (B, r, h, w) for a grid of h × w patches.

    T are the layer's output tokens (bias included, class and register tokens left out) for the input it has inside the adapted
    network, in eval mode.

    Args:
        model: A timm ViT with GIFT applied; left as it was found.
        images: (B, 3, H, W) of the model's input size, normalised as the model expects, on its device.
        target: One of the adapter's ``target_modules``; a slice such as ``attn.q`` takes its own rows of the fused layer.
        block: Index of the transformer block; negative: from the end.
        response: ``post``: T is what the adapted layer puts out; ``pre``: what the frozen layer would.

    Raises:
        ConfigError: If the model has no GIFT, the target or block is not adapted, or the images do not fit the model.
    """
    if response not in get_args(Response):
        raise ConfigError(f"unknown response {response!r} (known: {', '.join(get_args(Response))})")
    layer, pair, rows = _find_layer(model, target, block)
    _check_images(model, images)
    weight, bias = layer.weight[rows], None if layer.bias is None else layer.bias[rows]
    tokens_in, tokens_out = _run(model, layer, images)
    tokens = tokens_out[..., rows] if response == "post" else F.linear(tokens_in, weight, bias)
    tokens = tokens[:, cast("int", model.num_prefix_tokens) :]
    clusters = pair.clusters(weight)
    responses = torch.einsum("or,bno->brn", clusters, tokens.to(clusters.dtype))
    grid = cast("tuple[int, int]", model.get_submodule("patch_embed").grid_size)
    return responses.unflatten(-1, grid)


def normalise_maps(raw: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Upsample maps (B, r, h, w) bilinearly to ``size`` pixels, scale each to 0..1, and zero what is not above one half.

    A map that is constant up to rounding has nothing to show: it becomes zero.
    """
    maps = F.interpolate(raw, size=size, mode="bilinear", align_corners=False)
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span = high - low
    # equal tokens give equal responses only up to the rounding of the matrix products before them
    rounding = 32 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())
    scaled = (maps - low) / span
    return torch.where((span > rounding) & (scaled > 0.5), scaled, 0)


def _find_layer(model: nn.Module, target: str, block: int) -> _AdaptedLayer:
    config = applied_method(model).config
    if not isinstance(config, GiftConfig):
        raise ConfigError(f"cluster maps explain GIFT; this model was given a {type(config).__name__}")
    if target not in config.target_modules:
        raise ConfigError(f"target {target!r} is not adapted in this model (adapted: {', '.join(config.target_modules)})")
    layers = _layers_by_block(model, target)
    depth = len(cast("nn.Sequential", model.blocks))
    index = block + depth if block < 0 else block
    if index not in layers:
        adapted = ", ".join(str(known) for known in layers)
        raise ConfigError(f"block={block}: target {target!r} is not adapted there; adapted of the {depth} blocks: {adapted}")
    return layers[index]


def _layers_by_block(model: nn.Module, target: str) -> dict[int, _AdaptedLayer]:
    slice_index = QKV_SLICES.get(target)
    suffix = target if slice_index is None else "attn.qkv"
    layers: dict[int, _AdaptedLayer] = {}
    for name, layer in model.named_modules():
        match = re.match(r"blocks\.(\d+)\.", name)
        if not (match and isinstance(layer, GiftLinear) and (name == suffix or name.endswith("." + suffix))):
            continue
        start = (slice_index or 0) * (layer.out_features // 3)
        pair, rows = next(part for part in layer.parts if part[1].start == start)
        layers[int(match[1])] = _AdaptedLayer(layer, pair, rows)
    return layers


def _check_images(model: nn.Module, images: Tensor) -> None:
    height, width = cast("tuple[int, int]", model.get_submodule("patch_embed").img_size)
    if images.ndim != 4 or images.shape[1:] != (3, height, width):
        raise ConfigError(
            f"images have shape {tuple(images.shape)}, the model expects (B, 3, {height}, {width}); "
            "prepare them with the model's own evaluation transform"
        )


def _run(model: nn.Module, layer: GiftLinear, images: Tensor) -> tuple[Tensor, Tensor]:
    """One layer's input and output tokens, (B, N, d_in) and (B, N, d_out), while the model sees ``images``."""
    seen: list[tuple[Tensor, Tensor]] = []

    def remember(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.append((inputs[0], output))

    hook = layer.register_forward_hook(remember)
    try:
        with _eval_mode(model):
            model(images)
    finally:
        hook.remove()
    return seen[0]


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for the time being; every module gets its own flag back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
