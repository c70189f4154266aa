"""Decode once: the prepared pixels of a split, kept between epochs and, on disk, between runs.

A cache is one Arrow file of pixels (3, h, w) per image, mapped into memory, so that all workers and all runs on a machine share
one copy of it. They are uint8, except after ``tf1_bilinear``, whose results are no whole numbers and stay float32. The file is
keyed by the images, by what decoded them and by how they were resized: change one of these and another is built. The pixels are
those that :meth:`ImageTransform.prepare` gives; crop, flip and normalisation follow as without a cache.

It is built before the first epoch by all of the loader's workers, under a lock: a second process waits and then reads the
first one's file. The file gets its name when it is complete; what a killed process leaves is removed by the next one.
"""

import hashlib
import json
import logging
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import alone, atomic_path
from gift_vit.data.base import ImageSource, LabelledSource, VisionDataset, concatenate
from gift_vit.data.config import CacheSettings
from gift_vit.data.loaders import in_lists
from gift_vit.data.transforms import ImageTransform, Pixels

log = logging.getLogger(__name__)

SMALL_BYTES = 512 * 2**20  # up to here ``auto`` keeps the pixels in memory
FORMAT = 1
_ROWS = 32  # images per record batch
_SCHEMA = pa.schema([("pixels", pa.binary()), ("height", pa.int32()), ("width", pa.int32())])

PixelSource: TypeAlias = "LabelledSource[Pixels]"
"""Prepared pixels (3, h, w) and labels."""


class PreparedImages:
    """Pixels prepared anew at each access."""

    def __init__(self, source: ImageSource, transform: ImageTransform) -> None:
        self.source = source
        self.transform = transform
        self.labels = source.labels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Pixels, int]:
        image, label = self.source[index]
        return self.transform.prepare(image, self.source.where(index)), label


class CachedImages:
    """Prepared pixels out of an Arrow file on disk or in memory; read-only views, no copies.

    Attributes:
        sizes: Height and width of every image in pixels, (len, 2).
    """

    def __init__(self, file: Path | pa.Buffer, labels: NDArray[np.int64]) -> None:
        self.file = file
        self.labels = labels
        source = pa.memory_map(str(file)) if isinstance(file, Path) else file
        self._table = pa.ipc.open_file(source).read_all()
        # to_numpy would import pandas where that is installed, which takes longer than all else here
        sides = [np.from_dlpack(self._table[side].combine_chunks()) for side in ("height", "width")]
        self.sizes: NDArray[np.int64] = np.stack(sides, axis=1).astype(np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers that are not forked map the file again, rather than being sent its content."""
        return CachedImages, (self.file, self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Pixels, int]:
        chunk, row = divmod(index, _ROWS)
        buffer = self._table["pixels"].chunk(chunk)[row].as_buffer()
        height, width = self.sizes[index]
        dtype = np.uint8 if buffer.size == 3 * height * width else np.float32
        pixels = np.frombuffer(buffer, dtype).reshape(3, height, width)
        pixels.setflags(write=False)  # the file is mapped for reading
        return pixels, int(self.labels[index])


def open_pixels(
    data: VisionDataset, split: str, transform: ImageTransform, settings: CacheSettings, reread: bool = True
) -> PixelSource:
    """The prepared pixels of a split, cached as ``settings`` say.

    Args:
        data: The dataset.
        split: ``train``, ``val``, ``test`` or ``trainval``, whose two parts are cached apart.
        transform: What prepares the images.
        settings: Where to keep them.
        reread: Whether the images are read more than once. If not, only ``disk`` builds a cache; ``auto`` uses one
            that is there.

    Raises:
        ConfigError: If an image cannot be read, or the folder cannot be written with ``disk``.
        RunError: If the disk is full with ``disk``.
    """
    return concatenate([_open_part(data, part, transform, settings, reread) for part in data.parts(split)])


def _open_part(
    data: VisionDataset, source: ImageSource, transform: ImageTransform, settings: CacheSettings, reread: bool
) -> PixelSource:
    prepared = PreparedImages(source, transform)
    if settings.mode == "off" or (settings.mode == "ram" and not reread):
        return prepared
    if settings.mode == "ram":
        return _in_memory(prepared, settings)
    file = settings.folder / f"{data.name}-{pixels_key(data, source, transform)}.arrow"
    cached = _opened(file, prepared)
    if cached is not None or (settings.mode == "auto" and not reread):
        return cached or prepared
    if settings.mode == "disk":
        return _on_disk(file, prepared, settings)
    if _estimated_bytes(prepared) <= SMALL_BYTES:
        return _in_memory(prepared, settings)
    try:
        return _on_disk(file, prepared, settings)
    except (CacheFolderError, RunError) as error:
        log.warning("decoding the images of %s anew in each epoch (dataset.cache=auto): %s", data.name, error)
        return prepared


class CacheFolderError(ConfigError):
    """The cache's folder cannot be written, or has no room."""


def pixels_key(data: VisionDataset, source: ImageSource, transform: ImageTransform) -> str:
    """Names the prepared pixels of a source: its images, what decodes them, and how they are resized.

    An image is known by its file's name, size and time, and a few of the data by their content: others may have all three.
    """
    digest = hashlib.sha256(json.dumps([FORMAT, data.decoder, data.sample, transform.prepared_as, len(source)]).encode())
    for index in range(len(source)):
        version = source.version(index)
        digest.update(len(version).to_bytes(8, "little") + version)
    return digest.hexdigest()[:32]


def _estimated_bytes(prepared: PreparedImages) -> float:
    """What the pixels of all images take, from eight of them."""
    sample = np.linspace(0, len(prepared) - 1, min(8, len(prepared))).astype(int)
    return float(np.mean([prepared[int(index)][0].nbytes for index in sample])) * len(prepared)


def _in_memory(prepared: PreparedImages, settings: CacheSettings) -> CachedImages:
    sink = pa.BufferOutputStream()
    _write(sink, prepared, settings.workers)
    return CachedImages(sink.getvalue(), prepared.labels)


def _on_disk(file: Path, prepared: PreparedImages, settings: CacheSettings) -> CachedImages:
    with ExitStack() as stack:
        try:
            stack.enter_context(alone(file))
        except ConfigError as error:
            reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else error
            raise CacheFolderError(
                f"cannot write the cache folder {file.parent} ({reason}); set paths.cache_root or dataset.cache=off"
            ) from error
        cached = _opened(file, prepared)  # another process may have built it meanwhile
        if cached is not None:
            return cached
        _check_room(file.parent, _estimated_bytes(prepared))
        log.info("decoding %s images once into %s", f"{len(prepared):,}", file)
        with atomic_path(file) as partial, pa.OSFile(str(partial), "wb") as sink:
            _write(sink, prepared, settings.workers)
    return CachedImages(file, prepared.labels)


def _check_room(folder: Path, needed: float) -> None:
    """A cache may take half of what is free: runs and checkpoints need room too."""
    free = shutil.disk_usage(folder).free
    if needed > free / 2:
        raise CacheFolderError(
            f"a cache of about {needed / 1e9:.1f} GB needs twice that free in {folder}, which has {free / 1e9:.1f} GB; "
            "free some, set paths.cache_root to another disk, or dataset.cache=off"
        )


def _opened(file: Path, prepared: PreparedImages) -> CachedImages | None:
    """The cache in a file, or None if there is none that can be used."""
    if not file.is_file():
        return None
    try:
        cached = CachedImages(file, prepared.labels)
    except (pa.ArrowException, OSError) as error:
        log.warning("building %s anew: %s", file, " ".join(str(error).split()))
        return None
    return cached if len(cached.sizes) == len(prepared) else None


def _rows(prepared: PreparedImages, indices: list[int]) -> list[dict[str, Any]] | ConfigError:
    """Rows of the file; where an image is unreadable, the error itself."""
    try:
        several = [prepared[index][0] for index in indices]
    except ConfigError as error:
        return error
    return [{"pixels": pixels.tobytes(), "height": pixels.shape[1], "width": pixels.shape[2]} for pixels in several]


def _write(sink: pa.NativeFile, prepared: PreparedImages, workers: int) -> None:
    with pa.ipc.new_file(sink, _SCHEMA) as writer:
        for rows in in_lists(partial(_rows, prepared), len(prepared), _ROWS, workers):
            if isinstance(rows, ConfigError):
                raise rows
            writer.write_batch(pa.RecordBatch.from_pylist(rows, _SCHEMA))
