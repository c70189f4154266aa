"""Batches whose order and augmentation are a function of seed, epoch and image alone.

Not of the number of workers, of the epochs before, or of any global random state: an interrupted run that goes on at an epoch
sees what it would have seen, and iterating changes no draw of the training loop (drop path, dropout).
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from gift_vit.data.base import ImageSource
from gift_vit.errors import ConfigError

Transform: TypeAlias = Callable[[Image.Image], Tensor]
Batch: TypeAlias = tuple[Tensor, Tensor]


def mix_seed(seed: int, *key: int) -> int:
    """A seed of 64 bits for ``key`` under ``seed``; neighbouring keys give unrelated seeds, on every machine the same."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


class TransformedSource(Dataset["tuple[Tensor, int] | ConfigError"]):
    """A source with its transform, indexed by (epoch, index), so that workers need not be told the epoch.

    An unreadable image is given out as the error itself: raised in a worker it would reach the person as a traceback.
    """

    def __init__(self, source: ImageSource, transform: Transform, seed: int) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | ConfigError:
        epoch, index = key
        try:
            image, label = self.source[index]
        except ConfigError as error:
            return error
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed, which would also seed the GPUs' generators, and those are not forked
            torch.default_generator.manual_seed(mix_seed(self.seed, epoch, index))
            return self.transform(image), label


class EpochBatches:
    """Batch sampler of (epoch, index) pairs: in order, or shuffled by ``seed`` and ``epoch``; the last batch may be smaller."""

    def __init__(self, num_images: int, batch_size: int, seed: int, shuffle: bool) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: give a positive number")
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = self.epoch, range(self.num_images)
        if self.shuffle:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
            order = torch.randperm(self.num_images, generator=generator).tolist()
        starts = range(0, self.num_images, self.batch_size)
        return ([(epoch, index) for index in order[start : start + self.batch_size]] for start in starts)


class TrainLoader:
    """Shuffled, augmented batches of one epoch at a time; of two iterators, the later one ends the earlier one.

    With ``workers`` the images are read in that many processes, which live as long as the loader.
    """

    def __init__(self, source: ImageSource, transform: Transform, batch_size: int, workers: int, seed: int) -> None:
        self.num_images = len(source)
        self._batches = EpochBatches(len(source), batch_size, seed, shuffle=True)
        self._loader = _build_loader(TransformedSource(source, transform, seed), self._batches, workers)

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._batches)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch (from 0): images (B, 3, H, W) float32 and labels (B,) int64.

        Raises:
            ConfigError: While iterating, if an image cannot be read.
        """
        self._batches.epoch = epoch
        return _checked(iter(self._loader))


class EvalLoader:
    """Every image once, in order, each time it is iterated over."""

    def __init__(self, source: ImageSource, transform: Transform, batch_size: int, workers: int) -> None:
        self.num_images = len(source)
        self._batches = EpochBatches(len(source), batch_size, seed=0, shuffle=False)
        self._loader = _build_loader(TransformedSource(source, transform, seed=0), self._batches, workers)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return _checked(iter(self._loader))


def build_eval_loader(source: ImageSource, transform: Transform, batch_size: int, workers: int) -> EvalLoader:
    """A loader for validation or test, with batches as :meth:`TrainLoader.epoch` gives them."""
    return EvalLoader(source, transform, batch_size, workers)


def _build_loader(
    dataset: TransformedSource, batches: EpochBatches, workers: int
) -> "DataLoader[tuple[Tensor, int] | ConfigError]":
    if workers < 0:
        raise ConfigError(f"workers={workers}: give 0 to read images in the main process, or a number of processes")
    return DataLoader(
        dataset,
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # else each iterator draws its workers' seed from the global one
    )


def _collate(items: "list[tuple[Tensor, int] | ConfigError]") -> Batch | ConfigError:
    for item in items:
        if isinstance(item, ConfigError):
            return item
    images, labels = default_collate(items)
    return images, labels


def _checked(batches: "Iterator[Batch | ConfigError]") -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, ConfigError):
            raise batch
        images, labels = batch  # pinned batches arrive as lists
        yield images, labels
