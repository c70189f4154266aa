"""Progress of a run: a live bar where a terminal is attached, plain log lines otherwise."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from gift_vit.engine.observer import EpochRecord, Observer

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("gift_vit.tracking")

LIVE_INTERVAL_S = 0.25
PLAIN_INTERVAL_S = 60.0
FORMATS = {"train_loss": ".4f", "val_loss": ".4f", "val_top1": ".2f", "lr": ".2e", "images_per_s": ".0f", "seconds": ".1f"}


class Progress(Observer):
    """Shows loss, learning rate, images per second and the time left of the run.

    On a terminal: a bar per epoch, with one line per finished epoch staying above it. Elsewhere one log line per epoch, and
    within long epochs one a minute. At the start of an epoch on a GPU the last one's loss is shown.
    """

    def __init__(
        self,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        thing: str = "image",
        score: str = "top1",
    ) -> None:
        """``console`` is stderr unless given; ``clock`` tells seconds.

        ``thing`` is what an example is called, and ``score`` what the record's ``val_top1`` is.
        """
        self._thing, self._score = thing, score
        # rich takes FORCE_COLOR for a terminal, which would write control characters into the log of a CI job
        self._console = console or Console(stderr=True, force_terminal=sys.stderr.isatty())
        self._clock = clock
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._interval = LIVE_INTERVAL_S if self._live else PLAIN_INTERVAL_S
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(20),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            refresh_per_second=1 / LIVE_INTERVAL_S,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, visible=False, status="")
        self._stack = ExitStack()
        self._epoch = self._epochs = self._images = self._done = self._seen = 0
        self._loss = ""
        self._started: float | None = None
        self._epoch_started = self._shown = 0.0

    def __enter__(self) -> "Progress":
        if self._live:
            self._stack.enter_context(log_above(self._console))
            self._stack.enter_context(self._bar)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def resumed(self, history: list[EpochRecord]) -> None:
        """Say how many epochs are done already."""
        self._say(f"resumed after {len(history)} epochs")

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:
        """Begin a new bar."""
        now = self._clock()
        self._epoch, self._epochs, self._images, self._done = epoch, epochs, images, 0
        self._started = now if self._started is None else self._started
        self._epoch_started = self._shown = now
        self._bar.reset(self._task, total=images, description=self._title(), status="", visible=True)

    def step_done(self, loss: "Tensor | None", lr: float, images: int) -> None:
        """Count images; show them if it is time to."""
        self._done += images
        self._seen += images
        now = self._clock()
        bar_is_full = self._live and self._done >= self._images
        if now - self._shown < self._interval and not bar_is_full:
            return
        self._shown = now
        speed = self._done / max(now - self._epoch_started, 1e-9)
        if loss is not None:
            self._loss = f"loss {float(loss):.4f}  "
        status = f"{self._loss}lr {lr:.2e}  {speed:.0f} {self._thing}s/s  {self._time_left(now)} left"
        if self._live:
            self._bar.update(self._task, completed=self._done, status=status)
        else:
            logger.info("%s  %.0f%%  %s", self._title(), 100 * self._done / self._images, status)

    def setting_scored(self, record: Mapping[str, float]) -> None:
        """One line with everything in the record."""
        self._say("  ".join(self._told(record)))

    def epoch_done(self, record: EpochRecord) -> None:
        """One line with everything in the record."""
        values = self._told(record)
        self._loss = f"loss {record['train_loss']:.4f}  "
        if self._epoch + 1 < self._epochs:
            values.append(f"{self._time_left(self._clock())} left")
        self._say("  ".join([self._title(), *values]))

    def _title(self) -> str:
        return f"epoch {self._epoch + 1}/{self._epochs}"

    def _time_left(self, now: float) -> timedelta:
        """Time left of the run, evaluations included, at its mean speed since this process began to train."""
        seconds = now - (self._started or now)
        images_left = self._images * (self._epochs - self._epoch) - self._done
        return timedelta(seconds=round(seconds * max(images_left, 0) / max(self._seen, 1)))

    def _told(self, record: Mapping[str, Any]) -> list[str]:
        names = {"val_top1": f"val_{self._score}", "images_per_s": f"{self._thing}s_per_s"}
        return [f"{names.get(key, key)} {value:{FORMATS.get(key, '.4g')}}" for key, value in record.items() if key != "epoch"]

    def _say(self, line: str) -> None:
        if self._live:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        logger.info(line)


@contextmanager
def log_above(console: Console) -> Iterator[None]:
    """While a bar is live, log handlers of the terminal write above it and leave out the lines it prints itself."""

    def not_printed(record: logging.LogRecord) -> bool:
        return record.name != logger.name

    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream.isatty()
    ]
    streams = [handler.stream for handler in handlers]
    proxy = FileProxy(console, console.file)
    for handler in handlers:
        handler.setStream(proxy)
        handler.addFilter(not_printed)
    try:
        yield
    finally:
        for handler, stream in zip(handlers, streams, strict=True):
            handler.setStream(stream)
            handler.removeFilter(not_printed)
