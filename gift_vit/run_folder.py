"""The folder a run works in: one process at a time, with a log, and with the reason kept if the run fails."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from gift_vit.errors import ConfigError
from gift_vit.failures import write_failure
from gift_vit.files import remove_leftovers, write_json, writing
from gift_vit.layout import FAILED, LOG, PRUNED
from gift_vit.pruning import PrunedRun

log = logging.getLogger(__name__)

_logging_run: ContextVar[Path | None] = ContextVar("logging_run", default=None)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make a run's folder and let one process at a time work in it; the lock ends with the process, however it ends."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process is training in {folder}; wait for it or give run_name=<another name>"
            ) from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Keep what happens to a run in its folder: the log, and what ended it early."""
    remove_leftovers(folder)
    with _logged_to(folder / LOG), _failure_recorded(folder):
        yield


@contextmanager
def logs_of(folder: Path) -> Iterator[None]:
    """Of the runs of one process that are being recorded, let this one alone log."""
    token = _logging_run.set(folder)
    try:
        yield
    finally:
        _logging_run.reset(token)


class _QuietFileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk must not fill the terminal with the log's own troubles."""


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    handler = _QuietFileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(lambda _: _logging_run.get() in (None, path.parent))
    root, ours = logging.getLogger(), logging.getLogger("gift_vit")
    root.addHandler(handler)
    ours.setLevel(logging.INFO)  # root's default would leave the log empty where nobody configured logging
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        if not any(isinstance(other, _QuietFileHandler) for other in root.handlers):  # no other run is being recorded
            ours.setLevel(logging.NOTSET)


@contextmanager
def _failure_recorded(folder: Path) -> Iterator[None]:
    """Write ``failed.json`` when the run fails; neither an interruption nor being stopped early is a failure."""
    for record in (FAILED, PRUNED):
        (folder / record).unlink(missing_ok=True)
    try:
        yield
    except PrunedRun as stopped:
        log.info("%s: %s", stopped, folder)
        write_json(folder / PRUNED, {"message": str(stopped), "epochs": stopped.epochs, "val_top1": stopped.val_top1})
        raise
    except Exception as error:
        write_failure(folder, error)
        raise
    except KeyboardInterrupt:
        log.info("interrupted: %s can be resumed with the same command", folder)
        raise
