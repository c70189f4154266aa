"""Inversions that are kept: a file for every few images, so that what is done is done once.

A file's name is a hash of all that its content depends on: the model, its layers, the descent, the images and their noise. So
the pretrained model's serve every run with its weights, and a command that was killed goes on where it was.
"""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gift_vit.common.files import LockedError, alone
from gift_vit.common.tensors import bytes_of, read_made, tensors_digest, write_tensors
from gift_vit.invariance.inversion import Descent, Inversion, invert_layers, noise_like
from gift_vit.invariance.representations import Layers

FORMAT = 2
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptInversion:
    """The inversion of images by one model, in files of a folder.

    Attributes:
        layers: Of the model, without a head.
        facts: What its function depends on beside its weights, as JSON has it.
        images: (n, 3, H, W) in 0..1, on the CPU.
        descent: How images are found.
        folder: Where the files are.
        batch_size: Images of one file.
    """

    layers: Layers
    facts: Any
    images: Tensor
    descent: Descent
    folder: Path
    batch_size: int

    @cached_property
    def parts(self) -> list[tuple[Path, Tensor, Tensor]]:
        """The file, the images and the noise of each part."""
        noise = noise_like(self.images, self.descent.seed)
        splits = zip(self.images.split(self.batch_size), noise.split(self.batch_size), strict=True)
        key = sha256(self._key().encode())
        return [(self._file(key.copy(), *part), *part) for part in splits]

    @property
    def missing(self) -> set[Path]:
        """Files of parts that are not there."""
        return {file for file, _, _ in self.parts if not file.is_file()}

    def found(self, stepped: Callable[[], object] = lambda: None) -> Inversion:
        """All parts, on the CPU: read, or made and written; told of each step that is made.

        A part that another process is just making is left to it, and read after all others.
        """
        found: dict[Path, Inversion] = {}
        for wait in (False, True):
            for file, images, noise in self.parts:
                if file not in found and (part := self._part(file, images, noise, stepped, wait)):
                    found[file] = part
        parts = [found[file] for file, _, _ in self.parts]
        return Inversion(torch.cat([part.images for part in parts], 1), torch.cat([part.errors for part in parts], 1))

    def _part(self, file: Path, images: Tensor, noise: Tensor, stepped: Callable[[], object], wait: bool) -> Inversion | None:
        """One part; None: another process is making it, and is not waited for."""
        if part := self._read(file):
            return part
        with suppress(LockedError), alone(file, wait):
            return self._read(file) or self._make(file, images, noise, stepped)
        return None

    def _make(self, file: Path, images: Tensor, noise: Tensor, stepped: Callable[[], object]) -> Inversion:
        device = self.layers.device
        made = invert_layers(self.layers, images.to(device), noise.to(device), self.descent, stepped)
        part = Inversion(made.images.cpu(), made.errors.cpu())
        write_tensors(file, part._asdict(), {})
        return part

    @staticmethod
    def _read(file: Path) -> Inversion | None:
        return read_made(file, lambda tensors, _: Inversion(**tensors))

    def _key(self) -> str:
        descent = self.descent.resolved(self.images.shape[-1])
        weights = tensors_digest(self.layers.model.state_dict())
        return json.dumps([FORMAT, self.facts, weights, self.layers.blocks, self.layers.tokens, descent])

    def _file(self, key: Any, images: Tensor, noise: Tensor) -> Path:
        for tensor in (images, noise):
            key.update(str(tuple(tensor.shape)).encode() + bytes_of(tensor))
        return self.folder / f"{key.hexdigest()[:32]}.safetensors"


def count_steps(inversions: Sequence[KeptInversion]) -> int:
    """Steps that are left to make of several inversions, of which some may be the same."""
    steps = {file: each.descent.steps_for(each.images.shape[-1]) for each in inversions for file in each.missing}
    return sum(steps.values())
