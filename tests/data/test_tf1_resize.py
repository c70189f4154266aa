"""TensorFlow 1's bilinear resize against the same samples taken one by one."""

import numpy as np
import pytest
import torch

from gift_vit.data.tf1_resize import tf1_bilinear

SHAPES = [
    (3, 32, 32),
    (3, 5, 9),
    (3, 64, 64),
    (3, 96, 96),
    (3, 37, 61),
    (1, 20, 224),
    (3, 40, 31),
    (3, 90, 17),
    (3, 300, 500),
    (3, 1, 1),
]


def one_by_one(pixels: np.ndarray, size: int) -> np.ndarray:
    """Each output sample by itself, in numpy's float32."""
    channels, height, width = pixels.shape
    out = np.empty((channels, size, size), np.float32)
    y_scale, x_scale = np.float32(height / size), np.float32(width / size)
    for i in range(size):
        y = np.float32(i) * y_scale
        y0 = int(np.floor(y))
        y1, dy = min(y0 + 1, height - 1), y - np.float32(y0)
        for j in range(size):
            x = np.float32(j) * x_scale
            x0 = int(np.floor(x))
            x1, dx = min(x0 + 1, width - 1), x - np.float32(x0)
            a, b, c, d = (pixels[:, row, column].astype(np.float32) for row in (y0, y1) for column in (x0, x1))
            top, bottom = a + (b - a) * dx, c + (d - c) * dx
            out[:, i, j] = top + (bottom - top) * dy
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [24, 64])
def test_bit_for_bit(shape: tuple[int, int, int], size: int) -> None:
    pixels = np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)
    found = tf1_bilinear(pixels.transpose(1, 2, 0).copy(), size)
    assert (found.dtype, tuple(found.shape)) == (torch.float32, (shape[0], size, size))
    np.testing.assert_array_equal(found.numpy(), one_by_one(pixels, size))


def test_the_same_size_changes_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 30, 30), dtype=np.uint8)
    np.testing.assert_array_equal(tf1_bilinear(pixels.transpose(1, 2, 0), 30).numpy(), pixels)


def test_it_is_not_what_torch_does() -> None:
    """Half-pixel centres move every sample: whoever swaps the two kernels changes the benchmark."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    other = torch.nn.functional.interpolate(torch.from_numpy(pixels).float()[None], (64, 64), mode="bilinear")[0]
    assert float((tf1_bilinear(pixels.transpose(1, 2, 0), 64) - other).abs().mean()) > 5


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [24, 224])
def test_against_tensorflow(shape: tuple[int, int, int], size: int) -> None:
    tf = pytest.importorskip("tensorflow")
    pixels = np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)
    image = pixels.transpose(1, 2, 0)
    expected = tf.compat.v1.image.resize(image, (size, size)).numpy()
    np.testing.assert_array_equal(tf1_bilinear(image, size).numpy().transpose(1, 2, 0), expected)
