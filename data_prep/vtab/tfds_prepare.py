"""Letting TFDS download and prepare a builder, which needs TensorFlow."""

import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from textwrap import shorten
from typing import Any

from data_prep.vtab.tasks import Builder
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import expanded

logger = logging.getLogger(__name__)

INSTALL = "pip install 'gift-vit[vtab]'"

_SHOWN = 300  # characters of an error

# What TFDS cannot, or often cannot, download. A file under its recorded name in manual_dir is taken instead of the download.
MANUAL_STEPS = {
    "resisc45": "unpack NWPU-RESISC45.rar so that {manual}/NWPU-RESISC45/airplane/airplane_001.jpg exists",
    "diabetic_retinopathy_detection": (
        "download Kaggle's diabetic-retinopathy-detection and put its images at {manual}/sample, {manual}/train and "
        "{manual}/test (*.jpeg, at least one in sample) and its labels at {manual}/trainLabels.csv"
    ),
    "sun397": "its original address is gone: put SUN397.tar.gz and Partitions.zip into {manual}",
    "kitti": (
        "if its download fails, put data_object_image_2.zip, data_object_label_2.zip and devkit_object.zip into {manual}"
    ),
    "eurosat": "if its download fails, put EuroSAT.zip into {manual}",
}


def import_tfds() -> Any:
    """TFDS, imported when first needed and without TensorFlow's banners; a ConfigError if it is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        tfds = importlib.import_module("tensorflow_datasets")
        importlib.import_module("array_record.python.array_record_data_source")
    except ImportError as error:
        raise ConfigError(f"reading TFDS's folders needs a package that is missing ({error}): {INSTALL}") from error
    logging.getLogger("absl").setLevel(logging.WARNING)  # at INFO, TFDS tells of every file it opens
    return tfds


def one_line(error: Exception) -> str:
    """The beginning of what a library says, which may be pages."""
    return shorten(str(error), _SHOWN, placeholder=" …") or type(error).__name__


def prepare_builder(builder: Builder, tfds_dir: Path, manual_dir: Path | None) -> None:
    """Download and prepare a builder as ArrayRecord below ``tfds_dir``.

    Raises:
        ConfigError: Without TensorFlow.
        RunError: If TFDS fails; with the beginning of what it says and the steps to take by hand, if any are known.
    """
    manual = expanded(manual_dir) if manual_dir else tfds_dir / "downloads" / "manual"
    steps = MANUAL_STEPS.get(builder.name, "").format(manual=manual)
    if not _has_tensorflow():
        raise ConfigError(
            f"no prepared {builder.name} found below {tfds_dir}, and preparing it needs TensorFlow: {INSTALL}"
            + (f"; also, {steps}" if steps else "")
        )
    tfds = import_tfds()
    name = "/".join(filter(None, [builder.name, builder.config]))
    logger.info("TFDS prepares %s %s below %s", name, builder.version, tfds_dir)
    try:
        with sorted_listings() if builder.name == "caltech101" else nullcontext():
            tfds.builder(f"{name}:{builder.version}", data_dir=str(tfds_dir)).download_and_prepare(
                file_format="array_record", download_config=tfds.download.DownloadConfig(manual_dir=str(manual))
            )
    except Exception as error:
        raise RunError(f"TFDS could not prepare {builder.name}: {one_line(error)}" + (f"; {steps}" if steps else "")) from error


@contextmanager
def sorted_listings() -> Iterator[None]:
    """List folders by name while TFDS prepares Caltech-101.

    It draws each class's training images from the folder's listing, which otherwise has the file system's order: two machines
    would get different images.
    """
    gfile = _gfile()
    listdir, walk = gfile.listdir, gfile.walk

    def sorted_walk(top: str, *args: Any, **kwargs: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for folder, folders, files in walk(top, *args, **kwargs):
            yield folder, sorted(folders), sorted(files)

    gfile.listdir, gfile.walk = (lambda path: sorted(listdir(path))), sorted_walk
    try:
        yield
    finally:
        gfile.listdir, gfile.walk = listdir, walk


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


def _gfile() -> Any:
    return importlib.import_module("tensorflow").io.gfile
