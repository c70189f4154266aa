"""Folders that are there completely or not at all."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from gift_vit.common.errors import ConfigError
from gift_vit.common.files import LockedError, clear, locked, writing
from gift_vit.data.layout import is_of_the_system


def check_own(out: Path, own: Sequence[str]) -> None:
    """Refuse a folder that must not be replaced, since it holds anything but what a preparation writes.

    Args:
        out: The folder; it may be absent.
        own: Paths in it of the files that the preparation writes; without the first one no file is the preparation's.

    Raises:
        ConfigError: If there is another file; names one.
    """
    files = (path for path in out.rglob("*") if path.is_symlink() or not path.is_dir())
    found = {path.relative_to(out).as_posix() for path in files if not is_of_the_system(path.name)}
    foreign = found.difference(own) if own[0] in found else found
    if foreign:
        raise ConfigError(
            f"{out} holds files that are not this command's, such as {min(foreign)}; move it away, or give another root="
        )


@contextmanager
def complete_folder(out: Path, own: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder beside ``out`` that takes its place on success and is removed otherwise.

    One process at a time does so; what a killed one left behind is removed first. Where ``out`` is a link, what it leads to is
    replaced.

    Raises:
        ConfigError: If ``out`` holds files that are not among its ``own``, as :func:`check_own` says.
    """
    check_own(out, own)
    out = out.resolve()
    stage, replaced = _aside(out)
    with ExitStack() as stack:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out))
            _remove(stage, replaced)
            stage.mkdir()
        stack.callback(_remove, stage)
        yield stage
        with writing(out):
            check_own(out, own)  # again, as that took a while
            if out.is_dir():
                out.rename(replaced)
            stage.rename(out)
            _remove(replaced)


def read_complete(file: str, form: int, needed: Sequence[str], folder: Path, task: str) -> dict[str, Any] | None:
    """What ``file`` holds, in a ``form`` of it, if the folder has the task complete; else None.

    That is every ``needed`` split, and the Parquet file of each split that it names, in its recorded size.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        meta = json.loads((folder / file).read_text())
        sizes = {split: (folder / f"{split}.parquet").stat().st_size for split in (*needed, *meta["splits"])}
        recorded = {split: meta["splits"][split]["bytes"] for split in sizes}
        if (meta["format"], meta["task"], recorded) == (form, task, sizes):
            return meta
    return None


def clear_leftovers(out: Path) -> None:
    """Remove what a killed process has left beside a complete folder, unless another one is at it just now."""
    out = out.resolve()
    clear(out)
    if any(path.exists() for path in _aside(out)):
        with suppress(LockedError, ConfigError), locked(out, wait=False):
            _remove(*_aside(out))


def _aside(out: Path) -> tuple[Path, Path]:
    """What is being written, and what it takes the place of."""
    return out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.replaced")


def _remove(*folders: Path) -> None:
    for folder in folders:
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder, ignore_errors=True)
