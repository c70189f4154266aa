"""How far sweeps are."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gift_vit.common import cli
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded
from gift_vit.config.keys import identifying
from gift_vit.runs.result import Result, score_of
from gift_vit.runs.run import RUNS_ROOT, Run, find_runs, path_labels
from gift_vit.sweeps.plan import Job, Sweep, cell_of, read_sweeps
from gift_vit.sweeps.select import choose

STYLES = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "refused": "red",
    "pruned": "blue",
    "interrupted": "yellow",
    "missing": "dim",
}
_UNBOUNDED = 10_000  # columns, of which a table takes what it needs


@dataclass
class Arguments:
    """How far the runs under an output folder are: of sweeps every run, the best one and the time left; why some failed.

        python -m experiments.status [root=outputs] [dataset=cub] [method=gift] [runs=true]

    Attributes:
        root: the output folder of the sweeps (default: the environment variable GIFT_VIT_OUTPUT, else outputs)
        dataset: only sweeps with runs, and single runs, on this dataset
        method: only sweeps with runs, and single runs, of this method
        runs: false: one block a sweep without its table of runs

    Starting a sweep's command again runs what is not done.
    """

    root: str = RUNS_ROOT
    dataset: str | None = None
    method: str | None = None
    runs: bool = True


@dataclass(frozen=True)
class JobStatus:
    """A job of a sweep: how far it is, the reason if it failed, the result if it is done."""

    job: Job
    state: str
    reason: str
    result: Result | None

    @property
    def score(self) -> float | None:
        """In percent: on test for a final run, on val for a search run."""
        return self.result.score if self.result else None


def job_status(job: Job) -> JobStatus:
    """How far a job is."""
    if job.folder is None:
        return JobStatus(job, "refused", str(job.problem), None)
    run = Run.open(job.folder)
    state = run.state
    try:
        result = run.result
    except ConfigError as error:
        return JobStatus(job, "failed", str(error), None)
    return JobStatus(job, state, run.reason, result)


def axes(jobs: Sequence[Job]) -> list[dict[str, str]]:
    """Of each job the words in which the jobs differ, as ``{key: value}``."""
    words = [dict(word.split("=", 1) for word in job.overrides if "=" in word) for job in jobs]
    keys = dict.fromkeys(key for job in words for key in job)
    swept = [key for key in keys if len({job.get(key) for job in words}) > 1]
    return [{key: job.get(key, "") for key in swept} for job in words]


def seconds_left(statuses: Sequence[JobStatus]) -> float | None:
    """Expected time until every job is done, at the present number of runs at a time; None where nothing tells."""
    costs = [status.result.cost for status in statuses if status.result]
    took = [max(cost.total_seconds, cost.train_seconds) for cost in costs]  # of the last start, and of the training in all
    counts = Counter(status.state for status in statuses)
    left = counts["running"] / 2 + counts["missing"] + counts["interrupted"] / 2 + counts["failed"]
    return median(took) * left / max(1, counts["running"]) if took and left else None


def single_runs(root: Path, sweeps: Sequence[Sweep]) -> list[Job]:
    """The runs below a folder that no recorded sweep asked for, each told by its path."""
    swept = {Path(job.folder).resolve() for sweep in sweeps for job in sweep.jobs if job.folder}
    folders = [run.folder for run in find_runs(root) if run.folder.resolve() not in swept]
    return [
        Job(tuple(f"{key}={value}" for key, value in {**path_labels(folder), "run": folder.name}.items()), str(folder))
        for folder in folders
    ]


def print_single_runs(console: Console, jobs: Sequence[Job]) -> None:
    """The block of the runs that belong to no sweep."""
    statuses = [job_status(job) for job in jobs]
    words = [dict(word.split("=", 1) for word in job.overrides) for job in jobs]
    keys = dict.fromkeys(key for own in words for key in own)
    console.print(Text("single runs", style="bold"))
    _print_counts(console, statuses)
    console.print(_runs_table(statuses, [{key: own.get(key, "") for key in keys} for own in words]))


def _print_counts(console: Console, statuses: Sequence[JobStatus]) -> None:
    counts = Counter(status.state for status in statuses)
    runs = "1 run" if len(statuses) == 1 else f"{len(statuses)} runs"
    console.print(f"  {runs}: " + ", ".join(f"{counts[state]} {state}" for state in STYLES if counts[state]))


def print_sweep(console: Console, sweep: Sweep, runs: bool) -> None:
    """One sweep's block."""
    statuses = [job_status(job) for job in sweep.jobs]
    words = axes(sweep.jobs)
    console.print(Text(sweep.command, style="bold"), soft_wrap=True)
    _print_counts(console, statuses)
    for line in _best(statuses):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    if (seconds := seconds_left(statuses)) is not None:
        running = max(1, sum(status.state == "running" for status in statuses))
        console.print(f"  about {_duration(seconds)} left, {running} run(s) at a time", highlight=False)
    if runs:
        console.print(_runs_table(statuses, words))
    console.print()


def _best(statuses: Sequence[JobStatus]) -> Iterator[str]:
    """What ``select`` would choose from the search runs that are done, of every dataset, method, backbone and protocol."""
    cells: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    found = {result.source: result for status in statuses if (result := status.result)}  # two ways to type a value are one run
    for result in found.values():
        if result.run.phase == "search":
            cells[cell_of(identifying(result.run.config))].append(result)
    for cell, results in cells.items():
        of_cell = f" for {cell[1]} on {cell[0]}" if len(cells) > 1 else ""
        try:
            best = choose(results).settings[0]
        except ConfigError as error:
            yield f"no best{of_cell}: {error}"
            continue
        listed = " ".join(f"{key}={value}" for key, value in best.values.items())
        mean = f", mean of {len(best.seeds)} seeds" if len(best.seeds) > 1 else ""
        yield f"best so far{of_cell}: val {results[0].score_name} {best.score:.2f} % with {listed}{mean}"


def _runs_table(statuses: Sequence[JobStatus], words: Sequence[dict[str, str]]) -> Table:
    keys = list(words[0]) if words else []
    table = Table(box=None, padding=(0, 2), show_edge=False)
    for title in (*keys, "state"):
        table.add_column(title, overflow="fold")
    table.add_column(f"{_score_name(statuses)} %", justify="right")
    table.add_column("reason", overflow="fold")
    for status, values in zip(statuses, words, strict=True):
        score = f"{status.score:.2f}" if status.score is not None else "–"
        table.add_row(
            *(Text(values[key]) for key in keys),
            Text(status.state, style=STYLES[status.state]),
            score,
            Text(" ".join(status.reason.split())),
        )
    return table


def _score_name(statuses: Sequence[JobStatus]) -> str:
    return score_of(done) if (done := [status.result.score_name for status in statuses if status.result]) else "top-1"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"


def print_status(cfg: Arguments) -> None:
    """All blocks."""
    root = expanded(cfg.root)
    if not root.is_dir():
        raise ConfigError(f"no folder {cfg.root}; pass root=<the output folder of the sweeps>")
    recorded = read_sweeps(root)
    sweeps = [sweep for sweep in recorded if _concern(sweep.jobs, cfg)]
    single = [job for job in single_runs(root, recorded) if _concern([job], cfg)]
    if not sweeps and not single:
        raise ConfigError(
            f"no such sweep below {cfg.root}, nor a single run; "
            "start one with python -m gift_vit.train sweep=<dataset> method=<method>"
        )
    console = Console() if sys.stdout.isatty() else Console(width=_UNBOUNDED)
    for sweep in sweeps:
        print_sweep(console, sweep, cfg.runs)
    if single:
        print_single_runs(console, single)


def _concern(jobs: Sequence[Job], cfg: Arguments) -> bool:
    """Whether any job is on the asked dataset and of the asked method; where all were refused, nobody can tell."""
    known = [labels for job in jobs if (labels := job.labels)]
    return not known or any(cfg.dataset in (None, own["dataset"]) and cfg.method in (None, own["method"]) for own in known)


def main() -> None:
    """Entry point of ``python -m experiments.status``."""
    cli.main(Arguments, print_status)
