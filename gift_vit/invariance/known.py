"""The images that forgetting is measured on: which dataset, and which of its images. Imports no torch."""

from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from gift_vit.common.errors import ConfigError, did_you_mean
from gift_vit.common.files import expanded
from gift_vit.config.compose import choices, compose_config
from gift_vit.config.loader import load_config
from gift_vit.data.base import ImageSource, SubsetSource, VisionDataset, build_dataset
from gift_vit.data.config import KINDS, OWN, DatasetConfig
from gift_vit.data.layout import kind_of
from gift_vit.data.splitting import stratified_split
from gift_vit.invariance.config import InvarianceArguments
from gift_vit.runs.run import Run

HELD_OUT = 0.2  # of the training images: they choose the classifiers' settings


@dataclass(frozen=True)
class Known:
    """Images with labels.

    Attributes:
        config: Of the dataset.
        data: Its splits ``train``, which classifiers are fitted to, and ``test``, which scores them: drawn images alone.
        fitted: Indices of the training images that settings are fitted to while they are chosen, and
        held_out: of those that choose.
        facts: What the images and their pixels depend on, for the record.
    """

    config: DatasetConfig
    data: VisionDataset
    fitted: NDArray[np.intp]
    held_out: NDArray[np.intp]
    facts: dict[str, Any]


def known_dataset(run: Run, arguments: InvarianceArguments) -> DatasetConfig:
    """The dataset of ``forgetting=``: a choice of ``dataset=`` below the run's data root, or a person's own images.

    Raises:
        ConfigError: If it is neither, or not there.
    """
    return _known_dataset(str(arguments.forgetting), run.config.paths.data_root, arguments.forgetting_root)


@cache  # composing takes a while, and many runs have one data root
def _known_dataset(given: str, data_root: str, root: str | None) -> DatasetConfig:
    named = [name for name in choices()["dataset"] if name not in OWN]
    if given in named:
        composed = compose_config([f"dataset={given}"])
        if KINDS.config_class(composed.dataset.kind).thing != "image":
            raise ConfigError(f"forgetting={given} holds texts, and models of images are measured; name a dataset of images")
        composed.paths.data_root = data_root
        if root is not None:
            OmegaConf.update(composed, "dataset.root", root, force_add=True)
        config = load_config(composed).dataset
    elif (path := expanded(given)).exists():
        if root is not None:
            raise ConfigError(f"forgetting_root={root} has no effect with forgetting={given}, which is a path; leave it out")
        kind = kind_of(path)
        config = OWN[kind](name=kind, root=given)
    else:
        raise ConfigError(
            f"forgetting={given}: there is no such folder or file, and no such choice of dataset={did_you_mean(given, named)}"
        )
    try:
        config.check_present()
    except ConfigError as error:
        where = ", whose dataset.root is given as forgetting_root" if given in named else ""
        raise ConfigError(f"forgetting={given}{where}: {error}") from error
    return config


def draw_known(config: DatasetConfig, per_class: int, seed: int) -> Known:
    """Read a dataset and draw as many images of each class of train, and of test or, without one, of val.

    The draw depends on the labels and the seed alone, so that it is the same for all models.

    Args:
        config: Of the dataset.
        per_class: 0: all. A class that has fewer gives all of its images.
        seed: Of the draw, and of the training images that are held out.

    Raises:
        ConfigError: If the dataset cannot be read, has no such split, one class only, or too few training images
            of a class.
    """
    whole = build_dataset(config)
    if whole.num_classes < 2:
        raise ConfigError(f"forgetting={config.name}: its images are all of one class; give images of two classes or more")
    tested = "test" if "test" in whole.splits else "val"
    splits = {"train": "train", "test": tested}
    drawn: dict[str, ImageSource] = {}
    for name, split in splits.items():
        [source] = whole.parts(split)
        drawn[name] = SubsetSource(source, _draw(source.labels, per_class, seed)) if per_class else source
    try:
        fitted, held_out = stratified_split(drawn["train"].labels, HELD_OUT, seed)
    except ValueError as error:
        raise ConfigError(
            f"forgetting={config.name}: a fifth of {len(drawn['train'])} training images chooses the classifiers' settings, "
            f"and {error}; give a larger per_class or other images"
        ) from error
    facts = {
        "dataset": whole.name,
        "fingerprint": whole.fingerprint,
        "decoder": whole.decoder,
        "transform": asdict(config.transform),
        "classes": whole.num_classes,
        "per_class": per_class or None,
        "seed": seed,
        "train_images": len(drawn["train"]),
        "held_out": len(held_out),
        "tested_on": tested,
        "test_images": len(drawn["test"]),
    }
    return Known(config, replace(whole, splits=drawn), fitted, held_out, facts)


def _draw(labels: NDArray[np.int64], per_class: int, seed: int) -> NDArray[np.intp]:
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))
