"""Batches depend on seed, epoch and image, and on nothing else."""

import multiprocessing
import random
from collections.abc import Callable, Iterable
from itertools import combinations, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gift_vit.common import distributed
from gift_vit.common.errors import ConfigError
from gift_vit.common.tensors import IGNORED
from gift_vit.data.base import ImageSource, build_dataset
from gift_vit.data.cache import PreparedImages
from gift_vit.data.config import FolderConfig, TransformConfig
from gift_vit.data.kinds.digits import ArraySource
from gift_vit.data.loaders import EvalLoader, FinishedImages, TrainLoader, mix_seed
from gift_vit.data.transforms import InputStatistics, build_eval_transform, build_train_transform
from tests.data.conftest import together

N, BATCH = 23, 5
STATS = InputStatistics(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
AUGMENT = TransformConfig(crop_ratio=0.5, random_crop=True, hflip=0.5, resize=None)


@pytest.fixture
def source() -> ImageSource:
    """Noise images whose label is their position."""
    pixels = np.random.default_rng(0).integers(0, 256, (N, 12, 12), dtype=np.uint8)
    return ArraySource(pixels, np.arange(N, dtype=np.int64))


def loader(source: ImageSource, workers: int = 0, seed: int = 0) -> TrainLoader:
    transform = build_train_transform(AUGMENT, STATS)
    return TrainLoader(PreparedImages(source, transform), transform, BATCH, workers, seed)


def evaluating(source: ImageSource, workers: int = 0) -> EvalLoader:
    transform = build_eval_transform(AUGMENT, STATS)
    return EvalLoader(PreparedImages(source, transform), transform, BATCH, workers)


def assert_same(one: Iterable[tuple[Tensor, Tensor]], other: Iterable[tuple[Tensor, Tensor]]) -> None:
    for first, second in zip(one, other, strict=True):
        assert all(map(torch.equal, first, second))


def test_every_image_once_per_epoch(source: ImageSource) -> None:
    train = loader(source)
    batches = list(train.epoch(0))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 3]
    assert (len(train), train.num_images) == (5, N)
    images, labels = together(batches)
    assert labels.sort().values.tolist() == list(range(N))
    assert (images.dtype, tuple(images.shape), labels.dtype) == (torch.float32, (N, 3, 8, 8), torch.int64)


def test_workers_change_nothing(source: ImageSource) -> None:
    alone, two = loader(source), loader(source, workers=2)
    for epoch in (0, 1, 5, 0):  # forward, a jump, and back, with the same two workers
        assert_same(alone.epoch(epoch), two.epoch(epoch))


def test_workers_share_the_memory_however_python_begins_processes(source: ImageSource) -> None:
    assert isinstance(source, ArraySource)

    class Own(ArraySource):  # of no module: it could not be sent
        pass

    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)  # Python 3.14's
    try:
        batches = list(loader(Own(source.images, source.labels), workers=2).epoch(0))
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert_same(batches, loader(source).epoch(0))


def test_epochs_and_seeds_differ_in_order_and_augmentation(source: ImageSource) -> None:
    runs = [together(loader(source, seed=seed).epoch(epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    orders = {tuple(labels.tolist()) for _, labels in runs}
    assert len(orders) == 4
    sorted_images = [images[labels.argsort()] for images, labels in runs]
    for first, second in combinations(sorted_images, 2):
        assert int((first == second).flatten(1).all(1).sum()) < N // 3


def test_an_image_is_augmented_alike_whatever_came_before(source: ImageSource) -> None:
    """Image 7 of epoch 2, asked for alone, is what the running loader gives."""
    images, labels = together(loader(source, seed=3).epoch(2))
    transform = build_train_transform(AUGMENT, STATS)
    item = FinishedImages(PreparedImages(source, transform), transform, seed=3)[2, 7]
    assert not isinstance(item, ConfigError)
    assert torch.equal(transform.normalise(item[0]), images[labels == 7][0])
    generator = torch.Generator().manual_seed(mix_seed(3, 2, 7))
    assert torch.equal(transform(source[7][0], generator), images[labels == 7][0])


def test_starting_at_an_epoch_equals_running_through(source: ImageSource) -> None:
    through = loader(source, workers=2)
    for epoch, batches in ((0, 5), (1, 1), (2, 5)):  # epoch 1 is left early
        assert len(list(islice(through.epoch(epoch), batches))) == batches
        torch.rand(epoch + 1)
    torch.manual_seed(99)
    assert_same(through.epoch(3), loader(source, workers=2).epoch(3))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_states_are_left_alone(source: ImageSource, workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
    train, evaluation = loader(source, workers), evaluating(source, workers)
    for epoch in range(2):
        assert len(list(train.epoch(epoch))) == len(list(evaluation)) == 5
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_in_order_and_repeatable(source: ImageSource, workers: int) -> None:
    transform, evaluation = build_eval_transform(AUGMENT, STATS), evaluating(source, workers)
    assert (len(evaluation), evaluation.num_images) == (5, N)
    expected = torch.stack([transform(source[index][0]) for index in range(N)])
    for _ in range(2):
        images, labels = together(evaluation)
        assert labels.tolist() == list(range(N))
        assert torch.equal(images, expected)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_processes_share_every_batch_and_every_split(source: ImageSource, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """23 images by 5, the last batch by 3: of four processes one has no image of it."""
    whole = list(loader(source).epoch(1))
    shares, split = [], []
    for rank in range(size):
        monkeypatch.setattr(distributed, "_processes", SimpleNamespace(rank=rank, size=size))
        train, evaluation = loader(source), evaluating(source)
        assert (len(train), train.num_images, evaluation.num_images) == (5, N, N)
        shares.append(list(train.epoch(1)))
        split += together(evaluation)[1].tolist()
    assert sorted(split) == list(range(N))
    for expected, *parts in zip(whole, *shares, strict=True):
        assert all(len(labels) > 0 for _, labels in parts)
        images, labels = together((images[labels != IGNORED], labels[labels != IGNORED]) for images, labels in parts)
        mine, theirs = labels.argsort(), expected[1].argsort()
        assert torch.equal(labels[mine], expected[1][theirs])
        assert torch.equal(images[mine], expected[0][theirs])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_one_line(
    tmp_path: Path, make_tree: Callable[..., Path], make_config: Callable[..., Any], workers: int
) -> None:
    make_tree(tmp_path, {"train/a": 6, "val/a": 1})
    broken = tmp_path / "train/a/4.png"
    broken.write_bytes(b"broken")
    train = build_dataset(make_config(FolderConfig, root=tmp_path)).splits["train"]
    expected = f"^cannot decode image {broken}: it is empty or of no known image format; replace or remove it$"
    evaluation = evaluating(train, workers)
    for batches in (loader(train, workers).epoch(0), evaluation, evaluation):
        with pytest.raises(ConfigError, match=expected):  # kept, the error would keep the workers beyond the test
            list(batches)


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda:1", True)])
def test_batches_are_pinned_for_a_gpu_that_takes_them(
    source: ImageSource, monkeypatch: pytest.MonkeyPatch, device: str, pinned: bool
) -> None:
    """A run on the CPU of a machine with a GPU leaves that alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    transform = build_eval_transform(TransformConfig(), STATS)
    made = EvalLoader(PreparedImages(source, transform), transform, BATCH, 0, torch.device(device))
    assert made._loader.pin_memory == pinned


def test_seeds_are_mixed_and_do_not_collide() -> None:
    keys = [(seed, *key) for seed in range(3) for key in [(0,), (1,), *((e, i) for e in range(5) for i in range(50))]]
    seeds = [mix_seed(*key) for key in keys]
    low = {seed & 0xFFFFFFFF for seed in seeds}  # what torch's CPU generator takes
    assert len(low) == len(keys) == 756
    assert mix_seed(0, 0) != mix_seed(0, 0, 0)
