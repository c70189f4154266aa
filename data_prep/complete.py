"""Folders that are there completely or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gift_vit.common.errors import ConfigError
from gift_vit.common.files import LockedError, clear, locked, writing


@contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``out`` that takes its place on success and is removed otherwise.

    One process at a time does so; what a killed one left behind is removed first.
    """
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
            if out.is_dir():
                out.rename(replaced)
            stage.rename(out)
            _remove(replaced)


def clear_leftovers(out: Path) -> None:
    """Remove what a killed process has left beside a complete folder, unless another one is at it just now."""
    clear(out)
    if any(path.exists() for path in _aside(out)):
        with suppress(LockedError, ConfigError), locked(out, wait=False):
            _remove(*_aside(out))


def _aside(out: Path) -> tuple[Path, Path]:
    """What is being written, and what it takes the place of."""
    return out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.replaced")


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
