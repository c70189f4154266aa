"""What lies below the root of a person's own data: which of it is which split, by name alone.

One rule for class folders, Parquet files, CSV files and the values of a column: the usual names in any case, and what has
another name beside them is refused, so that nothing is held out, or trained on, that nobody notices.
"""

import mimetypes
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn
from unicodedata import normalize

from gift_vit.common.errors import ConfigError, a_few

SPLITS = ("train", "val", "test")
ALL = "all"  # in the place of a split: everything, of which val and test are still to be split off
LEARNT = ("train", ALL)  # what classes come from; a table of these may have a column that names the split of each row
USUAL_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing"),
}
KNOWN_NAMES = ", ".join(name for names in USUAL_NAMES.values() for name in names)
CLASS_FOLDERS = "expected train/<class>/*.jpg and, if there are any, val/<class>/ and test/<class>/; or <class>/*.jpg"
TABLE_ENDINGS = {"parquet": (".parquet",), "csv": (".csv", ".tsv"), "text": (".csv", ".tsv", ".json", ".jsonl", ".parquet")}

# reasons to leave something out that nobody needs to look into
OF_THE_SYSTEM, LINKED, REPEATED = "hidden or the system's", "links to what is read already", "rows that repeat another"
LINKED_ELSEWHERE = "links to what is read under another class"

_SYSTEMS = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_SPREADSHEETS = (".xlsx", ".xls", ".ods")
_HELD_OUT = {"eval", "evaluation", "holdout", "heldout", "trainval", "unlabeled", "unlabelled"}
# train, train-00000-of-00002 and, as hubs have written them, train-00000-of-00002-a09b74b3ef9c3b56
_SHARD = re.compile(r"(.*?)-?(\d+)-of-(\d+)(?:-[0-9a-f]{16})?", re.IGNORECASE)

_NUMBERED = re.compile(r"(.*?)(\d+)([-.].*|\D*)")  # 0000, part-00000, part-00000-c35d-c000.snappy


def split_named(name: str) -> str | None:
    """The split that a folder, a file without its ending or a word is usually meant to be; None: none.

    ``Training``, ``train_set`` and ``TRAINSET`` are train.
    """
    word = re.sub(r"[\s_-]*set$", "", name.strip().casefold())
    return next((split for split, names in USUAL_NAMES.items() if word in names), None)


def is_table(name: str) -> bool:
    """Whether a file of that name holds a table, by its ending."""
    return any(name.lower().endswith(endings) for endings in TABLE_ENDINGS.values())


def is_of_the_system(name: str) -> bool:
    """Whether an entry of a folder is hidden, or an operating system's: ``.DS_Store``, ``._1.jpg``, ``Thumbs.db``."""
    return name.startswith(".") or name.casefold() in _SYSTEMS


def is_address(text: str) -> bool:
    """Whether it is the address of something elsewhere, as ``https://…``, and no path."""
    return re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE) is not None


def one_form(text: str) -> str:
    """Text in the Unicode form NFC: what looks the same is the same."""
    return text if text.isascii() else normalize("NFC", text)


def check_name(name: str) -> None:
    """Refuse a file's or folder's name that no record could hold: old archives have names in other encodings than UTF-8.

    Raises:
        ConfigError: If it is one.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = name.encode(errors="backslashreplace").decode()
        raise ConfigError(f"{shown} has a name that is no UTF-8; rename it") from error


def said(skipped: Mapping[str, int]) -> str:
    """What was left out, in words."""
    return ", ".join(f"{count:,} {what}" for what, count in sorted(skipped.items(), key=lambda item: (-item[1], item[0])))


def listed(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, by name.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ConfigError(f"cannot read the folder {folder}: {error.strerror}") from error


def check_link(entry: os.DirEntry[str]) -> None:
    """Refuse a link that leads nowhere: what it stands for may lie on a disk that is not there now.

    Raises:
        ConfigError: If it is one.
    """
    if entry.is_symlink() and not os.path.exists(entry.path):
        raise ConfigError(
            f"{entry.path} is a link to {os.readlink(entry.path)}, which is not there; restore that, or remove the link"
        )


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one; raises as :func:`check_link` does where the name is not that of a file."""
    if not entry.is_symlink():
        return entry.is_dir()
    if mimetypes.guess_type(entry.name)[0] is None:
        check_link(entry)
    return os.path.isdir(entry.path)


def folders_in(folder: str | Path) -> list[os.DirEntry[str]]:
    """The folders in a folder, by name, but for what is hidden or the system's; raises as :func:`is_folder` does."""
    return [entry for entry in listed(folder) if not is_of_the_system(entry.name) and is_folder(entry)]


def kind_of(root: Path) -> str:
    """How a person's data is read, by what is there: ``folder``, ``parquet`` or ``csv``.

    Raises:
        ConfigError: If it is nothing of the three.
    """
    if not os.path.exists(root):
        raise ConfigError(f"there is no folder or file {root}; give root=<a folder of images, a CSV or a Parquet file>")
    _refuse_saved(root)
    if os.path.isfile(root):
        kind = _kind_of_table(root)
        return _refuse_file(root, "a folder of images, a CSV or a Parquet file") if kind in (None, "text") else kind
    if _of_splits(_parquet_series(root)):
        return "parquet"
    tables = _tables_in(root, "csv")
    folders = folders_in(root)
    classes = [entry for entry in folders if split_named(entry.name) is None]
    in_splits = any(folders_in(entry.path) for entry in folders if entry not in classes)
    # beside lists of the splits folders hold the images, and so does a single one beside any list: it makes no classes
    in_classes = len(classes) > 1 and not any(split_named(file.stem) for file in tables)
    return "csv" if (tables or _split_tables(root)) and not in_splits and not in_classes else "folder"


def _refuse_saved(root: Path) -> None:
    """What ``save_to_disk`` of the library datasets writes is for that library alone."""
    if root.suffix == ".arrow" or any(os.path.isfile(root / name) for name in ("dataset_dict.json", "state.json")):
        raise ConfigError(
            f"{root} is a dataset that save_to_disk wrote; write each split with to_parquet, and give their folder"
        )


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split that is there; where there are no splits, the root as :data:`ALL`.

    Raises:
        ConfigError: If the root is no folder of class folders, or a folder in it is of no known split.
    """
    _refuse_saved(root)
    if os.path.isfile(root):
        _refuse_file(root, "a folder of class folders")
    folders = [entry.name for entry in folders_in(root)]
    remedy = "rename it or move it elsewhere, or put all class folders into a folder named train"
    found = _assigned(folders, root, "folder", remedy)
    _refuse_packed(root, found)
    if found:
        return {split: root / name for split, name in found.items()}
    if not folders:
        tables = [kind for kind in TABLE_ENDINGS if _tables_in(root, kind)]
        hint = f"; for the files in it train with dataset={tables[0]}" if tables else ""
        raise ConfigError(f"{root} holds no class folders; {CLASS_FOLDERS}{hint}")
    if _of_splits(_parquet_series(root)):
        raise ConfigError(f"{root} holds Parquet files; for these train with dataset=parquet")
    _refuse_hidden_splits(root, folders)
    return {ALL: root}


def table_files(root: Path, kind: str) -> dict[str, list[Path]]:
    """The Parquet or CSV files of each split, shards in their order; one file without a split's name as :data:`ALL`.

    Raises:
        ConfigError: If there are none, a file is of no known split, or shards are missing or too many.
    """
    _refuse_saved(root)
    endings = TABLE_ENDINGS[kind]
    if os.path.isfile(root):
        if root.suffix.lower() not in endings:
            _refuse_file(root, f"a folder or a file that ends in {' or '.join(endings)}")
        return {ALL: whole_series([root])}
    series = _parquet_series(root) if kind in ("parquet", "text") else {}
    for file in _tables_in(root, kind) if kind != "parquet" else ():
        if file.suffix.lower() != ".parquet":
            other = series.setdefault(file.stem, [file])[0]
            if other != file:
                raise ConfigError(f"{other} and {file} have one name; keep one of them, or name the files in dataset.files=…")
    if kind == "csv" and not series:
        series = _split_tables(root)
    series = _of_splits(series)
    if not series:
        where = f"{root}, {root}/data or a folder named as a split" if kind == "parquet" else f"{root}"
        raise ConfigError(
            f"there are no files that end in {' or '.join(endings)} in {where}; give the folder that holds them, or for class "
            "folders train with dataset=folder"
        )
    remedy = "name the files in dataset.files=…, rename it or move it elsewhere"
    found = _assigned(series, root, "file", remedy, {name: files[0] for name, files in series.items()})
    if not found and len(series) > 1:
        named = ", ".join(str(files[0].relative_to(root)) for files in list(series.values())[:3])
        raise ConfigError(f"{root} holds {named}, which are of no split (usual names: {KNOWN_NAMES}); {remedy}")
    _refuse_packed(root, found)
    chosen = found or {ALL: next(iter(series))}
    return {split: whole_series(series[name]) for split, name in chosen.items()}


def check_series(files: Iterable[Path]) -> None:
    """Refuse files among which there are shards, but not all of them; raises as :func:`whole_series`."""
    series: dict[str, list[Path]] = {}
    for file in files:
        if match := _SHARD.fullmatch(file.stem):
            series.setdefault(str(file.parent / match[1]), []).append(file)
    for shards in series.values():
        whole_series(shards)


def whole_series(files: Sequence[Path]) -> list[Path]:
    """Files in the order of their shards, checked to be all of them, each once.

    Raises:
        ConfigError: If shards are missing, too many, there twice, or disagree on how many there are.
    """
    shards = {file: _SHARD.fullmatch(file.stem) for file in sorted(files)}
    numbered = {file: (int(match[2]), int(match[3])) for file, match in shards.items() if match}
    if not numbered:
        _refuse_gaps(list(shards))
        return list(shards)
    first, (_, count) = next(iter(numbered.items()))
    other = next((file for file in shards if file not in numbered or numbered[file][1] != count), None)
    if other is not None:
        raise ConfigError(f"{first} and {other} disagree on how many shards there are; keep the files of one writing")
    by_index: dict[int, Path] = {}
    for file, (index, _) in numbered.items():
        if index in by_index:
            raise ConfigError(f"{by_index[index]} and {file} are the same shard; keep one of them")
        if index >= count:
            raise ConfigError(
                f"{file} is one too many: shards count from 0, and it says there are {count}; remove or rename it"
            )
        by_index[index] = file
    absent = [index for index in range(count) if index not in by_index]
    if absent:
        shape = shards[first]
        assert shape is not None
        before = first.name[: shape.start(2)]
        named = a_few([f"{before}{index:0{len(shape[2])}}-of-{shape[3]}{first.suffix}" for index in absent])
        raise ConfigError(f"{first.parent} lacks {named} ({len(absent)} of {count} shards); add what is missing")
    return [by_index[index] for index in range(count)]


def _refuse_gaps(files: Sequence[Path]) -> None:
    """Refuse ``0000``, ``0001``, ``0003``: files that are numbered from 0 or 1 in one form, of which one between is absent."""
    numbers = [match for file in files if (match := _NUMBERED.fullmatch(file.stem))]
    by_number = {int(match[2]): match for match in numbers}
    one_form = len({(match[1], match[3]) for match in numbers}) == 1 and len(by_number) == len(files)
    if not one_form or min(by_number) > 1:
        return
    absent = sorted(set(range(min(by_number), max(by_number))) - set(by_number))
    if absent:
        shape = numbers[0]
        named = a_few([f"{shape[1]}{index:0{len(shape[2])}}{shape[3]}{files[0].suffix}" for index in absent])
        raise ConfigError(
            f"{files[0].parent} lacks {named}, by the numbers of its {len(files)} files; "
            "add what is missing, or name the files in dataset.files=…"
        )


def _tables_in(folder: str | Path, kind: str) -> list[Path]:
    return [
        Path(entry.path)
        for entry in listed(folder)
        if entry.name.lower().endswith(TABLE_ENDINGS[kind]) and not is_of_the_system(entry.name) and _is_file(entry)
    ]


def _is_file(entry: os.DirEntry[str]) -> bool:
    check_link(entry)
    return entry.is_file()


def _split_tables(root: Path) -> dict[str, list[Path]]:
    """CSV files in folders that are named as splits and hold no class folders, as ``train/metadata.csv`` on the Hub."""
    folders = [entry for entry in folders_in(root) if split_named(entry.name) and not folders_in(entry.path)]
    return {entry.name + os.sep: files for entry in folders if (files := _tables_in(entry.path, "csv"))}


def _parquet_series(root: Path) -> dict[str, list[Path]]:
    """Files by the name that says what they are: their own without the number of the shard, or that of their folder."""
    series: dict[str, list[Path]] = {}
    for base in (root, *(root / entry.name for entry in folders_in(root) if entry.name == "data")):
        for file in _tables_in(base, "parquet"):
            match = _SHARD.fullmatch(file.stem)
            series.setdefault(os.path.relpath(base / (match[1] if match else file.stem), root), []).append(file)
        for entry in folders_in(base):
            if (base, entry.name) != (root, "data") and (files := _tables_in(entry.path, "parquet")):
                series[os.path.relpath(entry.path, root) + os.sep] = files
    return series


def _of_splits(series: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """Without the folders, where neither a folder nor a file is named as a split: they hold something else."""
    any_named = any(split_named(os.path.basename(name.rstrip(os.sep))) for name in series)
    return {name: files for name, files in series.items() if any_named or not name.endswith(os.sep)}


def _assigned(
    names: Iterable[str], root: Path, what: str, remedy: str, shown: Mapping[str, Path] | None = None
) -> dict[str, str]:
    """The name that each split has; empty where none is that of a split."""
    found: dict[str, str] = {}
    unknown: list[str] = []
    for name in names:
        split = split_named(os.path.basename(name.rstrip(os.sep)))
        if split is None:
            unknown.append(name)
        elif split in found:
            first, second = ((shown[key] if shown else root / key) for key in (found[split], name))
            raise ConfigError(f"{first} and {second} are both {split} by their names; keep one of them, or rename it")
        else:
            found[split] = name
    if found and unknown:
        file = shown[unknown[0]] if shown else root / unknown[0]
        raise ConfigError(
            f"the {what} {file} is of no known split, and stands beside {', '.join(sorted(found.values()))} "
            f"(known names: {KNOWN_NAMES}); {remedy}"
        )
    if found and "train" not in found:
        raise ConfigError(f"{root} has {', '.join(sorted(found.values()))}, but no {what} named train; {remedy}")
    return {split: found[split] for split in SPLITS if split in found}


def _refuse_packed(root: Path, found: Mapping[str, str]) -> None:
    """A split that lies there as an archive or a spreadsheet alone, beside others, is meant to be read."""
    for entry in listed(root) if found else ():
        ending = os.path.splitext(entry.name)[1].lower()
        split = split_named(entry.name.partition(".")[0])
        if split and split not in found and ending in (*_ARCHIVES, *_SPREADSHEETS):
            what, remedy = ("an archive", "unpack it") if ending in _ARCHIVES else ("a spreadsheet", "save it as CSV")
            raise ConfigError(f"{entry.path} is {what}, and {split} by its name; {remedy}, or move it elsewhere")


def _refuse_hidden_splits(root: Path, folders: Sequence[str]) -> None:
    """Class folders that are splits by a name nobody knows, or that hold the splits, are no classes."""
    for name in folders:
        inside = {split_named(entry.name) for entry in folders_in(root / name)} - {None}
        if inside and (len(folders) == 1 or len(inside) > 1):
            raise ConfigError(f"{root / name} holds folders named as splits; give this folder in place of {root}")
    words = {name: set(re.findall("[a-z]+", name.casefold())) for name in folders}
    splits = {
        name for name in folders if words[name] & (_HELD_OUT | {word for names in USUAL_NAMES.values() for word in names})
    }
    nested = sorted(name for name in splits if len(splits) == len(folders) or folders_in(root / name))
    if nested:
        raise ConfigError(
            f"{root / nested[0]} looks like a split, but has none of the known names ({KNOWN_NAMES}); rename it, "
            "or put all class folders into a folder named train"
        )


def _refuse_file(root: Path, expected: str) -> NoReturn:
    if root.suffix.lower() in _ARCHIVES:
        raise ConfigError(f"{root} is an archive; unpack it, and give the folder")
    kind = _kind_of_table(root)
    hint = f"; train with dataset={kind}" if kind else ""
    raise ConfigError(f"{root} is a file; expected {expected}{hint}")


def _kind_of_table(root: Path) -> str | None:
    return next((kind for kind, endings in TABLE_ENDINGS.items() if root.suffix.lower() in endings), None)
