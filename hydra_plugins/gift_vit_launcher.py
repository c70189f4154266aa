"""This project's launcher: the jobs of a sweep in processes of their own, on this machine.

Hydra finds launchers in packages of this name only, and imports them at every start.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus

from gift_vit.common import cli
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.config.compose import baseline_of, compose_job
from gift_vit.config.loader import check_present, load_config
from gift_vit.runs.run import Run, write_failure
from gift_vit.sweeps.plan import plan_job


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
        running: dict[int, tuple[int, ForkProcess]] = {}  # by what becomes ready when the process ends
        codes: dict[int, int] = {}
        started = 0
        if len(job_overrides) > 1 and _needs_torch(job_overrides[0]):
            import gift_vit.runs.train  # noqa: F401 - takes seconds: once for all jobs
        try:
            while started < len(job_overrides) or running:
                while started < len(job_overrides) and len(running) < self.n_jobs:
                    process = self._start(job_overrides[started], initial_job_idx + started)
                    running[process.sentinel] = started, process
                    started += 1
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
        parent = os.getpid()

        def run() -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the sweep's process passes on SIGTERM
            try:
                cli.end_with_parent(parent)
                self._share_cores()
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
            import torch  # late: the sweep's own process, and every --help, does without

            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // self.n_jobs))


def _needs_torch(overrides: Sequence[str]) -> bool:
    """Whether a job comes so far: a mistake is told before, and data or weights that are not there."""
    try:
        cfg, hydra_cfg = compose_job(overrides)
        check_present(load_config(cfg, lambda: baseline_of(hydra_cfg)))
    except ConfigError:
        return False
    return True


def _exit_code(process: ForkProcess, overrides: Sequence[str]) -> int:
    """The exit code of a job whose process has ended; why it was killed is told, and kept in its unfinished run's folder."""
    process.join()
    code = process.exitcode
    assert code is not None
    if code >= 0:
        return code
    folder = plan_job(overrides).folder
    error = RunError(f"killed by {signal.Signals(-code).name} (out of memory?): {folder or ' '.join(overrides)}")
    cli.report(error)
    if folder and (run := Run.open(folder)).state in ("interrupted", "missing"):
        write_failure(run.folder, error)
    return 128 - code
