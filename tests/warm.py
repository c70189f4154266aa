"""Commands in forks of this process, which has torch and timm imported: a start takes no time, and is else what a person's is.

This process computes with one thread only, so that a fork finds no others to wait for.
"""

import importlib
import logging
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

SECONDS = 240.0  # far more than any command of the tests takes
PRIVATE = ("GIFT_VIT", "HYDRA", "OMP", "TFDS")  # variables that no test inherits


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, negative for the signal that killed it, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


class Process:
    """A forked process; leaving its context kills it if it still runs.

    Args:
        action: What it does; its exit code is 0, 1 after an exception, or what ``SystemExit`` says.
        cwd: Its working directory.
        env: All of its environment.
    """

    def __init__(self, action: Callable[[], object], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        self._files = [tempfile.TemporaryFile("a+b") for _ in range(2)]  # noqa: SIM115 - as long as the process
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(action, cwd, env))
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 sees the threads of pytest-xdist, which only read
            self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def stdout(self) -> str:
        """What it has written until now."""
        return self._written(0)

    @property
    def stderr(self) -> str:
        """What it has written until now."""
        return self._written(1)

    def poll(self) -> int | None:
        """Its exit code; None: it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = SECONDS) -> Ended:
        """Wait for its end."""
        until(lambda: self.poll() is not None, timeout)  # join would wait for its children too
        return Ended(self._process.exitcode or 0, self.stdout, self.stderr)

    def until(self, condition: Callable[[], object], timeout: float = SECONDS) -> None:
        """Wait for a condition, while the process runs."""
        until(lambda: condition() or self.poll() is not None, timeout)
        assert condition(), f"it ended with {self.poll()}: {self.stderr}"

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self.poll() is None:
            self._process.kill()
        self._process.join()
        for file in self._files:
            file.close()

    def _written(self, index: int) -> str:
        descriptor = self._files[index].fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()  # the offset is the child's

    def _run(self, action: Callable[[], object], cwd: Path | None, env: Mapping[str, str] | None) -> None:
        for descriptor, file in enumerate(self._files, 1):
            os.dup2(file.fileno(), descriptor)
        sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if cwd is not None:
            os.chdir(cwd)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        _forget()
        action()


def until(condition: Callable[[], object], timeout: float = SECONDS) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited for {timeout} s"
        time.sleep(0.02)


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without what would change a command, and with ``more``."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(PRIVATE)}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def start(module: str, *words: str, cwd: Path, fresh: bool = False, **env: str) -> Process:
    """A process that does what ``python -m module words…`` does; ``env`` goes into its environment.

    With ``fresh`` Python starts anew, as for a person; that takes seconds.
    """
    command, environment = [sys.executable, "-m", module, *words], clean_environment(**env)
    if fresh:
        return Process(lambda: os.execve(sys.executable, command, environment), cwd)
    return Process(lambda: act_as(module, words), cwd, environment)


def run_module(module: str, *words: str, cwd: Path, timeout: float = SECONDS, fresh: bool = False, **env: str) -> Ended:
    """The end of ``python -m module words…``."""
    with start(module, *words, cwd=cwd, fresh=fresh, **env) as process:
        return process.wait(timeout)


def act_as(module: str, words: tuple[str, ...]) -> None:
    """Become the program ``python -m module words…``, in a process of its own."""
    sys.argv = [module, *words]
    for name in (module, f"{module}.__main__"):
        sys.modules.pop(name, None)  # a program's own module is never imported before
    importlib.invalidate_caches()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _forget() -> None:
    """What pytest and other tests have set up in this process, and a new one would not have."""
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("gift_vit").setLevel(logging.NOTSET)
    logging.disable(logging.NOTSET)
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
