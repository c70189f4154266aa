"""One at a time, however the lock's file comes and goes; and nobody but the process that took it holds it."""

import errno
import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gift_vit.common.files import LockedError, is_locked, locked
from tests.warm import Process, until


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


@contextmanager
def held_elsewhere(path: Path) -> Iterator[Process]:
    """Another process holds the lock, and its forked child lives on for a minute whatever becomes of it."""

    def hold() -> None:
        with locked(path):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            print(child, flush=True)
            time.sleep(60)

    with Process(hold) as process:
        try:
            process.until(lambda: process.stdout)
            yield process
        finally:
            os.kill(int(process.stdout), signal.SIGKILL)


def test_a_lock_is_seen_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert not is_locked(path)
    with held_elsewhere(path):
        assert is_locked(path)
        with pytest.raises(LockedError), locked(path, wait=False):
            pass
        assert [file.name for file in tmp_path.iterdir()] == [".run.lock"]


def test_a_killed_process_s_lock_is_free_at_once_though_its_child_lives_on(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with held_elsewhere(path) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait().returncode == -signal.SIGKILL
        assert not is_locked(path)
        with locked(path, wait=False):
            assert is_locked(path)
    assert list(tmp_path.iterdir()) == []


def test_on_a_file_system_without_locks_the_file_is_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lustre mounted without them: filelock falls back to it too."""

    def refused(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    assert not is_locked(tmp_path / "run")
    (tmp_path / ".run.lock").touch()
    assert is_locked(tmp_path / "run")


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
    until(lambda: "waiting for it" in caplog.text)
    assert not entered.is_set()
    lock.unlink()
    os.close(holder)
    assert entered.wait(60)
    try:
        assert is_locked(tmp_path / "a"), "the file of that name is the one that is held"
    finally:
        leave.set()
        thread.join(60)


def test_different_paths_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        assert {path.name for path in tmp_path.iterdir()} == {".a.lock", ".b.lock"}
