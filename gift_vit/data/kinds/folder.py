"""A person's own images in class folders: ``root/train/<class>/*.jpg`` and so on, or without splits ``root/<class>/*.jpg``."""

import os
from collections import Counter, deque
from functools import partial
from pathlib import Path

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import FileSource, Origin, VisionDataset, one_form, register_dataset
from gift_vit.data.config import FolderConfig
from gift_vit.data.layout import ALL, CLASS_FOLDERS, is_of_the_system, listed, split_folders
from gift_vit.data.own import Part, own_dataset
from gift_vit.data.report import LINKED, OF_THE_SYSTEM, said

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
LOOSE = "in no class folder"


class Tree:
    """The images below the class folders of a split, each once.

    Links are followed after everything else, so that what they lead back to has been read under its own name.

    Attributes:
        images: Class folder, folder and name of each image, by class and path.
        empty: Class folders without an image.
        skipped: How many entries were not read, by what they are.
    """

    def __init__(self, folder: Path) -> None:
        self.images: list[tuple[str, str, str]] = []
        self.skipped: Counter[str] = Counter()
        self._folders: deque[tuple[str, str]] = deque()
        self._linked_folders: deque[tuple[str, str]] = deque()
        self._linked_files: list[tuple[str, str, str]] = []
        self._seen = {os.path.realpath(folder), *map(str, Path(os.path.realpath(folder)).parents)}
        self._read("", str(folder))
        self.empty = {label for label, _ in (*self._folders, *self._linked_folders)}
        while self._folders or self._linked_folders:
            label, here = self._folders.popleft() if self._folders else self._linked_folders.popleft()
            if self._is_new(here):
                self._read(label, here)
        if self._linked_files:
            self._seen |= {os.path.join(os.path.realpath(here), name) for _, here, name in self.images}
            self.images += [image for image in self._linked_files if self._is_new(os.path.join(*image[1:]))]
        self.empty -= {label for label, _, _ in self.images}
        self.images.sort(key=lambda image: (one_form(image[0]), *image))

    def _is_new(self, path: str) -> bool:
        real = os.path.realpath(path)
        if real in self._seen:
            self.skipped[LINKED] += 1
            return False
        self._seen.add(real)
        return True

    def _read(self, label: str, here: str) -> None:
        """Sort the entries of a folder of a class, or of the split's own where ``label`` is empty."""
        for entry in listed(here):
            if is_of_the_system(entry.name):
                self.skipped[OF_THE_SYSTEM] += 1
            elif entry.is_dir():
                (self._linked_folders if entry.is_symlink() else self._folders).append((label or entry.name, entry.path))
            elif not entry.name.lower().endswith(ENDINGS):
                self.skipped[os.path.splitext(entry.name)[1].lower() or "without an ending"] += 1
            elif not label:
                self.skipped[LOOSE] += 1
            else:
                (self._linked_files if entry.is_symlink() else self.images).append((label, here, entry.name))


@register_dataset("folder", FolderConfig)
def build_folder(cfg: FolderConfig) -> VisionDataset:
    """Read a tree of class folders; the class map is that of train, sorted by name. Only train must hold every class."""
    root = cfg.root_path
    folders = split_folders(root)
    trees = {split: Tree(folder) for split, folder in folders.items()}
    for split, tree in trees.items():
        _check_classes(folders[split], tree, split in ("train", ALL))
    return own_dataset(cfg, {split: _part(root, folders[split], tree) for split, tree in trees.items()})


def _check_classes(folder: Path, tree: Tree, learnt: bool) -> None:
    skipped = f" (left out: {said(tree.skipped)})" if tree.skipped else ""
    if not tree.images and not tree.empty:
        raise ConfigError(f"{folder} holds no class folders{skipped}; {CLASS_FOLDERS}")
    if learnt and tree.empty:
        classes = ", ".join(sorted(tree.empty)[:3]) + (" …" if len(tree.empty) > 3 else "")
        raise ConfigError(
            f"{folder}: found no image of the classes {classes}{skipped}; an image ends in one of {' '.join(ENDINGS)}; "
            "add images or remove the folder"
        )


def _part(root: Path, folder: Path, tree: Tree) -> Part:
    paths = [os.path.relpath(os.path.join(here, name), root) for _, here, name in tree.images]
    return Part(
        labels=[label for label, _, _ in tree.images],
        source=partial(FileSource, root, paths, listed_in=folder, hint=""),
        place=str(folder),
        origin=Origin((f"{os.path.relpath(folder, root)}/",), dict(tree.skipped)),
    )
