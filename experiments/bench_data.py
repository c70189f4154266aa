"""How fast images reach the model, as ratios measured side by side in one run on one core.

    python -m experiments.bench_data [images=128] [rounds=5]

Makes JPEG files of realistic size (500×375, about 100 KB) in a temporary folder and reads them through

- torchvision's ImageFolder with Resize 256, RandomCrop 224, flip, ToTensor, Normalize, decoded by Pillow (the yardstick),
- gift_vit without a cache, the same transform,
- gift_vit from the second epoch on, with the cache on disk and in memory,
- the same for VTAB-1k's transform (squash by tf1_bilinear, no augmentation).

All give float32 batches of 32. The variants take turns in every round; printed is the median of a round's ratios.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from gift_vit import cli
from gift_vit.compose import compose_config
from gift_vit.config import load_config
from gift_vit.data import (
    CacheSettings,
    InputStatistics,
    TrainLoader,
    TransformConfig,
    VisionDataset,
    build_dataset,
    build_train_transform,
    open_pixels,
)

HALF = (0.5, 0.5, 0.5)
STATS = InputStatistics(224, HALF, HALF, "bilinear")
FGVC = TransformConfig(crop_ratio=0.875, random_crop=True, hflip=0.5, resize="bilinear")
VTAB = TransformConfig(crop_ratio=None, random_crop=False, hflip=0.0, resize="tf1_bilinear")
BATCH = 32
CLASSES = 8


@dataclass
class Arguments:
    """Words of the command line."""

    images: int = 128
    rounds: int = 5


def write_images(folder: Path, count: int) -> float:
    """Write JPEG files with structure at all scales, as photographs have; returns their mean size in KB."""
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = np.zeros((375, 500, 3))
        for side in (4, 16, 64, 256):
            coarse = Image.fromarray(rng.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8))
            pixels += (np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)) - 128.0) * side**-0.3
        file = folder / "train" / f"class{index % CLASSES}" / f"{index:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8)).save(file, quality=95)
    shutil.copytree(folder / "train", folder / "val")  # else val is split off train
    return statistics.mean(file.stat().st_size for file in folder.rglob("*.jpg")) / 1000


def image_folder(folder: Path) -> Callable[[int], Iterable[object]]:
    """The yardstick."""
    steps = [
        transforms.Resize(256),
        transforms.RandomCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(HALF, HALF),
    ]
    loader = DataLoader(ImageFolder(str(folder / "train"), transforms.Compose(steps)), BATCH, shuffle=True)
    return lambda _: loader


def ours(data: VisionDataset, cfg: TransformConfig, mode: str, folder: Path) -> Callable[[int], Iterable[object]]:
    """gift_vit's pipeline; a cache is built here, before anything is timed."""
    transform = build_train_transform(cfg, STATS)
    pixels = open_pixels(data, "train", transform, CacheSettings(mode, folder / "cache", workers=0))
    return TrainLoader(pixels, transform, BATCH, workers=0, seed=0).epoch


def seconds(batches: Iterable[object]) -> float:
    """How long it takes to go through the batches."""
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def run_benchmark(arguments: Arguments) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kilobytes = write_images(folder, arguments.images)
        data = build_dataset(load_config(compose_config(["dataset=folder", f"dataset.root={folder}"])).dataset)
        variants = {
            "torchvision ImageFolder, FGVC transform": image_folder(folder),
            "FGVC transform, no cache": ours(data, FGVC, "off", folder),
            "FGVC transform, second epoch, cache on disk": ours(data, FGVC, "disk", folder),
            "FGVC transform, second epoch, cache in memory": ours(data, FGVC, "ram", folder),
            "VTAB-1k transform, no cache": ours(data, VTAB, "off", folder),
            "VTAB-1k transform, second epoch, cache on disk": ours(data, VTAB, "disk", folder),
        }
        for epoch in variants.values():
            seconds(epoch(0))
        rounds = [{key: seconds(epoch(number + 1)) for key, epoch in variants.items()} for number in range(arguments.rounds)]
    yardstick = next(iter(variants))
    table = Table(title=f"{arguments.images} JPEG files of {kilobytes:.0f} KB on one core, {arguments.rounds} rounds")
    for header in ("pipeline", "speed, ImageFolder = 1", "lowest", "highest"):
        table.add_column(header, justify="left" if header == "pipeline" else "right")
    for key in variants:
        ratios = [measured[yardstick] / measured[key] for measured in rounds]
        table.add_row(key, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}", f"{max(ratios):.2f}")
    Console().print(table)


def main() -> None:
    cli.log_to_stderr()
    raise SystemExit(cli.run_command(lambda: run_benchmark(cli.parse_arguments(Arguments, __doc__ or ""))))


if __name__ == "__main__":
    main()
