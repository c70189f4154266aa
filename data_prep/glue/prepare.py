"""From the files of a task, at the hub or in a folder, to three Parquet files and ``glue.json``: all of them or none."""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import constants as hub

from data_prep.complete import check_own, complete_folder, preparing, read_complete
from data_prep.croissant import CROISSANT, describe_tables
from data_prep.download import RemoteFile, fetch
from data_prep.glue.tasks import SPLITS, Column, Form, Table, Task
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import sha256_of, write_json
from gift_vit.data.kinds.csv import csv_rows
from gift_vit.data.kinds.glue import HIGHEST

log = logging.getLogger(__name__)

FORMAT = 1
META = "glue.json"
OWN = (META, CROISSANT, *(f"{split}.parquet" for split in SPLITS))  # all that a task's folder holds
HIDDEN = -1  # the label of an example that the server alone has

read_meta = partial(read_complete, META, FORMAT, ("train", "dev"))


@dataclass(frozen=True)
class Examples:
    """The examples of a split: their texts, and labels as they stand there; ``files`` are what was read."""

    texts: list[tuple[str, ...]]
    labels: list[Any]
    files: list[Path]


def prepare(task: Task, root: Path, folder: Path | None) -> str:
    """Prepare a task below ``root``, unless it is ready; returns what came of it.

    Args:
        task: The task.
        root: It is written to ``root/glue/<task>``, and downloads lie in ``root/downloads/glue``.
        folder: Holds the task's files, or a folder of them; None: they are fetched from the hub.

    Raises:
        ConfigError: If the folder has no such files, or they do not hold the task; or ``root/glue/<task>`` holds others.
        RunError: If a download fails, or the disk is full.
    """
    out = root / "glue" / task.name
    with preparing(out):
        meta = read_meta(out, task.name)
        if meta is not None:
            return f"ready already, nothing to do: {_described(meta, out)}"
        check_own(out, OWN)
        splits = _fetched(task, root / "downloads" / "glue") if folder is None else _in_folder(task, folder)
        checked = {split: _checked(task, split, examples) for split, examples in splits.items()}
        with complete_folder(out, OWN) as stage:
            for split, table in checked.items():
                pq.write_table(table, stage / f"{split}.parquet")
            meta = {
                "format": FORMAT,
                "task": task.name,
                "source": "hub" if folder is None else "folder",
                "files": {str(file): sha256_of(file) for examples in splits.values() for file in examples.files},
                "splits": {split: _summary(stage / f"{split}.parquet", table) for split, table in checked.items()},
            }
            write_json(stage / META, meta)
            _describe(stage, task, meta)
        return f"ready: {_described(meta, out)}"


def _described(meta: Mapping[str, Any], out: Path) -> str:
    counts = " + ".join(f"{summary['examples']:,}" for summary in meta["splits"].values())
    hidden = "" if "test" in meta["splits"] else ", without the test split for GLUE's server"
    return f"{counts} examples from source={meta['source']} in {out}{hidden}"


def _fetched(task: Task, downloads: Path) -> dict[str, Examples]:
    found = {}
    for split in SPLITS:
        file = fetch(RemoteFile(task.url(split, hub.ENDPOINT), f"{task.name}_{split}.parquet"), downloads)
        found[split] = _from_parquet(file, task)
    return found


def _in_folder(task: Task, folder: Path) -> dict[str, Examples]:
    """The splits in a folder: in one of its own, by any of its names, or in the folder itself; as written here too."""
    named = [place for place in (folder / name for name in (task.name, *task.folders)) if place.is_dir()]
    for place in (*named, folder):
        parquet = {split: sorted(place.glob(f"{name}-*.parquet")) for split, name in task.hub.items()}
        parquet = {split: files or sorted(place.glob(f"{split}.parquet")) for split, files in parquet.items()}
        if parquet["train"] and parquet["dev"]:
            read = {split: [_from_parquet(file, task) for file in files] for split, files in parquet.items()}
            return {split: _joined(parts) for split, parts in read.items() if parts}
        for form in task.forms:
            if all((place / file).is_file() for split in ("train", "dev") for file in form[split].files):
                return dict(_from_tables(place, form, task.has_broken))
    forms = [", ".join(file for table in form.values() for file in table.files) for form in task.forms]
    hints = " or ".join(["train-*.parquet and so on as at the hub", *forms])
    mrpc = "; GLUE's cut of the original 4,076 pairs is not in the original files" if task.name == "mrpc" else ""
    raise ConfigError(f"{task.name}: {folder} has no files of it, expected {hints}, there or in {task.name}/{mrpc}")


def _from_parquet(file: Path, task: Task) -> Examples:
    try:
        table = pq.read_table(file, columns=[*task.texts, "label"])
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{task.name}: {file} cannot be read: {' '.join(str(error).split())}; delete it") from error
    columns = [table[name].to_pylist() for name in task.texts]
    return Examples(list(zip(*columns, strict=True)), table["label"].to_pylist(), [file])


def _from_tables(folder: Path, form: Form, has_broken: bool) -> Iterator[tuple[str, Examples]]:
    for split, table in form.items():
        if all((folder / file).is_file() for file in table.files):
            yield split, _joined([_from_table(folder / file, table, has_broken) for file in table.files])


def _joined(parts: Sequence[Examples]) -> Examples:
    """The examples of several files, in their order."""
    return Examples(*([item for part in parts for item in getattr(part, field.name)] for field in fields(Examples)))


def _from_table(file: Path, table: Table, has_broken: bool) -> Examples:
    rows = csv_rows(file, quoted=False)
    wanted: list[Column] = [*table.texts, *([] if table.label is None else [table.label])]
    if isinstance(wanted[0], str):
        names = [cell.strip() for cell in rows[0][1]] if rows else []
        absent = [name for name in wanted if name not in names]
        if absent:
            raise ConfigError(f"{file} has no column {absent[0]} (it has {', '.join(names) or 'none'})")
        places, rows = [names.index(str(name)) for name in wanted], rows[1:]
    else:
        places = [int(place) for place in wanted]
    if has_broken:
        long = [(line, row) for line, row in rows if len(row) > max(places)]
        whole = long if table.label is None else [(line, row) for line, row in long if row[places[-1]].strip()]
        if len(whole) < len(rows):
            log.info("%s: broken rows left out: %d", file, len(rows) - len(whole))
        rows = whole
    short = next((line for line, row in rows if len(row) <= max(places)), None)
    if short is not None:
        raise ConfigError(f"{file} line {short} has not the {max(places) + 1} columns that are read")
    cells = [[row[place] for place in places] for _, row in rows]
    count = len(table.texts)
    return Examples([tuple(row[:count]) for row in cells], [row[count] if row[count:] else HIDDEN for row in cells], [file])


def _checked(task: Task, split: str, examples: Examples) -> pa.Table:
    """The split as it is written, if it is as large as the benchmark's and every label is one of the task's."""
    where = f"{task.name} {split} ({', '.join(str(file) for file in examples.files)})"
    expected = task.counts[SPLITS.index(split)]
    if len(examples.texts) != expected:
        raise ConfigError(f"{where} has {len(examples.texts):,} examples, expected {expected:,}; fetch the files again")
    labels = [HIDDEN] * expected
    if split != "test":
        labels = [_label(task, label, f"{where} example {index}") for index, label in enumerate(examples.labels)]
    columns = {name: [texts[i] for texts in examples.texts] for i, name in enumerate(task.texts)}
    kind = pa.int64() if task.classes else pa.float32()
    return pa.table({**columns, "label": pa.array(labels, kind), "idx": pa.array(range(expected), pa.int32())})


def _label(task: Task, label: Any, where: str) -> float:
    if label in task.classes:
        return task.classes.index(label)
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if 0 <= number <= (len(task.classes) - 1 if task.classes else HIGHEST) and (not task.classes or number.is_integer()):
        return int(number) if task.classes else number
    known = ", ".join(f"{index} ({name})" for index, name in enumerate(task.classes)) or f"a number from 0 to {HIGHEST:g}"
    raise ConfigError(f"{where} has the label {label!r}, expected {known}")


def _summary(file: Path, table: pa.Table) -> dict[str, Any]:
    classes = pa.types.is_integer(table["label"].type)
    counts = Counter(table["label"].to_pylist()) if classes else {}
    summary = {"examples": len(table), "bytes": file.stat().st_size, "sha256": sha256_of(file)}
    return {**summary, "labels": {str(label): counts[label] for label in sorted(counts)}}


def _describe(folder: Path, task: Task, meta: Mapping[str, Any]) -> None:
    """Write ``croissant.json`` beside the files."""
    label = "sc:Integer" if task.classes else "sc:Float"
    columns = {**dict.fromkeys(task.texts, "sc:Text"), "label": label, "idx": "sc:Integer"}
    counts = {split: summary["examples"] for split, summary in meta["splits"].items()}
    describe_tables(folder, f"glue_{task.name}", f"{task.folders[0]}, a task of GLUE.", counts, columns, META)
