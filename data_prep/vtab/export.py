"""Exporting a task: the rows of its three splits, verified, into its folder."""

import logging
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from data_prep.complete import complete_folder
from data_prep.progress import bar_console
from data_prep.vtab import verify
from data_prep.vtab.records import Key, Origin
from data_prep.vtab.task_folder import FORMAT, META, OWN, Row, SplitWriter, describe_task
from data_prep.vtab.tasks import Task
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import write_json

logger = logging.getLogger(__name__)

SHOWN_EVERY_S = 60.0


@dataclass(frozen=True)
class Split:
    """A split to write: in words where it comes from, how many images, and the rows, read one after the other."""

    cut: str
    images: int
    rows: Iterable[Row]


def export(task: Task, origin: Origin, out: Path, official: bool = True) -> dict[str, Any]:
    """Write a task's images, verified, to the folder ``out``, in place of what was there; returns what ``meta.json`` holds.

    Where ``official`` is false, the checks that only the real data can pass are left out: number, ids, classes and kind of the
    images.

    Raises:
        ConfigError: If the data is not the benchmark's; names task, what was expected and what was found.
        RunError: If the disk is full or the origin ends too early.
    """
    with naming(task):
        keys = {split: origin.keys(split) for split in dict.fromkeys(cut.split for cut in task.cuts.values())}
        for split, found in keys.items():
            verify.check_source(task.builder, split, found, official)
        verify.check_cuts(task, keys, official)
        description = origin.describe()
        warnings = verify.check_byte_counts(task.builder, description) if official else []
        for warning in warnings:
            logger.warning("%s: %s", task.name, warning)
        splits = {}
        for name, cut in task.cuts.items():
            stored = keys[cut.split]
            positions = cut.positions(len(stored))
            rows = _rows(task, origin, cut.split, positions, stored)
            splits[name] = Split(cut.expression(len(stored)), len(positions), rows)
        names = origin.class_names if task.label_is_builders else None
        meta = {"source": origin.source, "origin": description, "class_names": names, "warnings": warnings}
        return write_task(task, splits, meta, out, official)


@contextmanager
def naming(task: Task) -> Iterator[None]:
    """Put the task's name before the errors of its preparation, once."""
    name = f"{task.name}: "
    try:
        yield
    except (ConfigError, RunError) as error:
        raise type(error)(name + str(error).removeprefix(name)) from error


def write_task(
    task: Task, splits: Mapping[str, Split], meta: Mapping[str, Any], out: Path, official: bool, lossy: bool = False
) -> dict[str, Any]:
    """Write the splits' files and ``meta.json``, which holds ``meta`` and what is known of the task and of the files.

    Each image must decode, each label be one of the task's. Of ``official`` data the classes that occur are checked too, and
    each image's size and kind unless they are ``lossy``.
    """
    names = meta["class_names"]
    if names is not None and len(names) != task.num_classes:
        raise ConfigError(f"the data names {len(names)} classes, expected {task.num_classes}; it is not the official data")
    check_image = verify.image_check(task, official and not lossy)
    labels: dict[str, NDArray[np.int64]] = {}
    written: dict[str, dict[str, Any]] = {}
    with complete_folder(out, OWN) as stage:
        for name, split in splits.items():
            shown = closing(_shown(split, f"{task.name} {name}"))
            with SplitWriter(stage / f"{name}.parquet", names) as writer, shown as rows:
                for row in rows:
                    verify.check_label(task, row.label, row.id)
                    check_image(row.image, row.id)
                    writer.add(row)
            labels[name] = np.asarray(writer.labels, dtype=np.int64)
            written[name] = {"cut": split.cut, **writer.summary()}
            if len(labels[name]) != split.images:
                raise RunError(f"{name} ended after {len(labels[name])} images, expected {split.images}; start it again")
        if official:
            is_local = task.name == "caltech101" and bool(meta["warnings"])  # to which the published class counts do not apply
            verify.check_labels(task, labels, canonical=not is_local)
        all_meta = {"format": FORMAT, "task": task.name, "num_classes": task.num_classes, **meta, "splits": written}
        write_json(stage / META, all_meta)
        describe_task(stage, task.title, all_meta)
    return all_meta


def _rows(task: Task, origin: Origin, split: str, positions: range, keys: list[Key]) -> Iterator[Row]:
    """The records at ``positions`` as the task's rows; each must be the one that its key said."""
    for position, record in zip(positions, origin.records(split, positions), strict=False):  # the writer counts them
        if record.key != keys[position]:
            raise RunError(f"{split} gave image {record.key!r} at position {position}, expected {keys[position]!r}")
        try:
            image = task.image(record.image)
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more for broken files
            raise ConfigError(f"cannot decode image {record.key}: it is broken; get the data anew") from error
        yield Row(image, task.label(record.features), str(record.key), position)


def _shown(split: Split, what: str) -> Generator[Row, None, None]:
    """The rows, with a bar on a terminal and a log line now and then elsewhere."""
    rows = iter(split.rows)
    rows = chain(list(islice(rows, 1)), rows)  # for the first one an origin may unpack something, with a bar of its own
    if console := bar_console():
        yield from track(rows, what, split.images, console=console, transient=True)
        return
    shown = time.monotonic()
    for done, row in enumerate(rows):
        if time.monotonic() - shown >= SHOWN_EVERY_S:
            logger.info("%s: %d of %d images", what, done, split.images)
            shown = time.monotonic()
        yield row
