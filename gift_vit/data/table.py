"""The prepared pixels of a split on the device, read there with crop, flip and normalisation.

Where a GPU has the room, a loader's workers have nothing left to do after the first epoch: the pixels lie on the device, image
after image as they come from the cache, and a batch is one indexed read of them. Where it is cut and whether it is flipped is
drawn on the host as :class:`gift_vit.data.loaders.TrainLoader` draws it, while the device computes the batches before: pixels
and labels are those of the loader, to the bit.
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gift_vit.common import distributed
from gift_vit.data.base import ConcatSource
from gift_vit.data.cache import CachedImages, PixelSource
from gift_vit.data.loaders import Batch, EpochBatches, ignored_like, mix_seed
from gift_vit.data.transforms import ImageTransform

SHARE = 1 / 4  # of the device's free memory that the pixels of a split may take
_STAGING_BYTES = 64 * 2**20

Place: TypeAlias = tuple[int, int, int, bool]
"""Index of an image, top and left of the cut, whether it is flipped."""


class PixelTable:
    """Pixels of N images, one after the other in one tensor on a device, with what is needed to find one in it.

    Args:
        source: All of it cached.
        device: Where the pixels shall lie.

    Attributes:
        sizes: Height and width of every image, (N, 2), on the host.
    """

    def __init__(self, source: PixelSource, device: torch.device) -> None:
        sizes = _cached_sizes(source)
        assert sizes is not None, "a table is made of pixels that are cached"
        self.sizes, self.device = sizes, device
        ends = np.cumsum(3 * sizes.prod(1))
        dtype = torch.from_numpy(np.zeros(0, source[0][0].dtype)).dtype
        self._pixels = torch.empty(int(ends[-1]), dtype=dtype, device=device)
        self._fill(source, ends)
        starts = np.concatenate([[0], ends[:-1]])
        self._facts = torch.from_numpy(np.stack([starts, *sizes.T], axis=1)).to(device)
        self.labels = torch.from_numpy(np.asarray(source.labels)).to(device)

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, places: Tensor, side: int) -> Tensor:
        """Squares of ``side`` pixels cut out of images, (B, 3, side, side) in the pixels' own number format.

        ``places`` is (B, 4) int64 on the device, a :data:`Place` in each row.
        """
        index, top, left, flipped = places.unbind(1)
        starts, heights, widths = self._facts[index].unbind(1)
        along = torch.arange(side, device=self.device)
        columns = left[:, None] + torch.where(flipped[:, None] > 0, side - 1 - along, along)
        rows = (top[:, None] + along) * widths[:, None]
        channels = starts[:, None] + torch.arange(3, device=self.device) * (heights * widths)[:, None]
        corners = channels[:, :, None] + rows[:, None, :]
        return self._pixels[corners[..., None] + columns[:, None, None, :]]

    def _fill(self, source: PixelSource, ends: NDArray[np.int64]) -> None:
        staging = torch.empty(
            max(_STAGING_BYTES // self._pixels.itemsize, int(np.diff(ends, prepend=0).max())), dtype=self._pixels.dtype
        )
        view, sent, filled = staging.numpy(), 0, 0
        for index in range(len(source)):
            pixels = source[index][0].reshape(-1)
            if filled + len(pixels) > len(view):
                self._pixels[sent : sent + filled] = staging[:filled].to(self.device)
                sent, filled = sent + filled, 0
            view[filled : filled + len(pixels)] = pixels
            filled += len(pixels)
        self._pixels[sent : sent + filled] = staging[:filled].to(self.device)


def open_table(source: PixelSource, device: torch.device) -> PixelTable | None:
    """The table of a split on a GPU; None where it would take too much of the free memory, or the pixels are not cached."""
    sizes = _cached_sizes(source)
    if sizes is None:
        return None
    needed = 3 * int(sizes.prod(1).sum()) * source[0][0].itemsize
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # of an earlier run in this process
    return PixelTable(source, device) if needed <= SHARE * free else None


class _TableBatches:
    """Batches of a table, normalised: what those of training and evaluation share."""

    def __init__(self, table: PixelTable, transform: ImageTransform) -> None:
        self.num_images = len(table)
        self._table, self._transform = table, transform

    def _read(self, places: Sequence[Place]) -> Batch:
        rows = torch.tensor(places, dtype=torch.int64)
        if self._table.device.type == "cuda":
            rows = rows.pin_memory().to(self._table.device, non_blocking=True)
        images = self._table.read(rows, self._transform.size)
        return self._transform.normalise(images), self._table.labels[rows[:, 0]]

    def _place(self, index: int, generator: torch.Generator | None = None) -> Place:
        height, width = self._table.sizes[index]
        return index, *self._transform.place(int(height), int(width), generator)


class TableTrainBatches(_TableBatches):
    """What :class:`gift_vit.data.loaders.TrainLoader` gives, read from a table."""

    def __init__(self, table: PixelTable, transform: ImageTransform, batch_size: int, seed: int) -> None:
        super().__init__(table, transform)
        self._batches, self._seed = EpochBatches(len(table), batch_size, seed), seed

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._batches)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch (from 0): images (B, 3, H, W) float32 and labels (B,) int64, on the table's device."""
        self._batches.epoch = epoch
        for number, keys in enumerate(self._batches):
            images, labels = self._read([self._draw(*key) for key in keys])
            yield images, labels if self._batches.has_share(number) else ignored_like(labels)

    def _draw(self, epoch: int, index: int) -> Place:
        if not self._transform.is_random:
            return self._place(index)
        return self._place(index, torch.Generator().manual_seed(mix_seed(self._seed, epoch, index)))


class TableEvalBatches(_TableBatches):
    """What :class:`gift_vit.data.loaders.EvalLoader` gives, read from a table."""

    def __init__(self, table: PixelTable, transform: ImageTransform, batch_size: int) -> None:
        super().__init__(table, transform)
        self._own = range(distributed.rank(), len(table), distributed.world_size())
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._own), self._batch_size):
            yield self._read([self._place(index) for index in self._own[start : start + self._batch_size]])


def _cached_sizes(source: PixelSource) -> NDArray[np.int64] | None:
    """Height and width of every image, (N, 2); None where not all of them are cached."""
    parts = source.sources if isinstance(source, ConcatSource) else [source]
    cached = [part.sizes for part in parts if isinstance(part, CachedImages)]
    return np.concatenate(cached) if len(cached) == len(parts) else None
