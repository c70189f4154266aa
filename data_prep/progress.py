"""How far a long transfer of bytes is: a bar on a terminal, a log line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

logger = logging.getLogger(__name__)

PLAIN_INTERVAL_S = 30.0


def bar_console() -> Console | None:
    """stderr, where that is a terminal which can show a bar."""
    # rich takes FORCE_COLOR for a terminal, which would write control characters into the log of a CI job
    console = Console(stderr=True, force_terminal=sys.stderr.isatty())
    return console if console.is_terminal and not console.is_dumb_terminal else None


@contextmanager
def transfer(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many bytes are done in all; ``total`` is None where nobody knows it."""
    console = bar_console()
    if console is None:
        yield _plain(title, total)
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


def _plain(title: str, total: int | None) -> Callable[[int], None]:
    shown = time.monotonic()

    def show(done: int) -> None:
        nonlocal shown
        if time.monotonic() - shown < PLAIN_INTERVAL_S:
            return
        shown = time.monotonic()
        logger.info("%s: %s%s", title, decimal(done), f" of {decimal(total)}, {100 * done / total:.0f}%" if total else "")

    return show
