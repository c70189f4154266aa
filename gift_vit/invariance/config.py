"""What the command of this room is told. Imports no torch."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from gift_vit.common.checks import Options, at_least, device_name, expect, one_of, positive, random_seed, writable_folder
from gift_vit.common.errors import ConfigError
from gift_vit.common.hub import is_reference

TOKENS = ("all", "cls", "mean")
OPTIMIZERS = ("adam", "sgd")
LEAST_IMAGES = 4  # for which the unbiased estimator of CKA is defined


@dataclass
class InvarianceArguments(Options):
    """Measure what fine-tuning kept of the pretrained model's invariances, and what it forgot: STIR and CKA of all layers.

        python -m gift_vit.invariance run=<folder> [images=64] [layers=all] [split=val]
        python -m gift_vit.invariance runs=[<folder>,<folder>] [forgetting=<dataset or folder>]

    Attributes:
        run: the folder of a finished run, such as outputs/final/digits/gift/vit_mini/<run name>
        runs: folders of several, each once, or folders with runs below them, such as outputs/final/digits: the finished ones
        methods: of folders with runs below them: the runs of these methods alone, as methods=[gift,lora]
        images: how many of the split, at equal distances in it; 4 or more. 0: no STIR and CKA, forgetting alone
        layers: all, or blocks such as [0,5,-1]; negative: from the end; the pooled vector comes last in any case
        split: train, val, trainval or test
        tokens: of a block's output: all, cls or mean
        steps: of each descent (default: in proportion to the images' side, 500 for 224 pixels)
        optimizer: of the descents: adam, or sgd: steps of equal length, as the authors'
        step_size: its first learning rate (default: 0.15 of adam, 0.5 of sgd)
        seed: of the noise that descents begin with, and of the images that forgetting is measured on
        forgetting: images that the pretrained model knew: a choice of dataset=, or a folder, CSV or Parquet file. A linear
            classifier and k nearest neighbours are fitted to both models' features; forgetting is the accuracy that is lost
        forgetting_root: the dataset.root of forgetting=, if it is a choice of dataset= and not below the run's paths.data_root
        per_class: for forgetting: how many images of each class, of train for fitting and of test (if absent, val) for scoring;
            0: all
        out: the folder to write (default: invariance/ in the run's folder)
        dataset_root: the dataset.root of now, if the data is not where it was during training
        device: auto, cpu, cuda, cuda:1 …
        batch_size: images that are inverted together; a killed command goes on after the last ones that it finished

    Writes invariance.json, invariance.png and invariance.pdf, with forgetting= also forgetting.json, and prints a line for each
    run. What is found of the pretrained model is kept below the run's paths.cache_root, and serves all runs with its weights.
    A run that was measured so already is left as it is. The same command typed twice at a time shares the work.
    """

    run: str | None = None
    runs: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    images: int = 64
    layers: str = "all"
    split: str = "val"
    tokens: Annotated[str, one_of(TOKENS)] = "all"
    steps: Annotated[int | None, at_least(0)] = None
    optimizer: Annotated[str, one_of(OPTIMIZERS)] = "adam"
    step_size: Annotated[float | None, positive] = None
    seed: Annotated[int, random_seed] = 0
    forgetting: str | None = None
    forgetting_root: str | None = None
    per_class: Annotated[int, at_least(0)] = 50
    out: Annotated[str | None, writable_folder] = None
    dataset_root: str | None = None
    device: Annotated[str, device_name] = "auto"
    batch_size: Annotated[int, at_least(1)] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = f"{LEAST_IMAGES} or more: the unbiased estimator of CKA is not defined for fewer"
        none = self.images == 0 and self.forgetting is not None
        expect(none or self.images >= LEAST_IMAGES, "images", self.images, wanted)
        if (self.run is None) == (not self.runs):
            raise ConfigError("give run=<a run's folder> or runs=[<folder>,<folder>], one of them")
        if len(set(map(Path, self.runs))) < len(self.runs):
            raise ConfigError(f"runs=[{','.join(self.runs)}]: give each folder once")
        if self.forgetting_root is not None and self.forgetting is None:
            raise ConfigError(f"forgetting_root={self.forgetting_root} has no effect without forgetting=<dataset>")
        if self.out is not None and len(self.folders) > 1:
            raise ConfigError(f"out={self.out}: the files of several runs would overwrite each other; leave it out")
        if self.out is None and (pulled := list(filter(is_reference, self.folders))):
            raise ConfigError(f"{pulled[0]} is no folder to write to; give out=<folder>, or make one with gift_vit.pull")
        _ = self.blocks  # checks it

    @property
    def folders(self) -> list[str]:
        """Of all runs."""
        return self.runs if self.run is None else [self.run]

    @property
    def blocks(self) -> list[int] | None:
        """Indices of the chosen blocks; None: all."""
        if self.layers == "all":
            return None
        fits = re.fullmatch(r"\[?\s*-?\d{1,9}(\s*,\s*-?\d{1,9})*\s*\]?", self.layers) is not None
        expect(fits, "layers", self.layers, "all, or indices of blocks such as [0,5,-1]")
        chosen = [int(index) for index in self.layers.strip("[] ").split(",")]
        expect(len(set(chosen)) == len(chosen), "layers", self.layers, "distinct indices")
        return chosen
