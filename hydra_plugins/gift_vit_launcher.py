"""This project's launcher: every job of a sweep in a process of its own, on this machine.

Hydra finds launchers in packages of this name only, and imports them at every start: torch is imported late.
"""

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus

from gift_vit import cli
from gift_vit.errors import RunError
from gift_vit.failures import write_failure
from gift_vit.sweeps import plan_job, run_state


class ProcessLauncher(BasicLauncher):
    """Forks a process for every job: one that is killed, by the kernel when memory runs out say, stops no other.

    Nor does a job inherit what others have left: device memory, caches, random states. The sweep's own process computes
    nothing, so that there are no threads and no CUDA context for a fork to break.

    Args:
        n_jobs: Jobs at a time; the cores are shared out among them.
    """

    def __init__(self, n_jobs: int) -> None:
        super().__init__()
        self.n_jobs = n_jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; each returns its exit code, 128 + the signal's number for one that was killed.

        Raises:
            KeyboardInterrupt: On Ctrl-C or SIGTERM, once the running jobs have ended, resumably.
        """
        waiting = deque(enumerate(job_overrides))
        running: dict[int, tuple[int, ForkProcess]] = {}  # by what becomes ready when the process ends
        codes: dict[int, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.n_jobs:
                    index, overrides = waiting.popleft()
                    process = self._start(overrides, initial_job_idx + index)
                    running[process.sentinel] = index, process
                for sentinel in wait(list(running)):
                    assert isinstance(sentinel, int)
                    index, process = running.pop(sentinel)
                    codes[index] = _exit_code(process, job_overrides[index])
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.join()
        return [
            JobReturn(overrides=words, status=JobStatus.COMPLETED, _return_value=codes[index])
            for index, words in enumerate(job_overrides)
        ]

    def _start(self, overrides: Sequence[str], index: int) -> ForkProcess:
        def run() -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the sweep's process passes on SIGTERM
            self._share_cores()
            try:
                [job] = BasicLauncher.launch(self, [overrides], index)
                sys.exit(job.return_value)
            except KeyboardInterrupt:
                sys.exit(cli.INTERRUPTED)

        sys.stdout.flush()
        sys.stderr.flush()
        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        return process

    def _share_cores(self) -> None:
        if self.n_jobs > 1:
            import torch

            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // self.n_jobs))


def _exit_code(process: ForkProcess, overrides: Sequence[str]) -> int:
    """The exit code of a process that has ended; the reason of one that was killed is told, and kept in its run's folder."""
    process.join()
    code = process.exitcode
    assert code is not None
    if code >= 0:
        return code
    folder = plan_job(overrides).folder
    error = RunError(f"killed by {signal.Signals(-code).name} (out of memory?): {folder or ' '.join(overrides)}")
    cli.report(error)
    if folder is not None and run_state(Path(folder))[0] in ("interrupted", "missing"):
        write_failure(Path(folder), error)
    return 128 - code
