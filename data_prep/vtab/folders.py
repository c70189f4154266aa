"""The community's image folders of VTAB-1k, where each split is a list of JPEG files and labels, as a source of tasks."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.vtab.export import Split, naming, write_task
from data_prep.vtab.task_folder import SPLITS, Row
from data_prep.vtab.tasks import TASKS, Task
from data_prep.vtab.verify import allowed_counts, check_label
from gift_vit.common.errors import ConfigError

logger = logging.getLogger(__name__)

LOSSY = (
    "these images are lossy JPEG re-encodings: results on them are not comparable with those on the datasets' own images "
    "(about 10 points lower on CIFAR-100)"
)
TOGETHER = "train800val200"

# task → the names that its folder goes by; the task's own unless said otherwise
FOLDERS: dict[str, tuple[str, ...]] = {name: (name,) for name in TASKS} | {
    "cifar100": ("cifar", "cifar100"),
    "flowers102": ("oxford_flowers102", "flowers102"),
    "pets": ("oxford_iiit_pet", "oxford_pet", "pets"),
    "retinopathy": ("diabetic_retinopathy",),
    "clevr_distance": ("clevr_dist",),
    "kitti_distance": ("kitti",),
    "dsprites_location": ("dsprites_loc",),
    "dsprites_orientation": ("dsprites_ori",),
    "smallnorb_azimuth": ("smallnorb_azi",),
    "smallnorb_elevation": ("smallnorb_ele",),
}


def export_folder(task: Task, root: Path, out: Path, official: bool = True) -> dict[str, Any]:
    """Write a task's images to the folder ``out`` as :func:`data_prep.vtab.export.export` does; the files stay as they are.

    ``root`` holds the folders of the tasks, with the images and a list ``<split>.txt`` each. Ids are the listed paths, indices
    the line numbers, from 0. Of data that is not ``official``, number of images and classes that occur are not checked.

    Raises:
        ConfigError: If a list or an image is missing or wrong; names task, list and line.
    """
    with naming(task):
        folder = _find(task, root)
        listed = {name: _read_list(task, folder / f"{name}.txt") for name in SPLITS}
        _check_disjoint(folder, listed)
        _check_counts(task, folder, {name: len(lines) for name, lines in listed.items()}, official)
        logger.warning("%s: %s", task.name, LOSSY)
        meta = {"source": "folder", "origin": {"folder": str(folder)}, "class_names": None, "warnings": [LOSSY]}
        splits = {name: Split(f"{name}.txt", len(lines), _rows(folder, name, lines)) for name, lines in listed.items()}
        return write_task(task, splits, meta, out, official, lossy=True)


def _find(task: Task, root: Path) -> Path:
    """The folder of the task, whichever of its names it has."""
    names = FOLDERS[task.name]
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise ConfigError(
        f"there is no folder {' or '.join(names)} in {root}; folder=… names the folder that holds those of the tasks"
    )


def _read_list(task: Task, file: Path) -> dict[int, tuple[str, int]]:
    """Path and label by line number, from 0; blank lines are left out."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the list {file} ({error}); each split needs one, of lines '<path> <label>'") from error
    listed: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(lines):
        if line.strip():
            where = f"{file} line {number + 1}"
            path, *label = line.strip().rsplit(maxsplit=1)
            if not label or not label[0].isdecimal():
                raise ConfigError(f"{where} is {line!r}, expected '<path> <label>'")
            check_label(task, int(label[0]), f"in {where}")
            if path in listed:
                raise ConfigError(f"{where} names {path} again, expected every image once")
            listed[path] = number, int(label[0])
    return {number: (path, label) for path, (number, label) in listed.items()}


def _check_disjoint(folder: Path, listed: Mapping[str, Mapping[int, tuple[str, int]]]) -> None:
    """Refuse an image that two lists name."""
    seen: dict[str, str] = {}
    for name, rows in listed.items():
        for path, _ in rows.values():
            if (other := seen.setdefault(path, name)) != name:
                raise ConfigError(f"{folder / name}.txt names {path}, which {other}.txt names too; expected every image once")


def _check_counts(task: Task, folder: Path, found: Mapping[str, int], official: bool) -> None:
    """Check the lists' lengths, and that of the 1000 images together, which is not read otherwise."""
    for name, cut in task.cuts.items() if official else ():
        right = {len(cut.positions(size)) for size in allowed_counts(task.builder, cut.split)}
        if found[name] not in right:
            raise ConfigError(
                f"{folder / name}.txt lists {found[name]} images, expected {' or '.join(map(str, sorted(right)))}"
            )
    together, parts = folder / f"{TOGETHER}.txt", found["train800"] + found["val200"]
    if together.is_file() and (number := len(_read_list(task, together))) != parts:
        raise ConfigError(f"{together} lists {number} images, expected the {parts} of train800.txt and val200.txt")


def _rows(folder: Path, name: str, listed: Mapping[int, tuple[str, int]]) -> Iterator[Row]:
    for number, (path, label) in listed.items():
        try:
            image = (folder / path).read_bytes()
        except OSError as error:
            where = f"{folder / name}.txt line {number + 1}"
            raise ConfigError(
                f"cannot read {folder / path} ({error.strerror}), which {where} names; unpack the folder again"
            ) from error
        yield Row(image, label, path, number)
