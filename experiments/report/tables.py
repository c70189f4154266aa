"""Every table of the page as one kind of object: what a cell shows, what it sorts by, where it leads."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from experiments.report.charts import Entry, pareto_front
from experiments.report.runs import ShownRun, display_order
from gift_vit.results.cells import top1_text, trained_alone
from gift_vit.results.conditions import mixed_note
from gift_vit.results.names import dataset_name, method_name, titled
from gift_vit.results.render import DASH, Table, ranks
from gift_vit.runs.result import Result, score_of, things_of

MAX_ROWS = 2000  # of the list of runs: browsers lay out more of them too slowly

Href = Callable[[ShownRun], str]


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
    marks = {place: ("best", "second")[rank] for place, rank in ranks(table).items()}
    rows = [
        [HtmlCell(cell.text, cell.values[0], mark=marks.get((i, j), "")) for j, cell in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    groups = [(group, len(list(members))) for group, members in groupby(column.group for column in columns)]
    titles = [column.title for column in columns]
    numeric = [not any(isinstance(row[j].values[0], str) for row in table.rows) for j in range(len(columns))]
    marked = "Bold: the best of a column; underlined: the second best. " if marks else ""
    notes = [*table.notes, f"{marked}From {table.provenance}."]
    blocks = [(block.title, [[HtmlCell(cell.text) for cell in row] for row in block.rows]) for block in table.published]
    shown = groups if any(name for name, _ in groups) else ()
    return HtmlTable(table.caption, titles, rows, numeric, shown, notes, blocks)


def entries_table(title: str, entries: Sequence[Entry], score: str) -> HtmlTable:
    """The numbers of a scatter plot."""
    front = pareto_front(entries)
    rows = [
        [
            word(entry.name),
            number(entry.parameters, ",.0f"),
            HtmlCell(top1_text(entry.top1, entry.std), entry.top1),
            number(entry.n, "d"),
            word("yes" if entry in front else "no"),
        ]
        for entry in sorted(entries, key=lambda entry: entry.parameters)
    ]
    titles = ["Method", "Adapter parameters", titled(score), "Runs", "On the front"]
    return HtmlTable(title, titles, rows, [False, True, True, True, False])


def resource_table(runs: Iterable[ShownRun]) -> HtmlTable:
    """What finished runs cost, by dataset, method, backbone and machine."""
    groups: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for run in runs:
        if run.result:
            groups[run.dataset, run.method, run.backbone, _machine(run.result)].append(run.result)
    rows, things = [], things_of(result for results in groups.values() for result in results)
    for key in sorted(groups, key=display_order):
        dataset, method, *others = key
        cells = [word(label) for label in (dataset_name(dataset), method_name(method), *others)]
        alone = trained_alone(groups[key])
        cells += [_median(groups[key], value, spec) for value, spec in _SIZES.values()]
        cells += [_median(alone, value, spec) for value, spec in _SPEEDS.values()]
        rows.append([*cells, number(len(groups[key]), "d")])
    speeds = [title.replace("Images", things.capitalize()) for title in _SPEEDS]
    titles = ["Dataset", "Method", "Backbone", "Machine", *_SIZES, *speeds, "Runs"]
    titled = [("", 4), ("Parameters", 3), ("", 1), ("Speed", 2), ("Peak memory (MiB)", 2), ("", 1)]
    text = "Medians over the finished runs of both phases; the adapter's file holds the head too."
    if any(len(trained_alone(results)) < len(results) for results in groups.values()):
        text += " Runs that were trained together with others have no speed and memory of their own and count for neither."
    for key in sorted(groups, key=display_order):
        row = f"{method_name(key[1])} on {dataset_name(key[0])}"
        text += "".join(f" {note}" for note in mixed_note(trained_alone(groups[key]), f"Speed and memory of {row}"))
    return HtmlTable(text, titles, rows, [False] * 4 + [True] * (len(titles) - 4), titled)


def open_table(runs: Iterable[ShownRun], href: Href) -> HtmlTable:
    """Runs that failed or are not finished, with the reason."""
    rows = [
        [
            word(run.state),
            word(run.reason()),
            *_labels(run),
            word(run.changed()),
            HtmlCell(str(run.run.folder), str(run.run.folder), href(run)),
        ]
        for run in sorted((run for run in runs if not run.result), key=lambda run: run.state)
    ]
    titles = ["State", "Reason", "Dataset", "Method", "Phase", "Last change (UTC)", "Folder"]
    return HtmlTable("Runs without a result.", titles, rows, [False] * len(titles))


def runs_table(runs: Iterable[ShownRun], href: Href) -> HtmlTable:
    """Every finished run; where there are too many, the final runs first and then the best searches."""
    finished = [run for run in runs if run.result]
    finished.sort(key=lambda run: (run.phase != "final", -(run.val_top1 or 0.0)))
    names = {run.score_name for run in finished}
    score, mixed = score_of(names) if names else "top-1", len(names) > 1
    rows = [
        [
            *_labels(run),
            number(run.settings.get("seed"), "d"),
            number(run.settings.get("optim.lr"), "g"),
            number(run.settings.get("optim.weight_decay"), "g"),
            *([word(run.score_name)] if mixed else []),
            number(run.val_top1, ".2f"),
            number(run.test_top1, ".2f"),
            number(run.result.metrics["epochs"] if run.result else None, "d"),
            word(run.protocol),
            word(run.changed()),
            HtmlCell(run.run.folder.name, run.run.folder.name, href(run)),
        ]
        for run in sorted(finished[:MAX_ROWS], key=lambda run: (*display_order((run.dataset, run.method)), run.phase))
    ]
    scores = [*(["Score"] if mixed else []), f"Val {score}", f"Test {score}"]
    titles = ["Dataset", "Method", "Phase", "Seed", "lr", "wd", *scores, "Epochs", "Protocol"]
    left_out = len(finished) - len(rows)
    note = f"{left_out} more runs are not listed here: the final runs come first, then the best searches by val {score}."
    numeric = [False] * 3 + [True] * 3 + [False] * mixed + [True] * 3 + [False] * 3
    return HtmlTable("Finished runs.", [*titles, "Started", "Folder"], rows, numeric, notes=[note] if left_out else [])


def word(text: str) -> HtmlCell:
    """A text that sorts by itself."""
    return HtmlCell(text, text)


def number(value: object, spec: str) -> HtmlCell:
    """A number as text and as what it sorts by; a dash where there is none."""
    if not isinstance(value, int | float):
        return HtmlCell(DASH)
    return HtmlCell(format(value, spec), float(value))


_Quantities = dict[str, tuple[Callable[[Result], float | None], str]]
_SIZES: _Quantities = {
    "Adapter": (lambda r: r.params.adapter, ",.0f"),
    "% of backbone": (lambda r: r.params.percent, ".3g"),
    "Head": (lambda r: r.params.head, ",.0f"),
    "File (KiB)": (lambda r: r.cost.adapter_bytes / 1024, ",.1f"),
}
_SPEEDS: _Quantities = {
    "Step (ms)": (lambda r: r.cost.step_time_ms, ".1f"),
    "Images/s": (lambda r: r.cost.images_per_s, ",.0f"),
    "Device": (lambda r: r.cost.peak_memory_mib, ",.0f"),
    "Process": (lambda r: r.cost.peak_rss_mib, ",.0f"),
}


def _median(results: Sequence[Result], value: Callable[[Result], float | None], spec: str) -> HtmlCell:
    known = [found for result in results if (found := value(result)) is not None]
    return number(median(known) if known else None, spec)


def _machine(result: Result) -> str:
    env = result.env
    if env.get("device") == "cuda":
        return str(env.get("gpu") or "cuda")
    return f"{env.get('cpu') or env.get('device')}, {env.get('threads')} thread{'s' * (env.get('threads') != 1)}"


def _labels(run: ShownRun) -> list[HtmlCell]:
    texts = [dataset_name(run.dataset) or DASH, method_name(run.method) or DASH, run.phase or DASH]
    return [HtmlCell(text, None if text == DASH else text) for text in texts]
