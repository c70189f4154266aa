"""A person's own images: ``root/train/<class>/*.jpg`` and, if there are any, ``root/val/…`` and ``root/test/…``."""

import logging
import os
from collections import Counter
from pathlib import Path

from torchvision.datasets.folder import find_classes, make_dataset

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import FileSource, ImageSource, VisionDataset, fingerprint, register_dataset, split_off_val
from gift_vit.data.config import FOLDER_LAYOUT, SPLITS, FolderConfig
from gift_vit.data.decode import Decoder, readable_endings

log = logging.getLogger(__name__)


@register_dataset("folder", FolderConfig)
def build_folder(cfg: FolderConfig) -> VisionDataset:
    """Read a tree of class folders; the class map is that of train, sorted by name."""
    root = Path(cfg.root).expanduser()
    classes, decode = _classes_in(root / "train"), Decoder.of(cfg.transform, cfg.as_published)
    splits: dict[str, ImageSource] = {}
    skipped: Counter[str] = Counter()
    for split in (split for split in SPLITS if (root / split).is_dir()):
        surplus = sorted(set(_classes_in(root / split)) - set(classes))
        if surplus:
            raise ConfigError(
                f"dataset {cfg.name}: {root / split} has the class {surplus[0]!r}, which {root / 'train'} has not"
            )
        splits[split] = _read_split(root, split, classes, decode, skipped)
    if skipped:
        log.warning("dataset %s: skipped %s files that are no images by their ending: %s", cfg.name, *_counted(skipped))
    if "val" not in splits:
        train, val = split_off_val(cfg.name, splits["train"], cfg.val_fraction, cfg.split_seed)
        splits = {**splits, "train": train, "val": val}
    splits = {split: splits[split] for split in SPLITS if split in splits}
    return VisionDataset(cfg.name, cfg.num_classes or len(classes), classes, {**splits}, fingerprint(splits), decode.name)


def _classes_in(folder: Path) -> list[str]:
    """Sorted names of the class folders; hidden ones (``.ipynb_checkpoints``) are none."""
    try:
        classes = [name for name in find_classes(folder)[0] if not name.startswith(".")]
    except FileNotFoundError:
        classes = []
    if not classes:
        raise ConfigError(f"{folder} holds no class folders; {FOLDER_LAYOUT}")
    return classes


def _counted(endings: Counter[str]) -> tuple[int, str]:
    return endings.total(), ", ".join(f"{count} {ending}" for ending, count in endings.most_common())


def _read_split(root: Path, split: str, classes: list[str], decode: Decoder, skipped: Counter[str]) -> FileSource:
    """The images of one split, sorted by class and path; only train must hold every class. Counts what it skips by ending."""

    def is_image(path: str) -> bool:
        name = os.path.basename(path)
        ending = os.path.splitext(name)[1].lower()
        if ending in readable_endings():
            return not name.startswith(".")
        skipped[ending or "without ending"] += not name.startswith(".")
        return False

    class_map = {name: index for index, name in enumerate(classes)}
    try:
        found = make_dataset(root / split, class_map, is_valid_file=is_image, allow_empty=split != "train")
    except FileNotFoundError as error:  # a class folder of train without an image
        reason = str(error).rstrip(". ")
        raise ConfigError(f"{root / split}: {reason} (skipped by their ending: {_counted(skipped)[1] or 'none'})") from error
    paths = [os.path.relpath(path, root) for path, _ in found]
    return FileSource(root, paths, [label for _, label in found], listed_in=root / split, hint="", decode=decode)
