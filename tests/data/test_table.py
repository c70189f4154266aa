"""A table on a device gives the batches that the loader gives, to the bit."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gift_vit.common import distributed
from gift_vit.data import table as table_module
from gift_vit.data.base import VisionDataset
from gift_vit.data.cache import PixelSource, PreparedImages, open_pixels
from gift_vit.data.config import TransformConfig
from gift_vit.data.loaders import EvalLoader, TrainLoader
from gift_vit.data.table import PixelTable, TableEvalBatches, TableTrainBatches, open_table
from gift_vit.data.transforms import build_eval_transform, build_train_transform
from gift_vit.runs import build
from tests.data.test_cache import CROP, SQUASH, STATS, TF1, data, settings

CPU = torch.device("cpu")
CENTRE = TransformConfig(crop_ratio=0.5, random_crop=False, hflip=0.0, resize="bilinear")
SPLITS = {"train": 70, "trainval": 75}
__all__ = ["data"]  # the fixture: 70 JPEG files of many sizes in train, 5 in val

Batches = Iterable[tuple[Tensor, Tensor]]


def cached(data: VisionDataset, split: str, cfg: TransformConfig, folder: Path) -> PixelSource:
    return open_pixels(data, split, build_train_transform(cfg, STATS), settings(folder, "ram"))


def assert_same(found: Batches, expected: Batches) -> int:
    batches = 0
    for (images, labels), (others, other_labels) in zip(found, expected, strict=True):
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
        batches += 1
    return batches


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("cfg", [CROP, SQUASH, TF1, CENTRE])
def test_batches_are_those_of_the_loader(
    data: VisionDataset, tmp_path: Path, cfg: TransformConfig, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "_STAGING_BYTES", 20_000)  # the pixels come in many parts
    source = cached(data, split, cfg, tmp_path)
    training, evaluating = build_train_transform(cfg, STATS), build_eval_transform(cfg, STATS)
    table = PixelTable(source, CPU)
    loader, batches = TrainLoader(source, training, 16, 0, seed=3), TableTrainBatches(table, training, 16, seed=3)
    assert (len(batches), batches.num_images) == (5, SPLITS[split]) == (len(loader), loader.num_images)
    for epoch in (0, 4, 1):
        assert assert_same(batches.epoch(epoch), loader.epoch(epoch)) == 5
    scoring, looking = EvalLoader(source, evaluating, 32, 0), TableEvalBatches(table, evaluating, 32)
    for _ in range(2):
        assert assert_same(looking, scoring) == 3


def test_it_leaves_global_random_states_alone(data: VisionDataset, tmp_path: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    transform, table = build_train_transform(CROP, STATS), PixelTable(cached(data, "train", CROP, tmp_path), CPU)
    assert len(list(TableTrainBatches(table, transform, 16, 0).epoch(0))) == 5
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])  # noqa: NPY002


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_batches_as_with_the_loader(
    data: VisionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """70 images by 23: the last batch has one, and of two processes one has none of it."""
    source, transform = cached(data, "train", CROP, tmp_path), build_train_transform(CROP, STATS)
    evaluating = build_eval_transform(CROP, STATS)
    table = PixelTable(source, CPU)
    for rank in range(size):
        monkeypatch.setattr(distributed, "_processes", SimpleNamespace(rank=rank, size=size))
        loader, batches = TrainLoader(source, transform, 23, 0, seed=0), TableTrainBatches(table, transform, 23, seed=0)
        assert assert_same(batches.epoch(2), loader.epoch(2)) == 4
        assert_same(TableEvalBatches(table, evaluating, 8), EvalLoader(source, evaluating, 8, 0))


def test_a_table_is_made_where_it_takes_a_quarter_of_the_free_memory_at_most(
    data: VisionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, gpu, made = cached(data, "train", SQUASH, tmp_path), torch.device("cuda", 0), []
    needed = 70 * 3 * 24 * 24
    monkeypatch.setattr(table_module, "PixelTable", lambda _, device: made.append(device) or "table")
    for free, expected in ((4 * needed, "table"), (4 * needed - 1, None)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 2 * free))
        assert build._table(source, gpu, reread=True) == expected
        assert build._table(source, CPU, reread=True) is None, "workers decode beside the training there"
        assert build._table(source, gpu, reread=False) is None
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: needed)  # what an earlier run has left
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: needed - 1)
    assert build._table(source, gpu, reread=True) == "table"
    assert made == [gpu, gpu]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**40, 2**40))
    decoded = PreparedImages(data.splits["train"], build_train_transform(SQUASH, STATS))
    assert open_table(decoded, gpu) is None, "it is not cached"
    assert made == [gpu, gpu]


def test_workers_of_a_loader_live_as_long_as_the_loader(data: VisionDataset, tmp_path: Path) -> None:
    loader: Any = TrainLoader(cached(data, "train", CROP, tmp_path), build_train_transform(CROP, STATS), 16, 2, seed=0)
    processes = []
    for epoch in range(3):
        assert len(list(loader.epoch(epoch))) == 5
        processes.append({worker.pid for worker in loader._loader._iterator._workers})
    assert processes[0] == processes[1] == processes[2]
    assert len(processes[0]) == 2
