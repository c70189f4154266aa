"""This project's launcher: the jobs of a sweep in processes of their own, on this machine.

Hydra finds launchers in packages of this name only, and imports them at every start: torch is imported late.
"""

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus, configure_log

from gift_vit import cli
from gift_vit.compose import baseline_of
from gift_vit.errors import ConfigError, RunError
from gift_vit.failures import write_failure
from gift_vit.sweeps import compose_job, plan_job, run_state


class ProcessLauncher(BasicLauncher):
    """Forks a process for every job: one that is killed, by the kernel when memory runs out say, stops no other.

    With ``trainer.parallel_runs=K`` up to K jobs that differ in learning rate, weight decay and seed alone share a process.

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
        waiting = deque(self._groups(job_overrides))
        running: dict[int, tuple[list[int], ForkProcess]] = {}  # by what becomes ready when the process ends
        codes: dict[int, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.n_jobs:
                    group = waiting.popleft()
                    process = self._start([job_overrides[index] for index in group], initial_job_idx + group[0])
                    running[process.sentinel] = group, process
                for sentinel in wait(list(running)):
                    assert isinstance(sentinel, int)
                    group, process = running.pop(sentinel)
                    codes |= zip(group, _exit_codes(process, [job_overrides[index] for index in group]), strict=True)
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.join()
        return [
            JobReturn(overrides=words, status=JobStatus.COMPLETED, _return_value=codes[index])
            for index, words in enumerate(job_overrides)
        ]

    def _groups(self, job_overrides: Sequence[Sequence[str]]) -> list[list[int]]:
        """Indices of the jobs by process: several in one where ``trainer.parallel_runs`` asks for it and they allow it."""
        from gift_vit.config import RunConfig, load_config, parallel_runs
        from gift_vit.parallel.groups import group_runs

        assert self.config is not None
        size = parallel_runs(self.config)
        runs: dict[int, RunConfig] = {}
        for index, overrides in enumerate(job_overrides if size > 1 else ()):
            cfg, hydra_cfg = compose_job(overrides)
            with suppress(ConfigError):  # the job itself will say so
                run = load_config(cfg, baseline_of(hydra_cfg))
                if run_state(run.folder)[0] != "done":
                    runs[index] = run
        indices = list(runs)
        groups = [[indices[place] for place in group] for group in group_runs(list(runs.values()), size)]
        return [*([index] for index in range(len(job_overrides)) if index not in runs), *groups]

    def _start(self, jobs: Sequence[Sequence[str]], index: int) -> ForkProcess:
        def run() -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the sweep's process passes on SIGTERM
            self._share_cores()
            try:
                sys.exit(self._run_alone(jobs[0], index) if len(jobs) == 1 else self._run_together(jobs))
            except KeyboardInterrupt:
                sys.exit(cli.INTERRUPTED)

        sys.stdout.flush()
        sys.stderr.flush()
        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        return process

    def _run_alone(self, overrides: Sequence[str], index: int) -> int:
        [job] = BasicLauncher.launch(self, [overrides], index)
        return job.return_value

    def _run_together(self, jobs: Sequence[Sequence[str]]) -> int:
        """The exit code of the first job that has failed."""
        from gift_vit.parallel.execute import execute_together
        from gift_vit.train import load_job

        assert self.config is not None
        configure_log(self.config.hydra.job_logging, self.config.hydra.verbose)
        codes = execute_together([load_job(*compose_job(overrides)) for overrides in jobs])
        return next((code for code in codes if code), cli.SUCCESS)

    def _share_cores(self) -> None:
        if self.n_jobs > 1:
            import torch

            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // self.n_jobs))


def _exit_codes(process: ForkProcess, jobs: Sequence[Sequence[str]]) -> list[int]:
    """The exit codes of the jobs whose process has ended; why one was killed is told, and kept in its unfinished runs' folders.

    Of several jobs, all that are not finished have the process's code.
    """
    process.join()
    code = process.exitcode
    assert code is not None
    if code >= 0 and len(jobs) == 1:
        return [code]
    folders = [plan_job(overrides).folder for overrides in jobs]
    if code < 0:
        told = ", ".join(folder or " ".join(overrides) for folder, overrides in zip(folders, jobs, strict=True))
        error = RunError(f"killed by {signal.Signals(-code).name} (out of memory?): {told}")
        cli.report(error)
        for folder in filter(None, folders):
            if run_state(Path(folder))[0] in ("interrupted", "missing"):
                write_failure(Path(folder), error)
        return [128 - code] * len(jobs)
    return [cli.SUCCESS if folder and run_state(Path(folder))[0] == "done" else code for folder in folders]
