"""scikit-learn's digits: 1,797 scanned digits of 8×8 pixels that come with it, for demonstrations without a network."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gift_vit.data.base import Origin, SubsetSource, VisionDataset, fingerprint, register_dataset
from gift_vit.data.config import DigitsConfig
from gift_vit.data.splitting import stratified_split

TEST_SIZE = 797
VAL_SIZE = 200  # leaves 800 for train, the sizes of VTAB-1k


class ArraySource:
    """Grey uint8 images (N, H, W) in memory, given out as RGB."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images = images
        self.labels = labels
        self.sizes: NDArray[np.int64] = np.full(len(images), images[:1].nbytes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]).convert("RGB"), int(self.labels[index])

    def content(self, index: int) -> bytes:
        """The pixels."""
        return self.images[index].tobytes()

    version = stored = content

    def where(self, index: int) -> str:
        """The place in the file."""
        return f"digit {index}"


@register_dataset("digits", DigitsConfig)
def build_digits(cfg: DigitsConfig) -> VisionDataset:
    """Read the digits; their values 0..16 become 0..255."""
    table = np.loadtxt(_digits_file(), delimiter=",")  # 64 pixels and the label
    pixels = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    source = ArraySource(pixels, table[:, -1].astype(np.int64))
    rest, test = stratified_split(source.labels, TEST_SIZE, cfg.split_seed)
    train, val = stratified_split(source.labels[rest], VAL_SIZE, cfg.split_seed)
    splits = {
        "train": SubsetSource(source, rest[train]),
        "val": SubsetSource(source, rest[val]),
        "test": SubsetSource(source, test),
    }
    drawn = f"drawn from {len(source):,}, stratified, seed {cfg.split_seed}"
    names = [str(digit) for digit in range(10)]
    return VisionDataset(
        cfg.name,
        cfg.num_classes or len(names),
        names,
        {**splits},
        fingerprint(splits),
        decoder="none",
        origins=dict.fromkeys(splits, Origin(("scikit-learn's digits",), drawn=drawn)),
    )


def _digits_file() -> Path:
    """What ``sklearn.datasets.load_digits`` reads; scikit-learn itself takes two seconds to import."""
    package = find_spec("sklearn")
    assert package is not None, "the project depends on scikit-learn"
    return Path(*package.submodule_search_locations or (), "datasets", "data", "digits.csv.gz")
