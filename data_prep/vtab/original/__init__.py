"""The datasets' original files as an origin: no TensorFlow, no tensorflow-datasets, the same examples in the same order."""

from collections.abc import Callable
from pathlib import Path

from data_prep.vtab.original.arrays import cifar100, dsprites, patch_camelyon, smallnorb, svhn
from data_prep.vtab.original.dmlab import dmlab
from data_prep.vtab.original.origin import OriginalOrigin
from data_prep.vtab.original.places import Place
from data_prep.vtab.original.retinopathy import retinopathy
from data_prep.vtab.original.scenes import clevr, kitti
from data_prep.vtab.original.trees import dtd, eurosat, flowers102, pets, resisc45
from data_prep.vtab.records import Origin
from data_prep.vtab.tasks import Builder
from gift_vit.common.errors import ConfigError

_READERS: dict[str, Callable[[Place], OriginalOrigin]] = {
    "cifar100": cifar100,
    "dtd": dtd,
    "oxford_flowers102": flowers102,
    "oxford_iiit_pet": pets,
    "svhn_cropped": svhn,
    "patch_camelyon": patch_camelyon,
    "eurosat": eurosat,
    "resisc45": resisc45,
    "diabetic_retinopathy_detection": retinopathy,
    "clevr": clevr,
    "dmlab": dmlab,
    "kitti": kitti,
    "dsprites": dsprites,
    "smallnorb": smallnorb,
}

AVAILABLE: frozenset[str] = frozenset(_READERS)

UNAVAILABLE: dict[str, str] = {
    "caltech101": "TFDS draws its train split in the unsorted order of a directory listing, so the archive alone does not tell "
    "which images are in it",
    "sun397": "its split lists are part of the tensorflow-datasets package, and what is shrunk and stored are the pixels of "
    "TensorFlow's JPEG decoder",
}


def open_original(builder: Builder, folder: Path | None, downloads: Path) -> Origin:
    """Open a builder's original files: those in ``folder`` (see :class:`Place`), or else fetched to ``downloads``.

    Raises:
        ConfigError: If the builder is not available from its original files, or a file is missing, damaged or of another kind.
        RunError: If a download fails or the disk is full.
    """
    if builder.name not in _READERS:
        raise ConfigError(f"{builder.name} cannot be had from its original files: {UNAVAILABLE[builder.name]}; use source=tfds")
    return _READERS[builder.name](Place(builder, folder, downloads))
