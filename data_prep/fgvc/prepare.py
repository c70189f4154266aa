"""The steps from nothing to a dataset that can be trained on; each is skipped where its result is there and right."""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from data_prep.croissant import CROISSANT, archive_object, file_object, image_set, split_records, write_croissant
from data_prep.download import clear_leftovers, is_right
from data_prep.fgvc.annotations import write_annotations
from data_prep.fgvc.facts import DatasetFacts
from data_prep.fgvc.images import archive_names, ensure_folders, keep_sources, names_of, remove_staging, source_of
from data_prep.fgvc.lists import official_lists, paper_files
from data_prep.fgvc.verify import check_images, check_lists
from data_prep.fgvc.workspace import FORMAT, KINDS, SOURCES, Arguments, Workspace, library_versions, list_digests, read_record
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import atomic_path, is_read_only, locked, made_folder, remove_leftovers, write_json

logger = logging.getLogger(__name__)


def prepare(facts: DatasetFacts, request: Arguments) -> dict[str, Any]:
    """Prepare one dataset, or what is not ready of it yet, one process at a time; returns what ``prepared.json`` holds.

    Raises:
        ConfigError: If a person must do something first: fetch an archive by hand, replace what is broken.
        RunError: If a download fails or the disk is full.
    """
    work = Workspace(facts, request)
    read_only = is_read_only(work.home)  # where it is, it may be ready
    with ExitStack() as stack:
        if not read_only:
            stack.enter_context(made_folder(work.home))
            stack.enter_context(locked(work.home))
            _clear(work)
        old = _recorded(work)
        new = _completed(work, old, keep=read_only and bool(old))
        if new != old or not (read_only or (work.folder / CROISSANT).is_file()):
            _describe(work, new)
        if new == old:
            logger.info("%s is ready: nothing to do", facts.name)
        else:
            new["versions"] = library_versions()
            write_json(work.record_file, new)
        if not read_only:
            (work.folder / SOURCES).unlink(missing_ok=True)
        return new


def _describe(work: Workspace, record: dict[str, Any]) -> None:
    """Write ``croissant.json`` beside the images."""
    archives = {name: source for name, source in record["sources"].items() if name in archive_names(work.facts)}
    of_images = [name for name in names_of(work.facts.images) if name in archives]
    lists = [f"splits/{kind}/{split}.json" for kind, made in record["splits"].items() for split in made["counts"]]
    counts = {f"{kind}/{split}": n for kind, made in record["splits"].items() for split, n in made["counts"].items()}
    tables = [name for name in record["annotations"] if name.endswith(".parquet") and (work.folder / name).is_file()]
    write_croissant(
        work.folder,
        work.facts.name,
        f"{work.facts.title}: {record['images']:,} images of {record['classes']} classes.",
        [
            *(archive_object(name, source) for name, source in archives.items()),
            *(file_object(work.folder, name) for name in (*lists, *tables)),
            image_set([f"{folder}/**/*.jpg" for folder in work.facts.images.folders], of_images),
        ],
        [split_records(counts)],
    )


def _clear(work: Workspace) -> None:
    """Remove what a killed preparation has left."""
    for folder in (work.folder, *(work.splits_dir(kind) for kind in KINDS)):
        remove_leftovers(folder)
    remove_staging(work.folder)
    for name in archive_names(work.facts):
        clear_leftovers(work.place(name))


def _recorded(work: Workspace) -> dict[str, Any]:
    """What was prepared before and still is as it was recorded; empty if nothing."""
    record = read_record(work.folder)
    if record is None:
        return {}
    if not all((work.folder / name).is_dir() for name in work.facts.images.folders):
        logger.info("%s was ready, but its images are gone: preparing it again", work.facts.name)
        with suppress(OSError):  # on a read-only disk, where unpacking says so
            work.record_file.unlink()
        return {}
    changed = [kind for kind in record["splits"] if list_digests(work.splits_dir(kind)) != record["splits"][kind]["sha256"]]
    for kind in changed:
        logger.info("%s is no longer as it was prepared: making it again", work.splits_dir(kind))
    return {**record, "splits": {kind: split for kind, split in record["splits"].items() if kind not in changed}}


def _completed(work: Workspace, old: dict[str, Any], keep: bool) -> dict[str, Any]:
    """The record after doing what ``old`` does not say is done; with ``keep`` what might be better stays as it is."""
    request, kind = work.request, work.request.splits
    sources = {} if old else ensure_folders(work, work.facts.images)
    splits = dict(old.get("splits", {}))
    if kind in splits:
        _check_same_draw(work, splits[kind])
    split = splits.get(kind) or _make_lists(work)
    with _unready_on_failure(work, old if kind in splits else None):
        found = check_lists(work, kind)
    size = sum(found.sizes.values())
    is_checked = old.get("images_checked", False) and split.get("bytes", size) == size
    splits[kind] = {**split, "counts": found.counts, "bytes": size}
    annotations, notes = old.get("annotations", {}), old.get("notes", [])
    is_there = bool(annotations) and all((work.folder / name).exists() for name in annotations)
    if request.annotations and not (is_there and (keep or not notes)):
        annotations, more, notes = write_annotations(work, found.sizes)
        sources |= {name: source for name, source in more.items() if name not in old.get("annotations", {})}
    if request.check_images and not is_checked:
        with _unready_on_failure(work, old):
            check_images(work, found)
    extras = {} if keep else {file: work.place(file.name) for file in work.facts.extras.values()}
    sources |= {file.name: source_of(file, path) for file, path in extras.items() if is_right(path, file)}
    return {
        "format": FORMAT,
        "dataset": work.facts.name,
        "image_root": work.facts.image_root,
        "classes": found.dataset.num_classes,
        "images": max(sum(made["counts"].values()) for made in splits.values()),
        "bytes": max(made["bytes"] for made in splits.values()),
        "images_checked": is_checked or request.check_images,
        "splits": splits,
        "annotations": annotations,
        "sources": sources | old.get("sources", {}),
        "versions": old.get("versions", {}),
        "notes": notes,
    }


@contextmanager
def _unready_on_failure(work: Workspace, record: dict[str, Any] | None) -> Iterator[None]:
    """Take the record back if what it says is ready turns out not to be; where the images come from stays known."""
    try:
        yield
    except ConfigError:
        if record is not None and not is_read_only(work.home):
            names, known = archive_names(work.facts), record.get("sources", {})
            sources = {name: source for name, source in known.items() if name in names}
            unpacked = [name for name in work.facts.images.folders if name not in known]  # the others were found there
            if sources:
                keep_sources(work.folder, {name: work.folder / name for name in unpacked}, sources)
            work.record_file.unlink(missing_ok=True)
        raise


def _make_lists(work: Workspace) -> dict[str, Any]:
    """Write the requested lists; returns what ``prepared.json`` says of their making."""
    kind = work.request.splits
    if kind == "paper":
        files = paper_files(work)
        contents = {split: file.read_bytes() for split, file in files.items()}
        given = work.request.splits_from
        about = {"source": given or work.facts.lists["train"].url.rpartition("/")[0]}
    else:
        lists, source = official_lists(work)
        contents = {split: (json.dumps(listed, indent=0) + "\n").encode() for split, listed in lists.items()}
        about = {"source": source, **_draw(work)}
    for split, content in contents.items():
        with atomic_path(work.splits_dir(kind) / f"{split}.json") as partial:
            partial.write_bytes(content)
    return {**about, "sha256": list_digests(work.splits_dir(kind))}


def _draw(work: Workspace) -> dict[str, Any]:
    """What decides which images become val; empty where there is an official val."""
    if "val" in work.facts.official:
        return {}
    return {"val_fraction": work.request.val_fraction, "split_seed": work.request.split_seed}


def _check_same_draw(work: Workspace, split: dict[str, Any]) -> None:
    """Refuse to say "ready" of official splits drawn in another way."""
    made = {key: split[key] for key in ("val_fraction", "split_seed") if key in split}
    if made and made != _draw(work):
        told = " ".join(f"{key}={value}" for key, value in made.items())
        kind = work.request.splits
        raise ConfigError(f"{work.splits_dir(kind)} was made with {told}; to make it anew {work.without_lists(kind)}")
