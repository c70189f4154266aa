"""Transforms against the same steps done by hand with Pillow and numpy."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import FileSource
from gift_vit.data.cache import PreparedImages
from gift_vit.data.config import TransformConfig
from gift_vit.data.tf1_resize import tf1_bilinear
from gift_vit.data.transforms import InputStatistics, build_eval_transform, build_train_transform

Noise = Callable[..., Image.Image]

STATS = InputStatistics(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")
FGVC = TransformConfig(crop_ratio=0.875, random_crop=True, hflip=0.5, resize="bilinear")
SIDES = [(32, 32), (5, 9), (64, 64), (96, 96), (37, 61), (40, 31), (90, 17), (300, 500), (1, 1)]
SHAPES = [(1, 20, 224), *((3, height, width) for height, width in SIDES)]


def normalised(image: Image.Image, stats: InputStatistics = STATS) -> Tensor:
    pixels = np.asarray(image).astype(np.float64) / 255
    pixels = (pixels - np.array(stats.mean)) / np.array(stats.std)
    return torch.from_numpy(pixels.transpose(2, 0, 1)).float()


def test_fgvc_training_is_some_crop_mirrored_or_not(noise: Noise) -> None:
    image = noise(1, (90, 64))
    stats = replace(STATS, input_size=56)
    resized = image.resize((90, 64), Image.Resampling.BILINEAR)  # shorter side 56 / 0.875 = 64
    transform = build_train_transform(FGVC, stats)
    candidates = {}
    for left, top in product(range(90 - 56 + 1), range(64 - 56 + 1)):
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


def test_an_image_as_narrow_as_a_hair_is_refused_by_its_name(tmp_path: Path) -> None:
    """Resized by its shorter side it would take gigabytes."""
    Image.new("L", (3000, 1)).save(tmp_path / "a.png")
    files = FileSource(tmp_path, ["a.png"], [0], tmp_path, "")
    told = r"\Aimage \S*/a\.png is 3,000 × 1 pixels, which resizing to 256 makes 768,000 long; crop or remove it\Z"
    with pytest.raises(ConfigError, match=told):
        PreparedImages(files, build_eval_transform(FGVC, STATS))[0]
    whole = TransformConfig(crop_ratio=None, random_crop=False)  # both sides become the model's
    assert PreparedImages(files, build_eval_transform(whole, STATS))[0][0].shape == (3, 224, 224)


@pytest.mark.parametrize("resize", ["bilinear", "bicubic", None])
def test_the_steps_are_torchvisions_bit_for_bit(noise: Noise, resize: str | None) -> None:
    image, cfg = noise(5, (500, 375)), replace(FGVC, resize=resize)
    steps = [transforms.ToTensor(), transforms.Normalize(STATS.mean, STATS.std)]
    resized = transforms.Resize(256, transforms.InterpolationMode(resize or STATS.interpolation))(image)
    whole = transforms.Compose([transforms.CenterCrop(224), *steps])
    torch.testing.assert_close(build_eval_transform(cfg, STATS)(image), whole(resized), rtol=0, atol=0)
    generator = torch.Generator().manual_seed(7)
    top, left = (int(torch.randint(slack + 1, (), generator=generator)) for slack in (256 - 224, 341 - 224))
    mirrored = float(torch.rand((), generator=generator)) < 0.5
    crop = functional.crop(resized, top, left, 224, 224)
    expected = transforms.Compose(steps)(functional.hflip(crop) if mirrored else crop)
    assert torch.equal(build_train_transform(cfg, STATS)(image, torch.Generator().manual_seed(7)), expected)


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
    mirrored = build_train_transform(replace(FGVC, random_crop=False, hflip=1.0), STATS)(image)
    torch.testing.assert_close(mirrored.flip(2), build_eval_transform(FGVC, STATS)(image), atol=0, rtol=0)


@pytest.mark.parametrize(("input_size", "resized"), [(224, 256), (384, 439), (64, 73), (160, 183)])
def test_the_resized_side_is_rounded(noise: Noise, input_size: int, resized: int) -> None:
    """The crop's centre pixels move if the side is off by two."""
    image = noise(4, (100, 100))
    margin = round((resized - input_size) / 2)  # Python rounds halves to even, as torchvision's centre crop does
    left, right = margin, margin + input_size
    expected = image.resize((resized, resized), Image.Resampling.BILINEAR).crop((left, left, right, right))
    stats = replace(STATS, input_size=input_size)
    torch.testing.assert_close(build_eval_transform(FGVC, stats)(image), normalised(expected), atol=1e-6, rtol=1e-6)


def test_an_unknown_interpolation_of_the_weights() -> None:
    with pytest.raises(ConfigError, match=r"interpolation 'random' of the backbone's weights is not one of .*bilinear"):
        replace(STATS, interpolation="random")


def one_by_one(pixels: np.ndarray, size: int) -> np.ndarray:
    """TensorFlow 1's bilinear resize, each output sample by itself, in numpy's float32."""
    channels, height, width = pixels.shape
    out = np.empty((channels, size, size), np.float32)
    y_scale, x_scale = np.float32(height / size), np.float32(width / size)
    for i, j in product(range(size), range(size)):
        y, x = np.float32(i) * y_scale, np.float32(j) * x_scale
        y0, x0 = int(np.floor(y)), int(np.floor(x))
        y1, dy = min(y0 + 1, height - 1), y - np.float32(y0)
        x1, dx = min(x0 + 1, width - 1), x - np.float32(x0)
        a, b, c, d = (pixels[:, row, column].astype(np.float32) for row in (y0, y1) for column in (x0, x1))
        top, bottom = a + (b - a) * dx, c + (d - c) * dx
        out[:, i, j] = top + (bottom - top) * dy
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [24, 64])
def test_tf1_bilinear_bit_for_bit(shape: tuple[int, int, int], size: int) -> None:
    pixels = np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)
    found = tf1_bilinear(pixels.transpose(1, 2, 0).copy(), size)
    assert (found.dtype, tuple(found.shape)) == (torch.float32, (shape[0], size, size))
    np.testing.assert_array_equal(found.numpy(), one_by_one(pixels, size))


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [24, 224])
def test_tf1_bilinear_against_tensorflow(shape: tuple[int, int, int], size: int) -> None:
    tf = pytest.importorskip("tensorflow")
    pixels = np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)
    image = pixels.transpose(1, 2, 0)
    expected = tf.compat.v1.image.resize(image, (size, size)).numpy()
    np.testing.assert_array_equal(tf1_bilinear(image, size).numpy().transpose(1, 2, 0), expected)
