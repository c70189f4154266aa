"""From a PIL image to the backbone's input: geometry by the dataset, size and statistics by the backbone's weights.

In three steps, so that each is done where it costs least: *prepare* (decode and resize, without chance) once per image, into a
cache if there is one; *finish* (crop, flip) for every image of every epoch, in the loader's workers; *normalise* for a whole
batch, on the device. With and without a cache the steps are the same, and so are the pixels.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import v2

from gift_vit.common.errors import ConfigError
from gift_vit.data.config import TransformConfig
from gift_vit.data.tf1_resize import tf1_bilinear

Pixels: TypeAlias = NDArray[np.uint8 | np.float32]
"""Values 0..255, (3, h, w)."""
MOST = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # pixels
Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, width and height in pixels."""


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


class ImageTransform:
    """The transform of training (``training``: random crop and flip, as far as the config has them) or of evaluation.

    ``S`` below is the backbone's input size. Pixels are uint8; with ``resize: tf1_bilinear``, which does not round, they are
    float32 in 0..255.
    """

    def __init__(self, cfg: TransformConfig, stats: InputStatistics, training: bool) -> None:
        self.stats = stats
        self.size = stats.input_size
        self.random_crop = training and cfg.random_crop
        self.flip_probability = cfg.hflip if training else 0.0
        self._shorter_side = cfg.shorter_side(self.size)
        side = [self.size, self.size] if self._shorter_side is None else [self._shorter_side]
        resize = cfg.resize or stats.interpolation
        self._resize = None if resize == "tf1_bilinear" else v2.Resize(side, v2.InterpolationMode(resize))
        # names what prepare makes of an image, for the key of a cache
        self.prepared_as = f"{resize} to {side}" + (f" by Pillow {PIL.__version__}" if self._resize else "")

    def prepare(self, image: Image.Image, name: str = "given") -> Pixels:
        """The resized pixels, (3, h, w) with h, w ≥ S.

        Raises:
            ConfigError: If a long and narrow image would become larger than Pillow lets any be; has its ``name``.
        """
        longer, shorter = max(image.size), min(image.size)
        if self._shorter_side is not None and (longest := self._shorter_side * longer // shorter) > MOST // self._shorter_side:
            raise ConfigError(
                f"image {name} is {image.width:,} × {image.height:,} pixels, which resizing to {self._shorter_side} makes "
                f"{longest:,} long; crop or remove it"
            )
        if self._resize is None:
            return tf1_bilinear(np.array(image), self.size).numpy()
        return np.asarray(self._resize(image)).transpose(2, 0, 1)

    def finish(self, pixels: Pixels, generator: torch.Generator | None = None) -> Tensor:
        """Crop and flip prepared pixels by draws from ``generator`` (None: torch's own), to (3, S, S)."""
        top, left, flipped = self.place(pixels.shape[1], pixels.shape[2], generator)
        crop = pixels[:, top : top + self.size, left : left + self.size]
        return torch.from_numpy((crop[:, :, ::-1] if flipped else crop).copy())

    @property
    def is_random(self) -> bool:
        """Whether :meth:`place` draws random numbers."""
        return self.random_crop or self.flip_probability > 0

    def place(self, height: int, width: int, generator: torch.Generator | None = None) -> tuple[int, int, bool]:
        """Where :meth:`finish` cuts prepared pixels of that size: top, left, and whether the cut is flipped."""
        top, left = (self._offset(side - self.size, generator) for side in (height, width))
        return top, left, self._is_flipped(generator)

    def stack(self, images: list[Tensor]) -> Tensor:
        """Finished images as a batch (B, 3, S, S), in memory that processes share where a worker makes it."""
        return default_collate(images)

    def normalise(self, images: Tensor) -> Tensor:
        """Finished images (…, 3, S, S) as the backbone's input, float32, on the same device; float32 ones are overwritten."""
        mean, std = _statistics(self.stats, images.device)
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """All three steps for one RGB image: float32 (3, S, S)."""
        return self.normalise(self.finish(self.prepare(image), generator))

    def place_box(self, box: Box, width: int, height: int) -> Box:
        """Where a box (x, y, width, height) of an image of ``width`` × ``height`` pixels lies in evaluation's S × S, in pixels.

        It may reach beyond them, or lie outside.
        """
        if self._shorter_side is None:
            new_width = new_height = self.size
        else:  # torchvision rounds the longer side down
            new_width = int(self._shorter_side * max(width / height, 1))
            new_height = int(self._shorter_side * max(height / width, 1))
        x, y = box[0] * new_width / width, box[1] * new_height / height
        left, top = round((new_width - self.size) / 2), round((new_height - self.size) / 2)
        return x - left, y - top, box[2] * new_width / width, box[3] * new_height / height

    def _offset(self, slack: int, generator: torch.Generator | None) -> int:
        if self.random_crop:
            return int(torch.randint(slack + 1, (), generator=generator))
        return round(slack / 2)

    def _is_flipped(self, generator: torch.Generator | None) -> bool:
        return self.flip_probability > 0 and float(torch.rand((), generator=generator)) < self.flip_probability


def build_train_transform(cfg: TransformConfig, stats: InputStatistics) -> ImageTransform:
    """The transform of training."""
    return ImageTransform(cfg, stats, training=True)


def build_eval_transform(cfg: TransformConfig, stats: InputStatistics) -> ImageTransform:
    """The transform of validation and test, without chance."""
    return ImageTransform(cfg, stats, training=False)


@lru_cache
def _statistics(stats: InputStatistics, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1) for values in (stats.mean, stats.std))
    return mean, std
