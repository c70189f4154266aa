"""How fast images reach the model: pipelines that read the same files, in turns, on one core."""

import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from experiments.bench.report import commit_line, machine
from gift_vit.config import compose_config, load_config
from gift_vit.data.base import VisionDataset, build_dataset
from gift_vit.data.cache import open_pixels
from gift_vit.data.config import CacheSettings, TransformConfig
from gift_vit.data.loaders import TrainLoader
from gift_vit.data.transforms import InputStatistics, build_train_transform
from gift_vit.results.render import Table, render_markdown, text_table

log = logging.getLogger(__name__)

HALF = (0.5, 0.5, 0.5)
STATS = InputStatistics(224, HALF, HALF, "bilinear")
FGVC = TransformConfig(crop_ratio=0.875, random_crop=True, hflip=0.5, resize="bilinear")
VTAB = TransformConfig(crop_ratio=None, random_crop=False, hflip=0.0, resize="tf1_bilinear")
BATCH = 32
CLASSES = 8


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


def run_benchmark(images: int, rounds: int) -> str:
    """Measure on so many images, in so many rounds; the table in Markdown."""
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kilobytes = write_images(folder, images)
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
        measured = []
        for number in range(1, rounds + 1):
            log.info("round %d of %d", number, rounds)
            measured.append({key: seconds(epoch(number)) for key, epoch in variants.items()})
    facts, described = machine(torch.device("cpu"))
    caption = f"{images} JPEG files of {kilobytes:.0f} KB on one core of {described}; {rounds} rounds."
    return render_markdown(table(measured, caption, commit_line(facts)))


def table(measured: Sequence[Mapping[str, float]], caption: str, provenance: str) -> Table:
    """Speed relative to the first pipeline: median, lowest and highest over the rounds, given as seconds by pipeline."""
    yardstick, rows = next(iter(measured[0])), []
    for name in measured[0]:
        ratios = [taken[yardstick] / taken[name] for taken in measured]
        rows.append([name, *(f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios)))])
    return text_table(caption, provenance, ("Pipeline", "Images/s, ImageFolder = 1", "lowest", "highest"), rows)
