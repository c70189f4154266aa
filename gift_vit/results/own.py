"""The table of a person's own data: adapter cost, and the score on every dataset that has finished final runs."""

from gift_vit.results.cells import (
    adapter_cells,
    adapter_columns,
    label_cells,
    label_columns,
    ordered_rows,
    top1_cell,
    top1_column,
)
from gift_vit.results.collect import check_datasets
from gift_vit.results.comparison import comparison_notes
from gift_vit.results.names import dataset_name, titled
from gift_vit.results.notes import caption, grid_notes, provenance
from gift_vit.results.render import Table
from gift_vit.results.request import Request
from gift_vit.runs.result import scored_as

BENCHMARK = "own"


def own_table(request: Request) -> Table:
    """Methods against datasets of a person's own; what the scores are is said over each, as they need not be of one kind.

    Raises:
        ConfigError: As :func:`check_datasets`, :func:`build_grid` and :func:`comparison_notes` do; for published rows.
    """
    request.refuse_published(BENCHMARK)
    check_datasets(request.datasets or (), (r for r in request.results if r.run.benchmark == BENCHMARK))
    grid = request.grid(BENCHMARK)
    of = {name: [r for r in grid.results if r.run.dataset == name] for name in grid.datasets}
    scores = {name: scored_as(runs or grid.results) for name, runs in of.items()}
    columns = [top1_column(name, dataset_name(name), titled(score)) for name, score in scores.items()]
    body = tuple(
        (
            *label_cells(row),
            *adapter_cells(grid.of_row(row)),
            *(top1_cell(grid.cells.get((row, dataset), ()), grid.show_n) for dataset in grid.datasets),
        )
        for row in ordered_rows(grid)
    )
    return Table(
        caption(request.title(f"Benchmark {BENCHMARK}"), grid),
        provenance(grid),
        (*label_columns(grid.keys), *adapter_columns(), *columns),
        body,
        (*grid_notes(grid), *comparison_notes(grid, request.compare)),
        grid=grid,
    )
