"""How far inversions are: a bar where a terminal is attached, a log line a minute elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from gift_vit.tracking.progress import PLAIN_INTERVAL_S, log_above

log = logging.getLogger(__name__)


@contextmanager
def steps_shown(title: str, total: int) -> Iterator[Callable[[], object]]:
    """Yield what is called after each of ``total`` steps; shows how far they are and the time that is left."""
    console = Console(stderr=True, force_terminal=sys.stderr.isatty())
    if not total:
        yield lambda: None
    elif console.is_terminal and not console.is_dumb_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(), TimeRemainingColumn())
        with log_above(console), Progress(*columns, TextColumn("left"), console=console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)
    else:
        yield _Lines(title, total).stepped


class _Lines:
    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._started = self._told = time.monotonic()

    def stepped(self) -> None:
        """Count a step; tell of it if it is time to."""
        self._done += 1
        now = time.monotonic()
        if now - self._told >= PLAIN_INTERVAL_S:
            self._told = now
            left = timedelta(seconds=round((now - self._started) / self._done * (self._total - self._done)))
            log.info("%s  %.0f%%  %s left", self._title, 100 * self._done / self._total, left)
