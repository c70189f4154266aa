"""The table of a person's own data: adapter cost, and the score on every dataset that has finished final runs."""

from collections.abc import Iterable, Sequence

from gift_vit.results.cells import (
    adapter_cells,
    adapter_columns,
    label_cells,
    label_columns,
    ordered_rows,
    top1_cell,
    top1_column,
)
from gift_vit.results.collect import build_grid, check_datasets
from gift_vit.results.comparison import comparison_notes
from gift_vit.results.names import dataset_name, method_name, titled
from gift_vit.results.notes import caption, grid_notes, provenance
from gift_vit.results.published import PublishedRow, refuse_published
from gift_vit.results.render import Table
from gift_vit.runs.result import Result, scored_as

BENCHMARK = "own"


def own_table(
    results: Iterable[Result],
    datasets: Sequence[str] | None = None,
    method: str | None = None,
    rows: Sequence[str] = (),
    compare: Sequence[str] = (),
    published: Sequence[PublishedRow] = (),
) -> Table:
    """Methods against datasets of a person's own; what the scores are is said over each, as they need not be of one kind.

    Args:
        results: Collected runs; the final ones of benchmark ``own`` count.
        datasets: The columns; None: every dataset that occurs.
        method: The rows are of this method's runs only.
        rows: Keys of the configuration whose values make the rows, as ``method.rank``; none: a row per method.
        compare: Two rows to compare below the table.
        published: None: nobody has published numbers of this data.

    Raises:
        ConfigError: As :func:`check_datasets`, :func:`build_grid` and :func:`comparison_notes` do.
    """
    refuse_published(published, BENCHMARK)
    results = list(results)
    check_datasets(datasets or (), (r for r in results if r.run.benchmark == BENCHMARK))
    grid = build_grid((r for r in results if method in (None, r.run.method)), BENCHMARK, datasets, rows)
    of = {name: [r for r in grid.results if r.run.dataset == name] for name in grid.datasets}
    scores = {name: scored_as(runs or grid.results) for name, runs in of.items()}
    columns = [top1_column(name, dataset_name(name), titled(score)) for name, score in scores.items()]
    body = tuple(
        (
            *label_cells(row),
            *adapter_cells(grid.of_row(row)),
            *(top1_cell(grid.cells.get((row, dataset), ()), grid.show_n) for dataset in grid.datasets),
        )
        for row in ordered_rows(grid, rows)
    )
    title = f"Benchmark {BENCHMARK}{f', {method_name(method)}' if method else ''}"
    notes = (*grid_notes(grid), *comparison_notes(grid, compare))
    return Table(caption(title, grid), provenance(grid), (*label_columns(rows), *adapter_columns(), *columns), body, notes)
