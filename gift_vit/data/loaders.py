"""Batches whose order and augmentation are a function of seed, epoch and image alone.

Not of the number of workers, of the epochs before, or of any global random state: an interrupted run that goes on at an epoch
sees what it would have seen, and iterating changes no draw of the training loop (drop path, dropout).

Nor of the number of processes that train (:mod:`gift_vit.common.distributed`): they share the images of each batch among them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import BatchSampler, DataLoader, Dataset

from gift_vit.common import distributed
from gift_vit.common.cores import worker_start
from gift_vit.common.errors import ConfigError
from gift_vit.common.tensors import IGNORED
from gift_vit.data.base import LabelledSource

Batch: TypeAlias = tuple[Tensor, Tensor]
"""The model's inputs, of which the first axis counts the examples, and their labels (B,), or (B, A) of sequences."""
CPU = torch.device("cpu")


class Transform(Protocol):
    """From what a source gives to what the model is given, as :class:`gift_vit.data.transforms.ImageTransform` does it."""

    def finish(self, item: Any, generator: torch.Generator, /) -> Tensor:
        """One example; every draw comes from ``generator``."""
        ...

    def stack(self, items: list[Tensor], /) -> Tensor:
        """A batch of such examples."""
        ...

    def normalise(self, batch: Tensor, /) -> Tensor:
        """The batch for the model, on the device."""
        ...


def mix_seed(seed: int, *key: int) -> int:
    """A seed of 64 bits for ``key`` under ``seed``; neighbouring keys give unrelated seeds, on every machine the same."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


class FinishedImages(Dataset["tuple[Tensor, int] | ConfigError"]):
    """Cropped and flipped pixels, indexed by (epoch, index), so that workers need not be told the epoch.

    An unreadable image is given out as the error itself: raised in a worker it would reach the person as a traceback.
    """

    def __init__(self, source: LabelledSource[Any], transform: Transform, seed: int) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | ConfigError:
        epoch, index = key
        try:
            pixels, label = self.source[index]
        except ConfigError as error:
            return error
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch, index))
        return self.transform.finish(pixels, generator), label


class EpochBatches:
    """Batch sampler of (epoch, index) pairs, shuffled by ``seed`` and ``epoch``; the last batch may be smaller.

    Of several processes each is given its share of every batch.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        order = torch.randperm(self.num_images, generator=generator).tolist()
        starts = range(0, self.num_images, self.batch_size)
        return (self._share([(epoch, index) for index in order[start : start + self.batch_size]]) for start in starts)

    def has_share(self, number: int) -> bool:
        """Whether batch ``number`` (from 0) has an image for this process; if not, it is given another's."""
        return distributed.rank() < min(self.batch_size, self.num_images - number * self.batch_size)

    def _share(self, batch: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return batch[distributed.rank() :: distributed.world_size()] or batch[:1]


class _Loader:
    """Batches of one split, normalised on a device; what the loaders of training and evaluation share."""

    def __init__(
        self, images: FinishedImages, batches: EpochBatches | BatchSampler, workers: int, device: torch.device
    ) -> None:
        self.num_images = len(images)
        self._loader = DataLoader(
            images,
            batch_sampler=batches,  # pyright: ignore[reportArgumentType]
            num_workers=workers,
            multiprocessing_context=worker_start(workers),
            collate_fn=partial(_collate, images.transform),
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else each iterator draws its workers' seed from the global one
        )
        self._transform, self._device = images.transform, device

    def __len__(self) -> int:
        """Number of batches of one pass."""
        return len(self._loader)

    def _pass(self) -> Iterator[Batch]:
        return _finished(iter(self._loader), self._transform, self._device)


class TrainLoader(_Loader):
    """Shuffled, augmented batches of one epoch at a time, normalised on ``device``.

    Of two iterators, the later one ends the earlier one. With ``workers`` the images are read in that many processes, which
    live as long as the loader.
    """

    def __init__(
        self,
        source: LabelledSource[Any],
        transform: Transform,
        batch_size: int,
        workers: int,
        seed: int,
        device: torch.device = CPU,
    ) -> None:
        self._batches = EpochBatches(len(source), batch_size, seed)
        super().__init__(FinishedImages(source, transform, seed), self._batches, workers, device)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch (from 0): images (B, 3, H, W) float32 and labels (B,) int64.

        A batch without an image for this process is one of another's images, labelled ``IGNORED``.

        Raises:
            ConfigError: While iterating, if an image cannot be read.
        """
        self._batches.epoch = epoch
        return map(self._labelled, count(), self._pass())

    def _labelled(self, number: int, batch: Batch) -> Batch:
        images, labels = batch
        return batch if self._batches.has_share(number) else (images, ignored_like(labels))


def ignored_like(labels: Tensor) -> Tensor:
    """Labels of examples that do not count, in the place of these; of numbers, each of which may be a label, NaN."""
    return torch.full_like(labels, math.nan if labels.is_floating_point() else IGNORED)


class EvalLoader(_Loader):
    """Every image once, in order, each time it is iterated over; normalised on ``device``.

    Of several processes each is given other images, and batches of its own; with ``order``, the indices of images, each is
    given these.
    """

    def __init__(
        self,
        source: LabelledSource[Any],
        transform: Transform,
        batch_size: int,
        workers: int,
        device: torch.device = CPU,
        order: Sequence[int] | None = None,
    ) -> None:
        own = range(distributed.rank(), len(source), distributed.world_size()) if order is None else order
        batches = BatchSampler([(0, index) for index in own], batch_size, drop_last=False)  # pyright: ignore[reportArgumentType]
        super().__init__(FinishedImages(source, transform, seed=0), batches, workers, device)

    def __iter__(self) -> Iterator[Batch]:
        return self._pass()


def in_lists(
    make: Callable[[list[int]], Any], count: int, length: int, workers: int, pinned: bool = False
) -> "DataLoader[Any]":
    """What ``make`` makes of the numbers up to ``count``, ``length`` at a time, in ``workers`` processes; nothing is drawn."""
    return DataLoader(
        range(count),  # pyright: ignore[reportArgumentType]
        length,
        num_workers=workers,
        multiprocessing_context=worker_start(workers),
        collate_fn=make,
        pin_memory=pinned,
        generator=torch.Generator(),  # else it draws from the global one, and a run would go on with other numbers
    )


def _collate(transform: Transform, items: "list[tuple[Tensor, int] | ConfigError]") -> Batch | ConfigError:
    for item in items:
        if isinstance(item, ConfigError):
            return item
    images, labels = zip(*items, strict=True)
    return transform.stack(list(images)), _stacked(labels)


def _stacked(labels: "tuple[int | Tensor, ...]") -> Tensor:
    """One number each, (B,); or sequences, filled up in front with :data:`IGNORED` to the longest one's length, (B, A)."""
    if isinstance(labels[0], Tensor):
        return pad_sequence(list(labels), batch_first=True, padding_value=IGNORED, padding_side="left")  # pyright: ignore[reportArgumentType]
    return torch.tensor(labels)


def _finished(batches: "Iterator[Batch | ConfigError]", transform: Transform, device: torch.device) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, ConfigError):
            try:
                raise batch
            finally:
                del batch  # the error knows this frame: together they would keep the loader and its workers
        images, labels = batch  # pinned batches arrive as lists
        yield transform.normalise(images.to(device, non_blocking=True)), labels.to(device, non_blocking=True)
