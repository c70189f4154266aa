"""Transforms against the same steps done by hand with Pillow and numpy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional

from gift_vit.data import InputStatistics, TransformConfig, build_eval_transform, build_train_transform
from gift_vit.data.tf1_resize import tf1_bilinear
from gift_vit.errors import ConfigError

Noise = Callable[..., Image.Image]

STATS = InputStatistics(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")
FGVC = TransformConfig(crop_ratio=0.875, random_crop=True, hflip=0.5, resize="bilinear")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def normalised(image: Image.Image, stats: InputStatistics = STATS) -> Tensor:
    pixels = np.asarray(image).astype(np.float64) / 255
    pixels = (pixels - np.array(stats.mean)) / np.array(stats.std)
    return torch.from_numpy(pixels.transpose(2, 0, 1)).float()


@pytest.mark.parametrize("resize", ["bilinear", "bicubic", None])
def test_fgvc_evaluation(noise: Noise, resize: str | None) -> None:
    image = noise(0, (500, 320))
    resized = image.resize((400, 256), FILTERS[resize or STATS.interpolation])
    expected = resized.crop((88, 16, 312, 240))
    found = build_eval_transform(replace(FGVC, resize=resize), STATS)(image)
    assert (found.dtype, tuple(found.shape)) == (torch.float32, (3, 224, 224))
    torch.testing.assert_close(found, normalised(expected), atol=1e-6, rtol=1e-6)


def test_fgvc_training_is_some_crop_mirrored_or_not(noise: Noise) -> None:
    image = noise(1, (90, 64))
    stats = replace(STATS, input_size=56)
    resized = image.resize((90, 64), Image.Resampling.BILINEAR)  # shorter side 56 / 0.875 = 64
    transform = build_train_transform(FGVC, stats)
    candidates = {}
    for left in range(90 - 56 + 1):
        for top in range(64 - 56 + 1):
            crop = resized.crop((left, top, left + 56, top + 56))
            candidates[crop.tobytes()] = (left, top, False)
            candidates[crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()] = (left, top, True)
    torch.manual_seed(0)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (stats.mean, stats.std))
    seen = set()
    for _ in range(60):
        pixels = ((transform(image) * std + mean) * 255).round().to(torch.uint8)
        seen.add(candidates[pixels.permute(1, 2, 0).contiguous().numpy().tobytes()])
    assert len({left for left, _, _ in seen}) > 15
    assert {top for _, top, _ in seen} == set(range(9))
    assert 15 < sum(mirrored for _, _, mirrored in seen) < 45


def test_the_steps_are_torchvisions_bit_for_bit(noise: Noise) -> None:
    image = noise(5, (500, 375))
    steps = [transforms.ToTensor(), transforms.Normalize(STATS.mean, STATS.std)]
    whole = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *steps])
    torch.testing.assert_close(build_eval_transform(FGVC, STATS)(image), whole(image), rtol=0, atol=0)
    generator = torch.Generator().manual_seed(7)
    top, left = (int(torch.randint(slack + 1, (), generator=generator)) for slack in (256 - 224, 341 - 224))
    mirrored = float(torch.rand((), generator=generator)) < 0.5
    crop = functional.crop(transforms.Resize(256)(image), top, left, 224, 224)
    expected = transforms.Compose(steps)(functional.hflip(crop) if mirrored else crop)
    assert torch.equal(build_train_transform(FGVC, STATS)(image, torch.Generator().manual_seed(7)), expected)


def test_a_batch_is_normalised_as_its_images_are(noise: Noise) -> None:
    transform = build_eval_transform(FGVC, STATS)
    images = [noise(seed, (256, 300)) for seed in range(3)]
    batch = torch.stack([transform.finish(transform.prepare(image)) for image in images])
    assert batch.dtype == torch.uint8
    assert torch.equal(transform.normalise(batch), torch.stack([transform(image) for image in images]))


def test_tf1_bilinear_is_left_unrounded_and_may_be_mirrored(noise: Noise) -> None:
    image = noise(6, (40, 30))
    cfg = TransformConfig(crop_ratio=None, random_crop=False, hflip=1.0, resize="tf1_bilinear")
    resized = tf1_bilinear(np.array(image), 224)
    assert not torch.equal(resized, resized.round())
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (STATS.mean, STATS.std))
    assert torch.equal(build_eval_transform(cfg, STATS)(image), (resized / 255 - mean) / std)
    assert torch.equal(build_train_transform(cfg, STATS)(image), (resized.flip(2) / 255 - mean) / std)


def test_no_crop_squashes(noise: Noise) -> None:
    image = noise(2, (60, 33))
    cfg = TransformConfig(crop_ratio=None, random_crop=False, hflip=0.0, resize="bilinear")
    stats = InputStatistics(40, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    expected = normalised(image.resize((40, 40), Image.Resampling.BILINEAR), stats)
    for build in (build_train_transform, build_eval_transform):
        torch.testing.assert_close(build(cfg, stats)(image), expected, atol=1e-6, rtol=1e-6)


def test_without_random_crop_training_crops_the_centre(noise: Noise) -> None:
    image = noise(3, (300, 280))
    cfg = replace(FGVC, random_crop=False, hflip=1.0)
    mirrored = build_train_transform(cfg, STATS)(image)
    torch.testing.assert_close(mirrored.flip(2), build_eval_transform(cfg, STATS)(image), atol=0, rtol=0)


@pytest.mark.parametrize(("input_size", "resized"), [(224, 256), (384, 439), (64, 73), (160, 183)])
def test_the_resized_side_is_rounded(noise: Noise, input_size: int, resized: int) -> None:
    """The crop's centre pixels move if the side is off by two."""
    image = noise(4, (100, 100))
    margin = round((resized - input_size) / 2)  # Python rounds halves to even, as torchvision's centre crop does
    expected = image.resize((resized, resized), Image.Resampling.BILINEAR).crop(
        (margin, margin, margin + input_size, margin + input_size)
    )
    stats = replace(STATS, input_size=input_size)
    torch.testing.assert_close(build_eval_transform(FGVC, stats)(image), normalised(expected), atol=1e-6, rtol=1e-6)


def test_an_unknown_interpolation_of_the_weights(transform_config: TransformConfig) -> None:
    values: dict[str, Any] = {"input_size": 224, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(ConfigError, match=r"interpolation 'random' of the backbone's weights is not one of .*bilinear"):
        InputStatistics(**values, interpolation="random")
