"""The GIFT paper's tables, FGVC, VTAB-1k, GLUE and Commonsense170k, with published numbers where they are asked for.

Their columns are fixed: a dataset without a run is a column of dashes, and a mean over it is one too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from gift_vit.common.errors import ConfigError
from gift_vit.results.cells import (
    all_top1,
    gpu_memory_cell,
    label_cells,
    label_columns,
    mean_cell,
    ordered_rows,
    range_cell,
    score_cell,
    top1_column,
    trained_alone,
)
from gift_vit.results.collect import Grid, Row, final_datasets
from gift_vit.results.comparison import comparison_notes
from gift_vit.results.conditions import mixed_note
from gift_vit.results.names import COMMONSENSE, COMMONSENSE_COLUMNS, FGVC, GLUE, LEFT_OUT, VTAB, VTAB_GROUPS
from gift_vit.results.notes import caption, grid_notes, provenance
from gift_vit.results.published import VIT_B16_PARAMETERS, PublishedRow, by_conditions, is_same_experiment
from gift_vit.results.render import DASH, Block, Cell, Column, Table, decimal_text
from gift_vit.results.request import Request
from gift_vit.runs.result import Result


@dataclass(frozen=True)
class Layout:
    """A benchmark's table before it has numbers.

    Attributes:
        benchmark: Its name in the records of runs.
        columns: By the key under which published numbers have them: a dataset's label, or the name of a mean.
        means: Name of a mean to what it is taken over: datasets or other means.
        overall: The mean whose difference to published numbers is shown.
        datasets: Labels.
        explained: What the means are, for the caption.
        score: What the numbers are.
        by_set: The columns are no datasets but the test sets of the only one, and this is what their scores are called.
    """

    title: str
    benchmark: str
    columns: Mapping[str, Column]
    means: Mapping[str, tuple[str, ...]]
    overall: str
    datasets: tuple[str, ...]
    explained: str
    score: str | None = None
    by_set: str = ""

    def table(self, request: Request) -> Table:
        """Methods against all datasets of a benchmark: adapter size, device memory, test top-1 over seeds, and the means.

        Raises:
            ConfigError: As :func:`build_grid` and :func:`comparison_notes` do; if a run is of a dataset that the benchmark does
                not have; if datasets are chosen, or published rows asked for beside rows that are no methods.
        """
        published = request.published
        if request.datasets is not None:
            raise ConfigError(f"the table of {self.title} always shows its {len(self.datasets)} datasets; drop datasets=")
        if published and request.rows:
            raise ConfigError("published numbers stand beside methods; drop rows= or published=")
        runs = request.of_method(request.results)
        _check_datasets(self, runs)
        there = final_datasets(runs, self.benchmark)
        if published and request.alone and not there & set(self.datasets):
            return _published_alone(self, published)
        grid = request.grid(self.benchmark, self.datasets)
        order = ordered_rows(grid)
        differences = {row: _difference(self, grid, row, published) for row in order}
        compared = any(value is not None for value in differences.values())
        body = ((*_own_cells(self, grid, row), *([_difference_cell(differences[row])] if compared else [])) for row in order)
        columns = _own_columns(self)
        columns += [Column(f"{self.columns[self.overall].title} − published", "Difference", ("difference",))] * compared
        blocks, sources = _published_blocks(self, published, compared)
        return Table(
            caption(request.title(self.title), grid, self.explained, self.score),
            provenance(grid),
            (*label_columns(grid.keys), *columns),
            tuple(body),
            (
                *_memory_notes(grid),
                *grid_notes(grid),
                *sources,
                *_rule_note(published, compared),
                *mixed_note((r for r in trained_alone(grid.results) if r.cost.peak_memory_mib is not None), "GPU memory"),
                *comparison_notes(grid, request.compare),
            ),
            blocks,
            replace(grid, datasets=tuple(d for d in sorted(grid.datasets) if d in there)),
        )


def _one_mean(title: str, benchmark: str, names: Mapping[str, str], group: str, explained: str) -> Layout:
    """The layout of a benchmark with one mean, over all its columns, which are its datasets."""
    columns = {label: top1_column(label, name, group) for label, name in names.items()}
    columns["mean"] = Column("Mean", group, ("mean",), ranked=True)
    return Layout(title, benchmark, columns, {"mean": tuple(names)}, "mean", tuple(names), explained)


def _vtab_layout() -> Layout:
    columns: dict[str, Column] = {}
    means: dict[str, tuple[str, ...]] = {}
    for group, names in VTAB_GROUPS.items():
        key = f"mean_{group.lower()}"
        columns |= {label: top1_column(label, name, group) for label, name in names.items()}
        columns[key] = Column("Mean", group, (key,), ranked=True)
        means[key] = tuple(names)
    groups = tuple(means)
    means |= {"mean_19_tasks": tuple(VTAB), "mean_3_groups": groups}
    columns["mean_19_tasks"] = Column("19 tasks", "Mean of", ("mean_19_tasks",), ranked=True)
    columns["mean_3_groups"] = Column("3 group means", "Mean of", ("mean_3_groups",), ranked=True)
    explained = "Two means: over the 19 tasks, and over the means of the 3 groups."
    return Layout("VTAB-1k", "vtab1k", columns, means, "mean_19_tasks", tuple(VTAB), explained)


_OF_GLUE = {label: name for label, name in GLUE.items() if label not in LEFT_OUT}
_GLUE_SCORES = "CoLA: Matthews correlation; STS-B: Pearson's; the others: accuracy. Mean: over the 6 tasks; no QQP, no MNLI."
_ANSWERS = _one_mean("Commonsense170k", "commonsense", COMMONSENSE_COLUMNS, "Exact answers (%)", "Mean: over the 8 test sets.")

fgvc_table = _one_mean("FGVC", "fgvc", FGVC, "Test top-1 (%)", "Mean: over the 5 datasets.").table
vtab_table = _vtab_layout().table
glue_table = replace(_one_mean("GLUE", "glue", _OF_GLUE, "Dev (%)", _GLUE_SCORES), score="scores on GLUE's dev").table
commonsense_table = replace(_ANSWERS, datasets=tuple(COMMONSENSE), score="exact answers to the test sets", by_set="exact").table


def _own_columns(layout: Layout) -> list[Column]:
    columns = [Column("Params (%)", "", ("adapter_percent_min", "adapter_percent_max"))]
    return [*columns, Column("GPU mem (GiB)", "", ("gpu_memory_mib_min", "gpu_memory_mib_max")), *layout.columns.values()]


def _published_alone(layout: Layout, published: Sequence[PublishedRow]) -> Table:
    """Published numbers where there are none of ours."""
    blocks, sources = _published_blocks(layout, published, compared=False)
    columns = (*label_columns(()), *_own_columns(layout))
    title = f"{layout.title}: published numbers, in percent; no finished final run of ours. {layout.explained}"
    return Table(title, "runs: 0", columns, (), sources, blocks)


def _check_datasets(layout: Layout, results: Iterable[Result]) -> None:
    for r in results:
        known = r.run.dataset in (*layout.datasets, *LEFT_OUT)
        if (r.run.phase, r.run.benchmark) == ("final", layout.benchmark) and not known:
            raise ConfigError(
                f"{r.source} is a run of dataset {r.run.dataset}, which benchmark {layout.benchmark} does not have "
                f"(it has {', '.join(layout.datasets)}); move it away"
            )


def _own_cells(layout: Layout, grid: Grid, row: Row) -> list[Cell]:
    runs = grid.of_row(row)
    cells = [*label_cells(row), range_cell([r.params.percent for r in runs], ".3g"), gpu_memory_cell(runs)]
    for key in layout.columns:
        if key in layout.means:
            cells.append(mean_cell([_value(layout, grid, row, member) for member in layout.means[key]]))
        else:
            cells.append(score_cell(_scores(layout, grid, row, key), grid.show_n))
    return cells


def _scores(layout: Layout, grid: Grid, row: Row, key: str) -> list[float]:
    """A row's scores in a column, one for each seed."""
    if not layout.by_set:
        return all_top1(grid.cells.get((row, key), ()))
    runs = grid.cells.get((row, layout.datasets[0]), ())
    return [score for r in runs if (score := (r.extra_metrics or {}).get(f"{layout.by_set}_{key}")) is not None]


def _value(layout: Layout, grid: Grid, row: Row, key: str) -> float | None:
    """A row's mean over seeds on a dataset, or one of its means over datasets; None unless all of it is there."""
    if key not in layout.means:
        scores = _scores(layout, grid, row, key)
        return fmean(scores) if scores else None
    value = mean_cell([_value(layout, grid, row, member) for member in layout.means[key]]).values[0]
    return None if value is None else float(value)


def _difference(layout: Layout, grid: Grid, row: Row, published: Sequence[PublishedRow]) -> float | None:
    """Our overall mean less the published one of the same experiment."""
    own = _value(layout, grid, row, layout.overall)
    for candidate in published:
        theirs = candidate.top1.get(layout.overall)
        if own is not None and theirs is not None and is_same_experiment(grid.of_row(row), candidate):
            return own - float(theirs)
    return None


def _difference_cell(difference: float | None) -> Cell:
    if difference is None:
        return Cell(DASH, (None,))
    return Cell(decimal_text(difference, sign="+"), (difference,))


def _published_blocks(
    layout: Layout, published: Sequence[PublishedRow], compared: bool
) -> tuple[tuple[Block, ...], tuple[str, ...]]:
    """A block per source and conditions, and a note that says what they are."""
    blocks, notes = [], []
    for number, (conditions, rows) in enumerate(by_conditions(published), start=1):
        mark = f"[{number}]"
        blocks.append(
            Block(f"Published: {conditions.title} {mark}", tuple(_published_cells(layout, row, compared) for row in rows))
        )
        notes.append(f"{mark} {conditions.ref}; weights: {conditions.weights}; protocol: {conditions.protocol_text}.")
    return tuple(blocks), tuple(notes)


def _published_cells(layout: Layout, row: PublishedRow, compared: bool) -> tuple[Cell, ...]:
    """In the digits of the source; device memory, deviations and numbers of seeds are not among what is restated."""
    cells = [Cell(row.name, (row.method or row.name,)), _published_size(row), Cell(DASH, (None, None))]
    for key, column in layout.columns.items():
        text, std = row.top1.get(key), row.std.get(key)
        rest: tuple[float | None, ...] = (None,) * (len(column.csv) - 1)
        if text is not None and std is not None:
            cells.append(Cell(f"{text} ± {std}", (float(text), float(std), *rest[1:])))
        else:
            cells.append(Cell(DASH, (None, *rest)) if text is None else Cell(text, (float(text), *rest)))
    return (*cells, *([_difference_cell(None)] if compared else []))


def _published_size(row: PublishedRow) -> Cell:
    if row.percent:
        return Cell(row.percent, (float(row.percent),) * 2)
    percents = [100 * size / VIT_B16_PARAMETERS for size in row.adapter_params]
    return range_cell(percents, ".3g") if percents else Cell(DASH, (None, None))


def _rule_note(published: Sequence[PublishedRow], compared: bool) -> tuple[str, ...]:
    if not published:
        return ()
    rule = "A difference to a published mean is taken only where protocol, weights, method and its size are the same"
    return (f"{rule}{'' if compared else '; no row here is such a one'}.",)


def _memory_notes(grid: Grid) -> tuple[str, ...]:
    gpus = sorted({str(r.env.get("gpu")) for r in grid.results if r.cost.peak_memory_mib is not None})
    return (f"GPU mem: peak device memory in training, on {', '.join(gpus)}.",) if gpus else ()
