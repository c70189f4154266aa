"""Several runs from config to ``result.json`` in one process: K ordinary run folders."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from gift_vit import cli
from gift_vit.config import RunConfig
from gift_vit.engine import Evaluation, FitResult, Precision
from gift_vit.layout import CHECKPOINT, METRICS
from gift_vit.parallel.fit import Member, evaluate_together, fit_together
from gift_vit.parallel.stack import ModelStack
from gift_vit.record import Call, RunParts, Start
from gift_vit.run import (
    announce,
    build_model,
    conclude,
    describe,
    eval_loader,
    finished_result,
    mark_finished,
    open_data,
    open_inputs,
    reset_peaks,
    resolve_device,
    start_now,
)
from gift_vit.run_folder import locked_folder, logs_of, recorded
from gift_vit.tracking import NullTracker, Observers, Tracker, build_tracker
from gift_vit.tracking.metrics_file import MetricsFile
from gift_vit.tracking.progress import Progress


class _Run:
    """One run of the group: its folder and tracker are open from :meth:`open` to :meth:`end`.

    Attributes:
        code: The exit code it would have alone; None while it is open.
    """

    def __init__(self, cfg: RunConfig, call: Call) -> None:
        self.cfg = cfg
        self.code: int | None = None
        self.start: Start = start_now(call)
        self.tracker: Tracker = NullTracker()
        self._contexts = ExitStack()

    def ended(self) -> bool:
        """Whether it has an exit code."""
        return self.code is not None

    def open(self) -> None:
        """Lock the folder and begin the record, unless the run is finished."""
        self._contexts.enter_context(locked_folder(self.cfg.folder))
        if finished_result(self.cfg) is not None:
            self.end()
        else:
            self._contexts.enter_context(recorded(self.cfg.folder))

    def track(self, parts: RunParts) -> Observers:
        """Write what a run has at its start; its observers."""
        announce(self.cfg, parts)
        self.tracker = self._contexts.enter_context(build_tracker(self.cfg.tracker, describe(self.cfg)))
        lines = Progress(Console(stderr=True, force_terminal=False), name=self.cfg.run_name)
        return Observers([MetricsFile(self.cfg.folder / METRICS), self.tracker, lines])

    def finish(self, parts: RunParts, fitted: FitResult, test: Evaluation | None) -> None:
        """Write the adapter and the result."""
        result = conclude(self.cfg, parts, fitted, test, self.start, self.tracker)
        mark_finished(self.cfg, result)
        self.end()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """What is logged in here is this run's, and an error ends it and no other."""
        with logs_of(self.cfg.folder):
            try:
                yield
            except Exception as error:
                self.end(error)

    def end(self, error: BaseException | None = None) -> None:
        """Close folder and tracker, which keep the error; that of a failed run is reported."""
        with logs_of(self.cfg.folder):
            self._contexts.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        self.code = cli.report(error) if error else cli.SUCCESS


def execute_together(jobs: Sequence[tuple[RunConfig, Call]]) -> list[int]:
    """Train and score runs that :func:`gift_vit.parallel.groups.group_runs` has put together; the exit code of each.

    Each is resumed, skipped or fails as :func:`gift_vit.run.execute` says; the others go on.

    Raises:
        KeyboardInterrupt: When interrupted; all runs can be resumed.
    """
    runs = [_Run(cfg, call) for cfg, call in jobs]
    try:
        for run in runs:
            with run.alone():
                run.open()
        if going := _going(runs):
            _train_and_score(going)
    except BaseException as error:  # of all runs
        for run in _going(runs):
            run.end(error)
        if not isinstance(error, Exception):
            raise
    return [run.code or cli.SUCCESS for run in runs]


def _train_and_score(runs: Sequence[_Run]) -> None:
    # as many images are evaluated at a time as a run alone would
    share = max(1, runs[0].cfg.trainer.eval_batch_size // len(runs))
    cfg = replace(runs[0].cfg, trainer=replace(runs[0].cfg.trainer, eval_batch_size=share))
    data, device = open_data(cfg), resolve_device(cfg.trainer.device)
    stack = ModelStack([build_model(run.cfg, data.num_classes).to(device) for run in runs], cfg.trainer)
    parts = [RunParts(data, model, device, stack.acceleration) for model in stack.models]
    reset_peaks(device)
    seeds = sorted({run.cfg.seed for run in runs})
    inputs = dict(zip(seeds, open_inputs(cfg, parts[0], seeds), strict=True))
    members: list[Member] = []
    for index, run in enumerate(runs):
        with run.alone():
            checkpoint = Path(run.cfg.folder, CHECKPOINT)
            observers = run.track(parts[index])
            seed, optim = run.cfg.seed, run.cfg.optim
            members.append(Member(index, seed, inputs[seed], optim, checkpoint, observers, run.alone, run.ended))
    fitted = fit_together(stack, members, cfg.trainer, cfg.stop_epoch)
    tests: dict[int, Evaluation] = {}
    if cfg.phase == "final" and fitted:
        test, precision = eval_loader(cfg, parts[0], "test", reread=False), Precision(cfg.trainer.precision, device)
        tests = dict(zip(fitted, evaluate_together(stack, list(fitted), test, precision), strict=True))
    for index, result in fitted.items():
        with runs[index].alone():
            runs[index].finish(parts[index], result, tests.get(index))


def _going(runs: Sequence[_Run]) -> list[_Run]:
    return [run for run in runs if not run.ended()]
