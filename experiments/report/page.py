"""Everything the page shows, section by section, and the page's text."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from os.path import relpath
from pathlib import Path
from statistics import fmean, stdev
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.report.charts import Entry, Scatter, scatter_plot
from experiments.report.curves import CurvePanel, build_curves
from experiments.report.runs import Run
from experiments.report.sweeps import Sweep, build_sweeps
from experiments.report.tables import (
    HtmlTable,
    entries_table,
    open_table,
    plain_table,
    resource_table,
    result_table,
    runs_table,
)
from experiments.tables import PUBLISHED_FILE
from gift_vit.errors import ConfigError
from gift_vit.results.collect import Grid, Row, build_grid
from gift_vit.results.names import DATASET_NAMES, METHOD_NAMES, dataset_name, method_name, ordered
from gift_vit.results.published import DEFAULT_SOURCE, PublishedRow, read_published
from gift_vit.results.schema import Result
from gift_vit.results.tables import TABLES

MEAN = "Mean"


@dataclass(frozen=True)
class ScatterPanel:
    """A scatter plot and its numbers; ``dataset`` is what the page's menu calls it."""

    dataset: str
    chart: Scatter
    data: HtmlTable


@dataclass(frozen=True)
class Comparison:
    """The final runs of one benchmark, protocol and backbone; ``problem`` says why they have no table."""

    heading: str
    table: HtmlTable | None = None
    scatters: Sequence[ScatterPanel] = ()
    problem: str = ""


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


def build_page(runs: Sequence[Run], roots: Sequence[str], out_folder: Path) -> Page:
    """Lay out the page that will lie in ``out_folder``."""

    def href(run: Run) -> str:
        return quote(Path(relpath(run.folder, out_folder)).as_posix()) + "/"

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
        warnings=[f"no table of {c.heading}: {c.problem}" for c in comparisons if c.problem],
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


def build_comparisons(runs: Iterable[Run]) -> list[Comparison]:
    """A table and scatter plots per benchmark, protocol and backbone; the GIFT paper's own numbers stand below ours."""
    published = [row for row in read_published(PUBLISHED_FILE) if row.conditions.source == DEFAULT_SOURCE]
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
    make = TABLES.get(benchmark)
    try:
        grid = build_grid(results, benchmark)
        table = make(results, published=published) if make else plain_table(grid)
    except ConfigError as error:
        return Comparison(heading, problem=str(error))
    return Comparison(heading, result_table(table), _scatter_panels(grid))


def _scatter_panels(grid: Grid) -> list[ScatterPanel]:
    """The mean over all datasets, where there are several, and each dataset."""
    rows = ordered((row[0] for row in grid.rows), METHOD_NAMES)
    panels = []
    if len(grid.datasets) > 1:
        whole = [row for row in rows if all(((row,), dataset) in grid.cells for dataset in grid.datasets)]
        title = f"Mean over {len(grid.datasets)} datasets"
        if len(whole) < len(rows):
            title += f" ({len(rows) - len(whole)} of {len(rows)} methods lack some of them)"
        panels += _scatter_panel(
            f"{MEAN} over {len(grid.datasets)} datasets", title, [_mean_entry(grid, (row,)) for row in whole]
        )
    for dataset in ordered(grid.datasets, DATASET_NAMES):
        entries = [_entry(row, cell) for row in rows if (cell := grid.cells.get(((row,), dataset)))]
        panels += _scatter_panel(dataset_name(dataset), dataset_name(dataset), entries)
    return panels


def _scatter_panel(dataset: str, title: str, entries: Sequence[Entry]) -> list[ScatterPanel]:
    if not entries:
        return []
    chart = scatter_plot(title, entries)
    return [ScatterPanel(dataset, chart, entries_table(title, chart.marks))]


def _entry(method: str, cell: Sequence[Result]) -> Entry:
    top1 = _test_top1(cell)
    parameters = fmean(result.params.adapter for result in cell)
    return Entry(method_name(method), parameters, fmean(top1), stdev(top1) if len(top1) > 1 else None, len(top1))


def _mean_entry(grid: Grid, row: Row) -> Entry:
    cells = [grid.cells[row, dataset] for dataset in grid.datasets]
    top1 = fmean(fmean(_test_top1(cell)) for cell in cells)
    parameters = fmean(fmean(result.params.adapter for result in cell) for cell in cells)
    return Entry(method_name(row[0]), parameters, top1, None, sum(len(cell) for cell in cells))


def _test_top1(cell: Sequence[Result]) -> list[float]:
    return [float(top1) for result in cell if (top1 := result.metrics["test_top1"]) is not None]


def _summary(runs: Sequence[Run]) -> str:
    counts = Counter(run.state for run in runs)
    phases = Counter(run.phase for run in runs if run.result)
    finished = f"{counts['finished']} runs finished ({phases['search']} search, {phases['final']} final)"
    return f"{finished}, {counts['failed']} failed, {counts['unfinished']} unfinished"


def _facts(runs: Sequence[Run], roots: Sequence[str]) -> dict[str, str]:
    records = [run.result.run for run in runs if run.result]
    commits = sorted({(record.git_sha or "unknown")[:12] for record in records})
    shown = ", ".join(commits[:4]) + (f" and {len(commits) - 4} more" if len(commits) > 4 else "")
    dirty = sum(bool(record.git_dirty) for record in records)
    return {
        "Made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "From": ", ".join(roots),
        "Datasets": str(len({run.dataset for run in runs if run.dataset})),
        "Methods": str(len({run.method for run in runs if run.method})),
        "Commits": f"{shown or 'none'}{f' ({dirty} runs with uncommitted changes)' if dirty else ''}",
    }
