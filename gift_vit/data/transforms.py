"""From a PIL image to the backbone's input: geometry by the dataset, size and statistics by the backbone's weights."""

from dataclasses import dataclass

import torch
from torchvision.transforms import v2

from gift_vit.data.base import TransformConfig
from gift_vit.errors import ConfigError


@dataclass(frozen=True)
class InputStatistics:
    """What a backbone's weights were trained to see.

    ``input_size`` in pixels, square; ``mean`` and ``std`` per RGB channel of pixels scaled to 0..1; ``interpolation`` by
    torchvision's name (``bilinear``, ``bicubic``, …).
    """

    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str

    def __post_init__(self) -> None:
        known = [mode.value for mode in v2.InterpolationMode]
        if self.interpolation not in known:
            raise ConfigError(
                f"interpolation {self.interpolation!r} of the backbone's weights is not one of {', '.join(known)}"
            )


def build_train_transform(cfg: TransformConfig, stats: InputStatistics) -> v2.Compose:
    """The training transform, PIL image to float32 (3, input_size, input_size); draws from torch's global generator."""
    crop = v2.RandomCrop(stats.input_size) if cfg.random_crop else v2.CenterCrop(stats.input_size)
    flip = [v2.RandomHorizontalFlip(cfg.hflip)] if cfg.hflip else []
    return v2.Compose([_resize(cfg, stats), *([crop] if cfg.crop_ratio else []), *flip, *_to_normalised(stats)])


def build_eval_transform(cfg: TransformConfig, stats: InputStatistics) -> v2.Compose:
    """The transform of validation and test, PIL image to float32 (3, input_size, input_size), without chance."""
    crop = [v2.CenterCrop(stats.input_size)] if cfg.crop_ratio else []
    return v2.Compose([_resize(cfg, stats), *crop, *_to_normalised(stats)])


def _resize(cfg: TransformConfig, stats: InputStatistics) -> v2.Transform:
    interpolation = v2.InterpolationMode(cfg.interpolation or stats.interpolation)
    if cfg.crop_ratio is None:
        return v2.Resize((stats.input_size, stats.input_size), interpolation)
    return v2.Resize(round(stats.input_size / cfg.crop_ratio), interpolation)


def _to_normalised(stats: InputStatistics) -> list[v2.Transform]:
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(stats.mean), list(stats.std))]
