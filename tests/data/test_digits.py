"""scikit-learn's digits against its own arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from gift_vit.data import DigitsConfig, VisionDataset, build_dataset
from gift_vit.data.sources import SubsetSource

SIZES = {"train": 800, "val": 200, "test": 797}


def indices(dataset: VisionDataset, split: str) -> list[int]:
    source = dataset.splits[split]
    assert isinstance(source, SubsetSource)
    return source.indices.tolist()


def test_every_digit_stands_in_one_split(make_config: Callable[..., Any]) -> None:
    digits = build_dataset(make_config(DigitsConfig))
    assert {name: len(source) for name, source in digits.splits.items()} == SIZES
    assert sorted(index for split in SIZES for index in indices(digits, split)) == list(range(1797))
    assert (digits.num_classes, digits.class_names) == (10, list("0123456789"))
    shares = np.bincount(load_digits(return_X_y=True)[1]) / 1797
    for split, size in SIZES.items():
        counts = np.bincount(digits.split(split).labels, minlength=10)
        np.testing.assert_allclose(counts, shares * size, atol=1.5)


def test_pixels_and_labels_are_scikit_learns(make_config: Callable[..., Any]) -> None:
    digits = build_dataset(make_config(DigitsConfig))
    pixels, labels = load_digits(return_X_y=True)  # values 0..16, (1797, 64)
    for split in SIZES:
        source = digits.split(split)
        for position in (0, 57, len(source) - 1):
            index = indices(digits, split)[position]
            image, label = source[position]
            assert (image.mode, image.size) == ("RGB", (8, 8))
            assert label == source.labels[position] == labels[index]
            expected = np.floor(pixels[index].reshape(8, 8) * 15.9375 + 0.5)
            np.testing.assert_array_equal(np.asarray(image), np.repeat(expected[..., None], 3, axis=2))


def test_the_seed_draws_the_split(make_config: Callable[..., Any]) -> None:
    first, again, other = (build_dataset(make_config(DigitsConfig, split_seed=seed)) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint
    assert indices(first, "test") != indices(other, "test")
