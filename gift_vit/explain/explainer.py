"""From samples to maps, batch by batch, with the model of a run."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gift_vit.backbones.build import input_statistics
from gift_vit.common.errors import ConfigError
from gift_vit.data.transforms import ImageTransform, build_eval_transform
from gift_vit.explain.config import MapChoice, RunArguments, StabilityArguments
from gift_vit.explain.maps import ClusterMaps, explain, join
from gift_vit.explain.samples import Pictures, Sample, batches, distinct, file_stems
from gift_vit.runs.build import resolve_device
from gift_vit.runs.run import Run


@dataclass(frozen=True)
class Explained:
    """The maps of N images, the images as people see them, and their names."""

    maps: ClusterMaps
    pictures: Pictures
    names: list[str]

    @cached_property
    def stems(self) -> list[str]:
        """The names as they stand in those of files."""
        return file_stems(self.names)


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

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def inputs(self, samples: Iterable[Sample]) -> Iterator[Tensor]:
        """The samples' images as the model is given them, in batches."""
        for batch in batches(samples, self.batch_size):
            yield torch.stack([self.transform(sample.image) for sample in batch]).to(self.device)

    def explain(self, samples: Iterable[Sample], count: int | None = None, correct_only: bool = False) -> Explained:
        """The maps of the first ``count`` samples (None: all), with ``correct_only`` of those that the model gets right.

        Raises:
            ConfigError: If none is left, or an image cannot be read.
        """
        explained: list[tuple[ClusterMaps, list[Sample], Tensor]] = []
        found, remaining = 0, iter(samples)
        while count is None or found < count:
            batch = list(islice(remaining, self.batch_size if count is None else min(self.batch_size, count - found)))
            if not batch:
                break
            explained.append(self._explain_batch(batch, correct_only))
            found += len(explained[-1][0])
        if not found:
            raise ConfigError("the model gets none of these images right; give correct_only=false or another class")
        return self._joined(explained)

    def _explain_batch(self, batch: list[Sample], correct_only: bool) -> tuple[ClusterMaps, list[Sample], Tensor]:
        pixels = torch.stack([self.transform.finish(self.transform.prepare(sample.image, sample.name)) for sample in batch])
        maps = explain(self.model, self.transform.normalise(pixels.to(self.device, copy=True)), self.choice).cpu()
        answers = maps.logits.argmax(1).tolist()
        keep = [
            index
            for index, sample in enumerate(batch)
            if not correct_only or sample.label is None or answers[index] == sample.label
        ]
        return maps.images(keep), [batch[index] for index in keep], pixels[keep]

    def _joined(self, explained: Sequence[tuple[ClusterMaps, list[Sample], Tensor]]) -> Explained:
        maps = join([maps for maps, _, _ in explained], "post", "pre", "logits")
        samples = [sample for _, batch, _ in explained for sample in batch]
        true = ["" if sample.label is None else self.class_names[sample.label] for sample in samples]
        answers = [self.class_names[index] for index in maps.logits.argmax(1).tolist()]
        rgb = _shown(torch.cat([pixels for _, _, pixels in explained]))
        return Explained(maps, Pictures(rgb, true, answers), list(distinct([sample.name for sample in samples])))


def build_explainer(run: Run, arguments: RunArguments | StabilityArguments) -> Explainer:
    """The run's model on the chosen device, and what it needs to explain images.

    Raises:
        ConfigError: If there is no such device, or the run is not finished or its pretrained weights are others now.
    """
    device = resolve_device(arguments.device)
    model = run.model().to(device)
    names = run.class_names(run.num_classes)
    transform = build_eval_transform(run.config.dataset.transform, input_statistics(model))
    return Explainer(model, transform, names, replace(arguments.choice, seed=run.config.seed), arguments.batch_size)


def _shown(pixels: Tensor) -> NDArray[np.floating]:
    """Finished pixels (N, 3, S, S) of 0..255 as pictures (N, S, S, 3) of 0..1."""
    return (pixels.float() / 255).clamp(0, 1).permute(0, 2, 3, 1).numpy()
