"""``croissant.json`` beside a prepared dataset: its files, their hashes and its splits, in the form that data sites read.

Croissant 1.1, https://docs.mlcommons.org/croissant. Written by hand, since the library for it needs pandas and more.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gift_vit.common.files import sha256_of, write_json

CROISSANT = "croissant.json"
_FORMATS = {
    **{".json": "application/json", ".mat": "application/x-matlab-data", ".parquet": "application/x-parquet"},
    ".zip": "application/zip",
}
_SPLITS = {"train": "training", "val": "validation", "dev": "validation", "test": "test"}
_TERMS = (
    *("arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field", "fileProperty", "fileObject"),
    *("fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path"),
    *("recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField"),
    "transform",
)
_CONTEXT = {
    **{"@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/", "dct": "http://purl.org/dc/terms/"},
    **{"cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/", "conformsTo": "dct:conformsTo"},
    **{term: f"cr:{term}" for term in _TERMS},
    **{key: {"@id": f"cr:{key}", "@type": "@json"} for key in ("data", "examples")},
    **{key: {"@container": "@language"} for key in ("name", "description")},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
}


def write_croissant(folder: Path, name: str, description: str, distribution: Sequence[Any], records: Sequence[Any]) -> None:
    """Write a dataset's description; who publishes the data says under which licence.

    Args:
        folder: Where the dataset is.
        name: Its name.
        description: A sentence.
        distribution: Of :func:`file_object` and :func:`image_set`.
        records: Of :func:`split_records`, and of tables.
    """
    write_json(
        folder / CROISSANT,
        {
            "@context": _CONTEXT,
            "@type": "sc:Dataset",
            "conformsTo": "http://mlcommons.org/croissant/1.1",
            "name": name,
            "description": description,
            "distribution": list(distribution),
            "recordSet": list(records),
        },
    )


def describe_tables(
    folder: Path, name: str, description: str, splits: Mapping[str, int], columns: Mapping[str, str], record: str
) -> None:
    """:func:`write_croissant` for a Parquet file of each split, all with the same columns, and the ``record`` beside them."""
    files = {split: f"{split}.parquet" for split in splits}
    tables = [_table_records(split, file, columns) for split, file in files.items()]
    distribution = [file_object(folder, file) for file in (*files.values(), record)]
    write_croissant(folder, name, description, distribution, [split_records(splits), *tables])


def file_object(folder: Path, name: str) -> dict[str, Any]:
    """A file of the dataset, by its path in the folder."""
    file = folder / name
    return _file(name, name, _FORMATS[file.suffix], file.stat().st_size, sha256_of(file))


def archive_object(name: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """A file that the dataset was made from, mostly a tar, by what ``prepared.json`` says of it."""
    url = source["source"] if "://" in source["source"] else name
    return _file(name, url, _FORMATS.get(Path(name).suffix, "application/x-tar"), source["bytes"], source["sha256"])


def _file(name: str, url: str, kind: str, size: int, digest: str) -> dict[str, Any]:
    shared = {"@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": url, "encodingFormat": kind}
    return {**shared, "contentSize": f"{size} B", "sha256": digest}


def image_set(patterns: Sequence[str], archives: Iterable[str]) -> dict[str, Any]:
    """The image files that patterns name, in their archives."""
    inside = {"containedIn": [{"@id": name} for name in archives]}
    shared = {"@type": "cr:FileSet", "@id": "images", "name": "images", "encodingFormat": "image/jpeg"}
    return {**shared, **inside, "includes": list(patterns)}


def split_records(splits: Mapping[str, int]) -> dict[str, Any]:
    """The splits by name (``train``, ``train800``, ``paper/val``), and how many images each has."""
    key = "splits"
    rows = [{f"{key}/name": name, f"{key}/url": f"cr:{_kind(name)}", f"{key}/images": count} for name, count in splits.items()]
    fields = [_field(key, "name", "sc:Text"), _field(key, "url", "sc:URL"), _field(key, "images", "sc:Integer")]
    return {**_record_set(key, fields), "dataType": "cr:Split", "key": {"@id": f"{key}/name"}, "data": rows}


def _kind(name: str) -> str:
    last = name.rpartition("/")[2]
    return next(kind for beginning, kind in _SPLITS.items() if last.startswith(beginning))


def _table_records(split: str, file: str, columns: Mapping[str, str]) -> dict[str, Any]:
    """The rows of a table of one split, with the type of each column."""
    fields = [
        {**_field(split, name, kind), "source": {"fileObject": {"@id": file}, "extract": {"column": name}}}
        for name, kind in columns.items()
    ]
    return _record_set(split, fields)


def _record_set(name: str, fields: Sequence[Any]) -> dict[str, Any]:
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "field": list(fields)}


def _field(record: str, name: str, kind: str) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": f"{record}/{name}", "name": name, "dataType": kind}
