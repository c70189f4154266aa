"""Batches depend on seed, epoch and image, and on nothing else."""

import random
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gift_vit import distributed
from gift_vit.data import (
    EvalLoader,
    FolderConfig,
    ImageSource,
    InputStatistics,
    PreparedImages,
    TrainLoader,
    TransformConfig,
    build_dataset,
    build_eval_transform,
    build_train_transform,
)
from gift_vit.data.digits import ArraySource
from gift_vit.data.loaders import IGNORED, FinishedImages, mix_seed
from gift_vit.errors import ConfigError

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


def together(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


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
        expected, found = together(alone.epoch(epoch)), together(two.epoch(epoch))
        assert torch.equal(expected[0], found[0])
        assert torch.equal(expected[1], found[1])


def test_epochs_and_seeds_differ_in_order_and_augmentation(source: ImageSource) -> None:
    runs = [together(loader(source, seed=seed).epoch(epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    orders = {tuple(labels.tolist()) for _, labels in runs}
    assert len(orders) == 4
    sorted_images = [images[labels.argsort()] for images, labels in runs]
    for first in range(4):
        for second in range(first):
            same = (sorted_images[first] == sorted_images[second]).flatten(1).all(1)
            assert int(same.sum()) < N // 3


def test_an_image_is_augmented_alike_whatever_came_before(source: ImageSource) -> None:
    """Image 7 of epoch 2, asked for alone, is what the running loader gives."""
    images, labels = together(loader(source, seed=3).epoch(2))
    transform = build_train_transform(AUGMENT, STATS)
    item = FinishedImages(PreparedImages(source, transform), transform, seed=3)[2, 7]
    assert not isinstance(item, ConfigError)
    assert torch.equal(transform.normalise(item[0]), images[labels == 7][0])
    generator = torch.Generator().manual_seed(mix_seed(3, 2, 7))
    assert torch.equal(transform(source[7][0], generator), images[labels == 7][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_at_an_epoch_equals_running_through(source: ImageSource, workers: int) -> None:
    through = loader(source, workers)
    for epoch, batches in ((0, 5), (1, 1), (2, 5)):  # epoch 1 is left early
        assert len(list(islice(through.epoch(epoch), batches))) == batches
        torch.rand(epoch + 1)
    torch.manual_seed(99)
    for expected, found in zip(through.epoch(3), loader(source, workers).epoch(3), strict=True):
        assert torch.equal(expected[0], found[0])
        assert torch.equal(expected[1], found[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_states_are_left_alone(source: ImageSource, workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
    train = loader(source, workers)
    transform = build_eval_transform(AUGMENT, STATS)
    evaluation = EvalLoader(PreparedImages(source, transform), transform, BATCH, workers)
    for epoch in range(2):
        assert len(list(train.epoch(epoch))) == len(list(evaluation)) == 5
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_in_order_and_repeatable(source: ImageSource, workers: int) -> None:
    transform = build_eval_transform(AUGMENT, STATS)
    evaluation = EvalLoader(PreparedImages(source, transform), transform, BATCH, workers)
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
    transform = build_eval_transform(AUGMENT, STATS)
    shares, split = [], []
    for rank in range(size):
        monkeypatch.setattr(distributed, "_processes", SimpleNamespace(rank=rank, size=size))
        train, evaluation = loader(source), EvalLoader(PreparedImages(source, transform), transform, BATCH, 0)
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
    expected = f"cannot decode image {broken}: it is empty or of no known image format"
    transform = build_eval_transform(AUGMENT, STATS)
    training = TrainLoader(PreparedImages(train, transform), transform, 2, workers, seed=0)
    evaluation = EvalLoader(PreparedImages(train, transform), transform, 2, workers)
    for batches in (training.epoch(0), evaluation, evaluation):
        with pytest.raises(ConfigError) as caught:
            list(batches)
        assert str(caught.value) == expected
        assert type(caught.value) is ConfigError


def test_seeds_are_mixed_and_do_not_collide() -> None:
    keys = [(seed, *key) for seed in range(3) for key in [(0,), (1,), *((e, i) for e in range(5) for i in range(50))]]
    seeds = [mix_seed(*key) for key in keys]
    low = {seed & 0xFFFFFFFF for seed in seeds}  # what torch's CPU generator takes
    assert len(low) == len(keys) == 756
    assert mix_seed(0, 0) != mix_seed(0, 0, 0)


@pytest.mark.parametrize(("batch_size", "workers", "message"), [(0, 0, "batch_size=0"), (4, -1, "workers=-1")])
def test_sizes_are_checked(source: ImageSource, batch_size: int, workers: int, message: str) -> None:
    transform = build_train_transform(AUGMENT, STATS)
    with pytest.raises(ConfigError, match=message):
        TrainLoader(PreparedImages(source, transform), transform, batch_size, workers, seed=0)
