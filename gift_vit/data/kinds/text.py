"""A person's own texts: TSV, CSV, JSON, JSON lines or Parquet, with one or two columns of text and one of labels.

The columns are known by their usual names, or by what ``dataset.columns`` says; names of integer classes stand in a Parquet
file's metadata, as those of images do. In a TSV file a quotation mark is a character like others, as in GLUE's files; in a CSV
file it encloses cells.
"""

import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import Origin, VisionDataset, register_dataset
from gift_vit.data.columns import find_column, find_split_column, find_texts
from gift_vit.data.config import TextColumnsConfig, TextConfig
from gift_vit.data.kinds.csv import NUMBER, as_labels, csv_rows, named_by_place
from gift_vit.data.kinds.parquet import agreed_names, names_in
from gift_vit.data.layout import LEARNT
from gift_vit.data.own import Part, own_dataset, rows_of_splits, taken
from gift_vit.data.texts import TextSource, check_unicode

log = logging.getLogger(__name__)

_NO_QUOTES = "; in TSV a quotation mark is a character, and a line a row: where they enclose, save it as .csv"


@dataclass(frozen=True)
class Rows:
    """What was read of a file.

    Attributes:
        texts: One or two texts each.
        labels: As they stand there.
        splits: What the column of the split says; empty where there is none.
        places: Where each row stands.
        class_names: Of integers as labels; None: the file says none.
    """

    texts: list[tuple[str, ...]]
    labels: list[Any]
    splits: list[Any]
    places: list[str]
    class_names: list[str] | None = None


@register_dataset("text", TextConfig)
def build_text(cfg: TextConfig) -> VisionDataset:
    """Read the files of each split."""
    root = cfg.root_path.parent if cfg.root_path.is_file() else cfg.root_path
    found = cfg.found()
    read = {
        split: [read_rows(file, cfg.columns, split in LEARNT, numbers=cfg.is_regression) for file in files]
        for split, files in found.items()
    }
    _check_columns(found, read)
    labels_there = [label for several in read.values() for rows in several for label in rows.labels]
    numbers = all(map(_is_number, labels_there))
    if not cfg.is_regression and (broken := next(filter(_is_broken, labels_there), None)):
        log.warning("dataset %s: %s is taken for the name of a class; of numbers give dataset.metric=pearson", cfg.name, broken)
    named = [(file, rows.class_names) for split, files in found.items() for file, rows in zip(files, read[split], strict=True)]
    parts: dict[str, Part] = {}
    for split, files in found.items():
        several = read[split]
        texts, places = ([item for rows in several for item in getattr(rows, name)] for name in ("texts", "places"))
        stated = [label for rows in several for label in rows.labels]
        labels = np.asarray(stated, np.float32) if cfg.is_regression else as_labels(stated, numbers, files[0])
        origin = Origin(tuple(os.path.relpath(file, root) for file in files))
        by_split = rows_of_splits(split, [rows.splits for rows in several], len(texts), str(files[0]), found)
        for name, indices in by_split.items():
            source = partial(_source, [texts[index] for index in indices], [places[index] for index in indices])
            parts[name] = Part(taken(labels, indices), source, str(files[0]), origin)
    return replace(own_dataset(cfg, parts, None if cfg.is_regression else agreed_names(named)), decoder="none")


def _check_columns(found: Mapping[str, Sequence[Path]], read: Mapping[str, Sequence[Rows]]) -> None:
    """Refuse files of which some have one column of texts and some two: the model would be tested on other inputs."""
    counts = {file: len(rows.texts[0]) for split in found for file, rows in zip(found[split], read[split], strict=True)}
    one, two = (next((file for file, count in counts.items() if count == wanted), None) for wanted in (1, 2))
    if one is not None and two is not None:
        raise ConfigError(
            f"{one} has one column of texts and {two} has two; name them with dataset.columns.text=… and dataset.columns.pair=…"
        )


def _source(texts: list[tuple[str, ...]], places: list[str], labels: Any, **_: Any) -> Any:  # it stands where images do
    return TextSource(texts, labels, places)


def read_rows(file: Path, columns: TextColumnsConfig, with_splits: bool = False, numbers: bool = False) -> Rows:
    """Read one file, its column of splits only if asked to; with ``numbers`` labels are finite numbers.

    Raises:
        ConfigError: If it cannot be read, has no such columns, or a row lacks a text or a label; names the row.
    """
    names, rows = _READERS[file.suffix.lower()](file, columns)
    text, pair = find_texts(names, columns.text, columns.pair, str(file))
    label = find_column("label", names, columns.label, str(file))
    split = None
    if with_splits:
        others = [name for name in names if name not in (text, pair, label)]
        split = find_split_column(names, columns.split, str(file), lambda name: [row.get(name) for _, row in rows], others)
    class_names = names_in(file, pq.read_schema(file), label) if file.suffix.lower() == ".parquet" else None
    read = Rows([], [], [], [], class_names)
    for line, row in rows:
        place = f"{file} {line}"
        read.texts.append(tuple(_checked(row.get(name), name, place) for name in (text, pair) if name is not None))
        read.labels.append((_checked_number if numbers else _checked_label)(row.get(label), label, place))
        read.places.append(place)
        if split is not None:
            read.splits.append(row.get(split))
    return read


_Table = tuple[list[str], list[tuple[str, dict[str, Any]]]]
"""The names of the columns, and each row with its place."""


def _from_csv(file: Path, columns: TextColumnsConfig) -> _Table:
    lines = [(line, cells) for line, cells in csv_rows(file, quoted=file.suffix.lower() == ".csv") if any(cells)]
    header = [cell.strip() for cell in lines[0][1]] if lines else []
    given = {name for name in vars(columns).values() if name}
    if named_by_place(given, header):
        header = [str(number) for number in range(1, len(header) + 1)]
    else:
        lines = lines[1:]
    uneven = next((line for line, cells in lines if len(cells) != len(header)), None)
    if uneven is not None:
        quote = "; quote text with separators in it" if file.suffix.lower() == ".csv" else _NO_QUOTES
        raise ConfigError(f"{file} line {uneven} has not the {len(header)} columns of the first{quote}")
    if file.suffix.lower() == ".tsv" and sum(any(map(_is_quoted, cells)) for _, cells in lines) > len(lines) / 2:
        log.warning("%s: cells are in quotation marks, which are read as a part of them%s", file, _NO_QUOTES)
    return _filled(file, header, [(f"line {line}", dict(zip(header, cells, strict=True))) for line, cells in lines])


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def _from_json(file: Path, columns: TextColumnsConfig) -> _Table:
    del columns
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {error}; expected UTF-8 text") from error
    try:
        if text.lstrip().startswith("["):
            numbered = list(enumerate(json.loads(text), 1))
            where = "row"
        else:
            numbered = [(line, json.loads(row)) for line, row in enumerate(text.split("\n"), 1) if row.strip()]
            where = "line"
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{file} cannot be read as JSON ({error}); expected a list of objects, or an object in each line"
        ) from error
    wrong = next((number for number, row in numbered if not isinstance(row, dict)), None)
    if wrong is not None:
        raise ConfigError(f"{file} {where} {wrong} is no object; expected one such as " + '{"text": "…", "label": "…"}')
    names = list(dict.fromkeys(name for _, row in numbered for name in row))
    return _filled(file, names, [(f"{where} {number}", row) for number, row in numbered])


def _from_parquet(file: Path, columns: TextColumnsConfig) -> _Table:
    del columns
    try:
        with pq.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            kinds = [field.type for field in parquet.schema_arrow]
            plain = [name for name, kind in zip(names, kinds, strict=True) if not pa.types.is_nested(kind)]
            rows = parquet.read(columns=plain).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file} as Parquet: {' '.join(str(error).split())}") from error
    return _filled(file, plain, [(f"row {number}", row) for number, row in enumerate(rows)])


_READERS = {".csv": _from_csv, ".tsv": _from_csv, ".json": _from_json, ".jsonl": _from_json, ".parquet": _from_parquet}


def _filled(file: Path, names: list[str], rows: list[tuple[str, dict[str, Any]]]) -> _Table:
    if not rows:
        raise ConfigError(f"{file} holds no texts; expected names of columns, such as text and label, and a row for each text")
    return names, rows


def _checked(text: Any, column: str, place: str) -> str:
    if not isinstance(text, str) or not text.strip():
        found = "nothing" if text is None or text == "" or isinstance(text, str) else repr(text)
        raise ConfigError(f"{place}: column {column} holds {found}, expected text; write it, or remove the row")
    check_unicode(text, column, place)
    return text


def _checked_label(label: Any, column: str, place: str) -> Any:
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, str) and label.strip():
        return label.strip()
    if isinstance(label, int):
        return label
    found = "nothing" if label is None or isinstance(label, str) else repr(label)
    other = "; of numbers give dataset.metric=pearson" if isinstance(label, float) else ""
    raise ConfigError(f"{place}: column {column} holds {found}, expected the name or the number of a class{other}")


def _checked_number(label: Any, column: str, place: str) -> float:
    try:
        number = math.nan if isinstance(label, bool) else float(np.float32(label))
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isfinite(number):
        return number
    found = "nothing" if label is None or label == "" else repr(label)
    raise ConfigError(f"{place}: column {column} holds {found}, expected a number, which dataset.metric is of")


def _is_number(label: Any) -> bool:
    return isinstance(label, int | float) or NUMBER.fullmatch(label) is not None


def _is_broken(label: Any) -> bool:
    """Whether it is a number that is not whole."""
    return isinstance(label, str) and re.fullmatch(r"[-+]?\d+[.,]\d*[1-9]\d*", label) is not None
