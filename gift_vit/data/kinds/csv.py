"""CSV files that list images and labels: ``train.csv``, ``val.csv``, ``test.csv``, or one file, perhaps with a column split.

Separated by commas, semicolons or tabs; UTF-8, with or without a byte order mark. Where the first line names an image, there is
no line of names: the columns are then ``1``, ``2`` and so on. Paths are relative to the file that lists them.
"""

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import FileSource, Origin, VisionDataset, register_dataset
from gift_vit.data.columns import find_column, find_split_column
from gift_vit.data.config import ColumnsConfig, CsvConfig
from gift_vit.data.layout import LEARNT, REPEATED, is_address, one_form
from gift_vit.data.own import Labels, Part, own_dataset, rows_of_splits, taken
from gift_vit.data.trees import readable_endings

_SEPARATORS = ",;\t|"
_LOOKED_UP = (
    "; paths are relative to the list and written as on disk, with ending and capitals: correct them, or remove their lines"
)
NUMBER = re.compile(r"-?(0|[1-9]\d*)")


@dataclass(frozen=True)
class Listing:
    """The rows of a CSV file.

    Attributes:
        paths: As they stand there.
        labels: As they stand there.
        splits: What the column of the split says; empty where there is none.
        repeated: Rows that said what another has said, and were left out.
    """

    paths: list[str]
    labels: list[str]
    splits: list[str]
    repeated: int


@register_dataset("csv", CsvConfig)
def build_csv(cfg: CsvConfig) -> VisionDataset:
    """Read the lists, and look whether every listed image is there."""
    root = cfg.root_path.parent if cfg.root_path.is_file() else cfg.root_path
    real = Path(os.path.realpath(root))
    found = cfg.found()
    listings = {split: [read_listing(file, cfg.columns, split in LEARNT) for file in files] for split, files in found.items()}
    numbers = all(NUMBER.fullmatch(text) for several in listings.values() for listing in several for text in listing.labels)
    parts: dict[str, Part] = {}
    for split, files in found.items():
        several = listings[split]
        paths = [
            _below((root, real), file.parent / path)
            for file, listing in zip(files, several, strict=True)
            for path in listing.paths
        ]
        labels = as_labels([label for listing in several for label in listing.labels], numbers, files[0])
        repeated = sum(listing.repeated for listing in several)
        origin = Origin(tuple(os.path.relpath(file, root) for file in files), {REPEATED: repeated} if repeated else {})
        rows = rows_of_splits(split, [listing.splits for listing in several], len(paths), str(files[0]), found)
        for name, indices in rows.items():
            chosen = [paths[index] for index in indices]
            source = partial(FileSource, root, chosen, listed_in=files[0], hint=_LOOKED_UP)
            parts[name] = Part(taken(labels, indices), source, str(files[0]), origin)
    return own_dataset(cfg, parts)


def read_listing(file: Path, columns: ColumnsConfig, with_splits: bool = False) -> Listing:
    """Read one file, its column of splits only if asked to.

    Raises:
        ConfigError: If it is no such file; names the line.
    """
    header, rows = _read_rows(file, columns)
    image, label = (header.index(find_column(role, header, getattr(columns, role), str(file))) for role in ("image", "label"))
    named = None
    if with_splits:
        others = [name for index, name in enumerate(header) if index not in (image, label)]
        named = find_split_column(
            header, columns.split, str(file), lambda name: [row[header.index(name)] for _, row in rows], others
        )
    split = None if named is None else header.index(named)
    labels: dict[str, str] = {}
    listed: dict[tuple[str, str], tuple[str, str]] = {}
    for line, row in rows:
        path, text = _checked_path(row[image].strip(), f"{file} line {line}"), one_form(row[label].strip())
        if not text:
            raise ConfigError(f"{file} line {line}: {path} has no label; give it one or remove the line")
        place = one_form(os.path.normpath(file.parent / path))  # one file, however it is spelt
        if labels.setdefault(place, text) != text:
            raise ConfigError(f"{file} line {line}: {path} has the label {text}, and {labels[place]} further up; keep one")
        listed.setdefault((place, "" if split is None else row[split].strip()), (path, text))
    splits = [] if split is None else [text for _, text in listed]
    paths, texts = ([row[column] for row in listed.values()] for column in (0, 1))
    return Listing(paths, texts, splits, len(rows) - len(listed))


def csv_rows(file: Path, quoted: bool = True) -> list[tuple[int, list[str]]]:
    """The cells of each line that is not empty, with the line's number; without ``quoted`` tabs separate and nothing encloses.

    Raises:
        ConfigError: If it cannot be read; names the line.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is no UTF-8 text ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    if not quoted:  # a carriage return within a line is the text's own
        return [(line, row.rstrip("\r").split("\t")) for line, row in enumerate(text.split("\n"), 1) if row.strip()]
    text = io.StringIO(text, newline=None).getvalue()  # lines end in \n
    told = re.match(r"sep=(.)\n", text)  # a line for Excel, which does not show it
    text = text[told.end() :] if told else text
    first = re.sub(r'"[^"]*"', "", text.partition("\n")[0])  # a separator within quotation marks is none
    separator = told[1] if told else max(_SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    before = csv.field_size_limit(len(text) + 1)  # a text may be longer than the 131,072 characters that are allowed at first
    try:
        return [(reader.line_num + bool(told), row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ConfigError(f"{file} line {reader.line_num + bool(told)} cannot be read as CSV: {error}") from error
    finally:
        csv.field_size_limit(before)


def named_by_place(given: set[str], header: Sequence[str]) -> bool:
    """Whether columns are given by their places from 1, for there is no line of names."""
    return bool(given) and given.issubset(map(str, range(1, len(header) + 1))) and not given.issubset(header)


def _read_rows(file: Path, columns: ColumnsConfig) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and the rows with their line numbers."""
    rows = csv_rows(file)
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    given = {name for name in (columns.image, columns.label, columns.split) if name is not None}
    is_row = [os.path.splitext(cell)[1].lower() in readable_endings() for cell in header]
    if named_by_place(given, header) or (any(is_row) and not given & set(header)):
        header = [str(number) for number in range(1, len(header) + 1)]
        if len(header) == 2 and not given:
            header = ["image", "label"] if is_row[0] else ["label", "image"]
    else:
        rows = rows[1:]
    if not rows:
        raise ConfigError(f"{file} lists no images; expected a line of names, such as image,label, and a line for each image")
    uneven = next((line for line, row in rows if len(row) != len(header)), None)
    if uneven is not None:
        raise ConfigError(
            f"{file} line {uneven} has not the {len(header)} columns of the first; quote text with separators in it"
        )
    return header, rows


def _checked_path(path: str, where: str) -> str:
    if not path:
        raise ConfigError(f"{where} names no image; give one or remove the line")
    if is_address(path):
        raise ConfigError(f"{where}: {path} is an address; download the images and list their files")
    return os.path.normpath(path.replace("\\", "/"))


def _below(roots: Sequence[Path], path: Path) -> str:
    """A path relative to a root that it lies below, so that data that has moved is the same data."""
    root = next((root for root in roots if path.is_relative_to(root)), None)
    return os.path.normpath(path) if root is None else os.path.relpath(path, root)


def as_labels(labels: Sequence[Any], numbers: bool, file: Path) -> Labels:
    """Labels as whole numbers, or as text; numbers beyond 64 bits are an error that names the file."""
    try:
        return np.asarray([int(label) for label in labels], np.int64) if numbers else [str(label) for label in labels]
    except (OverflowError, ValueError) as error:  # of Python 3.11 on, from 4,300 digits on
        raise ConfigError(f"{file} has labels beyond 64 bits; write them as words, such as class_1") from error
