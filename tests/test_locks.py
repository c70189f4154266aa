"""One at a time, however the lock's file comes and goes."""

import fcntl
import logging
import os
import threading
import time
from pathlib import Path

import pytest

from gift_vit.locks import locked


def test_one_at_a_time(tmp_path: Path) -> None:
    inside = most = entered = 0

    def enter() -> None:
        nonlocal inside, most, entered
        for _ in range(20):
            with locked(tmp_path / "a"):
                inside += 1
                most = max(most, inside)
                entered += 1
                time.sleep(0)
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most, entered) == (1, 80)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_its_holder_removed_is_taken_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    lock = tmp_path / ".a.lock"
    holder = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    entered, leave = threading.Event(), threading.Event()

    def enter() -> None:
        with locked(tmp_path / "a"):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=enter)
    thread.start()
    deadline = time.monotonic() + 60
    while "waiting for it" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not entered.is_set()
    lock.unlink()
    os.close(holder)
    assert entered.wait(60)
    try:
        other = os.open(lock, os.O_RDWR)  # the file of that name is the one that is held
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
    finally:
        leave.set()
        thread.join(60)


def test_different_paths_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        assert {path.name for path in tmp_path.iterdir()} == {".a.lock", ".b.lock"}
