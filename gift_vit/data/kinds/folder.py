"""A person's own images in class folders: ``root/train/<class>/*.jpg`` and so on, or without splits ``root/<class>/*.jpg``."""

import os
from functools import partial
from pathlib import Path

from gift_vit.data.base import FileSource, Origin, VisionDataset, register_dataset
from gift_vit.data.config import FolderConfig
from gift_vit.data.own import Part, own_dataset
from gift_vit.data.trees import Tree, read_trees


@register_dataset("folder", FolderConfig)
def build_folder(cfg: FolderConfig) -> VisionDataset:
    """Read a tree of class folders; the class map is that of train, sorted by name. Only train must hold every class."""
    root = cfg.root_path
    return own_dataset(cfg, {split: _part(root, tree) for split, tree in read_trees(root).items()})


def _part(root: Path, tree: Tree) -> Part:
    paths = [os.path.relpath(os.path.join(here, name), root) for _, here, name in tree.images]
    return Part(
        labels=[label for label, _, _ in tree.images],
        source=partial(FileSource, root, paths, listed_in=tree.folder, hint="; restore it, or remove the link"),
        place=str(tree.folder),
        origin=Origin((f"{os.path.relpath(tree.folder, root)}/",), dict(tree.skipped), nested=tree.nested),
    )
