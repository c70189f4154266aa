"""A person's own images: ``root/train/<class>/*.jpg`` and, if there are any, ``root/val/…`` and ``root/test/…``."""

import os
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import FileSource, ImageSource, VisionDataset, fingerprint, register_dataset, split_off_val
from gift_vit.data.config import FOLDER_LAYOUT, SPLITS, FolderConfig


@register_dataset("folder", FolderConfig)
def build_folder(cfg: FolderConfig) -> VisionDataset:
    """Read a tree of class folders; the class map is that of train, sorted by name."""
    root = Path(cfg.root).expanduser()
    classes = _classes_in(root / "train")
    splits: dict[str, ImageSource] = {}
    for split in (split for split in SPLITS if (root / split).is_dir()):
        surplus = sorted(set(_classes_in(root / split)) - set(classes))
        if surplus:
            raise ConfigError(
                f"dataset {cfg.name}: {root / split} has the class {surplus[0]!r}, which {root / 'train'} has not"
            )
        splits[split] = _read_split(root, split, classes)
    if "val" not in splits:
        train, val = split_off_val(cfg.name, splits["train"], cfg.val_fraction, cfg.split_seed)
        splits = {**splits, "train": train, "val": val}
    splits = {split: splits[split] for split in SPLITS if split in splits}
    return VisionDataset(cfg.name, cfg.num_classes or len(classes), classes, {**splits}, fingerprint(splits))


def _classes_in(folder: Path) -> list[str]:
    """Sorted names of the class folders; hidden ones (``.ipynb_checkpoints``) are none."""
    try:
        classes = [name for name in find_classes(folder)[0] if not name.startswith(".")]
    except FileNotFoundError:
        classes = []
    if not classes:
        raise ConfigError(f"{folder} holds no class folders; {FOLDER_LAYOUT}")
    return classes


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMG_EXTENSIONS) and not os.path.basename(path).startswith(".")


def _read_split(root: Path, split: str, classes: list[str]) -> FileSource:
    """The images of one split, sorted by class and path; only train must hold every class."""
    class_map = {name: index for index, name in enumerate(classes)}
    try:
        found = make_dataset(root / split, class_map, is_valid_file=_is_image, allow_empty=split != "train")
    except FileNotFoundError as error:  # a class folder of train without an image
        reason = str(error).rstrip(". ")
        raise ConfigError(f"{root / split}: {reason} (an image ends in one of {' '.join(IMG_EXTENSIONS)})") from error
    paths = [os.path.relpath(path, root) for path, _ in found]
    return FileSource(root, paths, [label for _, label in found], listed_in=root / split, hint="")
