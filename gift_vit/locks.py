"""One process at a time may make a file or folder."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock for making ``path``; waits while another process holds it, and ends with the process however it ends.

    The lock is a hidden file beside ``path``, removed at the end.
    """
    lock = path.with_name(f".{path.name}.lock")
    descriptor = _acquire(lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held, so that nobody else's is removed
        os.close(descriptor)


def _acquire(lock: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("another process holds %s; waiting for it", lock)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still(lock, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_still(lock: Path, descriptor: int) -> bool:
    """Whether the open file is the one of that name: who held it before has removed it."""
    try:
        return os.path.samestat(lock.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
