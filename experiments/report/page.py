"""Everything the page shows, section by section, and the page's text."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from os.path import relpath
from pathlib import Path
from statistics import fmean, stdev
from typing import get_args
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.report.charts import Chart, Entry, scatter_chart
from experiments.report.classes import ClassPanel, build_class_panels
from experiments.report.curves import CurvePanel, build_curves
from experiments.report.kept import Kept, build_kept
from experiments.report.runs import ShownRun
from experiments.report.sweeps import Sweep, build_sweeps
from experiments.report.tables import (
    HtmlTable,
    entries_table,
    open_table,
    resource_table,
    result_table,
    runs_table,
)
from experiments.tables import PUBLISHED_FILES
from gift_vit.common.errors import ConfigError
from gift_vit.results.cells import all_top1
from gift_vit.results.collect import Grid, Row, that_fit
from gift_vit.results.comparison import mixes_scores
from gift_vit.results.names import DATASET_NAMES, METHOD_NAMES, dataset_name, method_name, ordered
from gift_vit.results.notes import commits
from gift_vit.results.published import DEFAULT_SOURCE, PublishedRow, read_published
from gift_vit.results.request import Request
from gift_vit.results.tables import TABLES
from gift_vit.runs.result import Result, score_of, scored_as
from gift_vit.runs.run import State

MEAN = "Mean"


@dataclass(frozen=True)
class ScatterPanel:
    """A scatter plot and its numbers; ``dataset`` is what the page's menu calls it."""

    dataset: str
    score: str
    chart: Chart
    data: HtmlTable


@dataclass(frozen=True)
class Comparison:
    """The final runs of one benchmark, protocol and backbone; ``problem`` says why they have no table.

    ``left_out`` says the same of single cells. ``kept`` is None where no run was measured by ``gift_vit.invariance``.
    """

    heading: str
    table: HtmlTable | None = None
    scatters: Sequence[ScatterPanel] = ()
    classes: Sequence[ClassPanel] = ()
    kept: Kept | None = None
    problem: str = ""
    left_out: Sequence[str] = ()
    score: str = "accuracy"


@dataclass(frozen=True)
class Page:
    """The report.

    Attributes:
        summary: How many runs there are, by state.
        facts: Name and text of what describes the page as a whole.
        curve_notes: What was thinned or left out of the curves.
        warnings: What the command says on stderr.
    """

    summary: str
    facts: Mapping[str, str]
    comparisons: Sequence[Comparison]
    sweeps: Sequence[Sweep]
    curves: Sequence[CurvePanel]
    curve_notes: Sequence[str]
    resources: HtmlTable
    open_runs: HtmlTable
    runs: HtmlTable
    warnings: Sequence[str]


def build_page(runs: Sequence[ShownRun], roots: Sequence[str], out_folder: Path) -> Page:
    """Lay out the page that will lie in ``out_folder``."""

    def href(run: ShownRun) -> str:
        return quote(Path(relpath(run.run.folder, out_folder)).as_posix()) + "/"

    comparisons = build_comparisons(runs)
    curves, curve_notes = build_curves(runs, href)
    return Page(
        summary=_summary(runs),
        facts=_facts(runs, roots),
        comparisons=comparisons,
        sweeps=build_sweeps(runs),
        curves=curves,
        curve_notes=curve_notes,
        resources=resource_table(runs),
        open_runs=open_table(runs, href),
        runs=runs_table(runs, href),
        warnings=[
            *(f"no table of {c.heading}: {c.problem}" for c in comparisons if c.problem),
            *(f"left out of {c.heading}: {reason}" for c in comparisons for reason in c.left_out),
            *(f"nothing on forgetting of {c.heading}: {c.kept.problem}" for c in comparisons if c.kept and c.kept.problem),
        ],
    )


def render_page(page: Page) -> str:
    """The page as HTML; every text of a run is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"method_name": method_name, "dataset_name": dataset_name}
    names = {"dataset": dataset_name, "method": method_name}
    return environment.get_template("page.html").render(page=page, name_of=names)


def build_comparisons(runs: Iterable[ShownRun]) -> list[Comparison]:
    """A table and scatter plots per benchmark, protocol and backbone; the GIFT paper's own numbers stand below ours."""
    known = [row for file in PUBLISHED_FILES for row in read_published(file)]
    published = [row for row in known if row.conditions.source == DEFAULT_SOURCE]
    groups: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for run in runs:
        if run.result and run.phase == "final":
            named = replace(run.result, run=replace(run.result.run, method=run.method))
            groups[run.benchmark, run.protocol, run.backbone].append(named)
    return [
        _comparison(
            f"{benchmark}, protocol {protocol}, backbone {backbone}",
            *(results, [row for row in published if row.conditions.benchmark == benchmark]),
        )
        for (benchmark, protocol, backbone), results in sorted(groups.items())
    ]


def _comparison(heading: str, results: Sequence[Result], published: Sequence[PublishedRow]) -> Comparison:
    benchmark = results[0].run.benchmark
    fitting, clashes = that_fit(results)
    if not fitting or benchmark not in TABLES:
        return Comparison(heading, problem="; ".join(clashes) or f"benchmark {benchmark} is not known here")
    try:
        table = TABLES[benchmark](Request(fitting, published=published))
    except ConfigError as error:
        return Comparison(heading, problem=str(error))
    score = "accuracy" if score_of(result.score_name for result in fitting) in ("top-1", "accuracy") else "score"
    panels = _scatter_panels(table.grid), build_class_panels(fitting), build_kept(table.grid)
    return Comparison(heading, result_table(table), *panels, score=score, left_out=clashes)


def _scatter_panels(grid: Grid) -> list[ScatterPanel]:
    """The mean over all datasets, where there are several of one kind of score, and each dataset."""
    rows = ordered((row[0] for row in grid.rows), METHOD_NAMES)
    panels = []
    if len(grid.datasets) > 1 and not mixes_scores(grid):
        whole = [row for row in rows if all(((row,), dataset) in grid.cells for dataset in grid.datasets)]
        title = f"Mean over {len(grid.datasets)} datasets"
        if len(whole) < len(rows):
            title += f" ({len(rows) - len(whole)} of {len(rows)} methods lack some of them)"
        panels += _scatter_panel(
            f"{MEAN} over {len(grid.datasets)} datasets",
            title,
            scored_as(grid.results),
            [_mean_entry(grid, (row,)) for row in whole],
        )
    for dataset in ordered(grid.datasets, DATASET_NAMES):
        entries = [_entry(row, cell) for row in rows if (cell := grid.cells.get(((row,), dataset)))]
        score = scored_as([result for result in grid.results if result.run.dataset == dataset])
        panels += _scatter_panel(dataset_name(dataset), dataset_name(dataset), score, entries)
    return panels


def _scatter_panel(dataset: str, title: str, score: str, entries: Sequence[Entry]) -> list[ScatterPanel]:
    if not entries:
        return []
    return [ScatterPanel(dataset, score, scatter_chart(title, entries, score), entries_table(title, entries, score))]


def _entry(method: str, cell: Sequence[Result]) -> Entry:
    top1 = all_top1(cell)
    parameters = fmean(result.params.adapter for result in cell)
    return Entry(method_name(method), parameters, fmean(top1), stdev(top1) if len(top1) > 1 else None, len(top1))


def _mean_entry(grid: Grid, row: Row) -> Entry:
    cells = [grid.cells[row, dataset] for dataset in grid.datasets]
    top1 = fmean(fmean(all_top1(cell)) for cell in cells)
    parameters = fmean(fmean(result.params.adapter for result in cell) for cell in cells)
    return Entry(method_name(row[0]), parameters, top1, None, sum(len(cell) for cell in cells))


def _summary(runs: Sequence[ShownRun]) -> str:
    """How many runs have each state; those that are done also by phase."""
    counts = Counter(run.state for run in runs)
    phases = Counter(run.phase for run in runs if run.result)
    others = "".join(f", {counts[state]} {state}" for state in get_args(State) if state != "done" and counts[state])
    return f"{counts['done']} runs done ({phases['search']} search, {phases['final']} final){others}"


def _facts(runs: Sequence[ShownRun], roots: Sequence[str]) -> dict[str, str]:
    results = [run.result for run in runs if run.result]
    dirty = sum(bool(result.run.git_dirty) for result in results)
    return {
        "Made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "From": ", ".join(roots),
        "Datasets": str(len({run.dataset for run in runs if run.dataset})),
        "Methods": str(len({run.method for run in runs if run.method})),
        "Commits": f"{commits(results) or 'none'}{f' ({dirty} runs with uncommitted changes)' if dirty else ''}",
    }
