"""The split lists: the paper's, taken only with the right SHA-256, and the official ones, made from the archives' own lists.

Both have the same paths and class ids.
"""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.archives import reading
from data_prep.download import fetch, verify
from data_prep.fgvc.tables import read_image_rows, read_mat
from data_prep.fgvc.workspace import SPLITS, ClassId, Lists, Workspace
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded
from gift_vit.data.splitting import stratified_split

CARS_MATS = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}


def paper_files(work: Workspace) -> dict[str, Path]:
    """A verified copy of each split's list: in ``splits_from`` where that is given, else fetched into the archives' folder."""
    given, folder, lists = work.request.splits_from, work.facts.lists_folder, work.facts.lists
    if given is None:
        return {split: fetch(file, work.place(f"fgvc_splits/{folder}/{split}.json").parent) for split, file in lists.items()}
    found = {split: expanded(given) / folder / f"{split}.json" for split in lists}
    for split, path in found.items():
        if not path.is_file():
            raise ConfigError(
                f"splits_from={given}: there is no file {path}; "
                "give a folder like data/ of the repository github.com/savadikarc/gift"
            )
        verify(path, lists[split])
    return found


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


def _birds(work: Workspace) -> tuple[Lists, str]:
    """CUB and NABirds: three text files keyed by image id; the paper writes CUB's class ids with three digits."""
    folder, remedy = work.first_folder, work.start_afresh
    class_id = int if work.facts.name == "nabirds" else lambda number: f"{int(number):03d}"
    classes = dict(read_image_rows(folder, "image_class_labels.txt", (class_id,), remedy))
    is_train = read_image_rows(folder, "train_test_split.txt", (int,), remedy)
    unlabelled = next((path for path, _ in is_train if path not in classes), None)
    if unlabelled is not None:
        raise ConfigError(f"{folder / 'image_class_labels.txt'} has no class for {unlabelled}; {remedy}")
    lists: Lists = {"train": {}, "test": {}}
    for path, flag in is_train:
        lists["train" if flag else "test"][path] = classes[path]
    return lists, "train_test_split.txt and image_class_labels.txt in the archive"


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
    lists: Lists = {}
    for split in ("train", "test"):
        data = _member(archive, f"{split}_list.mat")
        files, labels = (
            read_mat(io.BytesIO(data), name, archive, _fetch_again(work, archive)) for name in ("file_list", "labels")
        )
        lists[split] = {str(file): int(label) for file, label in zip(files, labels, strict=True)}
    return lists, "train_list.mat and test_list.mat in lists.tar"


def _cars(work: Workspace) -> tuple[Lists, str]:
    """The devkit's MATLAB files where a person put them; else the paper's lists, whose train and val are the official train."""
    lists: Lists = {}
    for split, name in CARS_MATS.items():
        file = find_mat(work, name)
        if file is None:
            paper = {split: json.loads(path.read_bytes()) for split, path in paper_files(work).items()}
            return {"train": paper["train"] | paper["val"], "test": paper["test"]}, "the paper's lists (no devkit found)"
        lists[split] = {path: int(row["class"]) for path, row in read_cars_mat(work, file, split, ("class",))}
    return lists, " and ".join(CARS_MATS.values())


def find_mat(work: Workspace, name: str) -> Path | None:
    """A MATLAB file of the cars devkit, in the dataset's folder or among the archives, up to two folders deep."""
    found = (
        path
        for base in (work.folder, work.archives)
        for depth in ("", "*/", "*/*/")
        for path in sorted(base.glob(depth + name))
    )
    return next(found, None)


def read_cars_mat(work: Workspace, file: Path, split: str, fields: tuple[str, ...]) -> list[tuple[str, np.void]]:
    """Path and annotations, at least the ``fields``, of each image that a MATLAB file of the cars devkit describes.

    Raises:
        ConfigError: If the file cannot be read, or lacks a field; the one without labels lacks the class.
    """
    remedy = f"replace or remove it, then type: {work.command}"
    rows = read_mat(file, "annotations", file, remedy)
    absent = [field for field in ("fname", *fields) if field not in (rows.dtype.names or ())]
    if absent:
        raise ConfigError(f"the annotations of {file} have no {', '.join(absent)}; {remedy}")
    return [(f"cars_{split}/cars_{split}/{row['fname']}", row) for row in rows]


def _member(archive: Path, name: str) -> bytes:
    with reading(archive), tarfile.open(archive) as tar:
        file = tar.extractfile(name) if name in tar.getnames() else None
        if file is None:
            raise tarfile.ReadError(f"it has no file {name}")
        return file.read()


def _fetch_again(work: Workspace, file: Path) -> str:
    return f"remove {file}, then type: {work.command}"


_OFFICIAL: dict[str, Callable[[Workspace], tuple[Lists, str]]] = {
    "cub": _birds,
    "nabirds": _birds,
    "flowers": _flowers,
    "dogs": _dogs,
    "cars": _cars,
}
