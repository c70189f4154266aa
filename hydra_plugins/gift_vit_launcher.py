"""This project's launcher: the jobs of a sweep in processes of their own, on this machine.

Hydra finds launchers in packages of this name only, and imports them at every start.
"""

import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TextIO

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus

from gift_vit.common import cli
from gift_vit.common.cores import cores
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.runs.run import Run, write_failure
from gift_vit.sweeps.plan import Plan, plan_start


class ProcessLauncher(BasicLauncher):
    """Forks a process for every job: one that is killed, by the kernel when memory runs out say, stops no other.

    Nor does a job inherit what others have left: device memory, caches, random states. The sweep's own process computes
    nothing, so that there are no threads and no CUDA context for a fork to break.

    Args:
        n_jobs: Jobs at a time; the cores are shared out among them. Of several, each line has its run's name before it.

    Attributes:
        runs: How many the whole sweep has, where it is launched in parts.
        plans: Those of the jobs that are launched next, where the sweeper knows them.
    """

    def __init__(self, n_jobs: int) -> None:
        super().__init__()
        if not isinstance(n_jobs, int) or n_jobs < 1:
            raise ConfigError(f"hydra.launcher.n_jobs={n_jobs}: expected a whole number of 1 or more")
        self.n_jobs, self.runs = n_jobs, 0
        self.plans: Sequence[Plan] = ()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; each returns its exit code, 128 + the signal's number for one that was killed.

        Raises:
            KeyboardInterrupt: On Ctrl-C or SIGTERM, once the running jobs have ended, resumably.
        """
        plans = self.plans or [plan_start(words) for words in job_overrides]
        running: dict[int, tuple[int, ForkProcess]] = {}  # by what becomes ready when the process ends
        codes: dict[int, int] = {}
        started, runs = 0, max(self.runs, initial_job_idx + len(job_overrides))
        if len(plans) > 1 and plans[0].hindrance is None:
            import gift_vit.runs.train  # noqa: F401 - takes seconds: once for all jobs
        try:
            while started < len(plans) or running:
                while started < len(plans) and len(running) < self.n_jobs:
                    number, plan = initial_job_idx + started, plans[started]
                    if runs > 1:
                        print(f"run {number + 1} of {runs}: {_shown(plan.words)}", file=sys.stderr, flush=True)
                    process = self._start(plan, number)
                    running[process.sentinel] = started, process
                    started += 1
                for sentinel in wait(list(running)):
                    assert isinstance(sentinel, int)
                    index, process = running.pop(sentinel)
                    codes[index] = _exit_code(process, plans[index])
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.join()
        return [
            JobReturn(overrides=words, status=JobStatus.COMPLETED, _return_value=codes[index])
            for index, words in enumerate(job_overrides)
        ]

    def _start(self, plan: Plan, index: int) -> ForkProcess:
        name = _name(plan) if self.n_jobs > 1 else ""
        parent = os.getpid()

        def run() -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the sweep's process passes on SIGTERM
            if name:
                sys.stdout, sys.stderr = NamedLines(sys.stdout, name), NamedLines(sys.stderr, name)
            try:
                cli.end_with_parent(parent)
                self._share_cores()
                [job] = BasicLauncher.launch(self, [list(plan.words)], index)
                sys.exit(job.return_value)
            except KeyboardInterrupt:
                sys.exit(cli.INTERRUPTED)
            finally:
                if name:
                    sys.stdout.close()
                    sys.stderr.close()

        sys.stdout.flush()
        sys.stderr.flush()
        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        return process

    def _share_cores(self) -> None:
        if self.n_jobs > 1 and "OMP_NUM_THREADS" not in os.environ:  # else a person's own
            import torch  # late: the sweep's own process, and every --help, does without

            torch.set_num_threads(max(1, cores() // self.n_jobs))


class NamedLines(io.TextIOBase):
    """A stream that writes whole lines, each with a name before it."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name, self._begun = stream, name, ""

    def write(self, text: str, /) -> int:
        """Write the lines that are complete, and keep the rest until it is."""
        *lines, self._begun = f"{self._begun}{text}".split("\n")
        self._stream.write("".join(f"{self._name}: {line}\n" for line in lines))
        self._stream.flush()
        return len(text)

    def close(self) -> None:
        """Write what is left of a line."""
        if self._begun:
            self.write("\n")
        super().close()

    def fileno(self) -> int:
        """That of the stream."""
        return self._stream.fileno()


def _shown(overrides: Sequence[str]) -> str:
    """A job's words without Hydra's own."""
    return " ".join(word for word in overrides if not word.lstrip("+").startswith("hydra"))


def _name(plan: Plan) -> str:
    """A run's name; where a sweep may have several of one name, its dataset, method and backbone too."""
    if plan.job.folder is None:
        return _shown(plan.words)
    several = any(word.startswith(("dataset=", "method=", "backbone=", "phase=")) for word in plan.words)
    return "/".join(Path(plan.job.folder).parts[-4 if several else -1 :])


def _exit_code(process: ForkProcess, plan: Plan) -> int:
    """The exit code of a job whose process has ended; why it was killed is told, and kept in its unfinished run's folder."""
    process.join()
    code = process.exitcode
    assert code is not None
    if code >= 0:
        return code
    folder = plan.job.folder
    error = RunError(f"killed by {signal.Signals(-code).name} (out of memory?): {folder or ' '.join(plan.words)}")
    cli.report(error)
    if folder and (run := Run.open(folder)).state in ("interrupted", "missing"):
        write_failure(run.folder, error)
    return 128 - code
