"""Getting the images onto the disk: fetched, or found where a person put them, and unpacked whole or not at all."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.archives import unpack
from data_prep.download import RemoteFile, fetch, sha256
from data_prep.fgvc.facts import Archive, DatasetFacts, HandArchive
from data_prep.fgvc.workspace import SOURCES, Workspace, kept_sources, unpacked_from
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import write_json, writing

logger = logging.getLogger(__name__)

_STAGING = ".unpacked"


def ensure_folders(work: Workspace, archive: Archive | HandArchive) -> dict[str, Any]:
    """Fetch an archive, or find it, and unpack it, unless its folders are there.

    Returns what ``prepared.json`` says of where they come from, by file name. Until that is written a hidden file knows it.

    Raises:
        ConfigError: If a person must fetch the archive, with the steps, or the archive is not what it should be.
    """
    absent = [name for name in archive.folders if not (work.folder / name).is_dir()]
    there = (work.folder / name for name in archive.folders if name not in absent)
    found = {name: source for folder in there for name, source in unpacked_from(folder).items()}
    if not absent:
        return found
    if isinstance(archive, Archive):
        path = fetch(archive.file, work.place(archive.file.name).parent)
        source = source_of(archive.file, path)
    else:
        path = _put_by_hand(work, archive)
        source = {"bytes": path.stat().st_size, "sha256": sha256(path), "source": "put there by hand"}
    _unpack_folders(path, work.folder, absent, source)
    return {**found, path.name: source}


def archive_names(facts: DatasetFacts) -> list[str]:
    """The names that a dataset's files have in the folder of archives."""
    masks = names_of(facts.segmentations) if facts.segmentations else ()
    return [*names_of(facts.images), *masks, *facts.extras]


def names_of(archive: Archive | HandArchive) -> tuple[str, ...]:
    """The names that an archive may have."""
    return (archive.file.name,) if isinstance(archive, Archive) else archive.names


def remove_staging(folder: Path) -> None:
    """Remove what a killed process had unpacked and not yet moved to its place."""
    with writing(folder):
        if (folder / _STAGING).exists():
            shutil.rmtree(folder / _STAGING)


def keep_sources(folder: Path, held: Mapping[str, Path], sources: dict[str, Any]) -> None:
    """Note where folders come from, those named of ``folder`` and now at ``held``, until ``prepared.json`` says it."""
    note = kept_sources(folder) | {name: {"inode": place.stat().st_ino, "sources": sources} for name, place in held.items()}
    write_json(folder / SOURCES, note)


def source_of(file: RemoteFile, path: Path) -> dict[str, Any]:
    """What ``prepared.json`` says of a fetched file."""
    return {"bytes": path.stat().st_size, "sha256": file.sha256, "source": file.url}


def _put_by_hand(work: Workspace, images: HandArchive) -> Path:
    for name in images.names:
        if (path := work.place(name)).is_file():
            return path
    target = work.place(images.names[0])
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    steps = [*images.steps, f"put it, as it is, here: {target}", f"type: {work.command}"]
    numbered = [f"{number}. {step}" for number, step in enumerate(steps, 1)]
    logger.info("%s cannot be downloaded by a program. By hand:", work.facts.title)
    for step in numbered:
        logger.info("  %s", step)
    unpacked = " and ".join(str(work.folder / name) for name in images.folders)
    logger.info("A copy that is unpacked already can be put here instead: %s", unpacked)
    raise ConfigError(f"{work.facts.title} must be fetched by hand and is not there: {'; '.join(numbered)}")


def _unpack_folders(archive: Path, folder: Path, names: list[str], source: dict[str, Any]) -> None:
    """Unpack the top-level folders ``names`` of an archive into ``folder``; each appears complete, by rename."""
    staging = folder / _STAGING
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    remove_staging(folder)
    logger.info("unpacking %s into %s", archive, folder)
    try:
        unpack(archive, staging, members=lambda member: member.removeprefix("./").partition("/")[0] in names)
        for name in names:
            if not (staging / name).is_dir():
                raise ConfigError(f"{archive} holds no folder {name}/: it is another archive; put the right one in its place")
        keep_sources(folder, {name: staging / name for name in names}, {archive.name: source})
        for name in names:
            (staging / name).rename(folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
