"""Class folders: every image below them once, and what else lies there. Reads names alone."""

import os
from collections import Counter, deque
from functools import cache
from pathlib import Path

from gift_vit.common.errors import ConfigError
from gift_vit.data.layout import (
    CLASS_FOLDERS,
    LEARNT,
    LINKED,
    LINKED_ELSEWHERE,
    OF_THE_SYSTEM,
    TABLE_ENDINGS,
    check_name,
    is_folder,
    is_of_the_system,
    listed,
    one_form,
    said,
    split_folders,
)

LOOSE, HIDDEN, NO_FILES = "in no class folder", "hidden folders of images", "neither files nor folders"
# Pillow knows them, and leaves their pixels to other programs; FITS it misreads
_NO_DECODER = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}


@cache
def readable_endings() -> frozenset[str]:
    """Endings (lower case, with the dot) of the files that Pillow reads by itself."""
    from PIL import Image  # nobody else who looks for folders needs it

    endings = Image.registered_extensions()  # imports the formats
    return frozenset(ending for ending, form in endings.items() if form in Image.OPEN and form not in _NO_DECODER) | {".mpo"}


class Tree:
    """The images below the class folders of a split, each once.

    Links are followed after everything else, so that what they lead back to has been read under its own name.

    Attributes:
        folder: The split's folder.
        images: Class folder, folder and name of each image, by class and path.
        empty: Class folders without an image.
        skipped: How many entries were not read, by what they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: list[tuple[str, str, str]] = []
        self.skipped: Counter[str] = Counter()
        self._folders: deque[tuple[str, str]] = deque()
        self._linked_folders: deque[tuple[str, str]] = deque()
        self._linked_files: list[tuple[str, str, str]] = []
        above = (os.path.realpath(folder), *map(str, Path(os.path.realpath(folder)).parents))
        self._seen = dict.fromkeys(above, "")  # real paths, and the classes that they were read under
        self._read("", str(folder))
        self.empty = {label for label, _ in (*self._folders, *self._linked_folders)}
        while self._folders or self._linked_folders:
            label, here = self._folders.popleft() if self._folders else self._linked_folders.popleft()
            if self._is_new(here, label):
                self._read(label, here)
        if self._linked_files:
            self._seen |= {os.path.join(os.path.realpath(here), name): label for label, here, name in self.images}
            self.images += [image for image in self._linked_files if self._is_new(os.path.join(*image[1:]), image[0])]
        self.empty -= {label for label, _, _ in self.images}
        self.images.sort(key=lambda image: (one_form(image[0]), *image))

    @property
    def nested(self) -> tuple[str, ...]:
        """Classes whose images lie in several folders inside theirs, and none beside these."""
        inside: dict[str, set[str]] = {}
        for label, here in dict.fromkeys((label, here) for label, here, _ in self.images):
            inside.setdefault(label, set()).add(os.path.relpath(here, self.folder / label).split(os.sep)[0])
        return tuple(label for label, folders in inside.items() if len(folders) > 1 and os.curdir not in folders)

    def _is_new(self, path: str, label: str) -> bool:
        real = os.path.realpath(path)
        if real in self._seen:
            self.skipped[LINKED if self._seen[real] in ("", label) else LINKED_ELSEWHERE] += 1
            return False
        self._seen[real] = label
        return True

    def _read(self, label: str, here: str) -> None:
        """Sort the entries of a folder of a class, or of the split's own where ``label`` is empty."""
        for entry in listed(here):
            if is_of_the_system(entry.name):
                self.skipped[OF_THE_SYSTEM if label or not _holds_images(entry) else HIDDEN] += 1
            elif is_folder(entry):
                check_name(entry.path)
                (self._linked_folders if entry.is_symlink() else self._folders).append((label or entry.name, entry.path))
            elif os.path.splitext(entry.name)[1].lower() not in readable_endings():
                self.skipped[os.path.splitext(entry.name)[1].lower() or "without an ending"] += 1
            elif not label:
                self.skipped[LOOSE] += 1
            elif not (entry.is_file(follow_symlinks=False) or entry.is_symlink()):
                self.skipped[NO_FILES] += 1
            else:
                check_name(entry.path)
                (self._linked_files if entry.is_symlink() else self.images).append((label, here, entry.name))


def read_trees(root: Path) -> dict[str, Tree]:
    """The class folders of each split that is there; without splits the root's own as :data:`gift_vit.data.layout.ALL`.

    Raises:
        ConfigError: If a folder is of no known split, or a class of train has no image.
    """
    trees = {split: Tree(folder) for split, folder in split_folders(root).items()}
    for split, tree in trees.items():
        _check_classes(tree, split in LEARNT)
    return trees


def _holds_images(entry: os.DirEntry[str]) -> bool:
    """Whether a folder that is hidden, as a class named .net would be, has images in it."""
    return entry.is_dir(follow_symlinks=False) and any(
        os.path.splitext(file.name)[1].lower() in readable_endings() and not is_of_the_system(file.name)
        for file in listed(entry.path)
    )


def _check_classes(tree: Tree, learnt: bool) -> None:
    skipped = f" (left out: {said(tree.skipped)})" if tree.skipped else ""
    if not tree.images and not tree.empty:
        hint = "; for the list in it train with dataset=csv" if tree.skipped.keys() & set(TABLE_ENDINGS["csv"]) else ""
        raise ConfigError(f"{tree.folder} holds no class folders{skipped}; {CLASS_FOLDERS}{hint}")
    if learnt and tree.empty:
        classes = ", ".join(sorted(tree.empty)[:3]) + (" …" if len(tree.empty) > 3 else "")
        raise ConfigError(
            f"{tree.folder}: found no image of the classes {classes}{skipped}; images end in .jpg, .png and "
            "whatever else Pillow reads; add images or remove the folder"
        )
