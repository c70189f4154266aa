"""The GIFT paper's two tables, FGVC and VTAB-1k, with published numbers beside ours where they are asked for.

Their columns are fixed: a dataset without a run is a column of dashes, and a mean over it is one too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gift_vit.common.errors import ConfigError
from gift_vit.results.cells import (
    gpu_memory_cell,
    label_cells,
    label_columns,
    mean_cell,
    mean_top1,
    ordered_rows,
    range_cell,
    top1_cell,
    top1_column,
    trained_alone,
)
from gift_vit.results.collect import Grid, Row, build_grid
from gift_vit.results.comparison import comparison_notes
from gift_vit.results.conditions import mixed_note
from gift_vit.results.names import FGVC, VTAB, VTAB_GROUPS, method_name
from gift_vit.results.notes import caption, grid_notes, provenance
from gift_vit.results.published import VIT_B16_PARAMETERS, PublishedRow, by_conditions, is_same_experiment
from gift_vit.results.render import DASH, Block, Cell, Column, Table
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
    """

    title: str
    benchmark: str
    columns: Mapping[str, Column]
    means: Mapping[str, tuple[str, ...]]
    overall: str
    datasets: tuple[str, ...]
    explained: str

    def table(
        self,
        results: Iterable[Result],
        datasets: Sequence[str] | None = None,
        method: str | None = None,
        rows: Sequence[str] = (),
        compare: Sequence[str] = (),
        published: Sequence[PublishedRow] = (),
    ) -> Table:
        """Methods against all datasets of a benchmark: adapter size, device memory, test top-1 over seeds, and the means.

        Args:
            results: Collected runs; the final ones of the benchmark count.
            datasets: None: the table always shows all of them.
            method: The rows are of this method's runs only.
            rows: Keys of the configuration whose values make the rows, as ``method.rank``; none: a row per method.
            compare: Two rows to compare below the table.
            published: Rows to stand below ours.

        Raises:
            ConfigError: As :func:`build_grid` and :func:`comparison_notes` do; if a run is of a dataset that the benchmark does
                not have; if datasets are chosen, or published rows asked for beside rows that are no methods.
        """
        if datasets is not None:
            raise ConfigError(f"the table of {self.title} always shows its {len(self.datasets)} datasets; drop datasets=")
        if published and rows:
            raise ConfigError("published numbers stand beside methods; drop rows= or published=")
        runs = [r for r in results if method in (None, r.run.method)]
        _check_datasets(self, runs)
        grid = build_grid(runs, self.benchmark, self.datasets, rows)
        order = ordered_rows(grid, rows)
        differences = {row: _difference(self, grid, row, published) for row in order}
        compared = any(value is not None for value in differences.values())
        body = ((*_own_cells(self, grid, row), *([_difference_cell(differences[row])] if compared else [])) for row in order)
        columns = [Column("Params (%)", "", ("adapter_percent_min", "adapter_percent_max"))]
        columns += [Column("GPU mem (GiB)", "", ("gpu_memory_mib_min", "gpu_memory_mib_max")), *self.columns.values()]
        columns += [Column(f"{self.columns[self.overall].title} − published", "Difference", ("difference",))] * compared
        blocks, sources = _published_blocks(self, published, compared)
        title = f"{self.title}{f', {method_name(method)}' if method else ''}"
        return Table(
            caption(title, grid, self.explained),
            provenance(grid),
            (*label_columns(rows), *columns),
            tuple(body),
            (
                *_memory_notes(grid),
                *grid_notes(grid),
                *sources,
                *_rule_note(published, compared),
                *mixed_note((r for r in trained_alone(grid.results) if r.cost.peak_memory_mib is not None), "GPU memory"),
                *comparison_notes(grid, compare),
            ),
            blocks,
        )


def _fgvc_layout() -> Layout:
    group = "Test top-1 (%)"
    columns = {label: top1_column(label, name, group) for label, name in FGVC.items()}
    columns["mean"] = Column("Mean", group, ("mean",), ranked=True)
    return Layout("FGVC", "fgvc", columns, {"mean": tuple(FGVC)}, "mean", tuple(FGVC), "Mean: over the 5 datasets.")


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


fgvc_table = _fgvc_layout().table
vtab_table = _vtab_layout().table


def _check_datasets(layout: Layout, results: Iterable[Result]) -> None:
    for r in results:
        if (r.run.phase, r.run.benchmark) == ("final", layout.benchmark) and r.run.dataset not in layout.datasets:
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
            cells.append(top1_cell(grid.cells.get((row, key), ()), grid.show_n))
    return cells


def _value(layout: Layout, grid: Grid, row: Row, key: str) -> float | None:
    """A row's mean over seeds on a dataset, or one of its means over datasets; None unless all of it is there."""
    if key not in layout.means:
        return mean_top1(grid.cells.get((row, key), ()))
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
    return Cell(f"{round(difference, 2) + 0.0:+.2f}", (difference,))  # + 0.0: no -0.00


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
    percents = [100 * size / VIT_B16_PARAMETERS for size in row.adapter_params]
    cells = [Cell(row.name, (row.method or row.name,))]
    cells += [range_cell(percents, ".3g") if percents else Cell(DASH, (None, None)), Cell(DASH, (None, None))]
    for key, column in layout.columns.items():
        text = row.top1.get(key)
        rest = (None,) * (len(column.csv) - 1)
        cells.append(Cell(DASH, (None, *rest)) if text is None else Cell(text, (float(text), *rest)))
    return (*cells, *([_difference_cell(None)] if compared else []))


def _rule_note(published: Sequence[PublishedRow], compared: bool) -> tuple[str, ...]:
    if not published:
        return ()
    rule = "A difference to a published mean is taken only where protocol, weights, method and its size are the same"
    return (f"{rule}{'' if compared else '; no row here is such a one'}.",)


def _memory_notes(grid: Grid) -> tuple[str, ...]:
    gpus = sorted({str(r.env.get("gpu")) for r in grid.results if r.cost.peak_memory_mib is not None})
    return (f"GPU mem: peak device memory in training, on {', '.join(gpus)}.",) if gpus else ()
