"""Exporting a task: the rows of its three splits, verified, into its folder."""

import logging
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from data_prep.vtab.records import Key, Origin, Record
from data_prep.vtab.task_folder import FORMAT, META, Row, SplitWriter, complete_folder
from data_prep.vtab.tasks import Cut, Task
from data_prep.vtab.verify import (
    ImageCheck,
    check_byte_counts,
    check_cuts,
    check_label,
    check_labels,
    check_source,
    image_check,
)
from gift_vit.errors import ConfigError, RunError
from gift_vit.files import write_json

logger = logging.getLogger(__name__)

SHOWN_EVERY_S = 60.0


@dataclass(frozen=True)
class Split:
    """A split to write: in words where it comes from, how many images, and the rows, read one after the other."""

    cut: str
    images: int
    rows: Iterable[Row]


@dataclass(frozen=True)
class Checks:
    """What an export must pass: each image, and all labels by split, (images,), before anything becomes final."""

    image: ImageCheck
    labels: Callable[[Mapping[str, NDArray[np.int64]]], None]


def export(task: Task, origin: Origin, out: Path, official: bool = True) -> dict[str, Any]:
    """Write a task's images, verified, to the folder ``out``; what was there before is replaced.

    Args:
        task: Which images and labels.
        origin: Where they come from: the source splits of the task's builder.
        out: The task's folder.
        official: False leaves out the checks that only the real data can pass: number, ids, classes and kind of the images.

    Returns:
        What ``meta.json`` holds.

    Raises:
        ConfigError: If the data is not the benchmark's; names task, what was expected and what was found.
        RunError: If the disk is full or the origin ends too early.
    """
    with naming(task):
        keys = {split: origin.keys(split) for split in dict.fromkeys(cut.split for cut in task.cuts.values())}
        for split, found in keys.items():
            check_source(task.builder, split, found, official)
        check_cuts(task, keys, official)
        description = origin.describe()
        warnings = check_byte_counts(task.builder, description) if official else []
        for warning in warnings:
            logger.warning("%s: %s", task.name, warning)

        def check(labels: Mapping[str, NDArray[np.int64]]) -> None:
            if official:
                check_labels(task, labels, canonical=not warnings)

        names = origin.class_names if task.label_is_builders else None
        meta = {"source": origin.source, "origin": description, "class_names": names, "warnings": warnings}
        splits = {name: _split(task, origin, cut, keys[cut.split]) for name, cut in task.cuts.items()}
        return write_task(task, splits, meta, out, Checks(image_check(task, official), check))


@contextmanager
def naming(task: Task) -> Iterator[None]:
    """Put the task's name before the errors of its preparation, once."""
    name = f"{task.name}: "
    try:
        yield
    except (ConfigError, RunError) as error:
        raise type(error)(name + str(error).removeprefix(name)) from error


def write_task(task: Task, splits: Mapping[str, Split], meta: Mapping[str, Any], out: Path, checks: Checks) -> dict[str, Any]:
    """Write the splits' files and ``meta.json``, which holds ``meta`` and what is known of the task and of the files."""
    names = meta["class_names"]
    if names is not None and len(names) != task.num_classes:
        raise ConfigError(f"the data names {len(names)} classes, expected {task.num_classes}; it is not the official data")
    labels: dict[str, NDArray[np.int64]] = {}
    written: dict[str, dict[str, Any]] = {}
    with complete_folder(out) as stage:
        for name, split in splits.items():
            shown = closing(_shown(split, f"{task.name} {name}"))
            with SplitWriter(stage / f"{name}.parquet", names) as writer, shown as rows:
                for row in rows:
                    check_label(task, row.label, row.id)
                    checks.image(row.image, row.id)
                    writer.add(row)
            labels[name] = np.asarray(writer.labels, dtype=np.int64)
            written[name] = {"cut": split.cut, **writer.summary()}
            if len(labels[name]) != split.images:
                raise RunError(f"{name} ended after {len(labels[name])} images, expected {split.images}; start it again")
        checks.labels(labels)
        all_meta = {"format": FORMAT, "task": task.name, "num_classes": task.num_classes, **meta, "splits": written}
        write_json(stage / META, all_meta)
    return all_meta


def _split(task: Task, origin: Origin, cut: Cut, keys: list[Key]) -> Split:
    positions = cut.positions(len(keys))
    return Split(cut.expression(len(keys)), len(positions), _rows(task, origin, cut.split, positions, keys))


def _rows(task: Task, origin: Origin, split: str, positions: range, keys: list[Key]) -> Iterator[Row]:
    """The records at ``positions`` as the task's rows; each must be the one that its key said."""
    for position, record in zip(positions, origin.records(split, positions), strict=False):  # the writer counts them
        if record.key != keys[position]:
            raise RunError(f"{split} gave image {record.key!r} at position {position}, expected {keys[position]!r}")
        yield Row(_image(task, record), task.label(record.features), str(record.key), position)


def _image(task: Task, record: Record) -> bytes:
    try:
        return task.image(record.image)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more for broken files
        raise ConfigError(f"cannot decode image {record.key}: it is broken; get the data anew") from error


def _shown(split: Split, what: str) -> Generator[Row, None, None]:
    """The rows, with a bar on a terminal and a log line now and then elsewhere."""
    rows = iter(split.rows)
    first = list(islice(rows, 1))  # an origin may unpack something here, with a bar of its own
    rows = chain(first, rows)
    if sys.stderr.isatty():
        yield from track(rows, what, split.images, console=Console(stderr=True), transient=True)
        return
    shown = time.monotonic()
    for done, row in enumerate(rows):
        if time.monotonic() - shown >= SHOWN_EVERY_S:
            logger.info("%s: %d of %d images", what, done, split.images)
            shown = time.monotonic()
        yield row
