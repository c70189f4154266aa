"""Folders that are there completely or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gift_vit.common.errors import ConfigError
from gift_vit.common.files import alone, is_read_only, new_folder
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
def preparing(out: Path) -> Iterator[None]:
    """Hold the lock of a folder that may have to be made, after removing what killed processes have left of it.

    Where nothing can be written none is held: what is ready there is used.
    """
    out = Path(os.path.realpath(out))
    if is_read_only(out):
        yield
        return
    with alone(out):
        for left in (_replaced(out), out.with_name(f".{out.name}.partial")):
            left.unlink() if left.is_symlink() else shutil.rmtree(left, ignore_errors=True)
        yield


@contextmanager
def complete_folder(out: Path, own: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder beside ``out`` that takes its place on success and is removed otherwise.

    Only within :func:`preparing`. Where ``out`` is a link, what it leads to is replaced.

    Raises:
        ConfigError: If ``out`` holds files that are not among its ``own``, as :func:`check_own` says.
    """
    out = Path(os.path.realpath(out))
    with new_folder(out) as stage:
        yield stage
        check_own(out, own)  # again, as that took a while
        if out.is_dir():
            out.rename(_replaced(out))
    shutil.rmtree(_replaced(out), ignore_errors=True)


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


def _replaced(out: Path) -> Path:
    """What a new folder has taken the place of."""
    return out.with_name(f".{out.name}.replaced")
