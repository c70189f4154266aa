import io
import logging
import re
from collections.abc import Iterator

import pytest
import torch
from rich.console import Console

from gift_vit.engine.observer import EpochRecord
from gift_vit.tracking.progress import Progress

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
RECORD = EpochRecord(epoch=0, train_loss=0.4, lr=1e-3, steps=4, seconds=12345.678, images_per_s=812.4, val_top1=83.125)
RECORD_LINE = "train_loss 0.4000  lr 1.00e-03  steps 4  seconds 12345.7  images_per_s 812  val_top1 83.12"


class CountedLoss:
    """Stands for a tensor on a device: reading it is what costs."""

    reads = 0

    def __float__(self) -> float:
        self.reads += 1
        return 0.4321


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger="gift_vit.tracking"):
        yield caplog


def terminal() -> Console:
    return Console(force_terminal=True, file=Terminal(), width=140, _environ={"TERM": "xterm"})


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def train(progress: Progress, clock: Clock, epochs: int, steps: int, step_s: float) -> int:
    """Ten images a step; returns how often a loss was read."""
    loss = CountedLoss()
    for epoch in range(epochs):
        progress.epoch_started(epoch, epochs, 10 * steps)
        for _ in range(steps):
            clock.now += step_s
            progress.step_done(loss, 2.5e-4, 10)  # pyright: ignore[reportArgumentType]
        progress.epoch_done(RECORD)
    return loss.reads


def test_terminal_shows_the_numbers_of_a_running_epoch(clock: Clock) -> None:
    with Progress(console := terminal(), clock) as progress:
        progress.epoch_started(1, 4, 100)
        clock.now += 5
        progress.step_done(torch.tensor(0.4321), 2.5e-4, 40)
        progress._bar.refresh()
    # 40 images in 5 s; of this epoch and two more 60 + 200 images are left
    for part in ("epoch 2/4", "40%", "loss 0.4321  lr 2.50e-04  8 images/s  0:00:32 left"):
        assert part in written(console)


def test_where_no_loss_can_be_read_yet_the_last_one_known_is_shown(log: pytest.LogCaptureFixture, clock: Clock) -> None:
    with Progress(Console(file=io.StringIO()), clock) as progress:
        for epoch, losses in enumerate([(None, torch.tensor(0.25)), (None, None)]):
            progress.epoch_started(epoch, 2, 30)
            for loss in losses:
                clock.now += 60
                progress.step_done(loss, 2.5e-4, 10)
            progress.epoch_done(RECORD)
    shown = [line.partition("%  ")[2].partition("lr ")[0] for line in log.messages if "%" in line]
    assert shown == ["", "loss 0.2500  ", *[f"loss {RECORD['train_loss']:.4f}  "] * 2]


def test_terminal_keeps_one_line_per_epoch_and_removes_the_bar(clock: Clock) -> None:
    with Progress(console := terminal(), clock) as progress:
        train(progress, clock, epochs=3, steps=4, step_s=1.0)
    screen = [line.strip() for line in re.split(r"[\r\n]", CONTROL.sub("", written(console)))]
    for epoch, left in ((1, "  0:00:08 left"), (2, "  0:00:04 left"), (3, "")):
        assert screen.count(f"epoch {epoch}/3  {RECORD_LINE}{left}") == 1
    assert written(console).rstrip("\n").endswith("\x1b[2K"), "the bar's line is not erased at the end"
    assert written(console).count("\x1b[?25l") == written(console).count("\x1b[?25h") == 1, "the cursor is not shown again"


def test_terminal_is_left_tidy_by_an_interrupt(clock: Clock) -> None:
    def interrupted() -> None:
        with progress:
            progress.epoch_started(0, 1, 10)
            raise KeyboardInterrupt

    console = terminal()
    progress = Progress(console, clock)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not progress._bar.live.is_started
    assert written(console).endswith("\x1b[?25h\r\x1b[1A\x1b[2K"), "the cursor is shown and the bar erased"


@pytest.mark.usefixtures("log")
def test_log_handlers_of_the_terminal_write_above_the_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    console, stream, file = terminal(), Terminal(), io.StringIO()
    handlers = [logging.StreamHandler(stream), logging.StreamHandler(file)]
    monkeypatch.setattr(logging.getLogger(), "handlers", [*logging.getLogger().handlers, *handlers])
    with Progress(console, clock) as progress:
        train(progress, clock, epochs=1, steps=1, step_s=1.0)
        logging.getLogger("elsewhere").warning("disk is nearly full")
    logging.getLogger("gift_vit.tracking").info("after")
    screen = CONTROL.sub("", written(console))
    assert screen.count("disk is nearly full") == 1
    assert screen.count(RECORD_LINE) == 1, "printed by the bar, so not by the handler as well"
    assert stream.getvalue() == "after\n", "the handler has its stream back, and nothing went around the bar"
    assert file.getvalue() == f"epoch 1/1  {RECORD_LINE}\ndisk is nearly full\nafter\n"


def test_loss_is_read_four_times_a_second_on_a_terminal(clock: Clock) -> None:
    with Progress(terminal(), clock) as progress:
        reads = train(progress, clock, epochs=1, steps=1000, step_s=1 / 128)
    assert reads == 1000 // 32 + 1  # and once for the full bar


def test_plain_mode_logs_one_line_per_epoch(log: pytest.LogCaptureFixture, clock: Clock) -> None:
    console = Console(file=io.StringIO())
    with Progress(console, clock) as progress:
        reads = train(progress, clock, epochs=3, steps=50, step_s=1.0)
    ends = enumerate(("  0:01:40 left", "  0:00:50 left", ""), 1)
    assert log.messages == [f"epoch {number}/3  {RECORD_LINE}{end}" for number, end in ends]
    assert reads == 0
    assert written(console) == ""
    assert not any(ord(character) < 32 for message in log.messages for character in message)
    assert {record.name for record in log.records} == {"gift_vit.tracking"}


def test_plain_mode_logs_once_a_minute_in_long_epochs(log: pytest.LogCaptureFixture, clock: Clock) -> None:
    with Progress(Console(file=io.StringIO()), clock) as progress:
        reads = train(progress, clock, epochs=1, steps=200, step_s=1.0)
    times = {"30%": "0:02:20", "60%": "0:01:20", "90%": "0:00:20"}
    lines = [f"epoch 1/1  {at}  loss 0.4321  lr 2.50e-04  10 images/s  {left} left" for at, left in times.items()]
    assert log.messages == [*lines, f"epoch 1/1  {RECORD_LINE}"]
    assert reads == 3


def test_time_left_of_a_resumed_run_counts_only_what_is_left(log: pytest.LogCaptureFixture, clock: Clock) -> None:
    progress = Progress(Console(file=io.StringIO()), clock)
    progress.resumed([RECORD, RECORD])
    progress.epoch_started(2, 5, 20)
    clock.now += 4
    progress.step_done(torch.tensor(1.0), 1e-3, 20)
    clock.now += 6  # evaluation
    progress.epoch_done(RECORD)
    assert log.messages == ["resumed after 2 epochs", f"epoch 3/5  {RECORD_LINE}  0:00:20 left"]


def test_force_color_does_not_make_a_file_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert not Progress()._live
