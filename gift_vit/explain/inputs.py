"""The images to explain: files, or a part of a dataset's split; and their maps, batch by batch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from gift_vit.data import ImageTransform, VisionDataset
from gift_vit.data.sources import decode_named
from gift_vit.errors import ConfigError, did_you_mean
from gift_vit.explain.layers import MapChoice
from gift_vit.explain.maps import ClusterMaps, explain, join_maps
from gift_vit.explain.sheets import Pictures

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Sample:
    """One image by a name that can stand in a file's, and its label if it has one."""

    name: str
    image: Image.Image
    label: int | None


@dataclass(frozen=True)
class Explained:
    """The maps of N images, the images as people see them, and their names."""

    maps: ClusterMaps
    pictures: Pictures
    names: list[str]


def image_files(where: str) -> list[Path]:
    """The image files of a folder in the order of their names, or the one file.

    Raises:
        ConfigError: If there is no such file or folder, or no image in it.
    """
    path = Path(where).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConfigError(f"images={where}: there is no such file or folder")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ConfigError(f"images={where}: the folder holds no image ({', '.join(sorted(SUFFIXES))})")
    return files


def read_samples(files: Iterable[Path]) -> Iterator[Sample]:
    """The images of files, which have no label; one that cannot be read is an error."""
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read image {file}: {error.strerror}") from error
        yield Sample(file.stem, decode_named(content, str(file)), None)


def split_samples(data: VisionDataset, split: str, label: int | None) -> Iterator[Sample]:
    """The images of a split in its order, of one class or all.

    Raises:
        ConfigError: If the split is absent, or has no image of the class.
    """
    source = data.split(split)
    indices = np.arange(len(source)) if label is None else np.flatnonzero(source.labels == label)
    if len(indices) == 0:
        raise ConfigError(f"dataset {data.name} has no image of class {label} in its {split} split")
    for index in indices.tolist():
        image, own = source[index]
        yield Sample(f"{split}{index:05}", image, own)


def spread_samples(data: VisionDataset, split: str, count: int) -> Iterator[Sample]:
    """``count`` images of a split, or all if there are fewer, at equal distances: many a split is sorted by class."""
    source = data.split(split)
    for index in np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int).tolist():
        yield Sample(f"{split}{index:05}", *source[index])


def find_class(wanted: str, class_names: list[str]) -> int:
    """The index (from 0) of a class given by index or name; one that does not exist is an error that says which do."""
    if wanted in class_names:
        return class_names.index(wanted)
    if wanted.isdigit() and int(wanted) < len(class_names):
        return int(wanted)
    shown = ", ".join(class_names[:5]) + (", …" if len(class_names) > 5 else "")
    hint = did_you_mean(wanted, class_names)
    raise ConfigError(f"unknown class {wanted!r}: give an index from 0 to {len(class_names) - 1} or a name ({shown}){hint}")


@dataclass(frozen=True)
class Explainer:
    """What turns samples into maps.

    Attributes:
        model: With GIFT applied, on the device to use.
        transform: The evaluation transform of the model's run.
        class_names: Of all classes.
        choice: Which maps.
        batch_size: Images per forward pass.
    """

    model: nn.Module
    transform: ImageTransform
    class_names: list[str]
    choice: MapChoice
    batch_size: int = 32

    def explain(self, samples: Iterable[Sample], count: int | None = None, correct_only: bool = False) -> Explained:
        """The maps of the first ``count`` samples (None: all), with ``correct_only`` of those that the model gets right.

        Raises:
            ConfigError: If none is left, or an image cannot be read.
        """
        if count is not None and count < 1:
            raise ConfigError(f"count={count}: give a positive number of images")
        parts: list[tuple[ClusterMaps, list[Sample], Tensor]] = []
        found, remaining = 0, iter(samples)
        while count is None or found < count:
            wanted = self.batch_size if count is None else min(self.batch_size, count - found)
            batch = list(islice(remaining, wanted))
            if not batch:
                break
            part = self._explain_batch(batch, correct_only)
            found += len(part[0])
            parts.append(part)
        if not found:
            raise ConfigError("the model gets none of these images right; give correct_only=false or another class")
        return self._joined(parts)

    def _explain_batch(self, batch: list[Sample], correct_only: bool) -> tuple[ClusterMaps, list[Sample], Tensor]:
        pixels = torch.stack([self.transform.finish(self.transform.prepare(sample.image)) for sample in batch])
        device = next(self.model.parameters()).device
        maps = explain(self.model, self.transform.normalise(pixels.to(device, copy=True)), self.choice).cpu()
        answers = maps.logits.argmax(1).tolist()
        keep = [
            index
            for index, sample in enumerate(batch)
            if not correct_only or sample.label is None or answers[index] == sample.label
        ]
        return maps.images(keep), [batch[index] for index in keep], pixels[keep]

    def _joined(self, parts: Sequence[tuple[ClusterMaps, list[Sample], Tensor]]) -> Explained:
        maps = join_maps([part for part, _, _ in parts])
        samples = [sample for _, batch, _ in parts for sample in batch]
        true = ["" if sample.label is None else self.class_names[sample.label] for sample in samples]
        answers = [self.class_names[index] for index in maps.logits.argmax(1).tolist()]
        rgb = _shown(torch.cat([pixels for _, _, pixels in parts]))
        return Explained(maps, Pictures(rgb, true, answers), _distinct([sample.name for sample in samples]))


def _shown(pixels: Tensor) -> NDArray[np.floating]:
    """Finished pixels (N, 3, S, S) of 0..255 as pictures (N, S, S, 3) of 0..1."""
    return (pixels.float() / 255).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _distinct(names: list[str]) -> list[str]:
    """The names, numbered where several files of a folder differ in their suffix only."""
    return [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]
