"""Getting the images onto the disk: fetched, or found where a person put them, and unpacked whole or not at all."""

import logging
import shutil
from pathlib import Path
from typing import Any

from data_prep.archives import unpack
from data_prep.download import RemoteFile, fetch, sha256
from data_prep.fgvc.facts import Archive, HandArchive
from data_prep.fgvc.workspace import Workspace
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import writing

logger = logging.getLogger(__name__)


def ensure_folders(work: Workspace, archive: Archive | HandArchive) -> dict[str, Any]:
    """Fetch an archive, or find it, and unpack it, unless its folders are there.

    Returns what ``prepared.json`` says of where they come from, by file name.

    Raises:
        ConfigError: If a person must fetch the archive, with the steps, or the archive is not what it should be.
    """
    absent = [name for name in archive.folders if not (work.folder / name).is_dir()]
    if not absent:
        return dict.fromkeys(archive.folders, "a folder found unpacked")
    if isinstance(archive, Archive):
        path = fetch(archive.file, work.archives)
        _unpack_folders(path, work.folder, absent)
        return {path.name: source_of(archive.file, work.archives)}
    path = _put_by_hand(work, archive)
    _unpack_folders(path, work.folder, absent)
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path), "source": "put there by hand"}}


def source_of(file: RemoteFile, folder: Path) -> dict[str, Any]:
    """What ``prepared.json`` says of a fetched file."""
    return {"bytes": (folder / file.name).stat().st_size, "sha256": file.sha256, "source": file.url}


def _put_by_hand(work: Workspace, images: HandArchive) -> Path:
    for name in images.names:
        if (work.archives / name).is_file():
            return work.archives / name
    target = work.archives / images.names[0]
    with writing(work.archives):
        work.archives.mkdir(parents=True, exist_ok=True)
    steps = [*images.steps, f"put it, as it is, here: {target}", f"type: {work.command}"]
    numbered = [f"{number}. {step}" for number, step in enumerate(steps, 1)]
    logger.info("%s cannot be downloaded by a program. By hand:", work.facts.title)
    for step in numbered:
        logger.info("  %s", step)
    unpacked = " and ".join(str(work.folder / name) for name in images.folders)
    logger.info("A copy that is unpacked already can be put here instead: %s", unpacked)
    raise ConfigError(f"{work.facts.title} must be fetched by hand and is not there: {'; '.join(numbered)}")


def _unpack_folders(archive: Path, folder: Path, names: list[str]) -> None:
    """Unpack the top-level folders ``names`` of an archive into ``folder``; each appears complete, by rename."""
    staging = folder / ".unpacked"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if staging.exists():  # of a process that was killed
            shutil.rmtree(staging)
    logger.info("unpacking %s into %s", archive, folder)
    try:
        unpack(archive, staging, members=lambda member: member.removeprefix("./").partition("/")[0] in names)
        for name in names:
            if not (staging / name).is_dir():
                raise ConfigError(f"{archive} holds no folder {name}/: it is another archive; put the right one in its place")
            (staging / name).rename(folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
