"""The official splits, from the archives' own lists. Paths and class ids are those of the paper's lists."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.archives import reading
from data_prep.fgvc.paper import paper_lists
from data_prep.fgvc.record import SPLITS
from data_prep.fgvc.tables import read_image_rows, read_mat
from data_prep.fgvc.workspace import ClassId, Lists, Workspace
from gift_vit.errors import ConfigError

CARS_MATS = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}


def official_lists(work: Workspace) -> tuple[Lists, str]:
    """Train, val and test, and the name of the files they come from.

    An absent val is a part of train, stratified, drawn from the seed; the lists are sorted by path before.
    """
    lists, source = _OFFICIAL[work.facts.name](work)
    lists = {split: dict(sorted(listed.items())) for split, listed in lists.items()}
    if "val" not in lists:
        lists["train"], lists["val"] = _split_off_val(work, lists["train"])
    return {split: lists[split] for split in SPLITS}, source


def _split_off_val(work: Workspace, train: dict[str, ClassId]) -> tuple[dict[str, ClassId], dict[str, ClassId]]:
    from gift_vit.data.sources import stratified_split  # torch, which that imports, takes seconds

    fraction, seed = work.request.val_fraction, work.request.split_seed
    paths = list(train)
    labels = np.unique(list(train.values()), return_inverse=True)[1].astype(np.int64)
    try:
        rest, part = stratified_split(labels, fraction, seed)
    except ValueError as error:
        raise ConfigError(
            f"cannot split val_fraction={fraction} of {work.facts.title}'s {len(paths)} official training images off as val: "
            f"{error}; give another fraction"
        ) from error
    return {paths[i]: train[paths[i]] for i in rest}, {paths[i]: train[paths[i]] for i in part}


def _birds(class_id: Callable[[str], ClassId]) -> Callable[[Workspace], tuple[Lists, str]]:
    """CUB and NABirds: three text files keyed by image id."""

    def derive(work: Workspace) -> tuple[Lists, str]:
        folder, remedy = work.first_folder, work.start_afresh
        classes = dict(read_image_rows(folder, "image_class_labels.txt", (class_id,), remedy))
        is_train = read_image_rows(folder, "train_test_split.txt", (int,), remedy)
        unlabelled = [path for path, _ in is_train if path not in classes]
        if unlabelled:
            raise ConfigError(f"{folder / 'image_class_labels.txt'} has no class for {unlabelled[0]}; {remedy}")
        lists: Lists = {"train": {}, "test": {}}
        for path, flag in is_train:
            lists["train" if flag else "test"][path] = classes[path]
        return lists, "train_test_split.txt and image_class_labels.txt in the archive"

    return derive


def _flowers(work: Workspace) -> tuple[Lists, str]:
    """``setid.mat`` numbers the images from 1; ``imagelabels.mat`` holds their classes in that order."""
    splits, classes = work.extra("setid.mat"), work.extra("imagelabels.mat")
    labels = read_mat(classes, "labels", classes, _fetch_again(work, classes))
    lists: Lists = {}
    for split, name in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        ids = read_mat(splits, name, splits, _fetch_again(work, splits))
        if ids.min() < 1 or ids.max() > len(labels):
            raise ConfigError(f"{splits} numbers images up to {ids.max()}, but {classes} has {len(labels)} labels")
        lists[split] = {f"jpg/image_{int(i):05d}.jpg": int(labels[i - 1]) for i in ids}
    return lists, "setid.mat and imagelabels.mat"


def _dogs(work: Workspace) -> tuple[Lists, str]:
    """``lists.tar`` holds MATLAB lists of files and of classes from 1."""
    archive = work.extra("lists.tar")
    remedy = _fetch_again(work, archive)
    lists: Lists = {}
    for split in ("train", "test"):
        data = _member(archive, f"{split}_list.mat")
        files = read_mat(io.BytesIO(data), "file_list", archive, remedy)
        labels = read_mat(io.BytesIO(data), "labels", archive, remedy)
        lists[split] = {str(file): int(label) for file, label in zip(files, labels, strict=True)}
    return lists, "train_list.mat and test_list.mat in lists.tar"


def _cars(work: Workspace) -> tuple[Lists, str]:
    """The devkit's MATLAB files where a person put them; else the paper's lists, whose train and val are the official train."""
    mats = {split: find_mat(work, name) for split, name in CARS_MATS.items()}
    lists: Lists = {}
    for split, file in mats.items():
        if file is None:
            paper = paper_lists(work)
            return {"train": paper["train"] | paper["val"], "test": paper["test"]}, "the paper's lists (no devkit found)"
        rows = read_mat(file, "annotations", file, f"replace or remove it, then type: {work.command}")
        lists[split] = {f"cars_{split}/cars_{split}/{row['fname']}": int(row["class"]) for row in rows}
    return lists, " and ".join(CARS_MATS.values())


def find_mat(work: Workspace, name: str) -> Path | None:
    """A MATLAB file of the cars devkit, in the dataset's folder or among the archives, up to two folders deep."""
    found = (path for base in (work.folder, work.archives) for depth in ("", "*/", "*/*/") for path in base.glob(depth + name))
    return next(found, None)


def _member(archive: Path, name: str) -> bytes:
    with reading(archive), tarfile.open(archive) as tar:
        file = tar.extractfile(name) if name in tar.getnames() else None
        if file is None:
            raise tarfile.ReadError(f"it has no file {name}")
        return file.read()


def _fetch_again(work: Workspace, file: Path) -> str:
    return f"remove {file}, then type: {work.command}"


_OFFICIAL: dict[str, Callable[[Workspace], tuple[Lists, str]]] = {
    "cub": _birds(lambda number: f"{int(number):03d}"),
    "nabirds": _birds(int),
    "flowers": _flowers,
    "dogs": _dogs,
    "cars": _cars,
}
