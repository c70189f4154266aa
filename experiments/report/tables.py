"""Every table of the page as one kind of object: what a cell shows, what it sorts by, where it leads."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from experiments.report.charts import Entry, Mark
from experiments.report.runs import Run, display_order
from gift_vit.results.cells import adapter_cells, top1_cell, top1_column
from gift_vit.results.collect import Grid
from gift_vit.results.names import dataset_name, method_name
from gift_vit.results.schema import Result
from gift_vit.results.tables import Cell, Column, Table

DASH = "–"
MAX_ROWS = 2000  # of the list of runs: browsers lay out more of them too slowly

Href = Callable[[Run], str]


@dataclass(frozen=True)
class HtmlCell:
    """A cell; ``sort`` is None where there is no value, which always comes last. ``mark``: best, second or nothing."""

    text: str
    sort: float | str | None = None
    href: str | None = None
    mark: str = ""


@dataclass(frozen=True)
class HtmlTable:
    """A table; ``numeric`` says of each column whether it is aligned and sorted as numbers, ``groups`` are (title, span).

    ``blocks`` are titled rows below the others, which sorting leaves where they are.
    """

    caption: str
    titles: Sequence[str]
    rows: Sequence[Sequence[HtmlCell]]
    numeric: Sequence[bool] = ()
    groups: Sequence[tuple[str, int]] = ()
    notes: Sequence[str] = ()
    blocks: Sequence[tuple[str, Sequence[Sequence[HtmlCell]]]] = ()


def result_table(table: Table) -> HtmlTable:
    """One of the project's tables; the best and the second best of its ranked columns are marked."""
    columns = table.columns
    ranked = [_ranks(table, j) if column.ranked else {} for j, column in enumerate(columns)]
    rows = [
        [HtmlCell(cell.text, cell.values[0], mark=ranked[j].get(cell.values[0], "")) for j, cell in enumerate(row)]
        for row in table.rows
    ]
    groups = [(group, len(list(members))) for group, members in groupby(column.group for column in columns)]
    titles = [column.title for column in columns]
    numeric = [not any(isinstance(row[j].values[0], str) for row in table.rows) for j in range(len(columns))]
    notes = [*table.notes, f"Bold: the best of a column; underlined: the second best. From {table.provenance}."]
    blocks = [(block.title, [[HtmlCell(cell.text) for cell in row] for row in block.rows]) for block in table.published]
    shown = groups if any(name for name, _ in groups) else ()
    return HtmlTable(table.caption, titles, rows, numeric, shown, notes, blocks)


def plain_table(grid: Grid) -> Table:
    """Adapter cost and test top-1 by method, for a benchmark that has no table of its own."""
    run, names = grid.results[0].run, {row: method_name(row[0]) for row in grid.rows}
    header = (
        Column("Method", "", ("method",)),
        Column("Parameters", "Adapter", ("adapter_params_min", "adapter_params_max")),
        Column("% of backbone", "Adapter", ("adapter_percent_min", "adapter_percent_max")),
        Column("KiB with head", "Adapter", ("adapter_bytes_min", "adapter_bytes_max")),
        *(top1_column(d, dataset_name(d), "Test top-1 (%)") for d in grid.datasets),
    )
    body = tuple(
        (
            Cell(names[row], (row[0],)),
            *adapter_cells(grid.of_row(row)),
            *(top1_cell(grid.cells.get((row, dataset), ()), show_n=True) for dataset in grid.datasets),
        )
        for row in grid.rows
    )
    missing = "; ".join(f"{names[row]} on {dataset_name(dataset)}" for row, dataset in grid.missing())
    caption = (
        f"Benchmark {run.benchmark}: test top-1 in percent, mean ± sample standard deviation over the n seeds of each cell. "
        f"Protocol {run.protocol}, backbone {run.backbone}."
    )
    notes = (f"Missing ({DASH}): {missing}.",) if missing else ()
    return Table(caption, f"{len(grid.results)} runs", header, body, notes)


def entries_table(title: str, marks: Iterable[Mark]) -> HtmlTable:
    """The numbers of a scatter plot."""
    rows = [
        [
            HtmlCell(mark.entry.name, mark.entry.name),
            number(mark.entry.parameters, ",.0f"),
            HtmlCell(_spread(mark.entry), mark.entry.top1),
            number(mark.entry.n, "d"),
            HtmlCell("yes" if mark.on_front else "no", "yes" if mark.on_front else "no"),
        ]
        for mark in sorted(marks, key=lambda mark: mark.entry.parameters)
    ]
    titles = ["Method", "Adapter parameters", "Test top-1 (%)", "Runs", "On the front"]
    return HtmlTable(title, titles, rows, [False, True, True, True, False])


def resource_table(runs: Iterable[Run]) -> HtmlTable:
    """What finished runs cost, by dataset, method, backbone and machine."""
    groups: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for run in runs:
        if run.result:
            groups[run.dataset, run.method, run.backbone, _machine(run.result)].append(run.result)
    rows = []
    for key in sorted(groups, key=display_order):
        dataset, method, *others = key
        cells = [HtmlCell(label, label) for label in (dataset_name(dataset), method_name(method), *others)]
        cells += [_median(groups[key], value, spec) for value, spec in _RESOURCES.values()]
        rows.append([*cells, number(len(groups[key]), "d")])
    titles = ["Dataset", "Method", "Backbone", "Machine", *_RESOURCES, "Runs"]
    titled = [("", 4), ("Parameters", 3), ("", 1), ("Speed", 2), ("Peak memory (MiB)", 2), ("", 1)]
    caption = "Medians over the finished runs of both phases; the adapter's file holds the head too."
    if not all(result.trained_alone for results in groups.values() for result in results):
        caption += " Runs that were trained together with others have no speed and memory of their own and count for neither."
    return HtmlTable(caption, titles, rows, [False] * 4 + [True] * (len(titles) - 4), titled)


def open_table(runs: Iterable[Run], href: Href) -> HtmlTable:
    """Runs that failed or are not finished, with the reason."""
    rows = [
        [
            HtmlCell(run.state, run.state),
            HtmlCell(run.reason, run.reason),
            *_labels(run),
            _date(run),
            HtmlCell(str(run.folder), str(run.folder), href(run)),
        ]
        for run in sorted((run for run in runs if not run.result), key=lambda run: run.state)
    ]
    titles = ["State", "Reason", "Dataset", "Method", "Phase", "Last change (UTC)", "Folder"]
    return HtmlTable("Runs without a result.", titles, rows, [False] * len(titles))


def runs_table(runs: Iterable[Run], href: Href) -> HtmlTable:
    """Every finished run; where there are too many, the final runs first and then the best searches."""
    finished = [run for run in runs if run.result]
    finished.sort(key=lambda run: (run.phase != "final", -(run.val_top1 or 0.0)))
    rows = [
        [
            *_labels(run),
            number(run.seed, "d"),
            number(run.setting("optim.lr"), "g"),
            number(run.setting("optim.weight_decay"), "g"),
            number(run.val_top1, ".2f"),
            number(run.test_top1, ".2f"),
            number(run.result.metrics["epochs"] if run.result else None, "d"),
            HtmlCell(run.protocol, run.protocol),
            _date(run),
            HtmlCell(run.folder.name, run.folder.name, href(run)),
        ]
        for run in sorted(finished[:MAX_ROWS], key=lambda run: (*display_order((run.dataset, run.method)), run.phase))
    ]
    titles = [
        "Dataset",
        "Method",
        "Phase",
        "Seed",
        "lr",
        "wd",
        "Val top-1",
        "Test top-1",
        "Epochs",
        "Protocol",
        "Started",
        "Folder",
    ]
    left_out = len(finished) - len(rows)
    note = f"{left_out} more runs are not listed here: the final runs come first, then the best searches by val top-1."
    numeric = [False] * 3 + [True] * 6 + [False] * 3
    return HtmlTable("Finished runs.", titles, rows, numeric, notes=[note] if left_out else [])


def number(value: object, spec: str) -> HtmlCell:
    """A number as text and as what it sorts by; a dash where there is none."""
    if not isinstance(value, int | float):
        return HtmlCell(DASH)
    return HtmlCell(format(value, spec), float(value))


_RESOURCES: dict[str, tuple[Callable[[Result], float | None], str]] = {
    "Adapter": (lambda r: r.params.adapter, ",.0f"),
    "% of backbone": (lambda r: r.params.percent, ".3g"),
    "Head": (lambda r: r.params.head, ",.0f"),
    "File (KiB)": (lambda r: r.cost.adapter_bytes / 1024, ",.1f"),
    "Step (ms)": (lambda r: r.cost.step_time_ms if r.trained_alone else None, ".1f"),
    "Images/s": (lambda r: r.cost.images_per_s if r.trained_alone else None, ",.0f"),
    "Device": (lambda r: r.cost.peak_memory_mib if r.trained_alone else None, ",.0f"),
    "Process": (lambda r: r.cost.peak_rss_mib if r.trained_alone else None, ",.0f"),
}


def _median(results: Sequence[Result], value: Callable[[Result], float | None], spec: str) -> HtmlCell:
    known = [found for result in results if (found := value(result)) is not None]
    return number(median(known) if known else None, spec)


def _machine(result: Result) -> str:
    env = result.env
    if env.get("device") == "cuda":
        return str(env.get("gpu") or "cuda")
    return f"{env.get('cpu') or env.get('device')}, {env.get('threads')} thread{'s' * (env.get('threads') != 1)}"


def _labels(run: Run) -> list[HtmlCell]:
    texts = [dataset_name(run.dataset) or DASH, method_name(run.method) or DASH, run.phase or DASH]
    return [HtmlCell(text, None if text == DASH else text) for text in texts]


def _date(run: Run) -> HtmlCell:
    return HtmlCell(run.changed, run.changed)


def _spread(entry: Entry) -> str:
    return f"{entry.top1:.2f}" if entry.std is None else f"{entry.top1:.2f} ± {entry.std:.2f}"


def _ranks(table: Table, column: int) -> dict[object, str]:
    """Marks of the best and the second best value of a column, compared as printed so that equal ones share a mark."""
    printed = {value: round(value, 2) for row in table.rows if isinstance(value := row[column].values[0], int | float)}
    order = sorted(set(printed.values()), reverse=True)[:2]
    return {value: ("best", "second")[order.index(text)] for value, text in printed.items() if text in order}
