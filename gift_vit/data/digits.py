"""scikit-learn's digits: 1,797 scanned digits of 8×8 pixels that come with it, for demonstrations without a network."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gift_vit.data.base import DatasetConfig, VisionDataset
from gift_vit.data.registry import register_dataset
from gift_vit.data.sources import SubsetSource, check_split_seed, fingerprint, stratified_split

TEST_SIZE = 797
VAL_SIZE = 200  # leaves 800 for train, the sizes of VTAB-1k


@dataclass
class DigitsConfig(DatasetConfig):
    """The split into train 800, val 200 and test 797 is drawn, stratified, from ``split_seed``."""

    split_seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_split_seed(self.split_seed)


class ArraySource:
    """Grey uint8 images (N, H, W) in memory, given out as RGB."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]).convert("RGB"), int(self.labels[index])

    def content(self, index: int) -> bytes:
        """The pixels."""
        return self.images[index].tobytes()

    version = content


@register_dataset("digits", DigitsConfig)
def build_digits(cfg: DigitsConfig) -> VisionDataset:
    """Read the digits; their values 0..16 become 0..255."""
    from sklearn.datasets import load_digits  # costs a second at import

    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    source = ArraySource(pixels, labels.astype(np.int64))
    rest, test = stratified_split(source.labels, TEST_SIZE, cfg.split_seed)
    train, val = stratified_split(source.labels[rest], VAL_SIZE, cfg.split_seed)
    splits = {
        "train": SubsetSource(source, rest[train]),
        "val": SubsetSource(source, rest[val]),
        "test": SubsetSource(source, test),
    }
    names = [str(digit) for digit in range(10)]
    return VisionDataset(cfg.name, cfg.num_classes or len(names), names, {**splits}, fingerprint(splits), decoder="none")
